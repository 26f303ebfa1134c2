"""The one loop: one schedule over all rounds, an honest curve, a stop at what is not finite."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from vitrael.core.configs import TrainingConfig
from vitrael.core.errors import DataError, TaskStopped
from vitrael.core.interfaces import Objective
from vitrael.core.records import Loss
from vitrael.core.training.loop import fit, learning_rate
from vitrael.core.training.state import State


class Point(nn.Module):
    """One weight, at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.zeros(1))


def slope(model: nn.Module, batch: torch.Tensor, rng: torch.Generator) -> Loss:
    """Fall with slope 1 everywhere: Adam's steps are then exactly the learning rates."""
    del batch, rng
    at = next(model.parameters())
    return Loss(total=-at.sum(), parts={"height": at.detach().sum()})


def nothing(count: int, rng: torch.Generator) -> torch.Tensor:
    return torch.rand(count, generator=rng)


def config(**changes: float) -> TrainingConfig:
    fields = {"length_images": 96, "batch_images": 4, "learning_rate": 0.1, "warmup_images": 16}
    return TrainingConfig.model_validate({**fields, **changes})


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def end_of(*rounds: tuple[int, int]) -> float:
    """Return where the point ends after rounds of (first image, images)."""
    model = Point()
    for start, length in rounds:
        fit(
            model,
            slope,
            nothing,
            config(),
            length_images=length,
            start_images=start,
            rng=generator(),
        )
    return model.at.item()


def test_rounds_follow_the_schedule_of_the_whole() -> None:
    whole = end_of((0, 96))
    assert whole == pytest.approx(sum(learning_rate(config(), i) for i in range(0, 96, 4)), 1e-5)
    assert end_of((0, 48), (48, 48)) == pytest.approx(whole, 1e-5)
    assert end_of((0, 32), (32, 32), (64, 32)) == pytest.approx(whole, 1e-5)
    assert end_of((0, 48), (0, 48)) != pytest.approx(whole, 1e-2)  # the control


def test_learning_rate_rises_in_a_line_and_falls_as_half_a_cosine() -> None:
    given = config()
    rates = [learning_rate(given, images) for images in range(0, 97, 4)]
    assert rates[0] == pytest.approx(0.1 * 4 / 20)
    np.testing.assert_allclose(np.diff(rates[:4]), 0.1 * 4 / 20)
    assert all(one >= two for one, two in pairwise(rates[4:]))
    assert learning_rate(given, 48) == pytest.approx(0.05)
    assert learning_rate(given, 96) == learning_rate(given, 10_000) == pytest.approx(0.002)
    assert max(rates) <= 0.1


def test_learning_rate_without_warm_up_starts_at_the_top() -> None:
    assert learning_rate(config(warmup_images=0), 0) == pytest.approx(0.1)


def test_curve_is_the_mean_since_the_point_before() -> None:
    # With 100 steps and 50 points each is the mean of two heights.
    model, heights = Point(), []

    def noted(model: nn.Module, batch: torch.Tensor, rng: torch.Generator) -> Loss:
        loss = slope(model, batch, rng)
        heights.append(loss.parts["height"].item())
        return loss

    given = config(length_images=400)
    curve = fit(model, noted, nothing, given, length_images=400, start_images=400, rng=generator())
    assert curve.images == list(range(408, 801, 8))
    np.testing.assert_allclose(
        curve.losses["height"], np.reshape(heights, (50, 2)).mean(1), rtol=1e-5
    )
    assert set(curve.losses) == {"total", "height"}


def test_progress_ends_with_all_images() -> None:
    told: list[tuple[int, int]] = []
    fit(
        Point(),
        slope,
        nothing,
        config(),
        length_images=10,
        rng=generator(),
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(4, 10), (8, 10), (10, 10)]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_loss_that_is_not_finite_stops_the_training(value: float) -> None:
    def broken(model: nn.Module, batch: torch.Tensor, rng: torch.Generator) -> Loss:
        del batch, rng
        return Loss(total=next(model.parameters()).sum() * value, parts={})

    with pytest.raises(DataError, match="not finite") as caught:
        fit(Point(), broken, nothing, config(), length_images=16, rng=generator())
    assert "learning_rate" in caught.value.fix


def test_part_of_a_loss_that_is_not_finite_is_named() -> None:
    def broken(model: nn.Module, batch: torch.Tensor, rng: torch.Generator) -> Loss:
        loss = slope(model, batch, rng)
        return Loss(total=loss.total, parts={"kl": torch.tensor(math.nan)})

    with pytest.raises(DataError, match="kl after 4 images"):
        fit(Point(), broken, nothing, config(), length_images=16, rng=generator())


