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


def _run_until_killed(home: Path, *, stage: tuple[str, int], site: str | None) -> None:
    """Kill a site's SuperNode, or the ServerApp, as soon as the stage has begun."""

    def strike(event: Event) -> None:
        line = event.data
        begun = event.who == "coordinator" and line.get("event") == "begun"
        if begun and (line["stage"], line["round"]) == stage:
            if site is None:
                crash_server_app(rehearsal)
            else:
                crash(rehearsal, f"site {site}: courier")

    with Rehearsal(RehearsalLayout(home=home, sites=SITES), on_event=strike) as rehearsal:
        rehearsal.start()
        rehearsal.watch(timeout_s=180)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_homes(tmp_path_factory.mktemp("resume") / "prepared", UNSCREENED)


def test_steward_has_a_loopback_of_its_own_and_no_more(prepared: Path, tmp_path: Path) -> None:
    if not network_guard():
        assert os.geteuid() != 0, "root can take the network from a process"
        pytest.skip("this machine lets nobody but root take the network from a process")
    home = copy_homes(prepared, tmp_path)
    ours = Path("/proc/self/ns/net").readlink()
    with Rehearsal(RehearsalLayout(home=home, sites=SITES)) as rehearsal:
        rehearsal.start()
        for site in SITES:
            pid = rehearsal.group.children[f"site {site}: steward"].pid
            devices = Path(f"/proc/{pid}/net/dev").read_text(encoding="ascii").splitlines()[2:]
            assert [line.split(":")[0].strip() for line in devices] == ["lo"]
            assert Path(f"/proc/{pid}/ns/net").readlink() != ours


def test_killed_supernode_and_server_app_change_no_weight(prepared: Path, tmp_path: Path) -> None:
    undisturbed = copy_homes(prepared, tmp_path / "undisturbed")
    with federation(undisturbed) as told:
        run = told.run()
        collect_consents(run)
        codec = scale_latents(run, train_codec(run))["codec"]
        train_teacher(run, codec)
    disturbed = copy_homes(prepared, tmp_path / "disturbed")

    with pytest.raises(ProcessError, match="site harbour: courier"):
        _run_until_killed(disturbed, stage=("codec", 1), site="harbour")
    assert ("codec", 1) not in _outputs(disturbed)
    with pytest.raises(ProcessError, match="ServerApp"):
        _run_until_killed(disturbed, stage=("teacher", 0), site=None)
    assert ("teacher", 0) not in _outputs(disturbed)
    rehearse(RehearsalLayout(home=disturbed, sites=SITES))

    assert _outputs(disturbed) == _outputs(undisturbed)
    assert len(_outputs(disturbed)) == 5
