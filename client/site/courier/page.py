"""``GET /health`` and ``GET /metrics`` of a site, on loopback and on nothing else."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from vitrael.client.site.courier.layout import LOOPBACK
from vitrael.core.errors import NetworkError

_PATIENCE_S = 5.0

Health = Callable[[], Mapping[str, bool]]
"""Tells what runs; all must for the site to be well."""


@contextmanager
def serve_page(port: int, *, health: Health, metrics: Callable[[], bytes]) -> Iterator[int]:
    """Answer on a port of loopback until the block ends, and give the port.

    ``/health`` is 200 where all of ``health()`` holds and 503 elsewhere. Raises NetworkError when
    the port is in use.
    """

    class Page(BaseHTTPRequestHandler):
        timeout = _PATIENCE_S

        def do_GET(self) -> None:
            if self.path == "/health":
                told = dict(health())
                well = all(told.values())
                status = HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE
                body = json.dumps({"status": "ok" if well else "degraded", **told}).encode()
                self._answer(status, body, kind="application/json")
            elif self.path == "/metrics":
                self._answer(HTTPStatus.OK, metrics(), kind="text/plain; version=0.0.4")
            else:
                self._answer(HTTPStatus.NOT_FOUND, b"", kind="text/plain")

        def _answer(self, status: HTTPStatus, body: bytes, *, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's
            """Say nothing: who asks how a site is stands in no log."""

    try:
        server = ThreadingHTTPServer((LOOPBACK, port), Page)
    except OSError as error:
        raise NetworkError(
            f"port {port} of {LOOPBACK} is in use",
            why=error.strerror or "",
            fix="choose another [network].metrics_port in site.toml",
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
