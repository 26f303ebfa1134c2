"""The stand-in for nginx lets through what nginx lets through."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.factories.enrollment import found
from vitrael.privacy.loopback_tls import create_tls
from vitrael.server.config import ServerSettings
from vitrael.server.front import make_front
from vitrael.server.settings import utc_now


@pytest.fixture
def settings(tmp_path: Path) -> ServerSettings:
    settings = found(tmp_path / "home")
    create_tls(settings.home / "flower" / "tls", party="coordinator", now=utc_now())
    return settings


@dataclass
class Front:
    """Asks the app without a socket of its own."""

    settings: ServerSettings

    def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(make_front(self.settings))
            async with httpx.AsyncClient(transport=transport, base_url="https://door") as client:
                return await client.request(method, path, **more)

        return asyncio.run(ask())

    def post(self, path: str, **more: Any) -> httpx.Response:
        return self.request("POST", path, **more)


@pytest.fixture
def front(settings: ServerSettings) -> Front:
    return Front(settings)


@contextmanager
def echoing(port: int) -> Iterator[None]:
    """Answer on a port with path, one header and body of what was asked."""

    class Echo(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            said = f"{self.path} {self.headers['flwr-signature']} ".encode() + body
            self.send_response(403)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_request(self, *_: object) -> None:
            """Write nothing."""

        def log_error(self, *_: object) -> None:
            """Write nothing."""

    with HTTPServer(("127.0.0.1", port), Echo) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/list-nodes",
        "/v1/runtime/acquire-task",
        "/v1/fleet/a/b",
        "/v1/fleet/..%2fcontrol%2flist-nodes",
        "/v1/fleet/UP",
        "/docs",
        "/openapi.json",
        "/",
    ],
)
def test_nothing_else_is_handed_on(front: Front, path: str) -> None:
    assert front.post(path).status_code in {404, 405}
    assert front.request("GET", path).status_code in {404, 405}


def test_request_and_answer_are_handed_on_as_they_are(
    front: Front, settings: ServerSettings
) -> None:
    assert front.post("/v1/enrollment/join").status_code == 502  # nobody is there yet
    with echoing(settings.document.ports.enrollment):
        answer = front.post(
            "/v1/enrollment/join?a=b", content=b"body", headers={"flwr-signature": "s"}
        )
    assert (answer.status_code, answer.text) == (403, "/v1/enrollment/join s body")


def test_superlink_without_its_certificate_gets_nothing(
    front: Front, settings: ServerSettings
) -> None:
    with echoing(settings.document.ports.superlink):  # in the clear
        assert front.post("/v1/fleet/pull-messages", content=b"secret").status_code == 502


def test_body_that_is_too_large_is_not_handed_on(front: Front) -> None:
    assert front.post("/v1/fleet/push-object", content=b"x" * (13 << 20)).status_code == 413
