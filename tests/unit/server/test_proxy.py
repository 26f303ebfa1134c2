"""The configuration of the front door; what it lets through is tested with real nginx elsewhere."""

from __future__ import annotations

import dataclasses
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from tests.factories.courier import wait_for
from tests.factories.enrollment import found
from vitrael.core import cli
from vitrael.core.digest import digest_bytes
from vitrael.core.errors import ConfigError, UsageError
from vitrael.privacy.loopback_tls import TlsFiles, create_tls
from vitrael.server import proxy
from vitrael.server.config import OwnTls, ServerSettings
from vitrael.server.federation.processes import free_ports
from vitrael.server.proxy import (
    ProxyFiles,
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


@contextmanager
def running_nginx(
    settings: ServerSettings, folder: Path, *, changed: Mapping[str, str] | None = None
) -> Iterator[tuple[str, ProxyFiles]]:
    """Run nginx, with words of its file replaced; give its address and its files."""
    address, place, file = f"127.0.0.1:{free_ports(1)[0]}", proxy_files(settings), folder / "x.conf"
    text = render_proxy(settings, place, listen=(address,))
    for old, new in (changed or {}).items():
        assert old in text
        text = text.replace(old, new)
    file.write_text(text)
    place.state.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        proxy_command(demand_nginx(), file, place), stdout=subprocess.DEVNULL
    )
    try:
        wait_for((place.state / "nginx.pid").exists, seconds=20)
        yield address, place
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=10)


@needs_nginx
def test_strangers_fill_no_log_and_a_node_in_a_hurry_is_let_through(
    settings: ServerSettings, tmp_path: Path
) -> None:
    with (
        running_nginx(settings, tmp_path) as (address, place),
        httpx.Client(verify=False, trust_env=False, base_url=f"https://{address}") as client,  # noqa: S501
    ):
        nowhere = {client.get(f"/nothing-{number}").status_code for number in range(300)}
        node = {client.post("/v1/fleet/pull-messages").status_code for _ in range(150)}
        assert client.put("/v1/fleet/pull-messages").status_code == 403
        large = client.post("/v1/fleet/push-object", content=bytes(11 << 20)).status_code
    assert (nowhere, node, large) == ({404}, {502}, 502)  # nobody is behind the door
    log = (place.state / "access.log").read_text()
    assert "nothing" not in log
    assert log.count('POST "/v1/fleet/pull-messages" 502') == 150  # the control: that is told


@needs_nginx
def test_bodies_that_trickle_in_are_bounded_for_each_caller_and_for_all(
    settings: ServerSettings, tmp_path: Path
) -> None:
    few = {
        "limit_conn callers 64;": "limit_conn callers 2;",
        "limit_conn all 256;": "limit_conn all 3;",
        "proxy_connect_timeout 10s;": "proxy_connect_timeout 60s;",  # nobody greets it behind
    }
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    head = b"POST /v1/fleet/push-object HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\nx"
    with (
        socket.create_server(("127.0.0.1", settings.document.ports.superlink)) as behind,
        running_nginx(settings, tmp_path, changed=few) as (address, _),
        ExitStack() as held,
    ):
        behind.settimeout(20)
        host, port = address.split(":")

        def trickle(origin: str) -> ssl.SSLSocket:
            caller = socket.create_connection((host, int(port)), 20, source_address=(origin, 0))
            wrapped = held.enter_context(context.wrap_socket(held.enter_context(caller)))
            wrapped.sendall(head)
            return wrapped

        def is_handed_on(origin: str) -> None:
            trickle(origin)
            held.enter_context(behind.accept()[0])

        is_handed_on("127.0.0.2")
        is_handed_on("127.0.0.2")
        assert trickle("127.0.0.2").recv(12) == b"HTTP/1.1 429"
        is_handed_on("127.0.0.3")  # the control: another caller is let through, while one may
        assert trickle("127.0.0.3").recv(12) == b"HTTP/1.1 429"


@contextmanager
def superlink(settings: ServerSettings) -> Iterator[None]:
    """Answer where the SuperLink does, with the digest of what was posted."""

    class Digesting(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            said = digest_bytes(self.rfile.read(int(self.headers["Content-Length"]))).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_request(self, *_: object) -> None:
            """Write nothing."""

    files = TlsFiles.of(settings.home / "flower" / "tls")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    with ThreadingHTTPServer(("127.0.0.1", settings.document.ports.superlink), Digesting) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join(timeout=10)


@needs_nginx
def test_piece_of_a_tensor_is_handed_on_whole_while_it_comes(
    settings: ServerSettings, tmp_path: Path
) -> None:
    piece = bytes(range(256)) * (5 << 12)
    with (
        superlink(settings),
        running_nginx(settings, tmp_path) as (address, place),
        httpx.Client(verify=False, trust_env=False, base_url=f"https://{address}") as client,  # noqa: S501
    ):
        for _ in range(4):
            assert client.post("/v1/fleet/push-object", content=piece).text == digest_bytes(piece)
    assert "proxy_request_buffering off;" in render_proxy(settings, place)


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


def test_command_before_the_first_start_says_what_nginx_lacks(
    settings: ServerSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lacking = settings.home / "flower" / "tls"
    lacking.rename(tmp_path / "kept")
    words = ["server", "proxy-config", "--home", str(settings.home), "--yes"]
    words += ["--output", str(tmp_path / "out.conf")]
    assert cli.run(words) == 0
    told = capsys.readouterr().err
    assert f"there is no {lacking}" in told
    assert "Run `vitrael server up` once before nginx" in told
    assert (settings.home / "proxy").is_dir()  # nginx writes there and does not make it
    (tmp_path / "kept").rename(lacking)
    assert cli.run(words) == 0
    assert "there is no" not in capsys.readouterr().err
