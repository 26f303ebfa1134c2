"""The canary asks every named site, and tells how long each is waited for."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from tests.factories.federation import SITES, Federation, federation, utc_now
from tests.factories.updates import adding, agree
from vitrael.core.configs import TrainingConfig
from vitrael.core.errors import DataError, QuorumError
from vitrael.server.studies.absences import find_deadlines
from vitrael.server.studies.canary import FLOOR_S, derive_deadline, try_sites
from vitrael.server.studies.federated import collect_consents, train_codec

AMOUNTS = {"north": 1.0, "harbour": 2.0, "valley": 3.0}
CONFIG = TrainingConfig(rounds=4, length_images=4_000)


@pytest.mark.parametrize(
    ("seconds_an_image", "answered_s", "longest_s", "expected"),
    [
        (0.0, 0.0, 9_000, FLOOR_S),
        (0.1, 20.0, 9_000, 5 * (20 + 100) + 120),
        (0.1, 20.0, 600, 600),  # never above the study's
        (0.0, 0.0, 10, 10),  # nor does the floor lift it
        (100.0, 20.0, 9_000, 9_000),
    ],
)
def test_deadline_is_the_predicted_time_with_a_margin_and_within_bounds(
    seconds_an_image: float, answered_s: float, longest_s: float, expected: float
) -> None:
    told = derive_deadline(
        CONFIG, seconds_an_image=seconds_an_image, answered_s=answered_s, longest_s=longest_s
    )
    assert told == pytest.approx(expected)


def slow(*_: object) -> object:
    from vitrael.client.site.tasks import TaskResult

    speeds = {"codec_images": 1, "codec_s": 20.0, "teacher_images": 1, "teacher_s": 1.0}
    return TaskResult(body={**speeds, "reid_images": 1, "reid_s": 1.0})


def broken(*_: object) -> object:
    raise DataError("the disk of the scans is not mounted")


def start(told: Federation) -> dict[str, object]:
    collect_consents(told.run())
    return try_sites(told.run())


def test_each_parcel_has_the_deadline_of_its_site_and_stage(home: Path) -> None:
    agree(home, SITES, federation="deadline_s = 5000.0")
    tasks = adding(AMOUNTS)
    tasks["valley"] = {**tasks["valley"], "canary": slow}
    with federation(home, tasks=tasks) as told:
        start(told)
        longest = find_deadlines(told.run(), "codec")["valley"]
        told.exchange.deadlines.clear()
        train_codec(told.run())
        given = dict(told.exchange.deadlines)
        assert given == find_deadlines(told.run(), "codec")
        assert {task.site: task.deadline_s for task in told.seen if task.stage == "codec"} == given
        others = find_deadlines(told.run(), "screening")
        predicted = (told.run().document("canary") or {})["predicted"]
    assert 5 * 10 * 20 + 120 <= longest < 5000
    assert given["north"] == FLOOR_S
    assert set(others.values()) == {5000.0}
    assert predicted["codec"] >= 10 * 20 > predicted["teacher"] > 0  # as the slowest site


def test_site_that_cannot_do_a_small_piece_keeps_the_long_run_from_beginning(home: Path) -> None:
    agree(home, SITES)
    tasks = adding(AMOUNTS)
    tasks["valley"] = {**tasks["valley"], "canary": broken}
    with federation(home, tasks=tasks) as told, pytest.raises(QuorumError) as caught:
        start(told)
    assert "2 of 3 sites answered, 3 are needed" in caught.value.sentence()
    assert "valley: failed: the disk of the scans is not mounted" in caught.value.sentence()
    assert caught.value.fix == "mend what is named, then run `vitrael study start tiny`"
    with federation(home, tasks=adding(AMOUNTS)) as told:  # mended
        start(told)
        assert [task.site for task in told.seen if task.stage == "canary"] == list(SITES)


def test_canary_is_asked_once(home: Path) -> None:
    agree(home, SITES)
    with federation(home, tasks=adding(AMOUNTS)) as told:
        start(told)
        told.seen.clear()
        start(told)
        assert told.seen == []


def test_progress_tells_of_each_site_when_it_was_asked_and_what_it_answered(home: Path) -> None:
    import json

    agree(home, SITES)
    with federation(home, tasks=adding(AMOUNTS)) as told:
        began = utc_now()
        start(told)
    lines = [json.loads(line) for line in (home / "progress.jsonl").read_text().splitlines()]
    of = [line for line in lines if line["stage"] == "canary" and line.get("site") == "north"]
    asked, answered = of
    assert (asked["event"], asked["deadline_s"], asked["bytes"] > 0) == ("asked", 600, True)
    assert (answered["event"], answered["done"], answered["total"]) == ("answer", 1, 3)
    assert answered["seconds"] > 0
    assert answered["bytes"] > 0
    assert began - timedelta(seconds=1) < began.fromisoformat(answered["utc"])
