"""Where the journal ends is remembered by whoever writes it, and never set back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from vitrael.core.digest import digest_bytes
from vitrael.privacy.journal import Kept
from vitrael.server.db.engine import open_database
from vitrael.server.db.heads import JournalHead

THREE, FIVE = (Kept(count, digest_bytes(b"%d" % count)) for count in (3, 5))


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = open_database(tmp_path / "server.sqlite")
    yield engine
    engine.dispose()


def test_line_that_another_process_left_behind_sets_nothing_back(engine: Engine) -> None:
    head = JournalHead(engine)
    assert head.read_head() is None
    head.keep_head(THREE)
    assert head.read_head() == THREE
    head.keep_head(FIVE)
    head.keep_head(THREE)
    assert head.read_head() == FIVE


def test_head_of_an_act_that_came_to_nothing_is_not_kept(engine: Engine) -> None:
    JournalHead(engine).keep_head(THREE)
    with Session(engine) as session:
        within = JournalHead(engine, session)
        within.keep_head(FIVE)
        assert within.read_head() == FIVE
        assert JournalHead(engine).read_head() == THREE  # nobody waits for the act to end
        session.rollback()
    assert JournalHead(engine).read_head() == THREE
    with Session(engine) as session:  # the control
        JournalHead(engine, session).keep_head(FIVE)
        session.commit()
    assert JournalHead(engine).read_head() == FIVE
