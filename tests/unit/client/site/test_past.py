"""A steward whose journal is not the one that the coordinator was told of gives nothing away."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vitrael.core.errors import StorageError
from vitrael.core.messages import Head
from vitrael.privacy.journal import BEGINNING

if TYPE_CHECKING:
    from tests.unit.client.site.conftest import CountingTask, Home
    from vitrael.client.site.steward import Steward


def told(home: Home, steward: Steward) -> Head:
    """Return what the coordinator is told in the answer to one task."""
    reply, _ = home.open(steward.answer(home.parcel(home.task())))
    assert reply.journal is not None
    return reply.journal


def test_reply_quotes_the_line_before_its_own(home: Home, steward: Steward) -> None:
    head = told(home, steward)
    *_, before, own = home.lines()
    assert (head.lines, head.hash) == (before.line, before.hash)
    assert own.event == "sent"


def test_line_quotes_where_the_coordinator_s_journal_ended(home: Home, steward: Steward) -> None:
    head = Head(lines=41, hash=home.study.protocol.digest)
    steward.answer(home.parcel(home.task(journal=head)))
    steward.answer(home.parcel(home.task(round=1)))
    *_, quoting, silent = home.lines()
    assert (quoting.other, quoting.other_lines) == (head.hash, 41)
    assert (silent.other, silent.other_lines) == ("", 0)
    assert (quoting.origin, quoting.attempt) == ("north", 0)


def test_task_that_quotes_this_journal_is_done(home: Home, steward: Steward) -> None:
    heads = [told(home, steward) for _ in range(3)]
    for number, head in enumerate([Head(lines=0, hash=BEGINNING), *heads]):
        task = home.task(yours=head, round=number % 2)
        assert home.open(steward.answer(home.parcel(task)))[0].status == "done"


@pytest.mark.parametrize("changed", ["hash", "later", "earlier", "last"])
def test_task_that_quotes_another_past_is_not_done(
    home: Home, steward: Steward, counting: CountingTask, changed: str
) -> None:
    told(home, steward)
    head = told(home, steward)
    update = {
        "hash": {"hash": home.study.protocol.digest},
        "later": {"lines": head.lines + 40},
        "earlier": {"lines": head.lines - 1},
        "last": {"lines": head.lines + 1, "hash": home.lines()[-1].hash},  # its reply is missing
    }[changed]
    calls, before = counting.calls, len(home.lines())
    with pytest.raises(StorageError, match="not the one that the coordinator was told of"):
        steward.answer(home.parcel(home.task(round=1, yours=head.model_copy(update=update))))
    assert (counting.calls, len(home.lines())) == (calls, before)


def test_journal_that_is_changed_under_a_steward_lets_nothing_leave_after_an_hour(
    home: Home, steward: Steward
) -> None:
    told(home, steward)
    whole = home.settings.journal.read_bytes()
    damaged = whole.replace(b'"event":"consent"', b'"event":"resumed"')
    assert damaged != whole
    home.settings.journal.write_bytes(damaged)
    told(home, steward)  # the control: a line looks at the last one alone
    home.clock.advance(hours=1)
    for _ in range(2):
        lines = len(home.settings.journal.read_bytes().splitlines())
        with pytest.raises(StorageError, match="the journal is not whole"):
            steward.answer(home.parcel(home.task(round=1)))
        assert len(home.settings.journal.read_bytes().splitlines()) == lines
    mended = home.settings.journal.read_bytes().replace(b'"event":"resumed"', b'"event":"consent"')
    home.settings.journal.write_bytes(mended)
    told(home, steward)


def test_journal_that_was_restored_from_an_older_backup_is_found(
    home: Home, steward: Steward
) -> None:
    told(home, steward)
    steward.close()
    names = ("journal.jsonl", "journal.head.json", "store.sqlite")
    backup = {name: (home.path / name).read_bytes() for name in names}
    steward = home.steward({"codec": lambda *_: pytest.fail("nothing may be computed")})
    steward.answer(home.parcel(home.task()))
    head = told(home, steward)
    steward.close()
    for name, data in backup.items():
        (home.path / name).write_bytes(data)
    restored = home.steward()
    with pytest.raises(StorageError, match="restore the newest backup"):
        restored.answer(home.parcel(home.task(round=1, yours=head)))
    restored.close()
