"""The scorer plays the role of a Scorer, and only with the calibration of its own model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.factories.reconstruction import PLAN, build_reconstructor, draw_smooth
from vitrael.core.errors import DataError
from vitrael.core.interfaces import Scorer
from vitrael.core.scoring.calibration import SCORES, Calibration, read_calibration
from vitrael.core.scoring.scorer import ReconstructionScorer, calibrate

VALIDATION, X = draw_smooth(24, "validation"), draw_smooth(4, "test")


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return calibrate(build_reconstructor(), VALIDATION.split(10))


def test_scorer_plays_its_role(calibration: Calibration) -> None:
    scorer = ReconstructionScorer(build_reconstructor(), calibration)
    assert isinstance(scorer, Scorer)
    assert scorer.score(X).shape == (4,)
    parts = scorer.score_parts(X)
    assert tuple(parts.score_B) == tuple(parts.p_value_B) == SCORES
    assert parts.feature_BF.shape == parts.z_BF.shape == (4, len(parts.names))
    for kind in SCORES:
        chosen = ReconstructionScorer(build_reconstructor(), calibration, kind=kind)
        torch.testing.assert_close(chosen.score(X), parts.score_B[kind])


def test_score_does_not_depend_on_the_batch(calibration: Calibration) -> None:
    scorer = ReconstructionScorer(build_reconstructor(), calibration)
    together = scorer.score(X)
    turned = scorer.score(X.flip(0)).flip(0)
    alone = torch.cat([scorer.score(image[None]) for image in X])
    torch.testing.assert_close(alone, together, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(turned, together, rtol=1e-3, atol=1e-3)
    assert together.std() > 0.05  # the control


def test_calibration_does_not_depend_on_the_batches(calibration: Calibration) -> None:
    again = calibrate(build_reconstructor(), [VALIDATION])
    for name, array in again.to_tensors().items():
        torch.testing.assert_close(
            torch.from_numpy(calibration.to_tensors()[name]),
            torch.from_numpy(array),
            rtol=1e-2,
            atol=1e-4,
        )


def test_maps_are_raw_and_in_standard_deviations(calibration: Calibration) -> None:
    scorer = ReconstructionScorer(build_reconstructor(), calibration)
    maps = scorer.maps(X)
    assert maps.raw.shape == maps.standardized.shape == (4, 32, 32)
    assert (maps.raw >= 0).all()
    spread, mean = (torch.from_numpy(a) for a in (calibration.map_std, calibration.map_mean))
    torch.testing.assert_close(maps.standardized * spread + mean, maps.raw, rtol=1e-4, atol=1e-5)
    parts, same = scorer.judge(X)
    torch.testing.assert_close(same.raw, maps.raw)
    torch.testing.assert_close(parts.feature_BF, scorer.score_parts(X).feature_BF)


def test_stored_calibration_scores_alike(calibration: Calibration) -> None:
    again = read_calibration(calibration.to_tensors(), calibration.facts())
    first, second = (ReconstructionScorer(build_reconstructor(), c) for c in (calibration, again))
    torch.testing.assert_close(first.score(X), second.score(X), rtol=0, atol=0)


def test_calibration_of_other_levels_is_refused(calibration: Calibration) -> None:
    changes = {
        "levels": {"plan": replace(PLAN, levels=(0.3, 1.0, 3.0))},
        "seed": {"plan": replace(PLAN, seed=99)},
        "sampler": {"plan": replace(PLAN, sampler="plms")},
        "identity": {"identity": {"codec": "another"}},
    }
    for key, change in changes.items():
        with pytest.raises(DataError, match=r"fitted with another"):
            ReconstructionScorer(build_reconstructor(**change), calibration)
        assert build_reconstructor(**change).facts()[key] != calibration.fitted_with[key]


def test_few_validation_images_are_refused() -> None:
    for images in ([], [VALIDATION[:4], VALIDATION[4:9]]):
        with pytest.raises(DataError, match="too few"):
            calibrate(build_reconstructor(), images)


def test_nan_is_refused(calibration: Calibration) -> None:
    x = X.clone()
    x[0, 0, 0, 0] = torch.nan
    with pytest.raises(DataError, match="not finite"):
        ReconstructionScorer(build_reconstructor(), calibration).score(x)
    with pytest.raises(DataError, match="not finite"):
        calibrate(build_reconstructor(), [VALIDATION, x])


def test_another_grid_is_refused_before_it_is_reconstructed(calibration: Calibration) -> None:
    def never(x_t: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        raise AssertionError

    scorer = ReconstructionScorer(build_reconstructor(denoiser=never), calibration)
    with pytest.raises(DataError, match="resample them"):
        scorer.maps(X[..., :16])
    with pytest.raises(DataError, match="resample them"):
        scorer.score(X[..., :16])
    with pytest.raises(DataError, match="different grids"):
        calibrate(
            build_reconstructor(denoiser=lambda x_t, *_: x_t),
            [VALIDATION, VALIDATION[..., :16]],
        )
