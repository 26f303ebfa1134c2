"""Reconstructions do not depend on company: not on the batch, its order, or the other starts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.factories.reconstruction import PLAN, MeanCodec, build_reconstructor, draw_smooth
from tests.factories.systems import brain_ldm
from vitrael.core.errors import DataError
from vitrael.core.models.nets.autoencoder import KLCodec
from vitrael.core.sampling.schedules import scaled_linear_sigmas
from vitrael.core.scoring.reconstruction import Decode, StartPlan, spread_starts

X = draw_smooth(6, "test")
CLOSE = {"rtol": 1e-4, "atol": 1e-6}


def test_image_alone_has_the_features_it_has_in_a_batch() -> None:
    reconstructor = build_reconstructor()
    together = reconstructor.examine(X, maps=True)
    assert together.map_B is not None
    for row in (0, 5):
        alone = reconstructor.examine(X[row : row + 1], maps=True)
        assert alone.map_B is not None
        torch.testing.assert_close(alone.feature_BF[0], together.feature_BF[row], **CLOSE)
        torch.testing.assert_close(alone.map_B[0], together.map_B[row], **CLOSE)
    assert (together.feature_BF[0] - together.feature_BF[1]).abs().max() > 1e-3  # the control


@pytest.mark.parametrize(("latents", "images"), [(1, 1), (5, 2), (7, 16), (1_000, 3)])
def test_size_of_the_chunks_does_not_matter(latents: int, images: int) -> None:
    whole = build_reconstructor().examine(X, maps=True)
    parts = build_reconstructor(batch_latents=latents, batch_images=images).examine(X, maps=True)
    torch.testing.assert_close(parts.feature_BF, whole.feature_BF, **CLOSE)
    torch.testing.assert_close(parts.map_B, whole.map_B, **CLOSE)


@pytest.mark.parametrize("sampler", ["ddim", "plms", "unipc"])
def test_start_does_not_hear_of_the_other_starts(sampler: str) -> None:
    """A history that outlived a start would make the last one depend on those before."""
    plan = replace(PLAN, sampler=sampler)
    both = build_reconstructor(plan=plan)
    first = build_reconstructor(plan=replace(plan, levels=PLAN.levels[:1]))
    here, alone = both.examine(X), first.examine(X)
    for metric in ("square", "latent", "one_step"):
        torch.testing.assert_close(
            here.feature_BF[:, both.names.index(f"{metric}/0")],
            alone.feature_BF[:, first.names.index(f"{metric}/0")],
            **CLOSE,
        )


def test_noise_is_named_by_seed_and_start() -> None:
    one, again, other = (
        build_reconstructor(plan=replace(PLAN, seed=seed)).examine(X).feature_BF
        for seed in (5, 5, 6)
    )
    torch.testing.assert_close(one, again, rtol=0, atol=0)
    assert (one - other).abs().max() > 1e-4


def test_map_is_the_mean_absolute_error_over_starts() -> None:
    pieces = [
        build_reconstructor(plan=replace(PLAN, levels=PLAN.levels[:count])).examine(X, maps=True)
        for count in (1, 2)
    ]
    first, mean = (piece.map_B for piece in pieces)
    assert first is not None
    assert mean is not None
    second = 2 * mean - first
    assert (second > -1e-6).all()  # it too is an absolute error
    names = build_reconstructor(plan=replace(PLAN, levels=PLAN.levels[:2])).names
    square = pieces[1].feature_BF[:, names.index("square/1")]
    torch.testing.assert_close(second.square().flatten(1).mean(1), square, **CLOSE)


def test_more_noise_means_more_error() -> None:
    reconstructor = build_reconstructor()
    seen = reconstructor.examine(X).feature_BF
    square = torch.stack(
        [seen[:, reconstructor.names.index(f"square/{s}")] for s in range(len(PLAN.levels))]
    ).mean(1)
    assert (square.diff() > 0).all()


def test_volumes_are_seen_as_planes_are() -> None:
    reconstructor = build_reconstructor(edges=3, batch_images=1)
    seen = reconstructor.examine(draw_smooth(2, "test", edges=3), maps=True)
    assert seen.feature_BF.shape == (2, len(reconstructor.names))
    assert seen.map_B is not None
    assert seen.map_B.shape == (2, 8, 8, 8)


@dataclass(frozen=True)
class CountingCodec:
    """A codec that remembers how many images were decoded at once."""

    seen: list[int]
    codec: MeanCodec

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(x))
        return self.codec.encode(x)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(z))
        return self.codec.decode(z)


def test_no_more_images_are_decoded_at_once_than_allowed() -> None:
    few, many = (CountingCodec([], MeanCodec()) for _ in range(2))
    build_reconstructor(codec=few, batch_images=2).examine(X, maps=True)
    build_reconstructor(codec=many, batch_images=64).examine(X, maps=True)
    assert max(few.seen) == 2
    assert max(many.seen) == 6 * len(PLAN.levels)  # the control


def test_images_that_are_large_are_decoded_one_by_one() -> None:
    large = torch.rand(2, 1, 64, 64, 64, generator=torch.Generator().manual_seed(1))
    seen: list[int] = []
    plan = replace(PLAN, steps=1, levels=PLAN.levels[:2])
    build_reconstructor(
        codec=CountingCodec(seen, MeanCodec()), denoiser=keep_state, plan=plan
    ).examine(large)
    assert max(seen) == 1
    seen.clear()
    build_reconstructor(
        codec=CountingCodec(seen, MeanCodec()), denoiser=keep_state, plan=plan
    ).examine(large[..., :32, :32, :32])
    assert max(seen) == 4  # the control


def keep_state(x_t: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
    del sigma, condition
    return x_t


def test_decoding_in_another_way_gives_the_same_features() -> None:
    asked: list[int] = []

    def decode(z: torch.Tensor) -> torch.Tensor:
        asked.append(len(z))
        return torch.cat([MeanCodec().decode(row) for row in z.split(1)])

    whole = CountingCodec([], MeanCodec())
    plain = build_reconstructor(codec=whole).examine(X, maps=True)
    other = CountingCodec([], MeanCodec())
    parts = build_reconstructor(codec=other, decode=decode).examine(X, maps=True)
    torch.testing.assert_close(parts.feature_BF, plain.feature_BF, **CLOSE)
    assert sum(asked) == len(X) * (1 + len(PLAN.levels))  # every image of codec and starts
    assert sum(other.seen) == len(X)  # the codec only encoded
    assert sum(whole.seen) == len(X) + sum(asked)  # the control


class LargestOutput(TorchDispatchMode):
    """Remembers how many numbers the largest result of any operation held."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.most = max(self.most, out.numel())
        return out


