"""Matched negatives: images that are hard to tell from copies and are none; they must be kept.

A filter that drops everything would catch every plant. So each kind of negative is shown to it
too, at its operating point: strangers like a patient of the gallery in age, sex and scanner; means
of many brains; strangers whose scans look most like one of the gallery by plain pixels, a distance
that no member of the filter uses; and samples of a generator that never saw the gallery's
patients. Brothers and sisters, and heads that a disease has made alike, need cohorts that have
them. Axes: P patients, N strangers, M scans of the gallery, K covariates.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
from scipy.optimize import linear_sum_assignment

from vitrael.core.checks import finite
from vitrael.core.errors import DataError
from vitrael.core.records import PatientImages
from vitrael.privacy.audit.plants.sources import demand_usable
from vitrael.privacy.leakage import SMALLEST_COUNT

MOST_DROPPED: Final = 0.05
"""Share of each kind of negative that a filter may drop at its operating point."""

_BLOCKS: Final = 8
"""Along each edge of the rough picture by which look-alikes are found."""
_CHUNK: Final = 256


@dataclass(frozen=True, slots=True)
class NegativeClass:
    """One kind of image that is nobody's copy."""

    name: str
    says: str
    """One clause for a certificate."""
    most_dropped: float = MOST_DROPPED


NEGATIVES: Final[Mapping[str, NegativeClass]] = MappingProxyType(
    {
        negative.name: negative
        for negative in (
            NegativeClass("matched", "strangers of the patients' age, sex and scanner"),
            NegativeClass("template", "means of many brains"),
            NegativeClass("look_alike", "strangers whose pixels are nearest to a patient's"),
            NegativeClass("disjoint", "samples of a generator that was trained on others"),
        )
    }
)
"""By name."""


def pooled_band(false_match_rate: float) -> tuple[float, float]:
    """Return between which shares the negatives of all kinds together may be dropped.

    Half to twice the filter's nominal rate: one that drops far fewer than it says is no less
    miscalibrated than one that drops more.
    """
    return false_match_rate / 2, 2 * false_match_rate


def draw_negatives(
    strangers: PatientImages,
    gallery: PatientImages,
    count: int,
    *,
    rng: np.random.Generator,
    disjoint_BCDHW: np.ndarray | None = None,
    categorical: Collection[int] = (),
) -> dict[str, np.ndarray]:
    """Return up to ``count`` negatives of every kind; one that cannot be made is empty.

    ``strangers`` are patients whom neither the gallery nor the operating point knows; one scan of
    each is used a kind. Covariates are the conditions of both; ``categorical`` names the columns,
    such as sex or scanner, that are equal or not. Raises DataError for what ``demand_usable``
    refuses, and for images on two grids.
    """
    for images in (strangers, gallery):
        demand_usable(images.image_BCDHW, what="a scan")
    grid = gallery.image_BCDHW.shape[1:]
    others = np.empty((0, *grid), np.float32) if disjoint_BCDHW is None else disjoint_BCDHW
    if strangers.image_BCDHW.shape[1:] != grid or others.shape[1:] != grid:
        raise DataError(
            "the negatives lie on another grid than the gallery",
            fix="bring all images onto the study's grid first",
        )
    demand_usable(others, what="a sample of the other generator")
    row_N = _one_scan_each(strangers, rng=rng)
    row_P = rng.permutation(_one_scan_each(gallery, rng=rng))[:count]
    like = matched_strangers(
        gallery.condition_BK[row_P], strangers.condition_BK[row_N], categorical=categorical
    )
    near = look_alikes(strangers.image_BCDHW[row_N], gallery.image_BCDHW, count=count)
    return {
        "matched": strangers.image_BCDHW[row_N[like]],
        "template": template_means(gallery, count, rng=rng),
        "look_alike": strangers.image_BCDHW[row_N[near]],
        "disjoint": others[:count],
    }


