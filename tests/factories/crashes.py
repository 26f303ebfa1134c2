"""Crashes of the processes of a rehearsal."""

from __future__ import annotations

import os
import signal

from vitrael.server.rehearsal import Rehearsal


def crash(rehearsal: Rehearsal, who: str) -> None:
    """Kill a process by its name, such as ``site north: steward``, and wait for its end."""
    child = rehearsal.group.children[who]
    os.kill(child.pid, signal.SIGKILL)
    child.process.wait(timeout=10)


def crash_server_app(rehearsal: Rehearsal) -> None:
    """Kill the running ServerApp."""
    state = rehearsal.state()
    assert state is not None
    assert state.status == "running"
    os.kill(state.pid, signal.SIGKILL)
