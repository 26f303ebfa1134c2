"""Covariates in their units and as conditions in [0, 1]: the one mapping between the two.

Axes: B batch, K covariates in the order of ``core.study.COVARIATES``.
"""

from __future__ import annotations

import numpy as np

from vitrael.core.errors import DataError
from vitrael.core.protocols import COVARIATES, Data


def scale_covariates(covariate_BK: np.ndarray, data: Data) -> np.ndarray:
    """Return float32 conditions in [0, 1]: linear in the study's ranges, clipped at their ends.

    Raises DataError when the columns are not the covariates or a value is not finite.
    """
    low_K, high_K = _ranges(data)
    _check(covariate_BK)
    scaled = np.clip((covariate_BK - low_K) / (high_K - low_K), 0, 1)
    return np.asarray(scaled, dtype=np.float32)


def unscale_conditions(condition_BK: np.ndarray, data: Data) -> np.ndarray:
    """Return float64 covariates in their units (years, 0 to 1, ml, ml), the inverse of scaling."""
    low_K, high_K = _ranges(data)
    _check(condition_BK)
    return np.asarray(low_K + condition_BK.astype(np.float64) * (high_K - low_K))


def _ranges(data: Data) -> tuple[np.ndarray, np.ndarray]:
    ranges = [data.covariates[name] for name in COVARIATES]  # type: ignore[index]
    return np.array([r.low for r in ranges]), np.array([r.high for r in ranges])


def _check(array_BK: np.ndarray) -> None:
    if array_BK.ndim != 2 or array_BK.shape[1] != len(COVARIATES):  # noqa: PLR2004 - B and K
        raise DataError(f"covariates need the {len(COVARIATES)} columns of the study")
    if not np.isfinite(array_BK).all():
        raise DataError("a covariate is not finite")