def matched_strangers(
    covariate_PK: np.ndarray,
    covariate_NK: np.ndarray,
    *,
    categorical: Collection[int] = (),
) -> np.ndarray:
    """Return the rows of the strangers who are most like the patients, each stranger once.

    As many as there are of the fewer. The sum of the distances is the least that any pairing
    without replacement has. A distance adds, column by column, the difference over the standard
    deviation of all, or one where a ``categorical`` column differs. Rows stand in the order of the
    patients. Raises DataError for covariates that are not finite or of unequal columns.
    """
    finite(covariate_PK=covariate_PK, covariate_NK=covariate_NK)
    if covariate_PK.shape[1:] != covariate_NK.shape[1:]:
        raise DataError("patients and strangers are described by different covariates")
    spread_K = np.concatenate([covariate_PK, covariate_NK]).std(axis=0)
    distance_PN = np.zeros((len(covariate_PK), len(covariate_NK)))
    for column, spread in enumerate(spread_K):
        gap_PN = np.abs(covariate_PK[:, None, column] - covariate_NK[None, :, column])
        scale = spread if spread > 0 else 1.0
        distance_PN += (gap_PN > 0) if column in categorical else gap_PN / scale
    _, row_N = linear_sum_assignment(distance_PN)
    return np.asarray(row_N, dtype=np.int64)


def template_means(images: PatientImages, count: int, *, rng: np.random.Generator) -> np.ndarray:
    """Return ``count`` means, each over a scan of each of a random half of the patients.

    A half of fewer than ``SMALLEST_COUNT`` patients gives none. The halves overlap, so the means
    are alike: they count as images, and as far fewer independent trials.
    """
    first = _one_scan_each(images, rng=rng)
    half = len(first) // 2
    if half < SMALLEST_COUNT:
        return images.image_BCDHW[:0]
    means = [images.image_BCDHW[rng.permutation(first)[:half]].mean(0) for _ in range(count)]
    return np.asarray(means, dtype=np.float32).reshape(-1, *images.image_BCDHW.shape[1:])


def look_alikes(image_NCDHW: np.ndarray, gallery_MCDHW: np.ndarray, *, count: int) -> np.ndarray:
    """Return the rows of the strangers who are nearest to any scan of the gallery, nearest first.

    By the Euclidean distance of rough pictures, 8 blocks along each edge, each of zero mean and
    unit variance.
    """
    rough_NV, rough_MV = _rough(image_NCDHW), _rough(gallery_MCDHW)
    nearest_N = np.full(len(rough_NV), np.inf)
    for at in range(0, len(rough_MV), _CHUNK):
        part_MV = rough_MV[at : at + _CHUNK]
        square_NM = (rough_NV**2).sum(1)[:, None] + (part_MV**2).sum(1) - 2 * rough_NV @ part_MV.T
        nearest_N = np.minimum(nearest_N, square_NM.min(1))
    return np.argsort(nearest_N, kind="stable")[:count]


def _rough(image_BCDHW: np.ndarray) -> np.ndarray:
    """Return ``[B, V]`` float64: block means, standardized image by image."""
    rough = image_BCDHW.astype(np.float64)
    for axis in range(2, rough.ndim):
        size = rough.shape[axis]
        edges = np.linspace(0, size, min(size, _BLOCKS) + 1).astype(int)
        total = np.add.reduceat(rough, edges[:-1], axis=axis)
        width = np.diff(edges).reshape([-1 if at == axis else 1 for at in range(rough.ndim)])
        rough = total / width
    flat = rough.reshape(len(rough), -1)
    centered = flat - flat.mean(1, keepdims=True)
    return np.asarray(centered / np.maximum(centered.std(1, keepdims=True), 1e-9))


def _one_scan_each(images: PatientImages, *, rng: np.random.Generator) -> np.ndarray:
    """Return the row of one random scan of every patient."""
    rows = [
        rng.choice(np.flatnonzero(images.patient_B == patient))
        for patient in np.unique(images.patient_B)
    ]
    return np.array(rows, dtype=np.int64)
