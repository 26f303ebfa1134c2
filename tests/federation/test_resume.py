"""A study whose processes are killed in the middle of rounds ends with the undisturbed weights."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.factories.crashes import crash_server_app, crash_superlink, crash_supernode
from tests.factories.federation import SITES, STUDY, copy_homes, federation, prepare_homes
from vitrael.core.study import load_study
from vitrael.server.db.engine import open_database
from vitrael.server.federation.layout import RehearsalLayout, network_guard
from vitrael.server.proxy import find_nginx
from vitrael.server.rehearsal import Event, Rehearsal
from vitrael.server.studies.federated import (
    collect_consents,
    scale_latents,
    train_codec,
    train_patient_encoder,
    train_teacher,
)
from vitrael.server.studies.ledger import Ledger

pytestmark = [pytest.mark.federation]

UNSCREENED = STUDY.replace("false_match_rate = 0.4", "enabled = false")


def _outputs(home: Path) -> dict[tuple[str, int], str | None]:
    study = load_study(home / "study.toml")
    history = Ledger(open_database(home / "server.sqlite")).history(study.protocol.digest)
    trained = ("codec", "latents", "reid", "teacher")
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


def _run_and_kill(home: Path) -> dict[tuple[str, int, str], int]:
    """Run a study; kill SuperNode, ServerApp and SuperLink each while a site trains.

    Returned are stage, round and site at which each was struck, with the patients that were left.
    """
    victims: dict[tuple[str, int, str], Callable[[Rehearsal], None]] = {
        ("codec", 1, "harbour"): lambda rehearsal: crash_supernode(rehearsal, "harbour"),
        ("teacher", 0, "north"): crash_server_app,
        ("teacher", 1, "valley"): crash_superlink,
    }
    struck: dict[tuple[str, int, str], int] = {}

    def strike(event: Event) -> None:
        line = event.data
        at = (str(line.get("stage")), int(line.get("round", 0)), event.who)
        if at in victims and at not in struck and line["done"] < line["total"]:
            _demand_no_network(rehearsal, event.who)
            struck[at] = line["total"] - line["done"]
            victims[at](rehearsal)

    layout = RehearsalLayout(home=home, sites=SITES, nginx=find_nginx())
    with Rehearsal(layout, on_event=strike) as rehearsal:
        rehearsal.start()
        rehearsal.watch(timeout_s=480)
        study = rehearsal.study()
    assert study is not None
    assert study.runs >= 2  # a lost ServerApp was followed by another run
    assert struck.keys() == victims.keys()
    return struck


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_homes(tmp_path_factory.mktemp("resume") / "prepared", UNSCREENED)


def test_killed_supernode_server_app_and_superlink_change_no_weight(
    prepared: Path, tmp_path: Path
) -> None:
    undisturbed = copy_homes(prepared, tmp_path / "undisturbed")
    with federation(undisturbed) as told:
        run = told.run()
        collect_consents(run)
        codec = scale_latents(run, train_codec(run))["codec"]
        train_patient_encoder(run, codec)
        train_teacher(run, codec)
    disturbed = copy_homes(prepared, tmp_path / "disturbed")

    _run_and_kill(disturbed)

    assert _outputs(disturbed) == _outputs(undisturbed)
    assert len(_outputs(disturbed)) == 7
