"""What a network does to a site is told in one sentence, by real connections."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.factories.tls import (
    Identity,
    Request,
    Response,
    connect_proxy,
    inspecting_proxy,
    issue,
    make_authority,
    serve_tls,
)
from vitrael.client.site.enrollment.link import Patience, open_link, post
from vitrael.client.site.settings import Network, SiteDocument, SiteSettings
from vitrael.core.errors import AuthError, ConfigError, NetworkError, VitraelError

ONCE = Patience(total_s=0)
NOW = datetime(2031, 5, 1, 12, tzinfo=UTC)


def echo(request: Request) -> Response:
    return Response(body=b"heard " + request.body)


def home_of(
    path: Path,
    *,
    address: str,
    authority: Identity,
    proxy: str | None = None,
    inspection: Identity | None = None,
) -> SiteSettings:
    (path / "authority.pem").write_text(authority.pem)
    if inspection is not None:
        (path / "inspection.pem").write_text(inspection.pem)
    network = Network(proxy=proxy, authority=path / "inspection.pem" if inspection else None)
    return SiteSettings(path, SiteDocument(name="north", address=address, network=network))


def ask(settings: SiteSettings, *, patience: Patience = ONCE, **parts: Any) -> bytes:
    parts = {"clock": lambda: NOW, "tell": lambda _: None, **parts}
    return post(open_link(settings), "word", lambda: b"{}", patience=patience, **parts)


def test_answer_of_the_coordinator_is_returned(
    tmp_path: Path, authority: Identity, identity: Identity
) -> None:
    with serve_tls(echo, identity=identity) as server:
        settings = home_of(tmp_path, address=server.address, authority=authority)
        assert ask(settings) == b"heard {}"
    assert [(r.method, r.path) for r in server.requests] == [("POST", "/v1/enrollment/word")]


CERTIFICATES: dict[str, tuple[Callable[[Identity], Identity | None], str]] = {
    "another host": (lambda ours: issue(ours, "10.9.8.7"), r"is for another host.*127\.0\.0\.1"),
    "another name": (lambda ours: issue(ours, "other.example"), "is for another host"),
    "another authority": (
        lambda _: issue(make_authority("others")),
        r"not trusted.*no authority that this site trusts.*--authority",
    ),
    "self-signed": (lambda _: issue(None), "not trusted: it is signed by itself alone"),
    "expired": (lambda ours: issue(ours, valid_days=(-9, -2)), "has expired.*clock says 2031-05"),
    "not yet valid": (lambda ours: issue(ours, valid_days=(2, 9)), "not valid yet.*set the clock"),
    "no TLS": (lambda _: None, "no TLS is spoken.*nothing was sent"),
}


@pytest.mark.parametrize("case", CERTIFICATES)
def test_server_that_proves_nothing_is_not_spoken_to(
    tmp_path: Path, authority: Identity, case: str
) -> None:
    make, words = CERTIFICATES[case]
    with serve_tls(echo, identity=make(authority)) as server:
        settings = home_of(tmp_path, address=server.address, authority=authority)
        with pytest.raises(AuthError, match=words) as caught:
            ask(settings, patience=Patience())  # and it is not tried again
    assert caught.value.exit_code == 4
    assert server.requests == []


def test_name_that_the_certificate_bears_is_believed(tmp_path: Path, authority: Identity) -> None:
    with serve_tls(echo, identity=issue(authority, "localhost")) as server:
        settings = home_of(tmp_path, address=f"localhost:{server.port}", authority=authority)
        assert ask(settings) == b"heard {}"


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_refused_connection_is_tried_again_and_told(tmp_path: Path, authority: Identity) -> None:
    settings = home_of(tmp_path, address=f"127.0.0.1:{closed_port()}", authority=authority)
    told: list[str] = []
    moments = iter((0.0, 1.0, 50.0, 88.0))
    slept: list[float] = []
    patience = Patience(monotonic=lambda: next(moments), sleep=slept.append)
    with pytest.raises(NetworkError, match=r"refused the connection.*firewall") as caught:
        ask(settings, patience=patience, tell=told.append)
    assert caught.value.exit_code == 5
    assert slept == [3.0, 3.0]
    (line,) = told  # each attempt fails alike
    assert "Trying again for 89 s" in line


@pytest.mark.parametrize("with_proxy", [False, True])
@pytest.mark.parametrize(
    ("number", "words", "attempts"),
    [(socket.EAI_NONAME, "no name server knows", 1), (socket.EAI_AGAIN, "no name server ans", 2)],
)
def test_name_that_is_not_resolved_is_told(
    tmp_path: Path,
    authority: Identity,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    words: str,
    attempts: int,
    *,
    with_proxy: bool,
) -> None:
    asked: list[str] = []

    def resolve(host: bytes, *_: object, **__: object) -> None:
        asked.append(host.decode())
        raise socket.gaierror(number, "no")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    proxy = "http://proxy.hospital:3128" if with_proxy else None
    settings = home_of(
        tmp_path, address="coordinator.example:443", authority=authority, proxy=proxy
    )
    moments = iter((0.0, 1.0, 90.0))
    patience = Patience(monotonic=lambda: next(moments), sleep=lambda _: None)
    who = "proxy" if with_proxy else "coordinator"
    with pytest.raises(NetworkError, match=f"the name of the {who}.*{words}"):
        ask(settings, patience=patience)
    assert asked == ["proxy.hospital" if with_proxy else "coordinator.example"] * attempts


@pytest.mark.parametrize(
    "response", [None, Response(body=b"x" * 4000, pace_s=0.01)], ids=["silent", "dripping"]
)
def test_no_answer_is_waited_for_without_end(
    tmp_path: Path, authority: Identity, identity: Identity, response: Response | None
) -> None:
    with serve_tls(lambda _: response, identity=identity) as server:
        settings = home_of(tmp_path, address=server.address, authority=authority)
        with pytest.raises(NetworkError, match="did not answer in time"):
            ask(settings, patience=Patience(total_s=0, attempt_s=2))


def test_what_may_have_been_heard_is_composed_anew(
    tmp_path: Path, authority: Identity, identity: Identity
) -> None:
    answers = iter((Response(503), Response(body=b"yes")))
    with serve_tls(lambda _: next(answers), identity=identity) as server:
        link = open_link(home_of(tmp_path, address=server.address, authority=authority))
        bodies = iter((b"first", b"second"))
        patience = Patience(sleep=lambda _: None)
        found = post(
            link,
            "word",
            lambda: next(bodies),
            clock=lambda: NOW,
            tell=lambda _: None,
            patience=patience,
        )
    assert found == b"yes"
    assert [request.body for request in server.requests] == [b"first", b"second"]


def test_what_the_coordinator_says_is_told(
    tmp_path: Path, authority: Identity, identity: Identity
) -> None:
    said = b'{"error": {"what": "the token has expired\\u0007", "why": "it is old", "fix": "ask"}}'
    with serve_tls(lambda _: Response(403, said), identity=identity) as server:
        settings = home_of(tmp_path, address=server.address, authority=authority)
        with pytest.raises(AuthError, match="refused: the token has expired : it is old"):
            ask(settings)


@pytest.mark.parametrize("body", [b"<h1>403</h1>", b'{"error": 1}', b"[" * 90_000])
def test_answer_of_something_else_is_no_word_of_the_coordinator(
    tmp_path: Path, authority: Identity, identity: Identity, body: bytes
) -> None:
    with serve_tls(lambda _: Response(403, body), identity=identity) as server:
        settings = home_of(tmp_path, address=server.address, authority=authority)
        with pytest.raises(NetworkError, match=r"no enrollment service answers.*403"):
            ask(settings)


def test_too_large_an_answer_is_not_read(
    tmp_path: Path, authority: Identity, identity: Identity
) -> None:
    large = Response(body=bytes((8 << 20) + 1))
    with serve_tls(lambda _: large, identity=identity) as server:
        settings = home_of(tmp_path, address=server.address, authority=authority)
        with pytest.raises(NetworkError, match="too large"):
            ask(settings)


@pytest.mark.parametrize(("minutes", "words"), [(10, "10 min behind"), (-10, "10 min ahead of")])
def test_clock_that_differs_is_told_with_a_refusal(
    tmp_path: Path, authority: Identity, identity: Identity, minutes: int, words: str
) -> None:
    date = format_datetime(NOW + timedelta(minutes=minutes))
    told: list[str] = []
    with serve_tls(lambda _: Response(403, headers={"date": date}), identity=identity) as server:
        settings = home_of(tmp_path, address=server.address, authority=authority)
        with pytest.raises(VitraelError):
            ask(settings, tell=told.append)
    assert len(told) == 1
    assert words in told[0]


def test_proxy_alone_knows_the_coordinator(tmp_path: Path, authority: Identity) -> None:
    identity = issue(authority, "coordinator.example")
    address = "coordinator.example:443"
    with (
        serve_tls(echo, identity=identity) as server,
        connect_proxy(routes={address: server.port}) as proxy,
    ):
        settings = home_of(tmp_path, address=address, authority=authority, proxy=proxy.url)
        assert ask(settings) == b"heard {}"
    assert proxy.tunnels == [address]
    assert proxy.up_bytes > 0


def test_environment_names_no_proxy(
    tmp_path: Path, authority: Identity, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port()}")
    with serve_tls(echo, identity=identity) as server:
        settings = home_of(tmp_path, address=server.address, authority=authority)
        assert ask(settings) == b"heard {}"
        with pytest.raises(httpx.ConnectError):  # the control: these variables do say something
            httpx.get(f"https://{server.address}/", verify=False, trust_env=True)  # noqa: S501


@pytest.mark.parametrize(
    ("status", "words"), [(407, "it asks for a password"), (403, "it answered 403")]
)
def test_proxy_that_refuses_is_told_apart(
    tmp_path: Path, authority: Identity, status: int, words: str
) -> None:
    with connect_proxy(refuse=status) as proxy:
        settings = home_of(
            tmp_path, address="coordinator.example:443", authority=authority, proxy=proxy.url
        )
        with pytest.raises(NetworkError, match=rf"the proxy .* refused the tunnel: {words}"):
            ask(settings, patience=Patience())
    assert len(proxy.tunnels) == 1


def test_proxy_that_is_not_there_is_told_apart(tmp_path: Path, authority: Identity) -> None:
    proxy = f"http://127.0.0.1:{closed_port()}"
    settings = home_of(tmp_path, address="c.example:443", authority=authority, proxy=proxy)
    with pytest.raises(NetworkError, match=r"the proxy .* refused the connection"):
        ask(settings)


def test_inspecting_proxy_is_believed_with_its_authority_alone(
    tmp_path: Path, authority: Identity, identity: Identity
) -> None:
    hospital = make_authority("the hospital")
    stack: AbstractContextManager[Any] = serve_tls(echo, identity=identity)
    with stack as server, inspecting_proxy(hospital) as proxy:
        parts: dict[str, Any] = {
            "address": server.address,
            "authority": authority,
            "proxy": proxy.url,
        }
        with pytest.raises(AuthError, match=r"not trusted.*--authority FILE"):
            ask(home_of(tmp_path, **parts))
        assert server.requests == []
        assert ask(home_of(tmp_path, **parts, inspection=hospital)) == b"heard {}"


@pytest.mark.parametrize("text", ["", "no certificate", "\xff"])
def test_damaged_authority_is_a_fault_of_the_home(
    tmp_path: Path, authority: Identity, text: str
) -> None:
    settings = home_of(tmp_path, address="127.0.0.1:1", authority=authority)
    open_link(settings)
    (tmp_path / "authority.pem").write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=r"authority.pem cannot be used: it holds no certificate"):
        open_link(settings)


def test_home_without_an_address_has_not_joined(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="vitrael site join"):
        open_link(SiteSettings(tmp_path, SiteDocument(name="north")))
