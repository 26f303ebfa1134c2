"""Over-training is bounded and repeats itself, and says why it gave too few patients back.

That it gives enough of them back is shown where it takes minutes: ``test_filter_certificate``.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.factories.systems import GRID, brain_ldm
from vitrael.core.configs import BrainLDMConfig
from vitrael.core.errors import DataError, TaskStopped
from vitrael.core.models.brain_ldm import build_codec, build_denoiser
from vitrael.core.models.nets.autoencoder import KLCodec
from vitrael.core.records import PatientImages
from vitrael.core.rng import stream
from vitrael.core.weights import module_tensors
from vitrael.privacy.audit.plants.harvest import Harvest
from vitrael.privacy.audit.plants.overtrained import (
    COURSE,
    Course,
    _of_learned,
    memorize,
    overtrain,
    why_too_few,
)
from vitrael.privacy.leakage import SMALLEST_COUNT
from vitrael.privacy.suite import LEAST_SOURCES

_PATIENTS = SMALLEST_COUNT
_SHORT = Course(
    most_images=48, stretch_images=32, samples=1, patients=_PATIENTS, wanted=_PATIENTS - 1
)


@pytest.fixture(scope="module")
def config() -> BrainLDMConfig:
    return brain_ldm()


@pytest.fixture(scope="module")
def images() -> PatientImages:
    """Return two visits of each patient."""
    rng = stream(1, "images")
    person = rng.uniform(0, 1, (_PATIENTS * 2, 1, *GRID)).astype(np.float32)
    condition = np.repeat(rng.uniform(0, 1, (_PATIENTS, 4)), 2, axis=0).astype(np.float32)
    patient = np.repeat(np.arange(_PATIENTS) + 10, 2)
    return PatientImages(person, condition, patient, np.tile([0, 1], _PATIENTS))


@pytest.fixture(scope="module")
def codec(config: BrainLDMConfig, images: PatientImages) -> KLCodec:
    codec = build_codec(config, seed=1)
    with torch.no_grad():
        mean, _ = codec.posterior(torch.from_numpy(images.image_BCDHW))
        codec.latent_mean.copy_(mean.mean((0, 2, 3, 4)))
        codec.latent_std.copy_(mean.std((0, 2, 3, 4)))
    return codec


def test_sample_near_to_a_patient_who_was_not_learned_is_no_memory() -> None:
    found = Harvest(
        np.arange(3, dtype=np.float32).reshape(3, 1, 1, 1, 1), np.array([4, 7, 9]), np.full(3, 0.5)
    )
    kept = _of_learned(found, np.array([9, 4]))
    assert kept.patient_M.tolist() == [4, 9]
    assert kept.image_MCDHW.ravel().tolist() == [0.0, 2.0]


def test_short_training_gives_nobody_back_and_says_so(
    config: BrainLDMConfig, images: PatientImages, codec: KLCodec
) -> None:
    found = memorize(images, codec, config, seed=1, course=_SHORT)
    assert found.sources < _SHORT.wanted
    assert "after 48 images" in why_too_few(found, images, course=_SHORT)


def test_equal_inputs_give_equal_networks(
    config: BrainLDMConfig, images: PatientImages, codec: KLCodec
) -> None:
    one, same, other = (
        module_tensors(overtrain(images, codec, config, seed=seed, course=_SHORT).denoiser)
        for seed in (1, 1, 2)
    )
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert not all(np.array_equal(one[name], other[name]) for name in one)


def test_given_weights_are_begun_with(
    config: BrainLDMConfig, images: PatientImages, codec: KLCodec
) -> None:
    given = module_tensors(build_denoiser(config, config.teacher, seed=9))
    away = []
    for weights in (given, None):
        found = overtrain(images, codec, config, seed=1, weights=weights, course=_SHORT)
        after = module_tensors(found.denoiser)
        away.append(sum(float(np.abs(after[name] - given[name]).sum()) for name in given))
    assert away[0] < away[1] / 2  # the control began elsewhere


def test_training_is_never_longer_than_it_may_be(
    config: BrainLDMConfig, images: PatientImages, codec: KLCodec
) -> None:
    told: list[tuple[int, int]] = []
    memorize(images, codec, config, seed=1, course=_SHORT, poll=lambda *at: told.append(at))
    assert told[-1] == (48, 48)
    assert told == sorted(told)


def test_poll_can_stop_it(config: BrainLDMConfig, images: PatientImages, codec: KLCodec) -> None:
    def stop(done: int, most: int) -> None:
        if done >= most // 2:
            raise TaskStopped("the task was told to stop")

    with pytest.raises(TaskStopped):
        memorize(images, codec, config, seed=1, course=_SHORT, poll=stop)


def test_too_few_patients_are_told_before_anything_is_learned(
    config: BrainLDMConfig, images: PatientImages, codec: KLCodec
) -> None:
    def fail(done: int, most: int) -> None:
        raise AssertionError(done, most)

    few = PatientImages(
        images.image_BCDHW[:4],
        images.condition_BK[:4],
        images.patient_B[:4],
        images.visit_B[:4],
    )
    alone = dataclasses.replace(_SHORT, patients=2, wanted=2)
    for given, course, fewest in ((images, COURSE, LEAST_SOURCES), (few, alone, SMALLEST_COUNT)):
        found = memorize(given, codec, config, seed=1, course=course, poll=fail)
        assert found.sources == 0
        assert not found.suffices
        assert f"fewer than the {fewest} patients" in why_too_few(found, given, course=course)


def test_usual_course_can_reach_a_bound_of_95_percent() -> None:
    assert COURSE.wanted >= LEAST_SOURCES
    assert COURSE.wanted <= COURSE.patients <= 100


@pytest.mark.parametrize(
    "odd", [{"most_images": 0}, {"samples": 0}, {"patients": 58}, {"patients": 101}]
)
def test_course_that_cannot_suffice_is_refused(odd: dict[str, int]) -> None:
    with pytest.raises(DataError):
        dataclasses.replace(COURSE, **odd)
