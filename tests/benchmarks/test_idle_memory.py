"""What a site's processes hold between tasks: the courier's together, and the steward after one.

One site in the production layout, each process started by its own command; the steward has trained
one round of a small autoencoder and keeps what it keeps.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from tests.benchmarks.rig import Rig, rig
from tests.factories.federation import STUDY
from tests.factories.held import Held, measure
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


def study_toml() -> str:
    text = STUDY.replace('sites = ["north", "harbour", "valley"]', 'sites = ["north"]')
    return text.replace("quorum = 2", "quorum = 1")


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
