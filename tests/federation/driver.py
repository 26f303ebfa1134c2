"""Rehearses in a home until it is stopped; the test that starts it stops it."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from vitrael.server.federation.layout import RehearsalLayout
from vitrael.server.proxy import find_nginx
from vitrael.server.rehearsal import Event, rehearse

HERE = Path(__file__).resolve().parent
home, server_app = (Path(word) for word in sys.argv[1:3])
layout = RehearsalLayout(
    home,
    tuple(sys.argv[3:]),
    coordinator=(sys.executable, str(HERE / "coordinator.py"), str(server_app)),
    steward=(sys.executable, str(HERE / "echo_steward.py")),
    nginx=find_nginx(),
)
# A shell that starts a job in the background has it ignore Ctrl-C, and so would this process.
signal.signal(signal.SIGINT, signal.default_int_handler)


def show(event: Event) -> None:
    sys.stdout.write(f"{event.kind} {event.who} {event.text}\n")
    sys.stdout.flush()


try:
    rehearse(layout, on_event=show)
except KeyboardInterrupt:
    sys.stdout.write("interrupted\n")
    sys.exit(130)
