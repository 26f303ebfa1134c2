"""The ledger loses nothing that was finished and never finishes a stage twice."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from vitrael.core.digest import digest_bytes
from vitrael.core.errors import StorageError
from vitrael.server.db.engine import open_database
from vitrael.server.studies.ledger import SUPERSEDED, Ledger, StageKey

PROTOCOL = digest_bytes(b"protocol")
KEY = StageKey(PROTOCOL, "codec", 1, digest_bytes(b"input"))
OUTPUT, OTHER = digest_bytes(b"output"), digest_bytes(b"other")
START = datetime(2025, 1, 17, 12, tzinfo=UTC)


class Clock:
    """Each look is one second later."""

    def __init__(self) -> None:
        self.time = START

    def __call__(self) -> datetime:
        self.time += timedelta(seconds=1)
        return self.time


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "server.sqlite"


@pytest.fixture
def ledger(file: Path) -> Ledger:
    return Ledger(open_database(file), clock=Clock())


def test_finished_stage_is_found_again_by_another_process(file: Path, ledger: Ledger) -> None:
    begun = ledger.begin(KEY, details={"images": 10})
    assert ledger.finished(KEY) is None
    ledger.finish(begun, OUTPUT, details={"loss": 0.5}, participants=["north", "valley"])

    found = Ledger(open_database(file), clock=Clock()).finished(KEY)
    assert found is not None
    assert (found.status, found.output, found.seconds) == ("finished", OUTPUT, 1.0)
    assert found.started_utc == START + timedelta(seconds=1)
    assert found.details == {"images": 10, "loss": 0.5}
    assert found.participants == ("north", "valley")


@pytest.mark.parametrize(
    "other",
    [
        StageKey(OTHER, "codec", 1, KEY.input),
        StageKey(PROTOCOL, "teacher", 1, KEY.input),
        StageKey(PROTOCOL, "codec", 2, KEY.input),
        StageKey(PROTOCOL, "codec", 1, OTHER),
    ],
)
def test_every_part_of_the_key_counts(ledger: Ledger, other: StageKey) -> None:
    ledger.finish(ledger.begin(KEY), OUTPUT)
    assert ledger.finished(other) is None
    assert other.digest != KEY.digest


def test_finishing_twice_changes_nothing(ledger: Ledger) -> None:
    begun = ledger.begin(KEY)
    first = ledger.finish(begun, OUTPUT)
    assert ledger.finish(begun, OUTPUT) == first
    assert ledger.history(PROTOCOL) == (first,)


def test_other_output_of_a_finished_stage_is_refused(ledger: Ledger) -> None:
    begun = ledger.begin(KEY)
    first = ledger.finish(begun, OUTPUT)
    with pytest.raises(StorageError, match="codec, round 2 is finished with another output"):
        ledger.finish(begun, OTHER)
    assert ledger.finished(KEY) == first


def test_finished_stage_is_not_begun_again(ledger: Ledger) -> None:
    done = ledger.finish(ledger.begin(KEY), OUTPUT)
    assert ledger.begin(KEY) == done


def test_discarded_stage_is_begun_again_and_what_is_known_of_it_stays(ledger: Ledger) -> None:
    done = ledger.finish(ledger.begin(KEY), OUTPUT, details={"loss": 0.5}, participants=["north"])
    gone = ledger.discard(done, "its output is damaged")
    assert (gone.status, gone.output, gone.reason) == ("failed", None, "its output is damaged")
    assert (gone.details, gone.participants) == ({"loss": 0.5}, ("north",))
    assert ledger.finished(KEY) is None
    again = ledger.finish(ledger.begin(KEY), OUTPUT)
    assert ledger.history(PROTOCOL) == (gone, again)


def test_only_a_finished_stage_can_be_discarded(ledger: Ledger) -> None:
    with pytest.raises(StorageError, match="it is not finished"):
        ledger.discard(ledger.begin(KEY), "damaged")


def test_stage_of_a_dead_process_is_begun_again(file: Path, ledger: Ledger) -> None:
    dead = ledger.begin(KEY)
    resumed = Ledger(open_database(file), clock=Clock())
    alive = resumed.begin(KEY)
    with pytest.raises(StorageError, match="this attempt has ended"):
        ledger.finish(dead, OUTPUT)
    with pytest.raises(StorageError, match="this attempt has ended"):
        ledger.fail(dead, "too late")
    done = resumed.finish(alive, OUTPUT)

    old, new = resumed.history(PROTOCOL)
    assert (old.id, old.status, old.reason) == (dead.id, "failed", SUPERSEDED)
    assert new == done
    # The dead process came back with the same result: nothing to complain about.
    assert ledger.finish(dead, OUTPUT) == done


def test_failed_stage_may_be_finished_by_a_later_attempt(ledger: Ledger) -> None:
    failed = ledger.fail(ledger.begin(KEY), "site valley did not answer", details={"missing": 1})
    assert (failed.status, failed.output, failed.details) == ("failed", None, {"missing": 1})
    assert ledger.finished(KEY) is None
    ledger.finish(ledger.begin(KEY), OUTPUT)
    assert [record.status for record in ledger.history(PROTOCOL)] == ["failed", "finished"]


def test_history_is_that_of_one_protocol(ledger: Ledger) -> None:
    ledger.begin(KEY)
    assert ledger.history(OTHER) == ()


def test_beginning_at_once_leaves_one_running(file: Path) -> None:
    ledgers = [Ledger(open_database(file)) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda ledger: ledger.begin(KEY), ledgers))
    statuses = sorted(record.status for record in ledgers[0].history(PROTOCOL))
    assert statuses == ["failed", "failed", "failed", "running"]


def test_nan_in_details_is_refused_and_leaves_the_stage_running(ledger: Ledger) -> None:
    begun = ledger.begin(KEY)
    with pytest.raises(Exception, match="JSON compliant"):
        ledger.finish(begun, OUTPUT, details={"loss": float("nan")})
    assert [record.status for record in ledger.history(PROTOCOL)] == ["running"]
