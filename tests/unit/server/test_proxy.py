"""The configuration of the front door; what it lets through is tested with real nginx elsewhere."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.factories.enrollment import found
from vitrael.core import cli
from vitrael.core.errors import ConfigError, UsageError
from vitrael.privacy.loopback_tls import create_tls
from vitrael.server import proxy
from vitrael.server.config import OwnTls, ServerSettings
from vitrael.server.proxy import (
    check_proxy,
    default_listen,
    demand_nginx,
    find_nginx,
    proxy_command,
    proxy_files,
    render_proxy,
)
from vitrael.server.settings import utc_now

needs_nginx = pytest.mark.skipif(find_nginx() is None, reason="nginx is not installed")


@pytest.fixture
def settings(tmp_path: Path) -> ServerSettings:
    settings = found(tmp_path / "a home")
    create_tls(settings.home / "flower" / "tls", party="coordinator", now=utc_now())
    return settings


def at(settings: ServerSettings, address: str) -> ServerSettings:
    document = settings.document.model_copy(update={"address": address})
    return dataclasses.replace(settings, document=document)


@pytest.mark.parametrize(
    ("address", "listen"),
    [
        ("127.0.0.1:8443", "127.0.0.1:8443"),
        ("localhost:8443", "127.0.0.1:8443"),
        ("vitrael.example:443", "0.0.0.0:443"),
        ("[::1]:8443", "[::1]:8443"),
    ],
)
def test_door_of_a_rehearsal_is_on_loopback_alone(
    settings: ServerSettings, address: str, listen: str
) -> None:
    assert default_listen(at(settings, address)) == (listen,)
    text = render_proxy(at(settings, address), proxy_files(settings))
    assert f"listen {listen} ssl;" in text


def test_certificate_is_that_of_the_operator_who_brings_one(
    settings: ServerSettings, tmp_path: Path
) -> None:
    own = OwnTls(certificate=tmp_path / "c.pem", key=tmp_path / "k.pem", authority=tmp_path / "a")
    document = settings.document.model_copy(update={"tls": own})
    place = proxy_files(dataclasses.replace(settings, document=document))
    assert (place.certificate, place.key) == (own.certificate, own.key)
    place = proxy_files(settings)
    assert place.certificate == settings.tls / "server.pem"


def test_service_unit_reads_credentials_and_writes_its_own_folder(settings: ServerSettings) -> None:
    run, state = Path("/run/credentials/x"), Path("/var/lib/x")
    text = render_proxy(settings, proxy_files(settings, credentials=run, state=state))
    assert str(settings.home) not in text
    assert f'ssl_certificate_key "{run}/server.key";' in text
    assert f'pid "{state}/nginx.pid";' in text


@pytest.mark.parametrize("address", ["443", "example.org:443", "0.0.0.0:70000", "0.0.0.0:443;"])
def test_address_that_is_none_is_refused(settings: ServerSettings, address: str) -> None:
    with pytest.raises(UsageError, match="no address to listen at"):
        render_proxy(settings, proxy_files(settings), listen=(address,))


@pytest.mark.parametrize("name", ["a$b", 'a"b', "a\\b", "a\nb"])
def test_path_that_would_change_the_configuration_is_refused(
    settings: ServerSettings, name: str
) -> None:
    with pytest.raises(UsageError, match="cannot stand in nginx's configuration"):
        render_proxy(settings, proxy_files(settings, state=Path("/srv") / name))


@needs_nginx
def test_nginx_accepts_what_is_written_and_says_what_it_does_not(
    settings: ServerSettings, tmp_path: Path
) -> None:
    program, place, file = demand_nginx(), proxy_files(settings), tmp_path / "vitrael.conf"
    file.write_text(render_proxy(settings, place, listen=("0.0.0.0:8443", "[::1]:8443")))
    check_proxy(program, file, place)
    assert proxy_command(program, file, place)[-1] == "daemon off;"
    file.write_text(file.read_text().replace("server_tokens off;", "server_tokens perhaps;"))
    with pytest.raises(ConfigError, match=r"nginx refuses .*perhaps"):
        check_proxy(program, file, place)


def test_machine_without_nginx_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy.shutil, "which", lambda *_, **__: None)
    with pytest.raises(UsageError, match="nginx is not installed"):
        demand_nginx()


def test_command_writes_the_file_and_a_dry_run_prints_it(
    settings: ServerSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out.conf"
    words = ["server", "proxy-config", "--home", str(settings.home), "--output", str(file)]
    assert cli.run([*words, "--dry-run"]) == 0
    assert not file.exists()
    printed = capsys.readouterr().out
    assert cli.run(words) == 0
    assert file.read_text() == printed
    assert cli.run([*words, "--yes", "--listen", "nowhere"]) == 2
    assert file.read_text() == printed
