"""What the status says of a round in work, and before any study was started."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.factories.enrollment import enroll_everywhere
from tests.factories.federation import SITES, STUDY
from vitrael.server.board import Board, Stage
from vitrael.server.config import ServerSettings
from vitrael.server.db.engine import open_database
from vitrael.server.objects import ObjectStore
from vitrael.server.offers import load_offered, start_study
from vitrael.server.orders import read_order
from vitrael.server.runs import StudyState
from vitrael.server.status import read_status, show_status
from vitrael.server.studies.ledger import Ledger, StageKey

NOW = datetime.now(UTC).replace(microsecond=0)
CODEC = Stage(
    stage="codec",
    round=0,
    began_utc=NOW.isoformat(),
    asked=2,
    absent={"valley": "refused: it is paused"},
)


@pytest.fixture
def settings(tmp_path: Path) -> ServerSettings:
    return enroll_everywhere(tmp_path / "home", SITES, study=STUDY.encode())


def begin(settings: ServerSettings, *, predicted: dict[str, float] | None = None) -> None:
    """Let a coordinator that is this process be at the first round of the codec."""
    board = Board(settings.home, "1", settings.document.address, lambda: NOW)
    board.refresh(children=(), online={}, study=None, trouble="")
    board.write()
    start_study(settings, "tiny", now=NOW)
    order = read_order(settings.home)
    assert order is not None
    state = StudyState(
        study="tiny", protocol=order.protocol, order=order.digest, status="running", runs=1
    )
    (settings.home / "runs.json").write_text(state.model_dump_json())
    board.state = board.state.model_copy(update={"study": state, "stage": CODEC})
    board.write()
    if predicted is None:
        return
    engine = open_database(settings.database)
    output = ObjectStore(settings.home / "objects").put_json({"predicted": predicted})
    ledger = Ledger(engine)
    ledger.finish(ledger.begin(StageKey(order.protocol, "canary", 0, output)), output)
    engine.dispose()


def said(settings: ServerSettings, *, after_s: float = 20) -> str:
    return show_status(read_status(settings, now=NOW + timedelta(seconds=after_s)))


def test_round_in_work_tells_answers_refusals_and_what_the_canary_predicted(
    settings: ServerSettings,
) -> None:
    begin(settings, predicted={"codec": 100.0})
    rounds = load_offered(settings, "tiny").protocol.generator.codec.training.rounds
    text = said(settings)
    assert f"0 of 2 sites answered, for 20 s, about {rounds * 100 - 20} s left" in text
    assert "\n    valley: refused: it is paused" in text


def test_round_without_a_prediction_has_no_estimate(settings: ServerSettings) -> None:
    begin(settings)
    assert "0 of 2 sites answered, for 20 s\n" in said(settings)


def test_round_that_lasts_longer_than_expected_says_so(settings: ServerSettings) -> None:
    begin(settings, predicted={"codec": 1.0})
    assert "for 25 s, longer than expected" in said(settings, after_s=25)


def test_study_that_is_offered_is_the_next_step(settings: ServerSettings) -> None:
    assert "offered: tiny; begin with vitrael study start STUDY" in said(settings)
    (settings.home / "studies" / "tiny" / "study.toml").unlink()
    assert "offer one with vitrael study offer FILE" in said(settings)  # the control
