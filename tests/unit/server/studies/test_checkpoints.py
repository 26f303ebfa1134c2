"""What the coordinator keeps is checked when it is read; what is damaged is made again."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.factories.federation import SITES, Federation, federation
from tests.factories.updates import adding, agree
from vitrael.client.site.tasks import TaskResult
from vitrael.core.digest import Digest
from vitrael.core.errors import QuorumError
from vitrael.server.objects import DamagedError
from vitrael.server.studies import pipeline
from vitrael.server.studies.canary import try_sites
from vitrael.server.studies.federated import collect_consents, train_codec
from vitrael.server.studies.run import StudyRun

AMOUNTS = {"north": 1.0, "harbour": 2.0, "valley": 3.0}


@pytest.fixture(autouse=True)
def _training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a study end with its codec, whose weights it reads at last, as the next stage would."""

    def run_stages(run: StudyRun) -> int:
        collect_consents(run)
        try_sites(run)
        run.objects.get_tensors(train_codec(run))
        return 0

    monkeypatch.setattr(pipeline, "_run_stages", run_stages)


def run_study(told: Federation) -> None:
    assert pipeline.run_study(told.home, told.exchange) == 0


def outputs(told: Federation) -> list[Digest]:
    """Return the digest of the weights after each round."""
    run = told.run()
    rounds = [record for record in run.finished() if record.key.stage == "codec"]
    return [run.objects.get_json(record.output)["codec"] for record in rounds if record.output]


def path_of(told: Federation, digest: Digest) -> Path:
    name = digest.removeprefix("sha256:")
    return told.home / "objects" / name[:2] / name[2:]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize("harm", [flip, cut, Path.unlink])
def test_damaged_weights_of_the_last_round_are_made_again_without_training(
    harm: Callable[[Path], None], home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    agree(home, SITES)
    with federation(home, tasks=adding(AMOUNTS)) as told:
        run_study(told)
        before = outputs(told)
        told.seen.clear()
        harm(path_of(told, before[-1]))
        with pytest.raises(DamagedError):  # the control: nobody would have used it
            told.run().objects.get_tensors(before[-1])
    with federation(home, tasks=adding(dict.fromkeys(SITES, 77.0))) as told:  # had they trained
        with caplog.at_level(logging.WARNING, logger="vitrael"):
            run_study(told)
        assert outputs(told) == before
        assert told.stages() == [("codec", 2)]
        assert told.run().objects.get_tensors(before[-1])
        discarded = [r for r in told.run().history() if r.status == "failed"]
    assert [(r.key.stage, r.key.round) for r in discarded] == [("codec", 2)]
    assert "damaged" in discarded[0].reason
    assert "is damaged: its stage is done again" in caplog.text
    lines = [json.loads(line) for line in (home / "progress.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines if line["event"] == "damaged"] == [2]


def test_damage_to_the_round_before_it_is_found_and_mended_too(home: Path) -> None:
    agree(home, SITES)
    with federation(home, tasks=adding(AMOUNTS)) as told:
        run_study(told)
        before = outputs(told)
        told.seen.clear()
        for digest in before[1:]:
            flip(path_of(told, digest))
        run_study(told)
        assert outputs(told) == before
        assert told.stages() == [("codec", 1), ("codec", 2)]


def test_damage_that_nothing_needs_asks_nobody(home: Path) -> None:
    agree(home, SITES)
    with federation(home, tasks=adding(AMOUNTS)) as told:
        run_study(told)
        told.seen.clear()
        flip(path_of(told, outputs(told)[0]))
        run_study(told)
        assert told.seen == []


def test_damaged_document_of_a_stage_is_made_again(home: Path) -> None:
    agree(home, SITES)
    with federation(home, tasks=adding(AMOUNTS)) as told:
        run_study(told)
        before = outputs(told)
        told.seen.clear()
        (middle,) = [r for r in told.run().finished() if (r.key.stage, r.key.round) == ("codec", 1)]
        assert middle.output is not None
        flip(path_of(told, middle.output))
        run_study(told)
        assert (outputs(told)[-1], told.stages()) == (before[-1], [("codec", 1)])


def test_lost_round_is_made_again_by_those_who_took_part_and_by_no_other(home: Path) -> None:
    agree(home, SITES)
    with federation(home, tasks=adding(AMOUNTS)) as told:
        told.spoil["valley"] = lambda task, parcel: (
            "its line is cut" if (task.stage, task.round) == ("codec", 2) else parcel
        )
        run_study(told)
        before = outputs(told)
        del told.spoil["valley"]
        told.seen.clear()
        flip(path_of(told, before[-1]))
        told.spoil["north"] = lambda *_: "its disk is full"
        with pytest.raises(QuorumError, match="1 of 3 sites answered, 2 are needed: north: its"):
            run_study(told)
        del told.spoil["north"]
        run_study(told)
        assert outputs(told) == before
        assert {task.site for task in told.seen} == {"north", "harbour"}
        (last,) = [r for r in told.run().finished() if (r.key.stage, r.key.round) == ("codec", 2)]
    assert last.details["absent"] == {"valley": "its line is cut"}


def test_disk_that_damages_whatever_is_written_ends_the_study(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agree(home, SITES)
    with federation(home, tasks=adding(AMOUNTS)) as told:
        run_study(told)
        last = outputs(told)[-1]
        flip(path_of(told, last))
        monkeypatch.setattr(type(told.run().objects), "put_tensors", lambda *_: last)
        with pytest.raises(DamagedError):
            run_study(told)


def test_failed_study_says_so_in_its_outcome(home: Path) -> None:
    agree(home, SITES)
    silent = adding(AMOUNTS)
    for site in ("north", "harbour"):
        silent[site] = {**silent[site], "codec": lambda *_: TaskResult(num_examples=-1)}
    with federation(home, tasks=silent) as told, pytest.raises(QuorumError):
        run_study(told)
    outcome = json.loads((home / "outcome.json").read_text())
    assert outcome["status"] == "failed"
    assert "1 of 3 sites answered, 2 are needed" in outcome["sentence"]
