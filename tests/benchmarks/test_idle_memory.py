"""What a site's processes hold between tasks: the courier's together, and the steward after one.

One site in the production layout, each process started by its own command; the steward has trained
one round of a small autoencoder and keeps what it keeps. RSS counts a library once for each process
that uses it, and PSS shares it out among all processes of the machine; *together* is what the
group would need alone: each page of a file once, and every other page.
"""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.benchmarks.rig import Rig, rig
from tests.factories.federation import STUDY
from vitrael.server.federation.flower_home import program

COURIER_MIB = 300
STEWARD_MIB = 700
_SETTLE_S = 15.0
"""By then what a task has started is gone."""

SERVER = '''
"""The first round of the codec stage."""

from vitrael.core.weights import module_tensors
from vitrael.server.federation.app import make_app
from vitrael.server.studies.federated import train_codec
from vitrael.server.studies.run import open_run

def run(home, exchange):
    train_codec(open_run(home, exchange))

app = make_app(run)
'''

_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ ([0-9a-f]+) (\S+) (\d+)")


@dataclass(frozen=True, slots=True)
class Held:
    """Memory of a process and all that descend from it, MiB."""

    processes: tuple[str, ...]
    rss: float
    pss: float
    together: float

    def line(self, what: str, most: int) -> str:
        """Return the figures beside the limit."""
        return (
            f"  {what:18} together {self.together:6.1f} MiB of {most}; RSS {self.rss:6.1f}, "
            f"PSS {self.pss:6.1f}, {len(self.processes)} processes: {', '.join(self.processes)}"
        )


def study_toml() -> str:
    text = STUDY.replace('sites = ["north", "harbour", "valley"]', 'sites = ["north"]')
    return text.replace("quorum = 2", "quorum = 1")


def measure(pid: int) -> Held:
    """Return what a process and its descendants hold."""
    root = psutil.Process(pid)
    files: dict[tuple[str, str, str], int] = {}
    rss = pss = anonymous = 0
    names = []
    for process in (root, *root.children(recursive=True)):
        names.append(called(process))
        key: tuple[str, str, str] | None = None
        for line in Path(f"/proc/{process.pid}/smaps").read_text(encoding="utf-8").splitlines():
            if found := _MAPPING.match(line):
                offset, device, inode = found.groups()
                key = None if inode == "0" else (device, inode, offset)
                continue
            name, _, rest = line.partition(":")
            if name not in {"Rss", "Pss", "Anonymous"}:
                continue
            kib = int(rest.split()[0])
            if name == "Rss":
                rss += kib
                held = kib
            elif name == "Pss":
                pss += kib
            else:
                anonymous += kib
                if key is not None:
                    files[key] = max(files.get(key, 0), held - kib)
    together = anonymous + sum(files.values())
    return Held(tuple(names), rss / 1024, pss / 1024, together / 1024)


def called(process: psutil.Process) -> str:
    """Return the module or program that a process runs."""
    words = process.cmdline()
    if "-m" in words:
        return words[words.index("-m") + 1].rpartition(".")[2]
    return " ".join([Path(word).name for word in words if not word.startswith("-")][1:4])


def run_one_task(made: Rig) -> dict[str, Held]:
    """Start the site, let it answer one task, wait, and measure."""
    made.start_stewards(program("vitrael"), "site", "run")
    fresh = measure(made.group.children["steward north"].pid)
    made.start_couriers()
    made.run_app()
    until = time.monotonic() + _SETTLE_S
    while time.monotonic() < until:
        made.group.check()
        time.sleep(0.5)
    return {
        "fresh steward": fresh,
        "courier": measure(made.group.children["courier north"].pid),
        "steward": measure(made.group.children["steward north"].pid),
    }


@pytest.mark.bench
def test_site_between_tasks_fits_beside_other_work(tmp_path: Path) -> None:
    with rig(tmp_path / "home", study_toml(), server_app=SERVER) as made:
        held = run_one_task(made)
    print("\nmemory of a site between tasks")
    print(held["courier"].line("courier", COURIER_MIB))
    print(held["fresh steward"].line("steward, fresh", STEWARD_MIB))
    print(held["steward"].line("steward, one task", STEWARD_MIB))
    report = {
        name: {"rss": h.rss, "pss": h.pss, "together": h.together, "processes": len(h.processes)}
        for name, h in held.items()
    }
    print("  " + json.dumps(report))
    if place := os.environ.get("VITRAEL_BENCH_DIR"):
        path = Path(place) / "idle-memory.json"
        path.write_text(json.dumps(report, indent=1), encoding="utf-8")
    assert held["courier"].together <= COURIER_MIB
    assert held["steward"].together <= STEWARD_MIB
