"""What a rehearsal does while it watches; its processes are tested over real ones elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vitrael.core.errors import ProcessError, VitraelError
from vitrael.server.federation.app import RunState
from vitrael.server.federation.layout import RehearsalLayout
from vitrael.server.rehearsal import Rehearsal


@pytest.fixture
def rehearsal(tmp_path: Path) -> Rehearsal:
    return Rehearsal(RehearsalLayout(home=tmp_path, sites=("north",)))


def say(home: Path, status: str, *, sentence: str = "", code: int = 0) -> None:
    """Write what a ServerApp says that is this very process, which lives."""
    document = {
        "status": status,
        "run_id": "0",
        "pid": os.getpid(),
        "utc": "2025-01-17T12:00:00Z",
        "sentence": sentence,
        "exit_code": code,
    }
    (home / "run.json").write_text(RunState.model_validate(document).model_dump_json())


def test_server_app_that_hangs_does_not_hang_the_rehearsal(
    rehearsal: Rehearsal, tmp_path: Path
) -> None:
    say(tmp_path, "running")
    with pytest.raises(ProcessError, match=r"did not end within 0 s: .* hangs.* To do: .*resume"):
        rehearsal.watch(timeout_s=0)


def test_run_that_ended_is_told_whatever_the_time(rehearsal: Rehearsal, tmp_path: Path) -> None:
    say(tmp_path, "finished", code=6)
    assert rehearsal.watch(timeout_s=0) == 6
    say(tmp_path, "failed", sentence="the round failed.", code=5)
    with pytest.raises(VitraelError, match="the round failed") as caught:
        rehearsal.watch(timeout_s=0)
    assert caught.value.exit_code == 5
