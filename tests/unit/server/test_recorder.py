"""The recorder records until the study has ended, and once more then."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from vitrael.core.digest import Digest, digest_bytes
from vitrael.server import recorder
from vitrael.server.runs import StudyState, StudyStatus

NAME = digest_bytes(b"x")


def say(home: Path, status: StudyStatus, *, order: Digest = NAME) -> None:
    state = StudyState(study="tiny", protocol=NAME, order=order, status=status)
    (home / "runs.json").write_text(state.model_dump_json())


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the study was at each time that the recorder caught up; then it finishes."""
    seen: list[str] = []

    class FakeRecorder:
        def __init__(self, home: Path) -> None:
            self.home = home

        def catch_up(self) -> None:
            state = recorder.read_state(self.home)
            assert state is not None
            seen.append(state.status)
            if len(seen) == 2:
                say(self.home, "finished")

    monkeypatch.setattr(recorder, "Recorder", FakeRecorder)
    return seen


def test_what_finished_last_is_recorded_too(tmp_path: Path, recorded: list[str]) -> None:
    say(tmp_path, "running")
    recorder.record_study(tmp_path, threading.Event(), poll_s=0)
    assert recorded == ["running", "running", "finished"]


def test_recorder_that_is_told_to_stop_catches_up_once_more(
    tmp_path: Path, recorded: list[str]
) -> None:
    say(tmp_path, "running")
    stop = threading.Event()
    stop.set()
    recorder.record_study(tmp_path, stop)
    assert recorded == ["running"]


def test_recorder_ends_when_anything_else_is_ordered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    amended = digest_bytes(b"the same study with another roster")
    seen: list[str] = []

    class FakeRecorder:
        def __init__(self, _home: Path) -> None: ...

        def catch_up(self) -> None:
            state = recorder.read_state(tmp_path)
            assert state is not None
            assert len(seen) < 3, "it goes on with what is not its own"
            seen.append(state.order)
            say(tmp_path, "running", order=NAME if len(seen) == 1 else amended)

    monkeypatch.setattr(recorder, "Recorder", FakeRecorder)
    say(tmp_path, "running")
    recorder.record_study(tmp_path, threading.Event(), poll_s=0)
    assert seen == [NAME, NAME, amended]  # the first two are the control: it went on with its own
