"""The process in which the enrollment service answers, on loopback behind the reverse proxy.

It is apart from the coordinator's own so that nothing a stranger sends reaches the process that
holds the study.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import uvicorn

from vitrael.core.logs import configure_logging
from vitrael.server.config import load_server
from vitrael.server.federation.flower_home import LOOPBACK
from vitrael.server.settings import utc_now
from vitrael.server.sites.service import create_app

_MOST_AT_ONCE = 64
_KEEP_ALIVE_S = 90
"""Longer than the proxy keeps a connection, so that it is the proxy that closes."""


def main() -> None:
    """Serve the home of ``--home`` until SIGTERM."""
    parser = argparse.ArgumentParser(prog="vitrael-enrollment")
    parser.add_argument("--home", type=Path, required=True)
    settings = load_server(parser.parse_args().home)
    with configure_logging():
        uvicorn.run(
            create_app(settings, clock=utc_now),
            host=LOOPBACK,
            port=settings.document.ports.enrollment,
            log_config=None,
            access_log=False,
            server_header=False,
            ws="none",
            proxy_headers=False,
            limit_concurrency=_MOST_AT_ONCE,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=5,
        )


if __name__ == "__main__":
    main()