def regression(model: nn.Module, batch: torch.Tensor, rng: torch.Generator) -> Loss:
    """Learn a noisy line: data and objective both draw from the generator."""
    noise = 0.1 * torch.randn(batch.shape, generator=rng)
    error = model(batch[:, None])[:, 0] - (3 * batch + noise)
    return Loss(total=(error**2).mean(), parts={})


def trained(seed: int, **changes: float) -> torch.Tensor:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        model = nn.Sequential(nn.Linear(1, 8), nn.SiLU(), nn.Linear(8, 1))
    fit(model, regression, nothing, config(**changes), length_images=96, rng=generator(seed))
    assert not model.training
    return torch.cat([parameter.detach().ravel() for parameter in model.parameters()])


def test_equal_seeds_give_equal_weights() -> None:
    assert trained(1).equal(trained(1))
    assert not trained(1).equal(trained(2))


def test_training_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    trained(1)
    assert torch.random.get_rng_state().equal(before)


def test_module_holds_the_average_when_it_is_asked_for() -> None:
    averaged, plain = trained(1, ema_halflife_images=64), trained(1)
    assert not averaged.equal(plain)
    torch.testing.assert_close(averaged, plain, atol=0.5, rtol=0)


def test_gradients_are_clipped() -> None:
    def sloped(by: float) -> float:
        def steep(model: nn.Module, batch: torch.Tensor, rng: torch.Generator) -> Loss:
            return Loss(total=by * slope(model, batch, rng).total, parts={})

        model = Point()
        fit(model, steep, nothing, config(), length_images=16, rng=generator())
        assert model.at.grad is not None
        return model.at.grad.norm().item()

    assert sloped(1e6) == pytest.approx(1, abs=1e-4)
    assert sloped(0.1) == pytest.approx(0.1)  # the control: what is short stays as it is


@pytest.mark.parametrize(("length", "steps"), [(1, 1), (4, 1), (5, 2), (0, 1)])
def test_length_is_rounded_up_to_whole_batches(length: int, steps: int) -> None:
    drawn: list[int] = []

    def draw(count: int, rng: torch.Generator) -> torch.Tensor:
        drawn.append(count)
        return nothing(count, rng)

    make: Callable[..., object] = fit
    make(Point(), slope, draw, config(), length_images=length, rng=generator())
    assert drawn == [4] * steps


def test_accumulated_batches_learn_what_one_large_batch_does() -> None:
    def end(batch: int, accumulated: int) -> tuple[torch.Tensor, int]:
        with torch.random.fork_rng():
            torch.default_generator.manual_seed(0)
            model = nn.Sequential(nn.Linear(1, 8), nn.SiLU(), nn.Linear(8, 1))
        drawn = 0

        def draw(count: int, rng: torch.Generator) -> torch.Tensor:
            nonlocal drawn
            drawn += count
            return nothing(count, rng)

        def plain(model: nn.Module, batch: torch.Tensor, rng: torch.Generator) -> Loss:
            return Loss(total=((model(batch[:, None])[:, 0] - 3 * batch) ** 2).mean(), parts={})

        given = config(batch_images=batch, accumulated_batches=accumulated, warmup_images=0)
        fit(model, plain, draw, given, length_images=96, rng=generator())
        return torch.cat([parameter.detach().ravel() for parameter in model.parameters()]), drawn

    whole, drawn = end(12, 1)
    parts, drawn_in_parts = end(4, 3)
    assert drawn == drawn_in_parts == 96
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-4)
    other, _ = end(4, 1)  # the control
    assert not torch.allclose(other, whole, atol=1e-3)


def test_curve_of_accumulated_batches_is_the_mean_of_all() -> None:
    values = iter(range(1, 100))

    def counted(model: nn.Module, batch: torch.Tensor, rng: torch.Generator) -> Loss:
        loss = slope(model, batch, rng)
        return Loss(total=loss.total, parts={"number": torch.tensor(float(next(values)))})

    given = config(accumulated_batches=3)
    curve = fit(Point(), counted, nothing, given, length_images=30, rng=generator())
    assert curve.images == [12, 24, 36]
    assert curve.losses["number"] == [2, 5, 8]


def test_schedule_counts_images_whatever_is_accumulated() -> None:
    model = Point()
    given = config(accumulated_batches=2)
    fit(model, slope, nothing, given, length_images=96, rng=generator())
    rates = sum(learning_rate(given, images) for images in range(0, 96, 8))
    assert model.at.item() == pytest.approx(rates, 1e-5)


