"""A checkpoint is whole or none, for its owner alone, and costs little time however large."""

from __future__ import annotations

import errno
import stat
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from vitrael.core.errors import WeightsError
from vitrael.core.training import checkpoints as module
from vitrael.core.training.checkpoints import EVERY_S, MOST_SHARE, FileCheckpoints
from vitrael.core.training.state import Curve, State, read_state, write_state


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def state(step: int) -> State:
    tensors = {"model/w": torch.full((3, 2), step / 3), "generator": torch.Generator().get_state()}
    curve = Curve([step], {"total": [0.1 * step], "l1": [1 / 3]})
    return State(tensors, step, average_images=4 * step, window_steps=1, curve=curve)


def same(one: State, other: State) -> bool:
    facts = [
        (s.step, s.average_images, s.window_steps, s.curve, set(s.tensors)) for s in (one, other)
    ]
    return facts[0] == facts[1] and all(one.tensors[n].equal(other.tensors[n]) for n in one.tensors)


def steps_of(folder: Path) -> list[int]:
    return sorted(int(path.name[:12]) for path in folder.iterdir())


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    kept = FileCheckpoints(tmp_path / "new", key="k")
    assert kept.load() is None
    kept.save(state(5))
    loaded = FileCheckpoints(tmp_path / "new", key="k").load()
    assert loaded is not None
    assert same(loaded, state(5))
    assert not same(loaded, state(6))


def test_two_generations_are_kept(tmp_path: Path) -> None:
    kept = FileCheckpoints(tmp_path, key="k")
    for step in (1, 2, 10, 100):
        kept.save(state(step))
        assert step in steps_of(tmp_path)
    assert steps_of(tmp_path) == [10, 100]


def test_checkpoints_are_for_their_owner_alone(tmp_path: Path) -> None:
    kept = FileCheckpoints(tmp_path / "new", key="k")
    kept.save(state(1))
    (path,) = (tmp_path / "new").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_disk_that_is_full_ends_no_training_and_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept = FileCheckpoints(tmp_path, key="k")
    kept.save(state(1))

    def full(state: State, path: Path, *, key: str) -> None:
        write_state(state, path, key=key)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "write_state", full)
    kept.save(state(2))
    assert "there is no disk space left" in caplog.text
    assert str(tmp_path) not in caplog.text
    assert steps_of(tmp_path) == [1]
    loaded = kept.load()
    assert loaded is not None
    assert loaded.step == 1


def test_what_the_system_said_is_told_without_a_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="Not a directory") as caught:
        write_state(state(1), tmp_path / "file" / "state", key="k")
    assert caught.value.errno == errno.ENOTDIR
    assert str(tmp_path) not in str(caught.value)


def test_checkpoint_that_was_begun_when_its_process_was_killed_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(_: Path) -> None:
        raise Killed

    kept = FileCheckpoints(tmp_path, key="k")
    kept.save(state(1))
    half = tmp_path / ".partial-dead"
    half.mkdir()
    (half / "state").write_bytes(b"half")
    monkeypatch.setattr(module, "_sync", kill)
    with pytest.raises(Killed):
        kept.save(state(2))
    loaded = kept.load()
    assert loaded is not None
    assert loaded.step == 1
    assert steps_of(tmp_path) == [1]


def test_checkpoint_is_due_after_its_time(tmp_path: Path) -> None:
    clock = Clock()
    kept = FileCheckpoints(tmp_path, key="k", clock=clock)
    assert not kept.is_due()
    clock.now = EVERY_S
    assert kept.is_due()
    kept.save(state(1))
    assert not kept.is_due()


@pytest.mark.parametrize(("took_s", "due_s"), [(0.1, EVERY_S), (3.0, 3.0 / MOST_SHARE)])
def test_checkpoints_take_no_more_than_their_share_of_the_time(
    took_s: float, due_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    kept = FileCheckpoints(tmp_path, key="k", clock=clock)

    def slow(state: State, path: Path, *, key: str) -> None:
        write_state(state, path, key=key)
        clock.now += took_s

    monkeypatch.setattr(module, "write_state", slow)
    kept.save(state(1))
    clock.now = took_s + due_s - 0.01
    assert not kept.is_due()
    clock.now += 0.02
    assert kept.is_due()


@pytest.mark.parametrize("length", [0, 4, 20, -1])
def test_bytes_that_are_no_state_are_refused(length: int, tmp_path: Path) -> None:
    write_state(state(1), tmp_path / "state", key="k")
    data = (tmp_path / "state").read_bytes()
    assert read_state(data)[1] == "k"
    with pytest.raises(WeightsError, match="cannot be read"):
        read_state(data[:length])


def test_weights_without_a_state_are_none(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.ones(2)}, tmp_path / "weights")
    with pytest.raises(WeightsError, match="cannot be read"):
        read_state((tmp_path / "weights").read_bytes())
