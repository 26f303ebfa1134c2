"""The coordinator writes every task and reply down, and each side quotes the other's journal."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.factories.cohort import recipe_settings, write_cohort
from tests.factories.federation import (
    SITES,
    STUDY,
    Federation,
    consent_everywhere,
    federation,
)
from vitrael.client.site.ingest.summary import summarize
from vitrael.client.site.ingest.told import save_summary
from vitrael.client.site.tasks import TaskResult
from vitrael.core.errors import AuthError, StorageError
from vitrael.core.messages import Parcel, Task
from vitrael.core.study import load_study
from vitrael.privacy.journal import Line, read_journal, verify_journal
from vitrael.privacy.journal_cross import compare_journals, read_account
from vitrael.privacy.keys import KeyPair, fingerprint, save_public_keys, save_roster
from vitrael.server.db.engine import open_database
from vitrael.server.demo import COHORT, site_home
from vitrael.server.studies.correspondence import Answers, ask_sites
from vitrael.server.studies.run import StudyRun
from vitrael.server.studies.task_journal import TaskJournal

WEIGHTS = {"codec": {"w": np.arange(6, dtype=np.float32)}}


def add_one(_task: Task, inputs: Any, _context: object) -> TaskResult:
    tensors = {name: array + 1 for name, array in inputs["codec"].items()}
    return TaskResult(tensors={"codec": tensors}, num_examples=4)


def refuse(*_: object) -> TaskResult:
    raise AuthError("not today")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Homes of a coordinator and three sites with a few scans and a consent each."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "study.toml").write_text(STUDY)
    study = load_study(home / "study.toml")
    coordinator, members = KeyPair.create(), {site: KeyPair.create() for site in SITES}
    coordinator.save(home / "keys")
    public = {site: keys.public for site, keys in members.items()}
    save_roster(public, home / "roster.json")
    data = study.protocol.data
    recipe = recipe_settings(data.grid_vox, data.spacing_mm)
    for site, keys in members.items():
        place = site_home(home, site)
        keys.save(place / "keys")
        (place / "keys" / "split.key").write_bytes(bytes(32))
        (place / "keys" / "split.key").chmod(0o600)
        (place / "site.toml").write_text(f'name = "{site}"\n')
        save_public_keys(coordinator.public, place / "coordinator.json")
        save_roster(public, place / "roster.json")
        manifest = write_cohort(place / "cohorts" / COHORT, recipe=recipe, patients=12)
        save_summary(summarize(manifest), manifest, place / "cohorts" / COHORT)
    consent_everywhere(home, study)
    return home


@pytest.fixture
def told(home: Path) -> Iterator[Federation]:
    tasks: Any = {site: {"codec": add_one} for site in SITES}
    with federation(home, tasks=tasks) as opened:
        yield opened


def ask(run: StudyRun, number: int = 0) -> Answers:
    return ask_sites(run, "codec", WEIGHTS, round_index=number)


def lines(told: Federation) -> list[Line]:
    return list(read_journal(told.home / "journal.jsonl"))


def about(told: Federation, site: str) -> list[tuple[str, str]]:
    return [(line.event, line.reason) for line in lines(told) if site in {line.to, line.origin}]


def compare(told: Federation, site: str) -> Any:
    account = read_account(told.home / "journal.jsonl", in_home=True)
    path = site_home(told.home, site) / "journal.jsonl"
    return compare_journals(account, read_account(path, in_home=True))


def test_every_task_and_reply_stands_in_the_journals_of_both_sides(told: Federation) -> None:
    run = told.run()
    for number in range(2):
        assert not ask(run, number).absent
    assert verify_journal(told.home / "journal.jsonl") == []
    events = [line.event for line in lines(told)]
    assert events == ["asked"] * 3 + ["received"] * 3 + ["asked"] * 3 + ["received"] * 3
    for site in SITES:
        compared = compare(told, site)
        assert (compared.site, compared.replies, compared.faults) == (site, 2, ())
        assert compared.heads == 4  # each of two rounds, quoted by both


def test_task_quotes_both_journals_as_they_were(told: Federation) -> None:
    run = told.run()
    ask(run)
    ask(run, 1)
    first, second = (
        next(task for task in told.seen if (task.site, task.round) == ("north", n)) for n in (0, 1)
    )
    assert (first.yours, first.journal is not None) == (None, True)
    received = next(line for line in lines(told) if line.event == "received")
    assert second.yours is not None
    assert (second.yours.hash, second.yours.lines) == (received.other, received.other_lines)
    assert second.journal is not None
    assert second.journal.hash == lines(told)[5].hash


def test_what_a_site_told_is_known_to_the_next_run_but_not_of_other_keys(
    told: Federation,
) -> None:
    run = told.run()
    ask(run)
    again = told.run()
    assert again.journal.head_of("north") == run.journal.head_of("north")
    assert again.journal.head_of("north") is not None
    members = {**run.members, "north": KeyPair.create().public}
    engine = open_database(told.home / "server.sqlite")
    others = TaskJournal.of(told.home, members, engine=engine, clock=run.clock)
    assert others.head_of("north") is None
    assert others.head_of("harbour") is not None
    engine.dispose()


def test_line_says_all_of_a_reply_but_its_values(told: Federation) -> None:
    run = told.run()
    ask(run)
    line = next(one for one in lines(told) if (one.event, one.origin) == ("received", "north"))
    assert line.key == fingerprint(run.members["north"].signing)
    assert (line.stage, line.round, line.fields) == ("codec", 0, ("num_examples",))
    assert set(line.attachments) == {"codec"}
    asked = next(one for one in lines(told) if (one.event, one.to) == ("asked", "north"))
    assert asked.nonce == line.nonce
    assert asked.bytes > 24


def test_what_cannot_be_believed_is_refused_with_its_reason(told: Federation) -> None:
    told.spoil["north"] = lambda _, parcel: {**parcel, "codec": parcel["codec"][:-1]}
    told.spoil["harbour"] = lambda *_: "site harbour did not answer within 300 s"
    with pytest.raises(Exception, match="1 of 3"):
        ask(told.run())
    asked, (event, reason) = about(told, "north")
    assert (asked[0], event, "unsealed" in reason) == ("asked", "refused", True)
    assert about(told, "harbour")[1] == ("failed", "site harbour did not answer within 300 s")
    refused = next(line for line in lines(told) if line.event == "refused")
    assert refused.bytes > 0


def test_answer_that_is_too_large_is_refused_before_it_is_opened(told: Federation) -> None:
    def swell(_: Task, parcel: Parcel) -> Parcel:
        return {**parcel, "envelope": bytes(17 << 20)}

    told.spoil["north"] = swell
    answers = ask(told.run())
    assert "17,825" in answers.absent["north"]
    line = next(line for line in lines(told) if line.event == "refused")
    assert (line.origin, line.bytes > 17 << 20) == ("north", True)


def test_answer_of_an_earlier_round_is_refused_by_name(told: Federation) -> None:
    earlier: list[Parcel] = []
    told.spoil["north"] = lambda _, parcel: earlier.append(parcel) or parcel  # type: ignore[func-returns-value]
    run = told.run()
    ask(run)
    told.spoil["north"] = lambda *_: earlier[0]
    ask(run, 1)
    assert [event for event, _ in about(told, "north")] == ["asked", "received", "asked", "refused"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_answer_that_is_not_finite_is_refused_by_name(home: Path, value: float) -> None:
    def spoiled(_task: Task, inputs: Any, _context: object) -> TaskResult:
        return TaskResult(tensors={"codec": {"w": inputs["codec"]["w"] * 0 + np.float32(value)}})

    tasks: Any = {"north": {"codec": spoiled}, "harbour": {"codec": add_one}}
    tasks["valley"] = {"codec": add_one}
    with pytest.MonkeyPatch.context() as patch, federation(home, tasks=tasks) as told:
        patch.setattr("vitrael.client.site.outbox.check_like", lambda *_: None)
        answers = ask(told.run())
        assert "not finite" in answers.absent["north"]
        assert [event for event, _ in about(told, "north")] == ["asked", "received", "refused"]


def test_word_of_a_site_is_received_and_no_refusal_of_ours(home: Path) -> None:
    tasks: Any = {site: {"codec": add_one} for site in SITES} | {"north": {"codec": refuse}}
    with federation(home, tasks=tasks) as told:
        ask(told.run())
        events = about(told, "north")
        assert [event for event, _ in events] == ["asked", "received"]
        assert events[1][1].startswith("refused: not today")


def test_nothing_is_asked_without_its_line(
    told: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = told.run()
    run.journal.head()

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vitrael.privacy.journal.os.fsync", full)
    with pytest.raises(StorageError, match="journal"):
        ask(run)
    assert told.exchange.sent == []


def test_damaged_journal_lets_nothing_be_asked(told: Federation) -> None:
    ask(told.run())
    path = told.home / "journal.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"asked"', b'"run"', 1))
    before = len(told.exchange.sent)
    with pytest.raises(StorageError, match="not whole"):
        ask(told.run(), 1)
    assert len(told.exchange.sent) == before


def test_journal_that_was_removed_with_its_head_is_not_begun_anew(told: Federation) -> None:
    ask(told.run())
    names = ("journal.jsonl", "journal.head.json")
    whole = {name: (told.home / name).read_bytes() for name in names}
    for name in names:
        (told.home / name).unlink()
    before = len(told.exchange.sent)
    with pytest.raises(StorageError, match="was removed: 6 lines stood in it"):
        ask(told.run(), 1)
    assert len(told.exchange.sent) == before
    for name, data in whole.items():  # the control
        (told.home / name).write_bytes(data)
    assert not ask(told.run(), 1).absent


def test_site_with_an_older_journal_answers_nothing_more(told: Federation) -> None:
    run = told.run()
    ask(run)
    site = site_home(told.home, "north")
    names = ("journal.jsonl", "journal.head.json")
    older = {name: (site / name).read_bytes() for name in names}
    ask(run, 1)
    newest = {name: (site / name).read_bytes() for name in names}
    forget_head(site)
    for name, data in older.items():
        (site / name).write_bytes(data)
    with pytest.raises(StorageError, match="not the one that the coordinator was told of"):
        ask(run, 1)
    assert (site / "journal.jsonl").read_bytes() == older["journal.jsonl"]
    for name, data in newest.items():
        (site / name).write_bytes(data)
    assert not ask(run, 1).absent


def forget_head(site: Path) -> None:
    """Let the site's store remember no line, as an older copy of it would."""
    with closing(sqlite3.connect(site / "store.sqlite")) as connection, connection:
        connection.execute("DELETE FROM journal_head")
