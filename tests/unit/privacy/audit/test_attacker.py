"""The attacker: another network than the filter's, sure from where on strangers are not."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from vitrael.core.configs import LocalTrainingConfig, ReidEncoderConfig
from vitrael.core.data.phantoms.cohorts import draw_scan
from vitrael.core.models.reid import ReidEncoder, build_reid_encoder
from vitrael.core.records import PatientImages
from vitrael.privacy.audit.attacker import (
    Attacker,
    arm_attacker,
    as_drawn,
    attacker_config,
    join_strangers,
    name_network,
)
from vitrael.privacy.reid.gallery import with_round_trips

GRID, SPACING = (24, 24, 24), 8.0
RATE = 0.2


@cache
def people(site: str, count: int, *, visits: int = 1) -> PatientImages:
    rows = [(patient, visit) for patient in range(count) for visit in range(visits)]
    images = [
        draw_scan(6, site, patient, visit, grid_vox=GRID, spacing_mm=SPACING)[0].image_CDHW
        for patient, visit in rows
    ]
    return PatientImages(
        image_BCDHW=np.clip(np.stack(images), 0, 1).astype(np.float32),
        condition_BK=np.zeros((len(rows), 4), np.float32),
        patient_B=np.array([patient for patient, _ in rows]),
        visit_B=np.array([visit for _, visit in rows]),
    )


def network(*channels: int) -> ReidEncoderConfig:
    return ReidEncoderConfig(
        kind="reid_encoder",
        channels=channels,
        embedding=16,
        training=LocalTrainingConfig(length_images=8),
    )


@pytest.fixture(scope="module")
def encoder() -> ReidEncoder:
    return build_reid_encoder(attacker_config(network(8, 16)), seed=3)


def smooth(image_BCDHW: np.ndarray) -> np.ndarray:
    """Stand for an autoencoder."""
    half = image_BCDHW[:, :, ::2, ::2, ::2]
    return np.repeat(np.repeat(np.repeat(half, 2, 2), 2, 3), 2, 4)


@pytest.mark.parametrize("channels", [(8,), (8, 16), (16, 32, 64)])
def test_attacker_has_another_shape_than_the_filters_encoders(channels: tuple[int, ...]) -> None:
    own, other = network(*channels), attacker_config(network(*channels))
    assert len(own.channels) != len(other.channels)
    assert own.channels[0] != other.channels[0]
    assert own.embedding != other.embedding
    assert other.training.rounds == 1
    mine, theirs = (build_reid_encoder(config, seed=3) for config in (other, own))
    assert name_network(mine) != name_network(theirs)


def test_copies_are_known_and_strangers_at_the_asked_rate(encoder: ReidEncoder) -> None:
    training, strangers = people("known", 24, visits=2), people("strange", 20)
    attacker = arm_attacker(encoder, training, strangers, rate=RATE, round_trip=smooth)
    assert attacker is not None
    noise = np.random.default_rng(2).normal(0, 0.002, training.image_BCDHW.shape)
    copies = training.image_BCDHW + noise.astype(np.float32)
    assert attacker(copies).all()
    assert attacker(smooth(training.image_BCDHW)).all()
    fresh = as_drawn(people("fresh", 60), smooth)
    assert attacker(fresh).mean() <= 2 * RATE  # the control
    assert repr(attacker) == "Attacker(private)"


def test_too_few_for_the_rate_make_no_attacker(encoder: ReidEncoder) -> None:
    training, nobody = people("known", 3), people("strange", 1)
    assert arm_attacker(encoder, training, nobody, rate=RATE) is None
    assert isinstance(arm_attacker(encoder, people("known", 9), nobody, rate=RATE), Attacker)


def test_patient_who_is_left_out_is_not_compared_with_himself(encoder: ReidEncoder) -> None:
    twins = people("known", 12, visits=2)
    same = PatientImages(
        twins.image_BCDHW[::2].repeat(2, axis=0), twins.condition_BK, twins.patient_B, twins.visit_B
    )
    attacker = arm_attacker(encoder, same, people("strange", 4), rate=RATE)
    assert attacker is not None
    assert attacker.threshold < 1 - 1e-6


def test_patients_of_several_splits_keep_apart() -> None:
    one, two, none = people("a", 3, visits=2), people("b", 2), people("b", 2)
    none = PatientImages(*(part[:0] for part in (
        none.image_BCDHW, none.condition_BK, none.patient_B, none.visit_B
    )))  # fmt: skip
    joined = join_strangers([one, none, two])
    assert len(np.unique(joined.patient_B)) == 5
    assert len(as_drawn(joined, None)) == 5
    assert len(with_round_trips(joined, smooth)) == 16