def test_large_volumes_are_decoded_with_few_activations() -> None:
    codec = KLCodec(brain_ldm().codec).eval()
    x = torch.rand(2, 1, 80, 80, 80, generator=torch.Generator().manual_seed(2))
    plan = replace(PLAN, steps=1, levels=PLAN.levels[:1])
    made = {"codec": codec, "denoiser": keep_state, "plan": plan}
    runs = []
    for decode in (codec.decode, codec.decode_in_parts):
        most: list[int] = []

        def watch(z: torch.Tensor, decode: Decode = decode, most: list[int] = most) -> torch.Tensor:
            with LargestOutput() as largest:
                image = decode(z)
            most.append(largest.most)
            return image

        build_reconstructor(decode=watch, **made).examine(x)
        runs.append(max(most))
    assert runs[1] < runs[0]  # the control is the codec's own decode


def test_condition_and_true_levels_reach_the_denoiser() -> None:
    inner, told = build_reconstructor(), []

    def denoise(x_t: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        assert (condition == -1).all()
        assert condition.shape == (len(x_t), 2)
        told.append(sigma)
        return inner.denoiser(x_t, sigma, condition)

    build_reconstructor(denoiser=denoise).examine(X[:1])
    torch.testing.assert_close(told[0], torch.tensor(PLAN.levels))
    assert len(told) == PLAN.steps
    assert all((later < earlier).all() for earlier, later in pairwise(told))


def test_perceptual_distance_is_one_more_metric() -> None:
    plain = build_reconstructor()
    richer = build_reconstructor(perceptual=lambda x, back: (x - back).abs().flatten(1).amax(1))
    assert set(richer.names) - set(plain.names) == {f"perceptual/{s}" for s in range(4)}
    assert richer.facts() != plain.facts()


def test_starts_lie_in_the_middles_of_equal_parts() -> None:
    sigmas = scaled_linear_sigmas(1_000, beta_start=0.0015, beta_end=0.0205)
    assert spread_starts(sigmas, 2) == pytest.approx([sigmas[250].item(), sigmas[750].item()])
    assert len(spread_starts(sigmas, 50)) == 50
    with pytest.raises(DataError, match="cannot be spread"):
        spread_starts(sigmas, 0)


def test_relative_levels_fall_from_one_to_nothing() -> None:
    ratios = PLAN.ratios()
    assert (ratios[0], ratios[-1], len(ratios)) == (1, 0, PLAN.steps + 1)
    assert (ratios.diff() < 0).all()


@pytest.mark.parametrize("levels", [(), (0.0, 1.0), (2.0, 1.0), (1.0, 1.0)])
def test_levels_that_do_not_rise_are_refused(levels: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="start levels"):
        StartPlan(levels=levels, steps=3, seed=1, condition_K=())


def test_sampler_that_draws_is_refused() -> None:
    with pytest.raises(DataError, match="would not repeat"):
        replace(PLAN, sampler="ddpm")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_images_that_are_not_finite_are_refused(bad: float) -> None:
    x = X.clone()
    x[2, 0, 3, 3] = bad
    with pytest.raises(DataError, match="not finite"):
        build_reconstructor().examine(x)


def test_model_that_answers_nan_is_refused() -> None:
    with pytest.raises(DataError, match="a score is not finite"):
        build_reconstructor(denoiser=lambda x_t, *_: x_t * torch.nan).examine(X)


def test_images_of_another_shape_are_refused() -> None:
    for bad in (X[:, 0], X[:0]):
        with pytest.raises(DataError, match=r"are not \[B, C, H, W\]"):
            build_reconstructor().examine(bad)