def plainly(seed: int, given: TrainingConfig) -> torch.Tensor:
    """Train as the loop does, but one weight after the other, in the plainest words."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        model = nn.Sequential(nn.Linear(1, 8), nn.SiLU(), nn.Linear(8, 1))
    rng, weights = generator(seed), list(model.parameters())
    adam = torch.optim.Adam(weights, foreach=False)
    shadow, halflife = [weight.detach().clone() for weight in weights], given.ema_halflife_images
    for done in range(0, 96, 4):
        adam.param_groups[0]["lr"] = learning_rate(given, done)
        loss = regression(model, nothing(4, rng), rng).total
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        adam.step()
        keep = 0.5 ** (4 / min(halflife, max((done + 4) / 10, 1)))
        for average, weight in zip(shadow, weights, strict=True):
            average.lerp_(weight.detach(), 1 - keep)
    return torch.cat([average.ravel() for average in shadow])


def test_weights_are_those_of_a_plain_loop_to_the_bit() -> None:
    given = config(ema_halflife_images=16)
    assert trained(1, ema_halflife_images=16).equal(plainly(1, given))
    assert not trained(1, ema_halflife_images=16).equal(plainly(2, given))


class Kept:
    """Checkpoints that are due after every step and count what they were given."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def load(self) -> State | None:
        return None

    def is_due(self) -> bool:
        return True

    def save(self, state: State) -> None:
        assert all(tensor.isfinite().all() for tensor in state.tensors.values())
        self.steps.append(state.step)


def spoiled(at: int, *, loss: float, slope: float) -> Objective:
    """Return an objective whose loss or gradient is multiplied by a number at one step."""
    steps = iter(range(1, 1000))

    def objective(model: nn.Module, batch: torch.Tensor, rng: torch.Generator) -> Loss:
        del batch, rng
        place, now = next(model.parameters()), next(steps) == at
        total = -place.sum() * (slope if now else 1.0)
        total = total + (total.detach() * (loss if now else 1.0) - total.detach())
        if not now:
            return Loss(total=total, parts={})
        return Loss(total=total.nan_to_num() if math.isfinite(loss) else total, parts={})

    return objective


@pytest.mark.parametrize(
    ("loss", "slope", "what"),
    [(math.nan, 1.0, "a loss"), (math.inf, 1.0, "a loss"), (1.0, math.inf, "a weight")],
)
def test_training_that_is_no_longer_finite_is_never_saved(
    loss: float, slope: float, what: str
) -> None:
    given, kept = config(length_images=4000), Kept()  # 20 steps for a point of the curve
    with pytest.raises(DataError, match=f"{what} is not finite") as caught:
        fit(
            Point(),
            spoiled(7, loss=loss, slope=slope),
            nothing,
            given,
            length_images=4000,
            rng=generator(),
            checkpoints=kept,
        )
    assert kept.steps == [1, 2, 3, 4, 5, 6]
    assert "28 images" in caught.value.why
    assert "learning_rate" in caught.value.fix
    sound = Kept()  # the control: nothing is refused where all is finite
    fit(
        Point(),
        spoiled(7, loss=1.0, slope=1.0),
        nothing,
        given,
        length_images=80,
        rng=generator(),
        checkpoints=sound,
    )
    assert sound.steps == [*range(1, 21)]


def test_training_that_is_told_to_stop_is_not_saved_when_it_is_no_longer_finite() -> None:
    def stop(done: int, _: int) -> None:
        if done >= 32:
            raise TaskStopped("the task was told to stop")

    for at, expected in ((7, DataError), (9, TaskStopped)):
        kept = Kept()
        kept.is_due = lambda: False  # type: ignore[method-assign]
        with pytest.raises(expected):
            fit(
                Point(),
                spoiled(at, loss=math.nan, slope=1.0),
                nothing,
                config(length_images=4000),
                length_images=4000,
                rng=generator(),
                poll=stop,
                checkpoints=kept,
            )
        assert kept.steps == ([] if expected is DataError else [8])


def test_warm_up_counts_the_images_of_a_step() -> None:
    whole, parts = config(batch_images=12), config(batch_images=4, accumulated_batches=3)
    assert [learning_rate(parts, at) for at in (0, 12, 24)] == [
        learning_rate(whole, at) for at in (0, 12, 24)
    ]
    assert learning_rate(config(), 0) < learning_rate(parts, 0)  # the control: a shorter step
