from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from vitrael.privacy.release.catalogue import publish
from vitrael.privacy.release.trust import save_trust

Releases = Any  # ReleaseFactory of tests/unit/conftest.py


@dataclass
class WebServer:
    """A catalogue served on loopback, which can be told to misbehave."""

    url: str
    answers: list[int] = field(default_factory=list)
    """Statuses to answer first, before the truth."""
    cut: list[str] = field(default_factory=list)
    """Ends of paths whose next answer stops in the middle."""
    asked: list[str] = field(default_factory=list)


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, *arguments: object, web: WebServer, directory: str) -> None:
        self.web = web
        super().__init__(*arguments, directory=directory)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self.web.asked.append(self.path)
        if self.web.answers:
            self.send_response(self.web.answers.pop(0))
            self.send_header("Retry-After", "7")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        for end in self.web.cut:
            if self.path.endswith(end):
                self.web.cut.remove(end)
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b"half")
                self.close_connection = True
                return
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def catalogue(pristine_release: Path, tmp_path: Path, releases: Releases) -> Path:
    publish(pristine_release, tmp_path / "catalogue", trust=releases.trust)
    return tmp_path / "catalogue"


@pytest.fixture
def web(catalogue: Path) -> Iterator[WebServer]:
    state = WebServer(url="")
    handler = functools.partial(_Handler, web=state, directory=str(catalogue))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        server.shutdown()
        thread.join()


@pytest.fixture
def trust_file(tmp_path: Path, releases: Releases) -> Path:
    save_trust(releases.trust, tmp_path / "trust.json")
    return tmp_path / "trust.json"
