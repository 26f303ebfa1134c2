from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vitrael.core.data.synthetic import SyntheticSet, synthetic_set
from vitrael.core.digest import digest_bytes
from vitrael.core.errors import DataError
from vitrael.core.geometry import centered_affine, spacing_mm
from vitrael.core.protocols import COVARIATES, CovariateRange, Data, Splits
from vitrael.core.records import Samples

DATA = Data(
    recipe="brain-t1",
    grid_vox=(2, 2, 2),
    spacing_mm=8,
    covariates=dict.fromkeys(COVARIATES, CovariateRange(low=10, high=30)),  # type: ignore[arg-type]
    splits=Splits(
        training_frac=0.2,
        filter_frac=0.2,
        calibration_frac=0.2,
        audit_frac=0.2,
        utility_frac=0.2,
    ),
)


def _samples(count: int = 2) -> Samples:
    image = np.linspace(0, 1, count * 8, dtype=np.float32).reshape(count, 1, 2, 2, 2)
    condition = np.linspace(0, 1, count * 4, dtype=np.float32).reshape(count, 4)
    return Samples(image, condition, centered_affine((2, 2, 2), spacing=8))


def _set(**change: np.ndarray) -> SyntheticSet:
    samples = replace(_samples(), **change)
    return synthetic_set(samples, seed=5, generator=digest_bytes(b"w"), data=DATA, first=7)


def test_provenance_says_seed_index_and_what_was_asked() -> None:
    made = _set()
    assert [origin.index for origin in made.provenance] == [7, 8]
    assert {origin.seed for origin in made.provenance} == {5}
    assert made.provenance[0].condition[0] == 10
    assert made.provenance[1].condition[3] == 30


def test_scans_carry_the_geometry() -> None:
    made = _set()
    scans = list(made.scans())
    assert len(scans) == len(made) == 2
    assert spacing_mm(scans[0].affine) == (8, 8, 8)


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.1, 1.1])
def test_image_outside_zero_to_one_is_refused(value: float) -> None:
    image = _samples().image_BCDHW.copy()
    image[0, 0, 0, 0, 0] = value
    with pytest.raises(DataError, match="outside"):
        _set(image_BCDHW=image)


def test_empty_or_misshapen_set_is_refused() -> None:
    image = _samples().image_BCDHW
    for wrong in (image[:0], image[:, 0], image.astype(np.float64)):
        with pytest.raises(DataError, match="float32 images"):
            _set(image_BCDHW=wrong)


def test_rows_that_do_not_agree_are_refused() -> None:
    with pytest.raises(DataError, match="provenance has 1 rows for 2"):
        _set(condition_BK=_samples().condition_BK[:1])
    with pytest.raises(DataError, match="ventricle_ml has 1 rows"):
        replace(_set(), measured={"ventricle_ml": np.zeros(1)})
