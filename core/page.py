"""Health and numbers of a long-running command, for a monitor on this machine: loopback alone."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from vitrael.core.errors import NetworkError

_LOOPBACK: Final = "127.0.0.1"
_PATIENCE_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Health:
    """Whether all goes well, and what is told beside it."""

    is_well: bool
    status: str
    facts: Mapping[str, object]


@contextmanager
def serving_page(
    port: int, *, health: Callable[[], Health], metrics: Callable[[], bytes], setting: str
) -> Iterator[int]:
    """Answer ``GET /health`` and ``GET /metrics`` while the body runs; give the port.

    Health is 200 while all goes well and 503 elsewhere, ``metrics`` is Prometheus's text. Raises
    NetworkError, which names the ``setting`` of the port, when it is in use.
    """

    class Page(BaseHTTPRequestHandler):
        timeout = _PATIENCE_S

        def do_GET(self) -> None:
            if self.path == "/health":
                told = health()
                code = HTTPStatus.OK if told.is_well else HTTPStatus.SERVICE_UNAVAILABLE
                body = json.dumps({"status": told.status, **told.facts}).encode()
                self._say(code, body, kind="application/json")
            elif self.path == "/metrics":
                self._say(HTTPStatus.OK, metrics(), kind="text/plain; version=0.0.4; charset=utf-8")
            else:
                self._say(HTTPStatus.NOT_FOUND, b"", kind="text/plain")

        def _say(self, code: HTTPStatus, body: bytes, *, kind: str) -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def version_string(self) -> str:
            return "vitrael"

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
            """Write nothing: a monitor asks every few seconds."""

    try:
        server = ThreadingHTTPServer((_LOOPBACK, port), Page)
    except OSError as error:
        raise NetworkError(
            f"port {port} of {_LOOPBACK} is in use",
            why=error.strerror or "",
            fix=f"end the program that listens there, or choose another {setting}",
        ) from error
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="page", daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=_PATIENCE_S)
