"""What the scores find, on images whose best denoiser has a closed form.

Latents are normal, so the denoiser is exact and no score can hide behind a poor model.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.factories.reconstruction import PLAN, build_reconstructor, draw_smooth
from vitrael.core.metrics.ood import Detection, average_precision, detect
from vitrael.core.rng import torch_stream
from vitrael.core.sampling.samplers import SAMPLERS
from vitrael.core.scoring import shifts
from vitrael.core.scoring.scorer import ReconstructionScorer, ScoreParts, calibrate

N = 200


@pytest.fixture(scope="module")
def scorer() -> ReconstructionScorer:
    reconstructor = build_reconstructor()
    return ReconstructionScorer(
        reconstructor, calibrate(reconstructor, draw_smooth(100, "validation").split(32))
    )


@pytest.fixture(scope="module")
def familiar(scorer: ReconstructionScorer) -> ScoreParts:
    return scorer.score_parts(draw_smooth(N, "test"))


def shifted(name: str) -> torch.Tensor:
    x, rng = draw_smooth(N, "test"), torch_stream(1, "shift", name)
    sets = {
        "texture": lambda: torch.rand(x.shape, generator=rng),
        "rotated": lambda: shifts.rotate_right_angle(x),
        "chunk": lambda: shifts.remove_chunk(x, rng),
        "noise": lambda: shifts.add_noise(x, rng),
        "squeezed": lambda: shifts.squeeze_contrast(x),
        "smooth": lambda: shifts.smooth(x),
        "second": lambda: draw_smooth(N, "second"),
    }
    return sets[name]()


def found(
    scorer: ReconstructionScorer, familiar: ScoreParts, name: str, *, score: str
) -> Detection:
    foreign = scorer.score_parts(shifted(name)).score_B[score]
    return detect(foreign.numpy(), familiar.score_B[score].numpy())


@pytest.mark.parametrize(
    ("name", "least"), [("texture", 0.99), ("rotated", 0.95), ("chunk", 0.95), ("noise", 0.95)]
)
def test_foreign_images_are_found(
    scorer: ReconstructionScorer, familiar: ScoreParts, name: str, least: float
) -> None:
    assert found(scorer, familiar, name, score="two_sided").auroc >= least


def test_second_familiar_set_is_not_found(
    scorer: ReconstructionScorer, familiar: ScoreParts
) -> None:
    for score in familiar.score_B:
        seen = found(scorer, familiar, "second", score=score)
        assert seen.auroc == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("name", ["squeezed", "smooth"])
def test_images_that_come_back_too_well_are_found_by_the_two_sided_score_alone(
    scorer: ReconstructionScorer, familiar: ScoreParts, name: str
) -> None:
    """The published score is the control: it takes them for more familiar than familiar ones."""
    one_sided = found(scorer, familiar, name, score="one_sided")
    assert one_sided.verdict == "inverted"
    assert one_sided.auroc < 0.25
    assert found(scorer, familiar, name, score="two_sided").auroc >= 0.75


def test_p_values_of_familiar_images_are_even_and_of_foreign_ones_small(
    scorer: ReconstructionScorer,
) -> None:
    drawn: dict[str, list[torch.Tensor]] = {}
    for k in range(6):
        calibration = calibrate(scorer.reconstructor, [draw_smooth(60, "validation", k)])
        parts = ReconstructionScorer(scorer.reconstructor, calibration).score_parts(
            draw_smooth(100, "test", k)
        )
        for name, p_value in parts.p_value_B.items():
            drawn.setdefault(name, []).append(p_value)
    for name, p_values in drawn.items():
        p_value = torch.cat(p_values)
        share = [(p_value <= level).double().mean().item() for level in (0.05, 0.2, 0.5)]
        assert share == pytest.approx([0.05, 0.2, 0.5], abs=0.07), name
        assert p_value.min() >= 1 / 61
    noisy = scorer.score_parts(shifted("noise")).p_value_B["two_sided"]
    assert noisy.max().item() == pytest.approx(1 / 101)


def test_scores_that_saw_the_image_would_be_too_small_to_rank_with(
    scorer: ReconstructionScorer,
) -> None:
    """Why validation images are scored by a fit to the others."""
    inside = scorer.score_parts(draw_smooth(100, "validation")).score_B["distance"]
    held_out = scorer.calibration.ranked_V["distance"]
    assert inside.mean().item() < 0.95 * held_out.mean()


def test_maps_show_where_and_better_than_the_codec_alone(scorer: ReconstructionScorer) -> None:
    lesion, mask = shifts.add_lesion(
        draw_smooth(60, "lesion"), torch_stream(2, "lesion"), radius=0.12, level=0.5
    )
    maps = scorer.maps(lesion)
    codec = scorer.reconstructor.codec
    residual = (lesion - codec.decode(codec.encode(lesion))).abs()[:, 0]
    found = {
        name: average_precision(values.numpy(), mask.numpy())
        for name, values in (("z", maps.standardized), ("raw", maps.raw), ("codec", residual))
    }
    assert min(found["z"], found["raw"]) > 1.5 * found["codec"]
    assert found["codec"] > mask.double().mean().item()


def test_standardizing_mends_maps_where_one_region_always_errs(
    scorer: ReconstructionScorer,
) -> None:
    errors = np.abs(np.random.default_rng(1).normal(size=(60, 32, 32))).astype(np.float32)
    errors[:, :8] *= 8  # a region that never comes back well
    calibration = scorer.calibration
    mask = np.zeros(errors.shape, bool)
    mask[:, 20:23, 20:23] = True
    mean, std = errors.mean(0), errors.std(0)
    lesion = errors + 4 * mask
    standardized = (lesion - mean) / np.maximum(std, np.median(std))
    assert average_precision(standardized, mask) > 3 * average_precision(lesion, mask)
    assert calibration.map_std.min() > 0


@pytest.mark.parametrize(
    "sampler", [name for name, spec in SAMPLERS.items() if not spec.stochastic]
)
def test_batch_of_many_starts_is_what_each_start_gives_alone(sampler: str) -> None:
    """Relative levels do not change what a sampler does, and no start sees another's history."""
    x = draw_smooth(3, "alone")
    plan = {"steps": 5, "seed": 7, "condition_K": (-1.0,), "sampler": sampler}
    together = build_reconstructor(plan=type(PLAN)(levels=(0.4, 2.0, 8.0), **plan))
    codec, denoiser = together.codec, together.denoiser
    z = codec.encode(x)
    seen = together.examine(x)
    for start, level in enumerate((0.4, 2.0, 8.0)):
        noise = torch.randn(z.shape[1:], generator=torch_stream(7, "reconstruction", start))
        levels = level * together.plan.ratios()
        back = SAMPLERS[sampler].sample(denoiser, z + level * noise, levels, z.new_zeros(3, 1))
        square = (codec.decode(back) - x).square().flatten(1).mean(1)
        column = seen.feature_BF[:, together.names.index(f"square/{start}")]
        torch.testing.assert_close(column, square, rtol=1e-4, atol=1e-8)
