"""Records are frozen; an Update is checked; patients never show."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from vitrael.core.digest import digest_json
from vitrael.core.errors import WeightsError
from vitrael.core.records import PatientImages, SampleRequest, Update


def make_update(**changes: object) -> Update:
    whole = Update(
        tensors={"weight": np.zeros(3, np.float32)},
        num_examples=10,
        protocol=digest_json("protocol"),
        stage="teacher",
        round=1,
        metrics={},
    )
    return dataclasses.replace(whole, **changes)  # type: ignore[arg-type]


def make_patients() -> PatientImages:
    return PatientImages(
        image_BCDHW=np.full((3, 1, 2, 2, 2), 0.8765, np.float32),
        condition_BK=np.full((3, 4), 0.4321, np.float32),
        patient_B=np.array([4711, 4711, 4712]),
        visit_B=np.array([0, 1, 0]),
    )


def test_whole_update_is_accepted() -> None:
    make_update().check({"weight": np.ones(3, np.float32)})


@pytest.mark.parametrize("count", [0, -1])
def test_update_that_counts_nobody_is_refused(count: int) -> None:
    with pytest.raises(WeightsError, match="counts no example"):
        make_update(num_examples=count).check({"weight": np.ones(3, np.float32)})


def test_update_with_other_tensors_is_refused() -> None:
    with pytest.raises(WeightsError, match="tensor bias is missing"):
        make_update().check({"weight": np.ones(3, np.float32), "bias": np.ones(1, np.float32)})


def test_update_with_nan_is_refused() -> None:
    update = make_update(tensors={"weight": np.full(3, np.nan, np.float32)})
    with pytest.raises(WeightsError, match="not finite"):
        update.check({"weight": np.ones(3, np.float32)})


@pytest.mark.parametrize("show", [repr, str, "{}".format])
def test_patient_images_show_nothing_of_a_patient(show: object) -> None:
    assert callable(show)
    text = show(make_patients())
    assert not any(part in text for part in ("0.87", "0.43", "4711", "4712", "3"))


def test_patient_images_count_their_images() -> None:
    assert len(make_patients()) == 3


def test_records_cannot_be_changed() -> None:
    request = SampleRequest(np.zeros((2, 4), np.float32), seed=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        request.seed = 2  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_patients().visit_B = np.zeros(3)  # type: ignore[misc]
