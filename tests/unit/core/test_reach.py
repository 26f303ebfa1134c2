"""The way to a server, step by step, against real servers on loopback."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from tests.factories.tls import (
    Identity,
    Response,
    Server,
    connect_proxy,
    inspecting_proxy,
    issue,
    make_authority,
    serve_tls,
)
from vitrael.core.errors import AuthError, ConfigError, NetworkError
from vitrael.core.reach import Target, ask, certificate_days, connect, resolve

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def authority() -> Identity:
    return make_authority()


@pytest.fixture(scope="module")
def server(authority: Identity) -> Iterator[Server]:
    headers = {"date": format_datetime(NOON, usegmt=True)}
    identity = issue(authority, "127.0.0.1", valid_days=(-1, 50))
    with serve_tls(lambda _: Response(200, headers=headers), identity=identity) as server:
        yield server


def test_certificate_status_and_clock_are_told(server: Server, authority: Identity) -> None:
    answer = ask(Target.of(server.address), "/health", authorities=authority.pem.encode())
    assert answer.status == 200
    assert answer.clock == NOON
    days = (answer.certificate_ends - datetime.now(UTC)) / timedelta(days=1)
    assert 49 < days <= 50


@pytest.mark.parametrize(
    ("valid_days", "names", "said"),
    [
        ((-9, -1), ("127.0.0.1",), "it has expired"),
        ((1, 9), ("127.0.0.1",), "it is not valid yet"),
        ((-1, 9), ("other.test",), "it is for another host"),
    ],
)
def test_a_certificate_that_does_not_hold_is_named(
    authority: Identity, valid_days: tuple[float, float], names: tuple[str, ...], said: str
) -> None:
    identity = issue(authority, *names, valid_days=valid_days)
    with (
        serve_tls(lambda _: Response(), identity=identity) as server,
        pytest.raises(AuthError, match=said),
    ):
        ask(Target.of(server.address), "/", authorities=authority.pem.encode())


def test_another_authority_may_be_the_hospital_s(server: Server) -> None:
    stranger = make_authority().pem.encode()
    with pytest.raises(AuthError, match="no authority that this site trusts") as caught:
        ask(Target.of(server.address), "/", authorities=stranger)
    assert "[network].authority" in caught.value.fix


def test_what_speaks_no_tls_is_named(authority: Identity) -> None:
    with (
        serve_tls(lambda _: Response(), identity=None) as server,
        pytest.raises(NetworkError, match="does not speak TLS"),
    ):
        ask(Target.of(server.address), "/", authorities=authority.pem.encode())


def test_authorities_that_are_none_are_a_fault_of_the_home(server: Server) -> None:
    with pytest.raises(ConfigError):
        ask(Target.of(server.address), "/", authorities=b"none")


def test_a_port_that_nobody_listens_on_is_named() -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
        with pytest.raises(NetworkError, match=f"port {port} of 127.0.0.1 is not reached"):
            connect(Target("127.0.0.1", port))


def test_a_proxy_passes_and_is_named_where_it_does_not(server: Server, authority: Identity) -> None:
    pem = authority.pem.encode()
    with connect_proxy() as proxy:
        assert ask(Target.of(server.address, proxy=proxy.url), "/", authorities=pem).status == 200
        assert proxy.tunnels == [server.address]
    with (
        connect_proxy(refuse=403) as proxy,
        pytest.raises(NetworkError, match="it answered 403"),
    ):
        ask(Target.of(server.address, proxy=proxy.url), "/", authorities=pem)
    with pytest.raises(NetworkError, match=r"the proxy 127\.0\.0\.1:"):
        connect(Target.of(server.address, proxy=proxy.url))


def test_an_inspecting_proxy_is_trusted_by_its_own_authority_only(
    server: Server, authority: Identity
) -> None:
    hospital = make_authority("the hospital")
    with inspecting_proxy(hospital) as proxy:
        target = Target.of(server.address, proxy=proxy.url)
        with pytest.raises(AuthError, match="no authority"):
            ask(target, "/", authorities=authority.pem.encode())
        both = f"{authority.pem}{hospital.pem}".encode()
        assert ask(target, "/", authorities=both).status == 200


def test_a_name_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve("127.0.0.1", port=443) == 1

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(NetworkError, match=r"the name coordinator\.test is not known here"):
        resolve("coordinator.test", port=443)


def test_an_address_of_version_6_stands_in_brackets() -> None:
    assert Target.of("[::1]:8443") == Target("::1", 8443)
    assert Target.of("a.test:1", proxy="http://p.test:3128").first == ("p.test", 3128)


def test_days_of_a_certificate_file(tmp_path: Path) -> None:
    path = tmp_path / "authority.pem"
    path.write_text(make_authority().pem)
    assert 364 < certificate_days(path, now=datetime.now(UTC)) <= 365
    path.write_text("none")
    with pytest.raises(ConfigError, match="no certificate"):
        certificate_days(path, now=NOON)
    with pytest.raises(ConfigError, match="cannot be read"):
        certificate_days(tmp_path / "missing", now=NOON)
