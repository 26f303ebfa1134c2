"""Records are frozen; patients never show."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from vitrael.core.records import PatientImages, SampleRequest


def make_patients() -> PatientImages:
    return PatientImages(
        image_BCDHW=np.full((3, 1, 2, 2, 2), 0.8765, np.float32),
        condition_BK=np.full((3, 4), 0.4321, np.float32),
        patient_B=np.array([4711, 4711, 4712]),
        visit_B=np.array([0, 1, 0]),
    )


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
