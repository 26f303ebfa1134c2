"""Images as offsets from the means of their classes: how far out they are, and rebuilt from them.

Axes: B images, D numbers of one image, P pixels, R directions in which there are images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Self

import numpy as np
import torch
from torch.nn import functional

from vitrael.core.checks import finite
from vitrael.core.errors import DataError

FOLDS: Final = 5
_LARGEST_EDGE_PX: Final = 64
_ROUND: Final = 0.1
"""Share of the mean variance in a covariance of few images (towards a round one)."""
_FLAT: Final = 1e-6
_RIDGES: Final = (*(10.0**power for power in range(-4, 5)), np.inf)
"""In mean squared singular values; the last leaves nothing but the mean image."""
_CHOOSING_PIXELS: Final = 512


def class_means(row_BD: np.ndarray, label_B: np.ndarray) -> dict[str, np.ndarray]:
    """Return the mean of each class that has images."""
    return {str(name): row_BD[label_B == name].mean(axis=0) for name in np.unique(label_B)}


def at(means: Mapping[str, np.ndarray], labels: Sequence[str] | np.ndarray) -> np.ndarray:
    """Return ``[B, D]``: for each label the mean of its class; DataError where there is none."""
    if missing := set(labels) - set(means):
        raise DataError(f"nothing was told of the class {min(missing)}", fix="leave it out")
    width = len(next(iter(means.values())))
    return np.stack([means[label] for label in labels]) if len(labels) else np.zeros((0, width))


def patient_folds(patients: Sequence[int]) -> np.ndarray:
    """Return which of five parts each image is in; all images of a patient are in one."""
    return np.asarray(np.unique(patients, return_inverse=True)[1] % FOLDS)


def mean_by(value_B: np.ndarray, patients: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return one number a patient: the mean over the images."""
    _, place_B = np.unique(patients, return_inverse=True)
    return np.asarray(np.bincount(place_B, value_B) / np.bincount(place_B))


def shrink(image_BCHW: np.ndarray) -> np.ndarray:
    """Return ``[B, P]`` of images no larger than 64 x 64; DataError for what is no image."""
    finite(images=image_BCHW)
    if image_BCHW.ndim != 4:  # noqa: PLR2004 - B, C, H, W
        raise DataError("images to rebuild have four axes", fix="give them as [B, C, H, W]")
    height, width = (min(edge, _LARGEST_EDGE_PX) for edge in image_BCHW.shape[2:])
    image = torch.from_numpy(image_BCHW).double()
    small = functional.adaptive_avg_pool2d(image, (height, width))
    return np.asarray(small.flatten(1).numpy())


def correlate(first_BP: np.ndarray, second_BP: np.ndarray) -> np.ndarray:
    """Return ``[B]``: the correlation of pixels, image by image; 0 where one is of one gray."""
    a, b = (part - part.mean(axis=1, keepdims=True) for part in (first_BP, second_BP))
    scale_B = np.sqrt(np.square(a).sum(axis=1) * np.square(b).sum(axis=1))
    return np.asarray((a * b).sum(axis=1) / np.maximum(scale_B, _FLAT))


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Cloud:
    """The covariance of what was seen, in as many directions as there were images."""

    axis_RD: np.ndarray
    share_R: np.ndarray
    """Of the distance along a direction that its spread explains."""
    round: float

    @classmethod
    def around(cls, offset_BD: np.ndarray) -> Self:
        """Return the cloud of offsets from the means of their classes."""
        _, size_R, axis_RD = np.linalg.svd(offset_BD, full_matrices=False)
        variance_R = np.square(size_R) / max(len(offset_BD), 1)
        rest = _ROUND * max(float(variance_R.sum()) / offset_BD.shape[1], _FLAT)
        own_R = (1 - _ROUND) * variance_R
        return cls(axis_RD, own_R / (own_R + rest), rest)

    def distance(self, offset_BD: np.ndarray) -> np.ndarray:
        """Return ``[B]``: the squared Mahalanobis distance (Woodbury's identity)."""
        along_BR = np.square(offset_BD @ self.axis_RD.T)
        whole_B = np.square(offset_BD).sum(axis=1)
        return np.asarray((whole_B - along_BR @ self.share_R) / self.round)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class LinearMap:
    """Ridge regression from offsets of readings to offsets of pixels, around means of classes."""

    centers: Mapping[str, np.ndarray]
    pixels: Mapping[str, np.ndarray]
    """Mean image of each class: the control."""
    spread_D: np.ndarray
    axis_RD: np.ndarray
    size_R: np.ndarray
    target_RP: np.ndarray
    ridge: float

    @classmethod
    def fit(cls, row_BD: np.ndarray, pixel_BP: np.ndarray, label_B: np.ndarray) -> Self:
        """Return the map of an attacker's own images, which as yet rebuilds only means."""
        centers, pixels = class_means(row_BD, label_B), class_means(pixel_BP, label_B)
        offset_BD = row_BD - at(centers, label_B)
        std_D = offset_BD.std(axis=0)
        spread_D = np.where(std_D > _FLAT, std_D, 1.0)
        side_BR, size_R, axis_RD = np.linalg.svd(offset_BD / spread_D, full_matrices=False)
        target_RP = side_BR.T @ (pixel_BP - at(pixels, label_B))
        return cls(centers, pixels, spread_D, axis_RD, size_R, target_RP, np.inf)

    def rebuild(self, row_BD: np.ndarray, labels: Sequence[str] | np.ndarray) -> np.ndarray:
        """Return ``[B, P]`` from readings and their classes."""
        along_BR = ((row_BD - at(self.centers, labels)) / self.spread_D) @ self.axis_RD.T
        square_R = np.square(self.size_R)
        shrunk_R = self.size_R / (square_R + self.ridge * max(float(square_R.mean()), _FLAT))
        return np.asarray(at(self.pixels, labels) + (along_BR * shrunk_R) @ self.target_RP)


def choose_map(
    row_BD: np.ndarray, pixel_BP: np.ndarray, *, label_B: np.ndarray, patients: Sequence[int]
) -> LinearMap:
    """Return the map with the ridge that rebuilds the images of left-out patients best."""
    fold_B = patient_folds(patients)
    few_BP = pixel_BP[:, :: max(1, pixel_BP.shape[1] // _CHOOSING_PIXELS)]
    lost = np.zeros(len(_RIDGES))
    for fold in range(FOLDS):
        learned = fold_B != fold
        part = LinearMap.fit(row_BD[learned], few_BP[learned], label_B[learned])
        asked = ~learned & np.isin(label_B, list(part.centers))
        for number, ridge in enumerate(_RIDGES):
            rebuilt_BP = replace(part, ridge=ridge).rebuild(row_BD[asked], label_B[asked])
            lost[number] += np.square(rebuilt_BP - few_BP[asked]).sum()
    whole = LinearMap.fit(row_BD, pixel_BP, label_B)
    return replace(whole, ridge=_RIDGES[int(np.argmin(lost))])
