"""How much processor time the command line takes to answer, beside Flower's own in the same run."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

RUNS = 5
MOST_OF_PEER = 0.3


def cpu_s(program: str) -> float:
    """Return the median processor time of ``PROGRAM --help`` over some runs, seconds."""
    command = [str(Path(sys.executable).parent / program), "--help"]
    times = []
    for _ in range(RUNS + 1):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(times[1:])  # the first one fills the file cache


@pytest.mark.bench
def test_help_takes_less_than_a_third_of_flowers_time() -> None:
    ours, peer = cpu_s("vitrael"), cpu_s("flwr")
    print(f"\nhelp: vitrael {ours:.3f} s, flwr {peer:.3f} s of CPU, ratio {ours / peer:.2f}")
    assert ours / peer <= MOST_OF_PEER
