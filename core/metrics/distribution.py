"""How far one set of images lies from another, by features: Fréchet, kernel, density, coverage.

All take features ``[N, E]`` of the real and ``[M, E]`` of the synthetic set, in float64, from one
extractor, whose name goes into the record. What each can see was measured on phantoms, and stands
in its docstring: a metric alone is no verdict. Axes: N real, M synthetic, E features.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from vitrael.core.checks import finite
from vitrael.core.errors import DataError
from vitrael.core.metrics.bootstrap import (
    DRAWS,
    bootstrap,
    centered_interval,
    jackknife_error,
)
from vitrael.core.metrics.intervals import (
    CONFIDENCE,
    UNIT,
    Estimate,
    clopper_pearson,
    normal_interval,
)
from vitrael.core.metrics.measured import Measured

NEIGHBORS: Final = 5
_FEWEST: Final = 4
_CHUNK: Final = 1024
_POSITIVE: Final = (0.0, math.inf)


def frechet_distance(
    real_NE: np.ndarray,
    synthetic_ME: np.ndarray,
    *,
    extractor: str,
    rng: np.random.Generator,
    draws: int = DRAWS,
    confidence: float = CONFIDENCE,
) -> Measured:
    """Return the squared Fréchet distance of two Gaussians fitted to the features (FID).

    ``|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))`` (Dowson and Landau 1982; Heusel et al. 2017,
    equation 6). With ``Si = Fi' Fi`` the trace of the root is the sum of the singular values of
    ``F1 F2'``: no product of covariances is formed and none needs full rank, so fewer images than
    features are allowed, and said in ``method``. It is biased upward, by more the fewer the images:
    compare at equal counts and with one extractor only, best beside a second real set. The
    interval is the bootstrap's spread, up to twice too wide near 0. It sees both blur and lost
    modes. Raises DataError for
    fewer than 4 images, unequal features and values that are not finite.
    """
    real, synthetic = _pair(real_NE, synthetic_ME)
    value = _frechet(real, synthetic)
    again = bootstrap(
        lambda i, j: _frechet(real[i], synthetic[j]),
        (len(real), len(synthetic)),
        rng=rng,
        draws=draws,
    )
    low, high = centered_interval(value, again, confidence=confidence, within=_POSITIVE)
    few = min(len(real), len(synthetic)) <= real.shape[1]
    note = "; fewer images than features: the covariances are singular" if few else ""
    method = (
        f"Frechet distance, {_counts(real, synthetic)}, bootstrap of {draws} draws; "
        f"biased upward at this count{note}"
    )
    return Measured(
        "fid", value, low, high, len(synthetic), "images", method, extractor, confidence
    )


def kernel_distance(
    real_NE: np.ndarray,
    synthetic_ME: np.ndarray,
    *,
    extractor: str,
    confidence: float = CONFIDENCE,
) -> Measured:
    """Return the unbiased squared maximum mean discrepancy with a cubic kernel (KID).

    The kernel is ``(x . y / E + 1)^3`` over all pairs, none with itself (Bińkowski et al. 2018,
    section 4; Gretton et al. 2012, equation 3). The expectation is 0 for equal distributions at
    any count, so it may be negative. The interval is the jackknife's over images of both sets,
    normal, and wide rather than narrow near 0. It sees blur and a part of the population that is
    missing. It does **not** see a few images repeated, which lie about the right mean: that is for
    ``coverage``. Raises DataError as ``frechet_distance``.
    """
    real, synthetic = _pair(real_NE, synthetic_ME)
    n, m = len(real), len(synthetic)
    within_N, between_N, square_N = _kernel_sums(real, real, synthetic)
    within_M, between_M, square_M = _kernel_sums(synthetic, synthetic, real)
    rows = np.concatenate([within_N + between_N, within_M + between_M])
    within_N -= _kernel_diagonal(real)
    within_M -= _kernel_diagonal(synthetic)
    a, b, c = (float(sums.sum()) for sums in (within_N, within_M, between_N))
    pairs_N, pairs_M = n * (n - 1), m * (m - 1)
    value = a / pairs_N + b / pairs_M - 2 * c / (n * m)
    without_N = (a - 2 * within_N) / ((n - 1) * (n - 2)) - 2 * (c - between_N) / ((n - 1) * m)
    without_M = (b - 2 * within_M) / ((m - 1) * (m - 2)) - 2 * (c - between_M) / (n * (m - 1))
    # Of equal sets the first order vanishes, and at times the jackknife with it: the error is
    # never below that under equality, from the kernel of all images with its means taken out.
    whole = float(square_N.sum() + square_M.sum())
    centered = (whole - 2 * float(rows @ rows) / (n + m) + (float(rows.sum()) / (n + m)) ** 2) / (
        n + m
    ) ** 2
    least = math.sqrt(max(centered, 0.0) * (2 / pairs_N + 2 / pairs_M + 4 / (n * m)))
    error = max(jackknife_error(without_N, without_M), least)
    low, high = normal_interval(Estimate(value, error), confidence=confidence)
    method = f"unbiased MMD^2, cubic kernel, {_counts(real, synthetic)}, jackknife"
    return Measured("kid", value, low, high, m, "images", method, extractor, confidence)


def density(
    real_NE: np.ndarray,
    synthetic_ME: np.ndarray,
    *,
    extractor: str,
    neighbors: int = NEIGHBORS,
    confidence: float = CONFIDENCE,
) -> Measured:
    """Return in how many balls around real images a synthetic one lies, over ``neighbors``.

    The ball of a real image reaches to its k-th nearest real neighbor, exactly (Naeem et al. 2020,
    equation 5). Near 1 for equal distributions, at most N / k, and low for images that lie off
    the real ones: it sees blur. It does **not** see lost modes: a set that stays where the real
    ones are dense scores above 1, so it is no proof of variety and must stand beside
    ``coverage``. The interval is the jackknife's over images, with the radii held. Raises DataError
    as ``frechet_distance``, and for no fewer neighbors than other real images.
    """
    real, synthetic = _pair(real_NE, synthetic_ME)
    held_N, holding_M, _ = _balls(real, synthetic, neighbors)
    value = float(holding_M.mean()) / neighbors
    error = math.hypot(
        jackknife_error(_without_one(holding_M / neighbors)),
        jackknife_error(_without_one(held_N * (len(real) / (neighbors * len(synthetic))))),
    )
    least = 1 / len(synthetic)  # no image in any ball is no certainty that none ever is
    low, high = normal_interval(
        Estimate(value, max(error, least)), confidence=confidence, within=_POSITIVE
    )
    method = f"density, k {neighbors}, {_counts(real, synthetic)}, jackknife"
    return Measured(
        "density", value, low, high, len(synthetic), "images", method, extractor, confidence
    )


def coverage(
    real_NE: np.ndarray,
    synthetic_ME: np.ndarray,
    *,
    extractor: str,
    neighbors: int = NEIGHBORS,
    confidence: float = CONFIDENCE,
) -> Measured:
    """Return the share of real images whose ball holds at least one synthetic image.

    The balls are those of ``density`` (Naeem et al. 2020, equation 6). For equal distributions and
    equal counts it is near ``1 - 2^-k``, 0.97 for k 5; it rises with the count of synthetic images,
    so compare at equal counts. It sees both blur and lost modes. The interval joins the exact one
    over real images with the jackknife's over synthetic ones, radii held (Zou and Donner 2008,
    equation 2). Raises DataError as ``density``.
    """
    real, synthetic = _pair(real_NE, synthetic_ME)
    held_N, _, only_M = _balls(real, synthetic, neighbors)
    covered = int((held_N > 0).sum())
    value = covered / len(real)
    error = jackknife_error((covered - only_M) / len(real))
    exact = clopper_pearson(covered, len(real), confidence=confidence)
    other = normal_interval(Estimate(value, error), confidence=confidence)
    low = value - math.hypot(value - exact.low, value - other.low)
    high = value + math.hypot(exact.high - value, other.high - value)
    low, high = max(low, UNIT[0]), min(high, UNIT[1])
    method = f"coverage, k {neighbors}, {_counts(real, synthetic)}, exact and jackknife"
    return Measured(
        "coverage", value, low, high, len(synthetic), "images", method, extractor, confidence
    )


def _pair(real_NE: np.ndarray, synthetic_ME: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    for features in (real_NE, synthetic_ME):
        if features.ndim != 2 or len(features) < _FEWEST:  # noqa: PLR2004 - N, E
            raise DataError(
                "the features of a set cannot be compared",
                why=f"they are {list(features.shape)}",
                fix=f"give [images, features] of at least {_FEWEST} images",
            )
    if real_NE.shape[1] != synthetic_ME.shape[1]:
        raise DataError(
            "two sets have different features",
            why=f"there are {real_NE.shape[1]} and {synthetic_ME.shape[1]} of them",
            fix="extract both with one extractor",
        )
    finite(real_features=real_NE, synthetic_features=synthetic_ME)
    return real_NE.astype(np.float64), synthetic_ME.astype(np.float64)


def _counts(real_NE: np.ndarray, synthetic_ME: np.ndarray) -> str:
    return f"{len(synthetic_ME)} against {len(real_NE)} real of {real_NE.shape[1]} features"


def _frechet(real_NE: np.ndarray, synthetic_ME: np.ndarray) -> float:
    offset = real_NE.mean(axis=0) - synthetic_ME.mean(axis=0)
    first, second = _factor(real_NE), _factor(synthetic_ME)
    root = np.linalg.svd(first @ second.T, compute_uv=False).sum()
    spread = np.square(first).sum() + np.square(second).sum() - 2 * root
    return float(offset @ offset + max(spread, 0.0))


def _factor(value_NE: np.ndarray) -> np.ndarray:
    """Return F of at most E rows with ``F' F`` the unbiased covariance."""
    centered = (value_NE - value_NE.mean(axis=0)) / math.sqrt(len(value_NE) - 1)
    n, width = centered.shape
    return centered if n <= width else np.asarray(np.linalg.qr(centered, mode="r"))


