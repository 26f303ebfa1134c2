"""A study whose processes are killed in the middle of rounds ends with the undisturbed weights."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.factories.crashes import crash, crash_server_app
from tests.factories.federation import SITES, STUDY, copy_homes, federation, prepare_homes
from vitrael.core.errors import ProcessError
from vitrael.core.study import load_study
from vitrael.server.db.engine import open_database
from vitrael.server.federation.layout import RehearsalLayout, network_guard
from vitrael.server.rehearsal import Event, Rehearsal, rehearse
from vitrael.server.studies.federated import (
    collect_consents,
    scale_latents,
    train_codec,
    train_teacher,
)
from vitrael.server.studies.ledger import Ledger

pytestmark = [pytest.mark.federation]

UNSCREENED = STUDY.replace("false_match_rate = 0.4", "enabled = false")


def _outputs(home: Path) -> dict[tuple[str, int], str | None]:
    study = load_study(home / "study.toml")
    history = Ledger(open_database(home / "server.sqlite")).history(study.protocol.digest)
    trained = ("codec", "latents", "teacher")
    return {
        (record.key.stage, record.key.round): record.output
        for record in history
        if record.status == "finished" and record.key.stage in trained
    }


def _demand_no_network(rehearsal: Rehearsal, site: str) -> None:
    """Assert that the site's steward, which trains now, has a loopback of its own and no more."""
    if not network_guard():
        assert os.geteuid() != 0, "root can take the network from a process"
        return
    pid = rehearsal.group.children[f"site {site}: steward"].pid
    devices = Path(f"/proc/{pid}/net/dev").read_text(encoding="ascii").splitlines()[2:]
    assert [line.split(":")[0].strip() for line in devices] == ["lo"]
    ours = Path("/proc/self/ns/net").readlink()
    assert Path(f"/proc/{pid}/ns/net").readlink() != ours


def _run_until_killed(home: Path, *, stage: tuple[str, int], site: str, victim: str) -> None:
    """Kill the site's SuperNode, or the ServerApp, when the site has begun to train."""
    struck = []

    def strike(event: Event) -> None:
        line = event.data
        trains = event.who == site and (line.get("stage"), line.get("round")) == stage
        if trains and not struck:
            assert line["done"] < line["total"]
            _demand_no_network(rehearsal, site)
            struck.append(line)
            if victim == "ServerApp":
                crash_server_app(rehearsal)
            else:
                crash(rehearsal, f"site {site}: {victim}")

    with Rehearsal(RehearsalLayout(home=home, sites=SITES), on_event=strike) as rehearsal:
        rehearsal.start()
        rehearsal.watch(timeout_s=180)
    assert struck


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_homes(tmp_path_factory.mktemp("resume") / "prepared", UNSCREENED)


def test_killed_supernode_and_server_app_change_no_weight(prepared: Path, tmp_path: Path) -> None:
    undisturbed = copy_homes(prepared, tmp_path / "undisturbed")
    with federation(undisturbed) as told:
        run = told.run()
        collect_consents(run)
        codec = scale_latents(run, train_codec(run))["codec"]
        train_teacher(run, codec)
    disturbed = copy_homes(prepared, tmp_path / "disturbed")

    with pytest.raises(ProcessError, match="site harbour: courier"):
        _run_until_killed(disturbed, stage=("codec", 1), site="harbour", victim="courier")
    assert ("codec", 1) not in _outputs(disturbed)
    with pytest.raises(ProcessError, match="ServerApp"):
        _run_until_killed(disturbed, stage=("teacher", 0), site="north", victim="ServerApp")
    assert ("teacher", 0) not in _outputs(disturbed)
    rehearse(RehearsalLayout(home=disturbed, sites=SITES))

    assert _outputs(disturbed) == _outputs(undisturbed)
    assert len(_outputs(disturbed)) == 5
