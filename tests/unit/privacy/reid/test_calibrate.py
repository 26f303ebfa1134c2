from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.factories.filter_power import FlatEmbedder
from vitrael.core.errors import DataError
from vitrael.core.records import PatientImages
from vitrael.core.rng import stream
from vitrael.privacy.reid.calibrate import (
    OperatingPoint,
    _among_others,
    _scale,
    first_visits,
    freeze,
    least_null_patients,
    null_matches,
    verify_encoder,
)
from vitrael.privacy.reid.gallery import Gallery, build_gallery, with_round_trips
from vitrael.privacy.reid.lens import Encoders, fit_lens
from vitrael.privacy.reid.screen import Screener
from vitrael.privacy.reid.search import Matches, match
from vitrael.privacy.reid.template import fit_template

_SALT = "0" * 32


def _patients(count: int, *, seed: int, visits: int = 1) -> PatientImages:
    """Return smooth random blobs with an identity each; small, and bright enough for a mask."""
    rng = stream(seed, "blobs")
    coarse = rng.uniform(0.2, 1.0, (count, 1, 4, 4, 4))
    smooth = functional.interpolate(torch.from_numpy(coarse), size=(12, 12, 12), mode="trilinear")
    image = np.repeat(smooth.numpy(), visits, axis=0)
    image = np.clip(image + rng.normal(0, 0.01, image.shape), 0, 1).astype(np.float32)
    return PatientImages(
        image,
        np.zeros((len(image), 4), np.float32),
        np.repeat(np.arange(count), visits),
        np.tile(np.arange(visits), count),
    )


def _gallery(images: PatientImages) -> Gallery:
    others = _patients(12, seed=99)
    encoders = Encoders(FlatEmbedder(), FlatEmbedder())
    return build_gallery(images, fit_lens(others, encoders, fit_template(others.image_BCDHW)))


def _matches(rng: np.random.Generator, patients: int, *, regions: int = 40) -> Matches:
    """Return scores of strangers: heavy tails among the regions, three members of other scales."""
    best = 0.1 * rng.normal(size=(patients, 3)) + [0.2, 0.5, 0.6]
    region = 0.5 + 0.05 * rng.standard_t(6, size=(patients, regions))
    return Matches(np.clip(best, -1, 0.99), np.clip(region, -1, 0.99))


def _freeze(null: Matches | None, rate: float = 0.05) -> OperatingPoint | None:
    return freeze(null, false_match_rate=rate, gallery_patients=50, salt=_SALT)


@pytest.mark.parametrize(("rate", "least"), [(0.05, 39), (0.01, 199), (0.10, 19)])
def test_too_few_patients_give_no_operating_point(rate: float, least: int) -> None:
    rng = stream(1, "null")
    assert least_null_patients(rate) == least
    assert _freeze(_matches(rng, least), rate) is not None
    assert _freeze(_matches(rng, least - 1), rate) is None


@pytest.mark.parametrize("patients", [39, 59, 99])
def test_or_of_all_members_keeps_the_nominal_rate(patients: int) -> None:
    rng = stream(2, "null", patients)
    rates, naive = [], []
    for _ in range(200):
        null = _matches(rng, patients)
        point = _freeze(null)
        assert point is not None
        fresh = _matches(rng, 100)
        rates.append((point.members(fresh) > point.threshold).any(1).mean())
        inside = point.members(null).max(1)  # with a part in mean and spread, unlike newcomers
        cut = np.sort(inside)[int(np.ceil(0.95 * (patients + 1))) - 1]
        naive.append((point.members(fresh).max(1) > cut).mean())
    assert 0.01 < np.mean(rates) < 0.052
    assert patients > 40 or np.mean(naive) > 0.06


def test_score_that_falls_far_does_not_hide_one_that_rises() -> None:
    rng = stream(20, "tails")
    best = 0.05 * rng.normal(size=(199, 3))
    best[:, 0] = 0.05 * (1 - rng.exponential(4, 199))
    copy = np.column_stack([np.full(1, 0.2), *np.zeros((2, 1))])
    point = _freeze(Matches(best, best[:, 1:2]))
    assert point is not None
    assert point.members(Matches(copy, copy[:, 1:2]))[0, 0] > point.threshold
    both = (np.arctanh(0.2) - best[:, 0].mean()) / best[:, 0].std()  # the control
    assert both < point.threshold


def test_upper_spread_of_all_the_others_is_what_it_would_be_without_the_patient() -> None:
    z = stream(21, "scores").normal(size=(40, 3))
    told = _among_others(z)
    for row in range(len(z)):
        scale = _scale(np.delete(z, row, axis=0))
        expected = (z[row] - np.array(scale.mean)) / np.array(scale.spread)
        assert told[row] == pytest.approx(expected)