def _kernel_sums(
    first_NE: np.ndarray, own_NE: np.ndarray, other_ME: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for each of the first its sum of kernels with its own set and with the other, [N].

    The third array is the sum of squares of both.
    """
    width = first_NE.shape[1]
    sums = np.zeros((3, len(first_NE)))
    for start in range(0, len(first_NE), _CHUNK):
        rows = slice(start, start + _CHUNK)
        for place, second in enumerate((own_NE, other_ME)):
            kernel = np.power(first_NE[rows] @ second.T / width + 1, 3)
            sums[place, rows] = kernel.sum(axis=1)
            sums[2, rows] += np.square(kernel).sum(axis=1)
    return sums[0], sums[1], sums[2]


def _kernel_diagonal(value_NE: np.ndarray) -> np.ndarray:
    square_N = np.square(value_NE).sum(axis=1)
    return np.asarray(np.power(square_N / value_NE.shape[1] + 1, 3))


def _balls(
    real_NE: np.ndarray, synthetic_ME: np.ndarray, neighbors: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return how many images each ball holds, in how many balls each lies, and in how many alone.

    The shapes are ``[N]``, ``[M]`` and ``[M]``.
    """
    if not 1 <= neighbors < len(real_NE):
        raise DataError(
            f"{len(real_NE)} real images have no {neighbors}-th neighbor",
            fix="give more images, or ask for fewer neighbors",
        )
    middle = real_NE.mean(axis=0)  # distances from products lose digits far from the origin
    real, synthetic = real_NE - middle, synthetic_ME - middle
    held_N = np.zeros(len(real), np.int64)
    holding_M = np.zeros(len(synthetic), np.int64)
    only_M = np.zeros(len(synthetic), np.int64)
    for start in range(0, len(real), _CHUNK):
        rows = slice(start, start + _CHUNK)
        own = _squared_distances(real[rows], real)
        own[np.arange(len(own)), np.arange(start, start + len(own))] = np.inf  # not one's own
        radius = np.partition(own, neighbors - 1, axis=1)[:, neighbors - 1]
        inside = _squared_distances(real[rows], synthetic) < radius[:, None]
        held_N[rows] = inside.sum(axis=1)
        holding_M += inside.sum(axis=0)
        only_M += inside[held_N[rows] == 1].sum(axis=0)
    return held_N, holding_M, only_M


def _squared_distances(first_NE: np.ndarray, second_ME: np.ndarray) -> np.ndarray:
    squares = np.square(first_NE).sum(axis=1)[:, None] + np.square(second_ME).sum(axis=1)
    return np.asarray(np.maximum(squares - 2 * first_NE @ second_ME.T, 0.0))


def _without_one(value_N: np.ndarray) -> np.ndarray:
    """Return the mean of all but each, ``[N]``."""
    return np.asarray((value_N.sum() - value_N) / (len(value_N) - 1))
