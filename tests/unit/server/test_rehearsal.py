"""What a rehearsal does while it watches; its processes are tested over real ones elsewhere."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from tests.factories.enrollment import enroll_everywhere
from tests.factories.federation import SITES, STUDY
from vitrael.core.digest import digest_bytes
from vitrael.core.errors import ProcessError, UsageError, VitraelError
from vitrael.server.federation.layout import RehearsalLayout
from vitrael.server.rehearsal import Rehearsal
from vitrael.server.runs import StudyState, StudyStatus

NAME = digest_bytes(b"x")


@pytest.fixture
def rehearsal(tmp_path: Path) -> Rehearsal:
    return Rehearsal(RehearsalLayout(home=tmp_path, sites=("north",)))


def say(home: Path, status: StudyStatus, *, sentence: str = "", code: int = 0) -> None:
    """Write what a coordinator says of the study."""
    state = StudyState(
        study="tiny", protocol=NAME, order=NAME, status=status, sentence=sentence, exit_code=code
    )
    (home / "runs.json").write_text(state.model_dump_json())


def test_server_app_that_hangs_does_not_hang_the_rehearsal(
    rehearsal: Rehearsal, tmp_path: Path
) -> None:
    say(tmp_path, "running")
    with pytest.raises(ProcessError, match=r"did not end within 0 s: .* hangs.* To do: .*resume"):
        rehearsal.watch(timeout_s=0)


@pytest.mark.parametrize("status", ["finished", "partial"])
def test_study_that_ended_is_told_whatever_the_time(
    rehearsal: Rehearsal, tmp_path: Path, status: StudyStatus
) -> None:
    say(tmp_path, status, code=6)
    assert rehearsal.watch(timeout_s=0) == 6


@pytest.mark.parametrize("status", ["failed", "stopped"])
def test_study_that_failed_is_raised_in_its_own_words(
    rehearsal: Rehearsal, tmp_path: Path, status: StudyStatus
) -> None:
    say(tmp_path, status, sentence="the round failed.", code=5)
    with pytest.raises(VitraelError, match="the round failed") as caught:
        rehearsal.watch(timeout_s=0)
    assert caught.value.exit_code == 5


def test_a_relative_home_is_refused() -> None:
    with (
        pytest.raises(UsageError, match="no absolute path"),
        Rehearsal(RehearsalLayout(Path("home"), ("north",))),
    ):
        pass


def test_rehearsal_runs_the_one_study_that_is_offered(tmp_path: Path) -> None:
    home = tmp_path / "home"
    settings = enroll_everywhere(home, SITES, study=STUDY.encode())
    rehearsal = Rehearsal(RehearsalLayout(home, SITES))
    (settings.studies / "other").mkdir()
    (settings.studies / "other" / "study.toml").write_text("")
    with pytest.raises(UsageError, match="offers 2 studies"):
        rehearsal.start_study()


def test_command_that_fails_is_told_with_its_sentence_and_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "vitrael"
    program.parent.mkdir()
    script = '#!/bin/sh\necho "progress" >&2\necho "Error: it is late. To do: wait." >&2\nexit 4\n'
    program.write_text(script)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(program.parent / "python"))
    rehearsal = Rehearsal(RehearsalLayout(tmp_path, ()))
    with pytest.raises(ProcessError) as caught:
        rehearsal.command("server", "invite", "north")
    assert str(caught.value) == "vitrael server invite: it is late. To do: wait."
    assert caught.value.exit_code == 4
