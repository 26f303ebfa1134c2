"""Both inversions take what they can use, refuse the rest, and draw from named streams."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Final

import pytest
import torch

from tests.unit.core.sampling.test_samplers import Wide
from vitrael.core.configs import SamplerName
from vitrael.core.errors import DataError, UsageError
from vitrael.core.interfaces import Predictor
from vitrael.core.rng import torch_stream
from vitrael.core.sampling.inverse import (
    InversionSettings,
    Prior,
    SuperResolver,
    invert_latent,
    invert_noise,
    recompute,
)
from vitrael.core.sampling.noise import RowNoise
from vitrael.core.sampling.operators import SliceMask, ThickSlices
from vitrael.core.sampling.samplers import SAMPLERS
from vitrael.core.sampling.schedules import log_snr_sigmas

LATENT = (2, 3)
SIGMAS = torch.tensor([8.0, 2.0, 0.5, 0.0])
THICK = ThickSlices(0, 2)
BRIEF = InversionSettings(iterations=4)
BASIS = torch.randn(6, 8 * 4, generator=torch.Generator().manual_seed(2))


def decode(z: torch.Tensor) -> torch.Tensor:
    return (z.flatten(1) @ BASIS).reshape(len(z), 1, 8, 4)


def denoise(x_t: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
    mean = condition.sum(1).reshape(-1, 1, 1)
    return mean + (x_t - mean) / (1 + sigma.reshape(-1, 1, 1) ** 2)


def images(count: int = 3, seed: int = 1) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return THICK(decode(torch.randn(count, *LATENT, generator=rng)))


PRIOR = Prior(denoise, SIGMAS, torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize("strategy", ["latent", "noise"])
@pytest.mark.parametrize("restarts", [1, 2])
def test_result_has_the_shapes_that_it_promises(strategy: Any, restarts: int) -> None:
    resolver = SuperResolver(
        decode, THICK, LATENT, PRIOR, None, strategy, replace(BRIEF, restarts=restarts)
    )
    found = resolver.invert(images())
    assert found.image.shape == (3, 1, 8, 4)
    assert found.latent.shape == (3, *LATENT)
    assert found.curve.shape == (restarts, 4, 3)
    assert found.restarts.shape == (restarts, 3)
    assert (found.spread is None) == (restarts == 1)
    assert (found.condition is None) == (strategy == "latent")
    assert "fallback" in found.loss_name


@pytest.mark.parametrize("strategy", ["latent", "noise"])
def test_rows_do_not_depend_on_the_batch_that_they_are_in(strategy: Any) -> None:
    settings = replace(BRIEF, restarts=2)
    resolver = SuperResolver(decode, THICK, LATENT, PRIOR, None, strategy, settings)
    together = resolver.invert(images())
    last = resolver.invert(images()[2:], first=2)
    torch.testing.assert_close(last.image[0], together.image[2], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(last.restarts[:, 0], together.restarts[:, 2])
    unnamed = resolver.invert(images()[2:])
    assert not torch.allclose(unnamed.image[0], together.image[2], atol=1e-3)  # the control


@pytest.mark.parametrize("strategy", ["latent", "noise"])
def test_equal_seeds_give_equal_results(strategy: Any) -> None:
    resolver = SuperResolver(decode, THICK, LATENT, PRIOR, None, strategy, BRIEF)
    assert torch.equal(resolver.predict(images()), resolver.predict(images()))
    other = replace(resolver, seed=1)
    assert not torch.equal(resolver.predict(images()), other.predict(images()))


def test_first_restart_begins_at_the_given_start() -> None:
    settings = InversionSettings(iterations=1, restarts=2)
    start = torch.ones(3, *LATENT)
    found = invert_latent(decode, THICK, THICK(decode(start)), start, settings=settings)
    torch.testing.assert_close(found.latent, start)
    assert (found.restarts[0] < 1e-6).all()
    assert (found.restarts[1] > 0.1).all()  # the control: the second is jittered
    assert torch.equal(start, torch.ones(3, *LATENT))


def test_start_is_a_sample_of_the_prior_or_the_mean() -> None:
    settings = InversionSettings(iterations=1)
    start = torch.randn(LATENT, generator=torch.Generator().manual_seed(6))
    mean = SuperResolver(decode, THICK, LATENT, start=start, settings=settings).invert(images())
    assert torch.equal(mean.latent, start.expand(3, *LATENT))
    drawn = SuperResolver(decode, THICK, LATENT, PRIOR, settings=settings).invert(images())
    assert (drawn.latent.flatten(1).std(dim=1) > 0.05).all()
    assert not torch.equal(drawn.latent[0], drawn.latent[1])


def test_fixed_entries_stay_and_free_ones_keep_to_their_range() -> None:
    prior = replace(
        PRIOR,
        condition=torch.tensor([[0.5, -1.0], [0.2, -1.0], [0.9, -1.0]]),
        free=torch.tensor([True, False]),
    )
    settings = InversionSettings(iterations=40, learning_rate=0.5)
    found = invert_noise(prior, decode, THICK, images(), latent_shape=LATENT, settings=settings)
    assert found.condition is not None
    assert (found.condition[:, 1] == -1).all()
    assert ((found.condition[:, 0] >= 0) & (found.condition[:, 0] <= 1)).all()
    assert (found.condition[:, 0] != prior.condition[:, 0]).any()


def test_null_condition_may_be_held_throughout() -> None:
    held = torch.zeros(2, dtype=torch.bool)
    prior = replace(PRIOR, condition=-torch.ones(2), free=held)
    found = invert_noise(prior, decode, THICK, images(), latent_shape=LATENT, settings=BRIEF)
    assert found.condition is not None
    assert (found.condition == -1).all()


def test_progress_counts_to_the_end_over_restarts() -> None:
    told: list[tuple[int, int]] = []
    resolver = SuperResolver(
        decode,
        THICK,
        LATENT,
        PRIOR,
        settings=InversionSettings(iterations=5, restarts=2),
        progress=lambda done, total: told.append((done, total)),
    )
    resolver.predict(images())
    assert told == [(done, 10) for done in range(1, 11)]


def test_super_resolver_is_a_predictor() -> None:
    assert isinstance(SuperResolver(decode, THICK, LATENT, PRIOR), Predictor)


def test_any_deterministic_sampler_will_do() -> None:
    calls: list[int] = []

    def one_step(
        denoiser: Any, x_t: torch.Tensor, sigmas: torch.Tensor, condition: torch.Tensor, **_: Any
    ) -> torch.Tensor:
        calls.append(1)
        return denoiser(x_t, sigmas[0].expand(len(x_t)), condition)  # type: ignore[no-any-return]

    prior = replace(PRIOR, sampler=one_step)
    invert_noise(prior, decode, THICK, images(), latent_shape=LATENT, settings=BRIEF)
    assert len(calls) == BRIEF.iterations + 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_input_that_is_not_finite_is_refused(value: float) -> None:
    low = images()
    low[1, 0, 0, 0] = value
    with pytest.raises(DataError, match="image of an inversion"):
        invert_latent(decode, THICK, low, torch.zeros(3, *LATENT))
    with pytest.raises(DataError, match="image of an inversion"):
        invert_noise(PRIOR, decode, THICK, low, latent_shape=LATENT)
    start = torch.full((3, *LATENT), value)
    with pytest.raises(DataError, match="start of an inversion"):
        invert_latent(decode, THICK, images(), start)
    prior = replace(PRIOR, condition=torch.full((3, 2), value))
    with pytest.raises(DataError, match="condition of an inversion"):
        invert_noise(prior, decode, THICK, images(), latent_shape=LATENT)


def test_rows_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(DataError, match="number of rows"):
        invert_latent(decode, THICK, images(), torch.zeros(2, *LATENT))
    with pytest.raises(DataError, match="number of rows"):
        invert_noise(
            replace(PRIOR, condition=torch.zeros(2, 2)),
            decode,
            THICK,
            images(),
            latent_shape=LATENT,
        )
    with pytest.raises(DataError, match="no image"):
        invert_latent(decode, THICK, images()[:0], torch.zeros(0, *LATENT))


def test_mask_that_hides_everything_is_refused() -> None:
    hidden = SliceMask(0, 20, first=19)
    with pytest.raises(DataError, match="hides everything"):
        invert_latent(decode, hidden, torch.zeros(3, 1, 8, 4), torch.zeros(3, *LATENT))


def test_condition_outside_of_the_range_is_refused_where_it_is_searched() -> None:
    prior = replace(PRIOR, condition=torch.tensor([0.5, 1.2]))
    with pytest.raises(DataError, match="outside"):
        invert_noise(prior, decode, THICK, images(), latent_shape=LATENT, settings=BRIEF)
    held = replace(prior, free=torch.tensor([True, False]))
    invert_noise(held, decode, THICK, images(), latent_shape=LATENT, settings=BRIEF)


@pytest.mark.parametrize("entries", [3, 0])
def test_free_entries_of_another_condition_are_refused(entries: int) -> None:
    prior = replace(PRIOR, free=torch.ones(entries, dtype=torch.bool))
    with pytest.raises(DataError, match="free entries"):
        invert_noise(prior, decode, THICK, images(), latent_shape=LATENT)


def test_search_with_nothing_to_begin_with_is_refused() -> None:
    with pytest.raises(UsageError, match="begin"):
        SuperResolver(decode, THICK, LATENT, start=torch.zeros(LATENT), strategy="noise")
    with pytest.raises(UsageError, match="begin"):
        SuperResolver(decode, THICK, LATENT)


EVERY_SAMPLER: Final = pytest.mark.parametrize("name", SAMPLERS)


def pull(name: SamplerName, *, recomputed: bool, steps: int = 6) -> tuple[list[torch.Tensor], int]:
    """Return gradients to start, condition and weights, and the numbers kept for them."""
    rng = torch_stream(3, "pull")
    x_t = (9 * torch.randn(2, 4, generator=rng).double()).requires_grad_()
    condition = torch.rand(2, 2, generator=rng).double().requires_grad_()
    source = RowNoise([torch_stream(4, "row", row) for row in range(2)], (4,), dtype=torch.float64)
    network, kept = Wide(), 0

    def keep(saved: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += saved.numel()
        return saved

    denoiser = recompute(network) if recomputed else network
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        levels = log_snr_sigmas(0.1, 9, steps=steps)
        end = SAMPLERS[name].sample(denoiser, x_t, levels, condition, noise=source)
        loss = (end**2).sum()
    loss.backward()
    found = [x_t.grad, condition.grad, *(weight.grad for weight in network.parameters())]
    assert all(gradient is not None for gradient in found)
    return [gradient for gradient in found if gradient is not None], kept


@EVERY_SAMPLER
def test_gradient_is_the_same_where_the_network_is_evaluated_again(name: SamplerName) -> None:
    plain, _ = pull(name, recomputed=False)
    again, _ = pull(name, recomputed=True)
    other, _ = pull(name, recomputed=True, steps=5)
    for one, two, far in zip(plain, again, other, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, two, atol=0, rtol=1e-12)
        assert not torch.allclose(one, far)  # the control


@EVERY_SAMPLER
def test_evaluating_again_keeps_memory_flat_in_the_steps(name: SamplerName) -> None:
    _, few = pull(name, recomputed=True, steps=4)
    _, many = pull(name, recomputed=True, steps=32)
    _, plain = pull(name, recomputed=False, steps=32)
    one_evaluation = 2 * 512
    assert many - few < one_evaluation
    assert plain > 32 * one_evaluation  # the control
