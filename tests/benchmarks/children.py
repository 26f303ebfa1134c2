"""Programs run as children of a benchmark: how long, how much processor time, how much memory."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

_EVERY_S = 0.02


@dataclass(frozen=True, slots=True)
class Run:
    """What a program and all that it started have used."""

    wall_s: float
    cpu_s: float
    """User and system time of all processes that were waited for, so that load does not count."""
    main_kib: int
    """The most memory of the program itself, looked at fifty times a second."""
    worker_kib: int
    """The most of any one process that it started."""
    workers: int
    """How many those were."""
    code: int
    """With which it ended."""
    text: str
    """Its standard output."""


def run_child(command: Sequence[str | Path], folder: Path, *, codes: Sequence[int] = (0,)) -> Run:
    """Return what a program used, whose output goes to ``folder``; another exit code is an error.

    Libraries of mathematics get one thread for each process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    out, err = folder / "stdout.txt", folder / "stderr.txt"
    peaks: dict[int, int] = {}
    ended = threading.Event()
    with out.open("wb") as stdout, err.open("wb") as stderr:
        start = time.perf_counter()
        child = subprocess.Popen(
            [str(part) for part in command],
            stdout=stdout,
            stderr=stderr,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        watcher = threading.Thread(target=_watch, args=(child.pid, peaks, ended))
        watcher.start()
        _, status, used = os.wait4(child.pid, 0)
        wall_s = time.perf_counter() - start
        ended.set()
        watcher.join()
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode in codes, err.read_text(errors="replace")[-2000:]
    workers = [peak for pid, peak in peaks.items() if pid != child.pid]
    return Run(
        wall_s=wall_s,
        cpu_s=used.ru_utime + used.ru_stime,
        main_kib=peaks.get(child.pid, 0),
        worker_kib=max(workers, default=0),
        workers=len(workers),
        code=child.returncode,
        text=out.read_text(errors="replace"),
    )


def _watch(pid: int, peaks: dict[int, int], ended: threading.Event) -> None:
    program = psutil.Process(pid)
    while not ended.wait(_EVERY_S):
        with contextlib.suppress(psutil.Error):
            for process in (program, *program.children(recursive=True)):
                with contextlib.suppress(OSError, KeyError):
                    peaks[process.pid] = _peak_kib(process.pid)


def _peak_kib(pid: int) -> int:
    """Return the most memory a process ever had since its program was loaded."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields["VmHWM"].split()[0])
