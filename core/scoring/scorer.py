"""The Scorer that asks a diffusion model how foreign an image is, and where.

Axes: B images, F features, then the axes of space.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from vitrael.core.errors import DataError
from vitrael.core.scoring.calibration import SCORES, Calibration, fit_calibration
from vitrael.core.scoring.reconstruction import Reconstructor

ScoreName = Literal["one_sided", "folded", "magnitude", "distance", "two_sided"]


@dataclass(frozen=True, slots=True, eq=False)
class ScoreParts:
    """The scores of images and what they are made of; higher is more foreign."""

    score_B: Mapping[str, torch.Tensor]
    """By the names of ``calibration.SCORES``."""
    p_value_B: Mapping[str, torch.Tensor]
    """Approximately conformal: how often a familiar image scores as high."""
    names: tuple[str, ...]
    feature_BF: torch.Tensor
    """As measured, in the order of ``names``."""
    z_BF: torch.Tensor
    """In standard deviations of familiar images."""


@dataclass(frozen=True, slots=True, eq=False)
class ErrorMaps:
    """Where images come back wrong, ``[B, (D,) H, W]`` float32; the mean over all starts."""

    raw: torch.Tensor
    """Absolute error of the intensity."""
    standardized: torch.Tensor
    """In standard deviations of the voxel over familiar images."""


def calibrate(reconstructor: Reconstructor, batches: Iterable[torch.Tensor]) -> Calibration:
    """Return the calibration by familiar images that the model was not trained on.

    They come in any batches and are seen once; beside the batch, memory holds two volumes. Raises
    DataError for fewer than ten images, for two grids, and for values that are not finite.
    """
    features: list[np.ndarray] = []
    total, square = np.zeros(()), np.zeros(())
    for batch in batches:
        seen = reconstructor.examine(batch, maps=True)
        if seen.map_B is None:
            raise DataError("no error maps were made")
        errors = seen.map_B.double()
        if features and errors.shape[1:] != total.shape:
            raise DataError(
                "the validation images have different grids",
                fix="resample them by the study's recipe",
            )
        total = total + errors.sum(0).numpy()
        square = square + errors.square().sum(0).numpy()
        features.append(seen.feature_BF.numpy())
    feature_VF = np.concatenate(features) if features else np.zeros((0, len(reconstructor.names)))
    count = max(2, len(feature_VF))
    mean = total / count
    variance = np.maximum(square / count - np.square(mean), 0) * count / (count - 1)
    return fit_calibration(
        feature_VF, reconstructor.facts(), map_mean=mean, map_std=np.sqrt(variance)
    )


class ReconstructionScorer:
    """A Scorer by reconstruction: an image is foreign when the model cannot give it back.

    Equal images have equal scores, alone or in any batch (but for rounding).
    """

    def __init__(
        self,
        reconstructor: Reconstructor,
        calibration: Calibration,
        *,
        kind: ScoreName = "two_sided",
    ) -> None:
        """Take a reconstructor and the calibration that was fitted with it.

        Raises DataError when it was fitted with another model, plan or noise.
        """
        calibration.demand(reconstructor.facts())
        self.reconstructor = reconstructor
        self.calibration = calibration
        self.kind = kind

    def one_by_one(self) -> ReconstructionScorer:
        """Return one of equal scores, but for rounding, that needs the least memory."""
        smaller = self.reconstructor.one_by_one()
        return ReconstructionScorer(smaller, self.calibration, kind=self.kind)

    def score(self, x: torch.Tensor) -> torch.Tensor:
        """Return the score of the chosen kind for images ``[B, C, (D,) H, W]``: ``[B]``."""
        return self.score_parts(x).score_B[self.kind]

    def score_parts(self, x: torch.Tensor) -> ScoreParts:
        """Return every score with its p-values, features and z-scores; raises for another grid."""
        self.calibration.demand_grid(x.shape[2:])
        feature_BF = self.reconstructor.examine(x).feature_BF
        return self._parts(feature_BF)

    def maps(self, x: torch.Tensor) -> ErrorMaps:
        """Return raw and standardized error maps; raises DataError for another grid."""
        return self.judge(x)[1]

    def judge(self, x: torch.Tensor) -> tuple[ScoreParts, ErrorMaps]:
        """Return scores and error maps of one pass over the images."""
        self.calibration.demand_grid(x.shape[2:])
        seen = self.reconstructor.examine(x, maps=True)
        if seen.map_B is None:
            raise DataError("no error maps were made")
        standardized = torch.from_numpy(self.calibration.standardize_map(seen.map_B.numpy()))
        return self._parts(seen.feature_BF), ErrorMaps(seen.map_B, standardized)

    def _parts(self, feature_BF: torch.Tensor) -> ScoreParts:
        feature = feature_BF.numpy()
        score = self.calibration.score(feature)
        p_value = {name: self.calibration.p_value(name, score[name]) for name in SCORES}
        return ScoreParts(
            score_B={name: torch.from_numpy(value) for name, value in score.items()},
            p_value_B={name: torch.from_numpy(value) for name, value in p_value.items()},
            names=self.reconstructor.names,
            feature_BF=feature_BF,
            z_BF=torch.from_numpy(self.calibration.standardize(feature)),
        )
