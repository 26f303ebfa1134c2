"""A search ends, keeps the best it met, and no row of it touches another."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch

from vitrael.core.errors import DataError, UsageError
from vitrael.core.sampling.operators import Identity, SliceMask, ThickSlices
from vitrael.core.sampling.search import (
    GradientDistance,
    Inversion,
    InversionSettings,
    Search,
    Variables,
)

SHAPE = (3, 1, 4, 4)


def draw(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plain(**settings: Any) -> InversionSettings:
    """Return settings without a pull toward the start."""
    return InversionSettings(**{"prior_weight": 0.0, **settings})


def search(
    low: torch.Tensor,
    settings: InversionSettings,
    *,
    start: Callable[[int], torch.Tensor] | None = None,
    generate: Callable[[Variables], torch.Tensor] = lambda variables: variables[0],
    progress: Callable[[int, int], None] | None = None,
) -> Inversion:
    begin = start or (lambda _: torch.zeros_like(low))
    run = Search(generate, Identity(), low, GradientDistance(), settings, progress)
    return run.run(lambda restart: (begin(restart),))


def test_loss_falls_and_the_image_is_found() -> None:
    low = draw(*SHAPE)
    found = search(low, plain(iterations=120, tolerance=0))
    assert (found.image - low).abs().max() < 0.05
    assert found.curve.shape == (1, 120, 3)
    assert (found.curve[0, -1] < 0.05 * found.curve[0, 0]).all()
    torch.testing.assert_close(found.restarts[0], found.curve[0, -1])
    short = search(low, plain(iterations=5))
    assert (short.image - low).abs().max() > 0.5  # the control: five steps do not reach it


def test_rows_together_are_what_they_are_alone() -> None:
    low = draw(*SHAPE) * torch.tensor([0.2, 1.0, 5.0]).reshape(3, 1, 1, 1)
    settings = plain(iterations=60, patience=5, tolerance=0.05)
    together = search(low, settings)
    for row in range(3):
        alone = search(low[row : row + 1], settings)
        torch.testing.assert_close(alone.image[0], together.image[row])
        torch.testing.assert_close(alone.curve[0, :, 0], together.curve[0, :, row])

    def mixing(variables: Variables) -> torch.Tensor:
        return variables[0] + 0.3 * variables[0].mean(0, keepdim=True)

    mixed = search(low, settings, generate=mixing)
    lonely = search(low[:1], settings, generate=mixing)
    assert not torch.allclose(lonely.image[0], mixed.image[0], atol=1e-3)  # the control


def test_row_on_a_plateau_stops_and_the_others_go_on() -> None:
    low = torch.stack([torch.zeros(1, 4, 4), torch.full((1, 4, 4), 9.0)])
    calls: list[int] = []
    settings = plain(iterations=100, patience=7, tolerance=0, distance_weight=0)
    found = search(low, settings, progress=lambda done, _: calls.append(done))
    assert len(calls) == 100  # the far row needs them all
    assert torch.equal(found.image[0], low[0])
    assert found.curve[0, -1, 1] < found.curve[0, 50, 1]
    calls.clear()
    search(low[:1], settings, progress=lambda done, _: calls.append(done))
    assert len(calls) == 8  # the first look and seven without progress


def test_curve_of_a_stopped_row_repeats_the_loss_that_it_keeps() -> None:
    found = search(torch.zeros(SHAPE), plain(iterations=30, patience=3))
    assert (found.curve == 0).all()
    assert found.curve.shape == (1, 30, 3)


def test_best_restart_is_kept_for_each_row() -> None:
    low = torch.zeros(2, 1, 4, 4)
    starts = [torch.tensor([0.0, 30.0]), torch.tensor([30.0, 0.0]), torch.tensor([60.0, 60.0])]
    found = search(
        low,
        plain(iterations=3, restarts=3),
        start=lambda restart: starts[restart].reshape(2, 1, 1, 1).expand_as(low).clone(),
    )
    assert torch.equal(found.image, low)
    assert found.restarts.shape == (3, 2)
    assert found.restarts.argmin(0).tolist() == [0, 1]
    assert (found.restarts[2] > 10).all()  # the control: a bad start was there


def test_best_of_an_unsteady_course_is_kept() -> None:
    """The last step need not be the best: here the generator spoils what it is given later."""
    calls = [0]

    def spoiled(variables: Variables) -> torch.Tensor:
        calls[0] += 1
        bad = 6 <= calls[0] <= 20
        return variables[0] + (100.0 if bad else 0.0)

    low = torch.full((1, 1, 4, 4), 3.0)
    found = search(low, plain(iterations=20), generate=spoiled)
    assert found.restarts.item() < 3
    assert (found.image - low).abs().max() < 4


def test_spread_is_the_deviation_over_restarts() -> None:
    low = torch.zeros(2, 1, 4, 4)
    starts = draw(3, 2, 1, 4, 4)
    settings = plain(iterations=1, restarts=3, learning_rate=1e-9)
    found = search(low, settings, start=lambda restart: starts[restart].clone())
    torch.testing.assert_close(found.spread, starts.std(dim=0))
    assert search(low, plain(iterations=1)).spread is None


def test_spread_is_large_where_nothing_was_measured() -> None:
    mask = SliceMask(0, 2)
    low = mask(draw(2, 1, 8, 8))
    run = Search(
        lambda variables: variables[0],
        mask,
        low,
        GradientDistance(),
        plain(iterations=150, restarts=4, distance_weight=0),
    )
    spread = run.run(lambda restart: (draw(2, 1, 8, 8, seed=restart),)).spread
    assert spread is not None
    seen = mask.observed(low).bool().expand_as(low)
    assert spread[seen].mean() < 0.1 * spread[~seen].mean()


def test_loss_is_a_mean_over_what_was_observed() -> None:
    """Hiding more of an equally wrong image leaves the loss as it is."""
    image = torch.ones(1, 1, 8, 8)
    losses = []
    for every in (1, 2, 4):
        mask = SliceMask(0, every)
        settings = plain(iterations=1, distance_weight=0)
        run = Search(lambda v: v[0], mask, mask(image), GradientDistance(), settings)
        losses.append(run.run(lambda _: (torch.zeros(1, 1, 8, 8),)).restarts.item())
    assert losses == pytest.approx([1.0, 1.0, 1.0])


def test_consistent_result_agrees_with_the_measurement() -> None:
    thick = ThickSlices(0, 4)
    truth = draw(2, 1, 8, 8)
    for consistent in (True, False):
        settings = plain(iterations=3, consistent=consistent)
        run = Search(lambda v: v[0], thick, thick(truth), GradientDistance(), settings)
        image = run.run(lambda _: (torch.zeros(2, 1, 8, 8),)).image
        assert torch.allclose(thick(image), thick(truth), atol=1e-5) == consistent


def test_only_free_entries_move_and_stay_between_0_and_1() -> None:
    low = torch.full((2, 1, 4, 4), 5.0)

    def generate(variables: Variables) -> torch.Tensor:
        _, condition = variables
        return condition.sum(1).reshape(-1, 1, 1, 1).expand(2, 1, 4, 4) + 0 * variables[0]

    start = torch.tensor([[0.5, -1.0, 0.4]]).repeat(2, 1)
    run = Search(
        generate,
        Identity(),
        low,
        GradientDistance(),
        plain(iterations=60),
        free=torch.tensor([True, False, True]),
    )
    found = run.run(lambda _: (torch.zeros(2, 1, 4, 4), start.clone()))
    assert found.condition is not None
    assert found.condition.tolist() == [[1.0, -1.0, 1.0]] * 2


def test_weak_prior_pulls_variables_toward_their_mean() -> None:
    low = draw(*SHAPE)
    norms = [
        search(low, plain(iterations=150, prior_weight=weight)).latent.norm().item()
        for weight in (0.0, 0.05, 1.0)
    ]
    assert all(heavy < light for light, heavy in pairwise(norms))


def test_prior_pulls_toward_the_center_that_it_is_given() -> None:
    low, center = draw(*SHAPE), torch.full(SHAPE, 2.0)
    run = Search(
        lambda variables: variables[0],
        Identity(),
        low,
        GradientDistance(),
        plain(prior_weight=50.0, iterations=150),
        center=center,
    )
    found = run.run(lambda _: (torch.zeros(SHAPE),)).latent
    assert (found - center).abs().max() < 0.2


def test_generator_is_not_given_gradients() -> None:
    weight = torch.nn.Parameter(torch.tensor(2.0))
    found = search(draw(*SHAPE), plain(iterations=3), generate=lambda v: weight * v[0])
    assert weight.grad is None
    assert not found.image.requires_grad


def test_search_works_where_gradients_are_off() -> None:
    low = draw(*SHAPE)
    with torch.no_grad():
        off = search(low, plain(iterations=20))
    torch.testing.assert_close(off.image, search(low, plain(iterations=20)).image)


def test_row_that_never_has_a_finite_loss_is_refused() -> None:
    low = draw(*SHAPE)
    with pytest.raises(DataError, match="finite loss"):
        search(low, plain(iterations=4), generate=lambda v: v[0] * math.nan)


def test_one_bad_step_does_not_lose_what_was_found() -> None:
    calls = [0]

    def failing(variables: Variables) -> torch.Tensor:
        calls[0] += 1
        return variables[0] * (math.nan if calls[0] == 10 else 1.0)

    low = draw(*SHAPE)
    found = search(low, plain(iterations=20, learning_rate=0.1), generate=failing)
    assert torch.isfinite(found.image).all()
    assert (found.curve[0, -1] < found.curve[0, 0]).all()


def test_generator_on_another_grid_is_refused() -> None:
    with pytest.raises(DataError, match="grid"):
        search(draw(*SHAPE), plain(), generate=lambda v: v[0][..., :2])


def test_gradient_distance_sees_edges_and_no_offset() -> None:
    distance = GradientDistance()
    image = draw(2, 1, 16, 16)
    assert torch.equal(distance(image, image), torch.zeros(2))
    torch.testing.assert_close(distance(image + 0.5, image), torch.zeros(2), atol=1e-6, rtol=0)
    assert (distance(image.roll(1, dims=2), image) > 0.1).all()
    assert "fallback" in distance.name


@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (2, 1, 1, 5), (2, 1, 3, 2, 1), (1, 1, 4, 4, 4)])
def test_gradient_distance_takes_any_grid(shape: tuple[int, ...]) -> None:
    distance = GradientDistance(scales=4)(draw(*shape), draw(*shape, seed=2))
    assert distance.shape == (shape[0],)
    assert (distance > 0).all() == (max(shape[2:]) > 1)


def test_record_names_the_distance() -> None:
    found = search(draw(*SHAPE), plain(iterations=1, distance_weight=0.25))
    assert found.loss_name.startswith("mean absolute difference + 0.25 x gradients over 3 scales")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("iterations", 0),
        ("iterations", 10**6),
        ("restarts", 0),
        ("restarts", 1000),
        ("patience", 0),
        ("learning_rate", 0.0),
        ("learning_rate", math.inf),
        ("tolerance", 1.0),
        ("distance_weight", -1.0),
        ("prior_weight", math.nan),
        ("jitter", math.inf),
    ],
)
def test_settings_that_would_not_end_or_make_no_sense_are_refused(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=name):
        InversionSettings(**{name: value})  # type: ignore[arg-type]
