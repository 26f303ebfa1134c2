"""Covariates and conditions are one linear map, there and back."""

from __future__ import annotations

import numpy as np
import pytest

from vitrael.core.data.conditions import scale_covariates, unscale_conditions
from vitrael.core.errors import DataError
from vitrael.core.protocols import Data


def test_there_and_back_is_the_same_and_order_is_age_sex_ventricle_brain(data: Data) -> None:
    covariate_BK = np.array([[18.0, 1.0, 55.0, 1050.0]])
    condition_BK = scale_covariates(covariate_BK, data)
    assert condition_BK.dtype == np.float32
    assert condition_BK[0].tolist() == [0.0, 1.0, 0.5, 0.25]
    assert np.allclose(unscale_conditions(condition_BK, data), covariate_BK)


def test_values_beyond_the_range_are_clipped(data: Data) -> None:
    beyond = np.array([[5.0, 0.0, 300.0, 100.0], [99.0, 1.0, 0.0, 9000.0]])
    assert scale_covariates(beyond, data).tolist() == [[0, 0, 1, 0], [1, 1, 0, 1]]


def test_wrong_columns_and_nan_are_refused(data: Data) -> None:
    with pytest.raises(DataError, match="columns"):
        scale_covariates(np.zeros((2, 3)), data)
    with pytest.raises(DataError, match="not finite"):
        scale_covariates(np.array([[50.0, 0.0, np.nan, 1000.0]]), data)
