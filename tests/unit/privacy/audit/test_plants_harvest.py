"""What a model has by heart is told by relative distance."""

from __future__ import annotations

import numpy as np
import pytest

from vitrael.core.errors import DataError
from vitrael.core.rng import stream
from vitrael.privacy.audit.plants.harvest import harvest_memorized
from vitrael.privacy.suite import LEAST_SOURCES

_PATIENTS, _VISITS = 70, 2


@pytest.fixture(scope="module")
def training() -> np.ndarray:
    rng = stream(1, "training")
    person = rng.uniform(0.2, 0.8, (_PATIENTS, 1, 1, 6, 6, 6))
    scans = person + rng.normal(0, 0.01, (_PATIENTS, _VISITS, 1, 6, 6, 6))
    return np.clip(scans, 0, 1).reshape(-1, 1, 6, 6, 6).astype(np.float32)


_OWNER = np.repeat(np.arange(_PATIENTS) + 100, _VISITS)


def _noisy(image: np.ndarray, sigma: float) -> np.ndarray:
    noise = stream(2, "noise").normal(0, sigma, image.shape)
    return np.clip(image + noise, 0, 1).astype(np.float32)


def test_copies_are_harvested_one_for_each_patient(training: np.ndarray) -> None:
    samples = np.concatenate([_noisy(training[::2], 0.05), _noisy(training[1::2], 0.02)])
    found = harvest_memorized(samples, training, patient_N=_OWNER)
    assert found.sources == _PATIENTS >= LEAST_SOURCES
    assert found.suffices
    assert (found.patient_M == np.unique(_OWNER)).all()
    # Of two samples of a patient the nearer one is kept.
    assert np.array_equal(found.image_MCDHW, samples[_PATIENTS:])
    assert (found.ratio_M < 1).all()
    assert repr(found) == "Harvest(private)"


def test_samples_of_strangers_are_not_harvested(training: np.ndarray) -> None:
    strangers = stream(3, "new").uniform(0.2, 0.8, (40, 1, 6, 6, 6)).astype(np.float32)
    found = harvest_memorized(strangers, training, patient_N=_OWNER)
    assert found.sources == 0
    assert not found.suffices
    assert found.image_MCDHW.shape == (0, 1, 6, 6, 6)


def test_few_sources_do_not_suffice(training: np.ndarray) -> None:
    found = harvest_memorized(_noisy(training[:40:2], 0.02), training, patient_N=_OWNER)
    assert found.sources == 20
    assert not found.suffices


def test_dull_sample_is_near_to_everybody_and_nobodys(training: np.ndarray) -> None:
    dull = training.mean(0, keepdims=True)
    near = np.sqrt(np.square(training - dull).sum((1, 2, 3, 4))).min()
    far = np.sqrt(np.square(training[:1] - training[2:]).sum((1, 2, 3, 4))).min()
    assert near < far  # by plain distance it is nearer to patients than they are to each other
    assert harvest_memorized(dull, training, patient_N=_OWNER).sources == 0


def test_other_scans_of_one_patient_do_not_count_as_neighbors(training: np.ndarray) -> None:
    samples = _noisy(training[:1], 0.02)
    often = np.concatenate([training, *[_noisy(training[:1], 0.02 + i / 1000) for i in range(60)]])
    owner = np.concatenate([_OWNER, np.full(60, _OWNER[0])])
    assert harvest_memorized(samples, often, patient_N=owner).sources == 1


def test_what_cannot_be_compared_is_refused(training: np.ndarray) -> None:
    with pytest.raises(DataError, match="fewer than three"):
        harvest_memorized(training[:1], training[:4], patient_N=_OWNER[:4])
    with pytest.raises(DataError, match="do not go together"):
        harvest_memorized(training[:1, :, :5], training, patient_N=_OWNER)
    with pytest.raises(DataError, match="do not go together"):
        harvest_memorized(training[:1], training, patient_N=_OWNER[1:])
    with pytest.raises(DataError, match="not finite"):
        harvest_memorized(training[:1] * np.nan, training, patient_N=_OWNER)
