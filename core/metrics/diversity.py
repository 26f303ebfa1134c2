"""How much the images of a set differ from each other, to be read beside the real ones.

A mean similarity over random pairs is a number about variety. Its target is that of real pairs:
above it the set repeats itself, below it the images share less than real ones do. Axes: B images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np
import torch

from vitrael.core.errors import DataError
from vitrael.core.metrics.bootstrap import jackknife_error
from vitrael.core.metrics.intervals import CONFIDENCE, Estimate, normal_interval
from vitrael.core.metrics.measured import Measured
from vitrael.core.metrics.structure import (
    FULL_SIDE_PX,
    SCALE_WEIGHTS,
    WINDOW_PX,
    four_component_r,
    ms_ssim,
    scales_of,
)

Similarity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

SIMILARITIES: Final[Mapping[str, Similarity]] = MappingProxyType(
    {"ms_ssim": ms_ssim, "4_g_r_ssim": four_component_r}
)
PAIRS: Final = 1000
_VOXELS: Final = 1 << 22
"""Compared at a time, so that memory does not follow the count of pairs."""
_FEWEST: Final = 4


class Diversity(NamedTuple):
    """The similarity within a synthetic set, within the real one, and how far the first is off."""

    synthetic: Measured
    real: Measured
    difference: Measured
    """Synthetic less real: 0 is the target."""


def pair_similarity(
    images: torch.Tensor,
    *,
    measure: str,
    rng: np.random.Generator,
    pairs: int = PAIRS,
    confidence: float = CONFIDENCE,
) -> Measured:
    """Return the mean similarity over random pairs of one set, ``[B, 1, (D,) H, W]`` in [0, 1].

    ``measure`` is one of ``SIMILARITIES``. No image is paired with itself and no pair is drawn
    twice; with fewer pairs than asked for, all are taken. The interval is the jackknife's over
    images, since two pairs with an image in common are not independent. Raises DataError for fewer
    than 4 images, an unknown measure and values that are not finite.
    """
    if measure not in SIMILARITIES:
        raise DataError(
            "the similarity is unknown", fix=f"choose from {', '.join(sorted(SIMILARITIES))}"
        )
    n = len(images)
    if n < _FEWEST:
        raise DataError(f"{n} images have no diversity", fix=f"give at least {_FEWEST}")
    if not bool(torch.isfinite(images).all()):
        raise DataError("the images hold values that are not finite")
    first_P, second_P = _draw_pairs(n, pairs, rng)
    similar, batch = SIMILARITIES[measure], max(1, _VOXELS // images[0].numel())
    parts = [
        similar(images[first_P[i : i + batch]], images[second_P[i : i + batch]]).double().cpu()
        for i in range(0, len(first_P), batch)
    ]
    value_P = torch.cat(parts).numpy()
    value = float(value_P.mean())
    low, high = normal_interval(
        Estimate(value, _error(value_P, first_P, second_P, n)),
        confidence=confidence,
        within=(-1.0, 1.0),
    )
    method = f"{_describe(measure, images)}, {len(value_P)} random pairs, jackknife over images"
    return Measured(measure, value, low, high, n, "images", method, "", confidence)


def diversity(
    synthetic: torch.Tensor,
    real: torch.Tensor,
    *,
    measure: str,
    rng: np.random.Generator,
    pairs: int = PAIRS,
    confidence: float = CONFIDENCE,
) -> Diversity:
    """Return the mean similarity of synthetic pairs beside that of real pairs, and the difference.

    This is no distribution metric. On phantoms it sees a generator that collapses to one image,
    and blur, for images without their noise and folds are alike. It does **not** reliably see lost
    modes: half of a population may differ among itself as the whole does, and of 200 images of
    which five are distinct four pairs in five still differ. That is for ``coverage``. Raises
    DataError as ``pair_similarity``, and for sets of different grids.
    """
    if synthetic.shape[1:] != real.shape[1:]:
        raise DataError(
            "the diversity of two sets cannot be compared",
            why=f"their images are {list(synthetic.shape[1:])} and {list(real.shape[1:])}",
            fix="bring both to one grid",
        )
    first, second = (
        pair_similarity(x, measure=measure, rng=rng, pairs=pairs, confidence=confidence)
        for x in (synthetic, real)
    )
    value = first.value - second.value
    # Zou and Donner 2008, equation 2: each bound takes the sides that pull its way
    low = value - math.hypot(first.value - first.low, second.high - second.value)
    high = value + math.hypot(first.high - first.value, second.value - second.low)
    method = f"{first.method}; less the same of {second.n} real images"
    difference = Measured(
        f"{measure}_difference", value, low, high, first.n, "images", method, "", confidence
    )
    return Diversity(first, second, difference)


def _draw_pairs(n: int, pairs: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of distinct pairs, in which every image is used about as often.

    A round pairs each image with the one ``step`` places on, in one random order; no step and
    its opposite are both taken, so no pair comes twice.
    """
    order = rng.permutation(n)
    steps = rng.permutation(np.arange(1, (n - 1) // 2 + 1))
    first = [order for _ in steps]
    second = [np.roll(order, -int(step)) for step in steps]
    if n % 2 == 0:
        first.append(order[: n // 2])
        second.append(order[n // 2 :])
    return np.concatenate(first)[:pairs], np.concatenate(second)[:pairs]


def _error(value_P: np.ndarray, first_P: np.ndarray, second_P: np.ndarray, n: int) -> float:
    sums = np.bincount(first_P, value_P, n) + np.bincount(second_P, value_P, n)
    counts = np.bincount(first_P, minlength=n) + np.bincount(second_P, minlength=n)
    left = len(value_P) - counts
    used = (counts > 0) & (left > 0)
    return jackknife_error((value_P.sum() - sums[used]) / left[used])


def _describe(measure: str, images: torch.Tensor) -> str:
    sides = images.shape[2:]
    side = min(sides)
    window = f"window {min(WINDOW_PX, side)} px"
    if measure != "ms_ssim":
        return f"4-G-r* on {'x'.join(map(str, sides))}, {window}"
    scales = scales_of(side)
    few = f" (below {FULL_SIDE_PX} px)" if scales < len(SCALE_WEIGHTS) else ""
    return (
        f"MS-SSIM on {'x'.join(map(str, sides))}, {scales} of {len(SCALE_WEIGHTS)} "
        f"scales{few}, {window}"
    )
