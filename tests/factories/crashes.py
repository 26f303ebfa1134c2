"""Crashes of the processes of a rehearsal."""

from __future__ import annotations

import json
import os
import signal

import psutil

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


def crash_supernode(rehearsal: Rehearsal, site: str) -> None:
    """Kill a site's SuperNode, which its courier started."""
    home = str(rehearsal.layout.site_home(site))
    courier = psutil.Process(rehearsal.group.children[f"site {site}: courier"].pid)
    (node,) = (
        process
        for process in courier.children(recursive=True)
        if "vitrael.client.site.courier.node" in (words := _words(process))
        and any(home in word for word in words)
    )
    node.kill()


def _words(process: psutil.Process) -> list[str]:
    """Return a process's command line, nothing of one that has just ended."""
    try:
        return process.cmdline()
    except (psutil.ZombieProcess, psutil.NoSuchProcess):
        return []


def crash_superlink(rehearsal: Rehearsal) -> None:
    """Kill the SuperLink, which the coordinator started."""
    entries = json.loads((rehearsal.layout.home / "server-processes.json").read_bytes())
    os.kill(int(entries["superlink"]["pid"]), signal.SIGKILL)
