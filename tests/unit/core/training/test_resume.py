"""A training that was stopped or killed goes on to the same weights and curve, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.factories.systems import brain_ldm, images
from vitrael.core.configs import TrainingConfig
from vitrael.core.errors import TaskStopped, WeightsError
from vitrael.core.models import SYSTEMS
from vitrael.core.models.brain_ldm import build_codec, build_denoiser, draw_latents
from vitrael.core.training.checkpoints import FileCheckpoints
from vitrael.core.training.loop import fit
from vitrael.core.training.state import Curve, State

STEPS, BATCH = 12, 4
PARTS = ("codec", "teacher")


class Killed(BaseException):
    """Stands for a process that is killed: nothing of ours catches it."""


@dataclass
class Steps:
    """A clock that shows how many steps were polled."""

    done: int = 0

    def __call__(self) -> float:
        return float(self.done)


@dataclass
class Training:
    """One training of a part of the brain LDM, each attempt with a fresh module and generator."""

    part: str
    folder: Path
    halflife: int = 8
    every_steps: float = 1
    key: str = "this one"
    seen: list[int] = field(default_factory=list)
    """Number of images at each poll of the last attempt."""

    def run(
        self, *, until: int = STEPS, raises: BaseException | None = None, keep: bool = True
    ) -> tuple[list[torch.Tensor], Curve]:
        """Train; after ``until`` steps raise what is given."""
        torch.set_num_threads(1)
        system = brain_ldm()
        config = TrainingConfig(
            length_images=STEPS * BATCH, batch_images=BATCH, ema_halflife_images=self.halflife
        )
        if self.part == "codec":
            model: nn.Module = build_codec(system, seed=1)
            learned = images(8)
            draw: Callable[[int, torch.Generator], object] = lambda count, rng: learned[  # noqa: E731
                torch.randint(len(learned), (count,), generator=rng)
            ]
        else:
            model = build_denoiser(system, system.teacher, seed=1)
            rng = torch.Generator().manual_seed(5)
            latents = torch.randn((8, 2, 4, 4, 4), generator=rng)
            draw = draw_latents(latents, torch.rand((8, 4), generator=rng))
        clock, self.seen = Steps(), []
        checkpoints = FileCheckpoints(
            self.folder, key=self.key, every_s=self.every_steps, clock=clock
        )

        def poll(done: int, total: int) -> None:
            assert total == STEPS * BATCH
            clock.done += 1
            self.seen.append(done)
            if done >= until * BATCH and raises is not None:
                raise raises

        curve = fit(
            model,
            SYSTEMS[system.kind].objective(system, self.part),
            draw,
            config,
            length_images=STEPS * BATCH,
            rng=torch.Generator().manual_seed(3),
            poll=poll,
            checkpoints=checkpoints if keep else None,
        )
        assert not model.training
        return [tensor.clone() for tensor in model.state_dict().values()], curve


def assert_same(
    one: tuple[list[torch.Tensor], Curve], other: tuple[list[torch.Tensor], Curve]
) -> None:
    assert all(a.equal(b) for a, b in zip(one[0], other[0], strict=True))
    assert one[1] == other[1]


def stop() -> TaskStopped:
    return TaskStopped("the task was told to stop")


@pytest.fixture(scope="module")
def undisturbed() -> Callable[[str, int], tuple[list[torch.Tensor], Curve]]:
    known: dict[tuple[str, int], tuple[list[torch.Tensor], Curve]] = {}

    def give(part: str, halflife: int) -> tuple[list[torch.Tensor], Curve]:
        if (part, halflife) not in known:
            training = Training(part, Path("unused"), halflife=halflife)
            known[part, halflife] = training.run(keep=False)
        return known[part, halflife]

    return give


Whole = Callable[[str, int], tuple[list[torch.Tensor], Curve]]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("halflife", [0, 8])
@pytest.mark.parametrize("at", [1, 5, STEPS - 1, STEPS])
def test_training_that_was_stopped_goes_on_to_the_same_weights(
    part: str, halflife: int, at: int, tmp_path: Path, undisturbed: Whole
) -> None:
    training = Training(part, tmp_path, halflife=halflife, every_steps=1000)
    with pytest.raises(TaskStopped):
        training.run(until=at, raises=stop())
    assert len(training.seen) == at, "the stop is obeyed within a step"
    resumed = training.run()
    assert len(training.seen) == STEPS - at, "no step is made twice"
    assert_same(resumed, undisturbed(part, halflife))


@pytest.mark.parametrize("part", PARTS)
def test_training_that_was_stopped_again_and_again_is_the_same(
    part: str, tmp_path: Path, undisturbed: Whole
) -> None:
    training = Training(part, tmp_path)
    for at in (2, 3, 7, 11):
        with pytest.raises(TaskStopped):
            training.run(until=at, raises=stop())
    assert_same(training.run(), undisturbed(part, 8))


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("every", [1, 3])
def test_training_that_was_killed_goes_on_from_its_last_checkpoint(
    part: str, every: int, tmp_path: Path, undisturbed: Whole
) -> None:
    training = Training(part, tmp_path, every_steps=every)
    with pytest.raises(Killed):
        training.run(until=9, raises=Killed())
    saved = (9 - 1) // every * every
    resumed = training.run()
    assert len(training.seen) == STEPS - saved
    assert_same(resumed, undisturbed(part, 8))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [cut, flip, empty])
def test_damaged_checkpoint_is_refused_and_the_one_before_is_used(
    harm: Callable[[Path], None],
    tmp_path: Path,
    undisturbed: Whole,
    caplog: pytest.LogCaptureFixture,
) -> None:
    training = Training("teacher", tmp_path)
    with pytest.raises(Killed):
        training.run(until=9, raises=Killed())
    older, newest = sorted(tmp_path.iterdir())
    harm(newest)
    resumed = training.run()
    assert len(training.seen) == STEPS - 7
    assert "the one before is used" in caplog.text
    assert_same(resumed, undisturbed("teacher", 8))
    for path in tmp_path.iterdir():
        harm(path)
    del older
    anew = training.run()
    assert len(training.seen) == STEPS, "with none that is whole, it begins anew"
    assert_same(anew, undisturbed("teacher", 8))


def test_checkpoint_of_other_inputs_is_ignored_and_removed(
    tmp_path: Path, undisturbed: Whole
) -> None:
    training = Training("teacher", tmp_path)
    with pytest.raises(TaskStopped):
        training.run(until=6, raises=stop())
    training.key, training.every_steps = "of another cohort", 1000
    assert_same(training.run(), undisturbed("teacher", 8))
    assert len(training.seen) == STEPS
    assert list(tmp_path.iterdir()) == []


def test_state_that_is_not_restored_whole_is_noticed(tmp_path: Path, undisturbed: Whole) -> None:
    # The control of the tests above: without the generator the weights differ.
    class Forgetful(FileCheckpoints):
        def load(self) -> State | None:
            state = super().load()
            assert state is not None
            fresh = torch.Generator().manual_seed(3).get_state()
            return State(
                {**state.tensors, "generator": fresh},
                state.step,
                state.average_images,
                state.window_steps,
                state.curve,
            )

    training = Training("teacher", tmp_path)
    with pytest.raises(TaskStopped):
        training.run(until=6, raises=stop())
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "FileCheckpoints", Forgetful)
        weights, _ = training.run()
    whole, _ = undisturbed("teacher", 8)
    assert not all(a.equal(b) for a, b in zip(weights, whole, strict=True))


def test_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskStopped):
        Training("teacher", tmp_path).run(until=2, raises=stop())
    with pytest.raises(WeightsError, match="of another network"):
        Training("codec", tmp_path).run()


def test_stop_without_checkpoints_ends_the_training(tmp_path: Path) -> None:
    training = Training("teacher", tmp_path)
    with pytest.raises(TaskStopped):
        training.run(until=2, raises=stop(), keep=False)
    assert list(tmp_path.iterdir()) == []
