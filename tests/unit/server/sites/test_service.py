"""What the enrollment service shows to whoever reaches it: two doors, and errors in one form."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from tests.factories.enrolling import JoiningSite
from tests.fakes.clock import FakeClock
from vitrael.core.errors import StorageError
from vitrael.privacy.envelope import open_standing
from vitrael.privacy.keys import KeyPair
from vitrael.server.config import ServerSettings
from vitrael.server.sites import service
from vitrael.server.sites.desk import Desk
from vitrael.server.sites.registry import Registry
from vitrael.server.sites.service import MOST_BYTES, create_app

JOIN, WORD = "/v1/enrollment/join", "/v1/enrollment/word"


class Caller:
    """Calls an application in this process, as a server would."""

    def __init__(self, app: FastAPI, runner: asyncio.Runner) -> None:
        self.app = app
        self.runner = runner

    def request(self, method: str, path: str, content: bytes | None = None) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
                return await client.request(method, path, content=content)

        return self.runner.run(ask())

    def post(self, path: str, content: bytes) -> httpx.Response:
        return self.request("POST", path, content)


@contextmanager
def calling(app: FastAPI) -> Iterator[Caller]:
    """Yield a caller between the application's start and end."""
    with asyncio.Runner() as runner:
        lifespan = app.router.lifespan_context(app)
        runner.run(lifespan.__aenter__())
        try:
            yield Caller(app, runner)
        finally:
            runner.run(lifespan.__aexit__(None, None, None))


@pytest.fixture
def client(settings: ServerSettings, clock: FakeClock) -> Iterator[Caller]:
    with calling(create_app(settings, clock)) as caller:
        yield caller


def error(answer: httpx.Response) -> dict[str, object]:
    assert answer.headers["content-type"] == "application/json"
    document = answer.json()
    assert list(document) == ["error"]
    assert list(document["error"]) == ["what", "why", "fix", "exit_code"]
    return dict(document["error"])


def test_a_site_joins_and_asks_how_things_stand(
    client: Caller, settings: ServerSettings, registry: Registry, north: JoiningSite
) -> None:
    coordinator = KeyPair.load(settings.keys).public
    answer = client.post(JOIN, content=north.join(registry.invite("north").token))
    assert answer.status_code == 200
    assert open_standing(answer.content, coordinator).status == "pending"
    registry.approve("north", fingerprint=north.fingerprint)
    answer = client.post(WORD, content=north.word())
    assert open_standing(answer.content, coordinator).members == {"north": north.keys.public}


def test_a_refusal_says_what_why_and_what_to_do(client: Caller, north: JoiningSite) -> None:
    answer = client.post(JOIN, content=north.join("0" * 64))
    assert answer.status_code == 403
    assert error(answer) == {
        "what": "the token is unknown",
        "why": "this coordinator did not issue it, or it was changed on its way",
        "fix": "ask the coordinator for a new invitation",
        "exit_code": 4,
    }
    answer = client.post(WORD, content=b"{}")
    assert (answer.status_code, error(answer)["exit_code"]) == (400, 4)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/docs", 404),
        ("GET", "/redoc", 404),
        ("GET", "/openapi.json", 404),
        ("POST", "/v1/enrollment", 404),
        ("POST", "/v1/control/list-nodes", 404),
        ("GET", JOIN, 405),
        ("PUT", WORD, 405),
        ("POST", "/health", 405),
    ],
)
def test_nothing_else_is_shown(client: Caller, method: str, path: str, status: int) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    error(answer)


def test_health_says_no_more_than_that(client: Caller) -> None:
    assert client.request("GET", "/health").json() == {"status": "ok"}


def test_a_body_that_is_too_large_is_refused(client: Caller) -> None:
    assert client.post(JOIN, content=b" " * (MOST_BYTES + 1)).status_code == 413
    assert client.post(JOIN, content=b" " * MOST_BYTES).status_code == 400


def test_a_stranger_who_asks_often_keeps_no_site_out(
    client: Caller, registry: Registry, north: JoiningSite
) -> None:
    guesses = [client.post(JOIN, content=north.join(f"{n:064x}")) for n in range(40)]
    words = [client.post(WORD, content=b"{}") for _ in range(120)]
    assert {answer.status_code for answer in guesses} == {403}
    assert {answer.status_code for answer in words} == {400}
    token = registry.invite("north").token
    assert client.post(JOIN, content=north.join(token)).status_code == 200
    assert client.post(WORD, content=north.word()).status_code == 200


@pytest.mark.parametrize(
    ("failure", "status"),
    [(StorageError("no space in /srv/secret", why="disk full"), 503), (KeyError("secret"), 500)],
)
def test_our_own_failure_tells_nothing_of_us(
    settings: ServerSettings,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    failure: Exception,
    status: int,
) -> None:
    def fail(_desk: Desk, _data: bytes) -> bytes:
        raise failure

    monkeypatch.setattr(Desk, "word", fail)
    with calling(create_app(settings, clock)) as client:
        answer = client.post(WORD, content=b"{}")
    assert answer.status_code == status
    assert error(answer)["exit_code"] == 5
    assert "secret" not in answer.text


def test_a_body_that_does_not_come_to_its_end_is_given_up(
    client: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_BODY_S", 0.01)

    async def ask() -> httpx.Response:
        async def body() -> AsyncIterator[bytes]:
            yield b"{"
            await asyncio.Event().wait()

        transport = httpx.ASGITransport(client.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as asking:
            return await asyncio.wait_for(asking.post(JOIN, content=body()), timeout=30)

    answer = client.runner.run(ask())
    assert answer.status_code == 408
    error(answer)


def test_a_real_server_on_loopback_tells_no_version(
    settings: ServerSettings, clock: FakeClock, registry: Registry, north: JoiningSite
) -> None:
    config = uvicorn.Config(
        create_app(settings, clock), port=0, log_config=None, server_header=False, ws="none"
    )
    server = uvicorn.Server(config)
    request = north.join(registry.invite("north").token)

    async def ask() -> list[httpx.Response]:
        async with asyncio.timeout(60):
            serving = asyncio.create_task(server.serve())
            while not server.started:  # noqa: ASYNC110 - it has no event to wait for
                await asyncio.sleep(0.01)
            port = server.servers[0].sockets[0].getsockname()[1]
            url = f"http://127.0.0.1:{port}"
            async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
                answers = [
                    await client.get("/health"),
                    await client.get("/x"),
                    await client.post(JOIN, content=request),
                ]
            server.should_exit = True
            await serving
            return answers

    answers = asyncio.run(ask())
    assert [answer.status_code for answer in answers] == [200, 404, 200]
    for answer in answers:
        assert "server" not in answer.headers
        for word in ("fastapi", "starlette", "uvicorn", "0.1.0"):
            assert word not in (str(answer.headers) + answer.text).lower()