def test_null_comes_as_candidates_come() -> None:
    training, calibration = _patients(8, seed=5), _patients(3, seed=6)

    def smooth(image: np.ndarray) -> np.ndarray:
        given = torch.from_numpy(np.ascontiguousarray(image))
        return functional.avg_pool3d(given, 3, stride=1, padding=1).numpy()

    def come(images: PatientImages) -> PatientImages:
        return PatientImages(
            smooth(images.image_BCDHW), images.condition_BK, images.patient_B, images.visit_B
        )

    gallery = _gallery(with_round_trips(training, smooth))
    null = null_matches(training, calibration, gallery, round_trip=smooth)
    assert null is not None
    last = match(come(calibration).image_BCDHW, gallery)
    assert null.best_BK[8:] == pytest.approx(last.best_BK)
    raw = match(calibration.image_BCDHW, gallery)  # the control
    assert not np.allclose(null.region_BR[8:], raw.region_BR, atol=1e-4)


def test_thresholds_at_the_full_rate_each_would_exceed_it() -> None:
    fresh = _matches(stream(3, "null"), 4000).best_BK
    naive = (fresh > np.quantile(fresh, 0.95, axis=0)).any(1).mean()
    assert naive > 0.1


def test_score_that_is_not_finite_is_refused() -> None:
    null = _matches(stream(3, "null"), 30)
    null.region_BR[3, 4] = np.nan
    with pytest.raises(DataError):
        _freeze(null)


def test_commitment_hides_the_thresholds_and_binds_them() -> None:
    point = _freeze(_matches(stream(4, "null"), 60))
    assert point is not None
    assert "private" in repr(point)
    assert str(point.threshold) not in f"{point}"
    moved = point.model_copy(update={"threshold": point.threshold + 1e-6})
    salted = point.model_copy(update={"salt": "1" * 32})
    assert len({point.commitment, moved.commitment, salted.commitment}) == 3


def test_null_has_one_row_for_each_patient_who_is_not_in_the_gallery() -> None:
    training, calibration = _patients(8, seed=5, visits=2), _patients(3, seed=6, visits=2)
    null = null_matches(training, calibration, _gallery(training))
    assert null is not None
    assert len(null) == 11
    assert null.best_BK.max() < 0.99  # nobody meets a scan of his own


def test_gallery_without_anyone_else_gives_no_null() -> None:
    alone = _patients(1, seed=7)
    nobody = PatientImages(
        alone.image_BCDHW[:0], alone.condition_BK[:0], alone.patient_B[:0], alone.visit_B[:0]
    )
    assert null_matches(alone, nobody, _gallery(alone)) is None
    assert _freeze(None) is None


def test_screening_drops_copies_and_keeps_strangers() -> None:
    training, calibration = _patients(32, seed=8), _patients(8, seed=9)
    gallery = _gallery(training)
    point = _freeze(null_matches(training, calibration, gallery))
    assert point is not None
    screener = Screener(gallery, point)
    strangers = _patients(20, seed=10).image_BCDHW
    assert not screener(training.image_BCDHW).any()
    assert not screener(np.ascontiguousarray(training.image_BCDHW[:, :, ::-1])).any()
    assert screener(strangers).mean() > 0.8


def test_vote_does_not_depend_on_the_other_candidates() -> None:
    training, calibration = _patients(32, seed=8), _patients(8, seed=9)
    gallery = _gallery(training)
    point = _freeze(null_matches(training, calibration, gallery))
    assert point is not None
    screener = Screener(gallery, point)
    strangers, copies = _patients(10, seed=11).image_BCDHW, training.image_BCDHW[:4]
    together = screener(np.concatenate([strangers, copies]))
    assert (together == np.concatenate([screener(strangers), screener(copies)])).all()
    assert len(screener(strangers[:0])) == 0


def test_round_trips_belong_to_their_patient() -> None:
    images = _patients(3, seed=12, visits=2)
    forms = with_round_trips(images, lambda image: image * 0.5)
    assert len(forms) == 12
    assert (forms.patient_B[6:] == images.patient_B).all()
    assert (first_visits(forms) == first_visits(images)).all()
    assert with_round_trips(images, None) is images


def test_verification_needs_patients_with_two_visits() -> None:
    assert verify_encoder(_patients(5, seed=13), FlatEmbedder()).patients == 0
    known = verify_encoder(_patients(11, seed=13, visits=2), FlatEmbedder())
    assert (known.wins, known.patients) == (11.0, 11)


def test_verification_of_fewer_than_eleven_patients_is_not_told() -> None:
    few = verify_encoder(_patients(10, seed=13, visits=2), FlatEmbedder())
    assert (few.wins, few.patients) == (0.0, 0)


def test_gallery_shows_nothing_of_a_patient() -> None:
    gallery = _gallery(_patients(3, seed=14))
    assert repr(gallery) == "Gallery(private)"
