"""Programs run as children of a benchmark: how long, how much processor time, how much memory.

Both are read from /proc twenty times a second, of the program and of all that it starts; what
ended between two looks is in the system's own account of children that were waited for.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_EVERY_S = 0.05
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Run:
    """What a program and all that it started have used."""

    wall_s: float
    cpu_s: float
    """User and system time of all processes: other work on the machine hardly counts."""
    main_kib: int
    """The most memory that the program itself ever had."""
    worker_kib: int
    """The most of any one process that it started."""
    workers: int
    """How many those were."""
    text: str
    """Its standard output."""


def run_child(command: Sequence[str | Path], folder: Path, *, codes: Sequence[int] = (0,)) -> Run:
    """Return what a program used, whose output goes to ``folder``; another exit code is an error.

    Libraries of mathematics get one thread for each process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    out, err = folder / "stdout.txt", folder / "stderr.txt"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        start = time.perf_counter()
        child = subprocess.Popen(
            [str(part) for part in command],
            stdout=stdout,
            stderr=stderr,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        watch = _Watch(child.pid)
        watch.start()
        _, status, waited = os.wait4(child.pid, 0)
        wall_s = time.perf_counter() - start
        watch.ended.set()
        watch.join()
    child.returncode = os.waitstatus_to_exitcode(status)
    told = err.read_text(errors="replace")[-2000:]
    assert child.returncode in codes, f"it ended with {child.returncode}: {told}"
    workers = {pid: peak for pid, peak in watch.peak_kib.items() if pid != child.pid}
    return Run(
        wall_s=wall_s,
        cpu_s=max(waited.ru_utime + waited.ru_stime, sum(watch.cpu_s.values())),
        main_kib=watch.peak_kib.get(child.pid, 0),
        worker_kib=max(workers.values(), default=0),
        workers=len(workers),
        text=out.read_text(errors="replace"),
    )


class _Watch(threading.Thread):
    """Looks at a process and its descendants until it is told that they have ended."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self.ended = threading.Event()
        self.peak_kib: dict[int, int] = {}
        self.cpu_s: dict[int, float] = {}

    def run(self) -> None:
        """Keep the last that was seen of each process."""
        while not self.ended.wait(_EVERY_S):
            for pid in _family(self._pid):
                with contextlib.suppress(OSError, KeyError):
                    self.peak_kib[pid] = _peak_kib(pid)
                    self.cpu_s[pid] = _cpu_s(pid)


def _family(pid: int) -> Iterator[int]:
    """Yield a process and all that descend from it."""
    yield pid
    with contextlib.suppress(OSError):
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                for child in children.read_text(encoding="ascii").split():
                    yield from _family(int(child))


def _peak_kib(pid: int) -> int:
    """Return the most memory that a process ever had since its program was loaded."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields["VmHWM"].split()[0])


def _cpu_s(pid: int) -> float:
    """Return the processor time of a process, without that of its children."""
    text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    user, system = text.rsplit(")", 1)[1].split()[11:13]
    return (int(user) + int(system)) * _TICK_S
