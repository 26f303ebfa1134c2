"""A site that joins later changes the roster alone: what was finished is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.factories.federation import SITES, Federation, Interruption, federation
from tests.factories.updates import adding, agree
from vitrael.core.digest import Digest, digest_bytes
from vitrael.core.errors import StudyError
from vitrael.core.study import load_study
from vitrael.server.studies.absences import find_contributors
from vitrael.server.studies.canary import try_sites
from vitrael.server.studies.federated import collect_consents, train_codec
from vitrael.server.studies.participation import record_participation

TWO = ("north", "harbour")
AMOUNTS = {"north": 1.0, "harbour": 2.0, "valley": 6.0}


def train(told: Federation) -> Digest:
    run = told.run()
    collect_consents(run)
    try_sites(run)
    return train_codec(run)


@pytest.fixture
def begun(home: Path) -> Digest:
    """Two sites that have finished two of three rounds; the digest of their roster."""
    earlier = agree(home, TWO)
    with federation(home, tasks=adding(AMOUNTS)) as told:
        told.interrupt = ("codec", 2, "north")
        with pytest.raises(Interruption):
            train(told)
    return earlier


def test_rounds_that_are_left_run_with_the_site_that_joined(home: Path, begun: Digest) -> None:
    joined = agree(home, SITES, predecessor=begun)
    with federation(home, tasks=adding(AMOUNTS)) as told:
        end = told.run().objects.get_tensors(train(told))
        asked = [(task.stage, task.round, task.site) for task in told.seen]
        rounds = [r for r in told.run().finished() if r.key.stage == "codec"]
        start = told.run().objects.get_tensors(
            told.run().objects.get_json(rounds[1].output)["codec"]
        )
        record = record_participation(told.run())
    once = [(stage, 0, site) for stage in ("consent", "canary") for site in SITES]
    assert asked == [*once, *(("codec", 2, site) for site in SITES)]
    assert [record.participants for record in rounds] == [TWO, TWO, SITES]
    assert {task.roster for task in told.seen} == {joined}
    for name, array in end.items():
        np.testing.assert_allclose(array - start[name], 3.0, rtol=1e-3)  # of 1, 2 and 6
    assert record["rounds"]["codec 2"]["kept_from"] == begun
    assert "kept_from" not in record["rounds"]["codec 3"]


def test_without_a_predecessor_every_round_is_asked_of_all(home: Path, begun: Digest) -> None:
    assert begun
    agree(home, SITES)
    with federation(home, tasks=adding(AMOUNTS)) as told:
        train(told)
    assert [n for n in range(3) if ("codec", n) in told.stages()] == [0, 1, 2]


def test_a_second_amendment_keeps_what_the_first_one_kept(home: Path, begun: Digest) -> None:
    joined = agree(home, SITES, predecessor=begun)
    with federation(home, tasks=adding(AMOUNTS)) as told:
        train(told)
    agree(home, TWO[::-1], predecessor=joined)
    with federation(home, tasks=adding(AMOUNTS)) as told:
        train(told)
        assert ("codec", 2) not in told.stages()
        # Valley is no member any more; its patients are in the model all the same.
        assert find_contributors(told.run()) == set(SITES)


def test_judgments_of_the_earlier_roster_are_not_kept(home: Path, begun: Digest) -> None:
    with federation(home) as told:
        run = told.run()
        from vitrael.server.studies.run import StageResult

        run.stage("audit", {"a": 1}, lambda: StageResult({"by": 2}))
        run.stage("latents", {"a": 1}, lambda: StageResult({"by": 2}))
    agree(home, SITES, predecessor=begun)
    with federation(home) as told:
        run = told.run()
        assert run.stage("audit", {"a": 1}, lambda: StageResult({"by": 3})) == {"by": 3}
        assert run.stage("latents", {"a": 1}, lambda: StageResult({"by": 3})) == {"by": 2}


def test_predecessor_that_nobody_knows_is_refused(home: Path, begun: Digest) -> None:
    assert begun
    agree(home, SITES, predecessor=digest_bytes(b"another"))
    with federation(home) as told, pytest.raises(StudyError, match="never run here"):
        told.run()


def test_predecessor_enters_the_study_and_not_the_protocol(home: Path) -> None:
    agree(home, SITES)
    plain = load_study(home / "study.toml")
    agree(home, SITES, predecessor=digest_bytes(b"earlier"))
    amended = load_study(home / "study.toml")
    assert amended.protocol.digest == plain.protocol.digest
    assert amended.digest != plain.digest
