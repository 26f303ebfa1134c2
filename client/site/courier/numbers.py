"""The courier's own numbers and those that the steward has written, as Prometheus reads them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


def resident_bytes(pid: int | None = None) -> int:
    """Return the resident memory of a process, this one by default; 0 where nobody tells."""
    try:
        text = Path(f"/proc/{pid or 'self'}/statm").read_text(encoding="ascii")
        return int(text.split()[1]) * _PAGE
    except (OSError, ValueError, IndexError):
        return 0


def resident_tree_bytes(pid: int) -> int:
    """Return the resident memory of a process and all that descend from it, as far as is told."""
    import psutil  # noqa: PLC0415 - the steward, which counts itself alone, needs no other

    total = 0
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(pid)
        total = sum(resident_bytes(one.pid) for one in (root, *root.children(recursive=True)))
    return total


def read_metrics(path: Path) -> bytes:
    """Return what the steward has written, or nothing."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def courier_metrics(
    *, up: Mapping[str, bool], restarts: Mapping[str, int], is_connected: bool, resident: int
) -> bytes:
    """Return the courier's own numbers."""
    own = CollectorRegistry()
    running = Gauge("vitrael_courier_up", "Whether it runs.", ("child",), registry=own)
    again = Counter("vitrael_courier_restarts", "Starts after the first.", ("child",), registry=own)
    link = Gauge("vitrael_courier_connected", "To the coordinator.", registry=own)
    memory = Gauge(
        "vitrael_courier_resident_bytes",
        "Of this process and all that descend from it; with --only, of that half alone.",
        registry=own,
    )
    for child, is_up in up.items():
        running.labels(child).set(is_up)
    for child, count in restarts.items():
        again.labels(child).inc(count)
    link.set(is_connected)
    memory.set(resident)
    return generate_latest(own)
