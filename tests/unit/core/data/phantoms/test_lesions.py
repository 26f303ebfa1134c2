"""Lesions: as much as was asked for, where they belong, counted by Poisson."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from vitrael.core.data.phantoms.acquisition import Acquisition
from vitrael.core.data.phantoms.anatomy import Anatomy, age_anatomy, draw_anatomy
from vitrael.core.data.phantoms.brain import BrainTruth, image_brain
from vitrael.core.data.phantoms.lesions import NO_LESIONS, Lesions, age_lesions, draw_lesions
from vitrael.core.data.phantoms.tissues import Tissue
from vitrael.core.errors import DataError
from vitrael.core.rng import stream

ZERO = np.zeros(3)
STILL = Acquisition(ZERO, ZERO, ZERO, contrast=1.0, noise_frac=0.0, noise_seed=0)


def person(number: int, *, age: float | None = None) -> Anatomy:
    ages = (20.0, 90.0) if age is None else (age, age)
    return draw_anatomy(stream(7, "lesions", number), ages_years=ages)


def draw(number: int, *, wmh_ml: float | None = 8.0, tumor_ml: float = 0.0) -> Lesions:
    rng = stream(7, "drawn", number)
    return draw_lesions(rng, person(number), wmh_ml=wmh_ml, tumor_ml=tumor_ml)


def truth(anatomy: Anatomy, lesions: Lesions, *, grid: int = 64) -> BrainTruth:
    size = (grid, grid, grid)
    return image_brain(anatomy, STILL, grid_vox=size, spacing_mm=192 / grid, lesions=lesions).truth


@cache
def with_both() -> BrainTruth:
    return truth(person(3), draw(3, wmh_ml=6.0, tumor_ml=25.0))


def test_volumes_are_those_asked_for() -> None:
    asked, present, drawn_masks = [], [], []
    for number, (wmh_ml, tumor_ml) in enumerate([(1, 0), (4, 12), (15, 0), (30, 40), (0, 8)]):
        lesions = draw(number, wmh_ml=wmh_ml, tumor_ml=tumor_ml)
        found = truth(person(number), lesions)
        asked += [wmh_ml, tumor_ml, 1.5 * tumor_ml]
        present += [found.volumes_ml[kind] for kind in ("wmh", "tumor", "edema")]
        drawn_masks += [found.lesion_DHW[kind].sum() * 0.027 for kind in ("wmh", "tumor", "edema")]
        assert found.covariates["wmh_ml"] == wmh_ml
    assert present == pytest.approx(asked, rel=0.03, abs=0.15)
    assert drawn_masks == pytest.approx(asked, rel=0.25, abs=0.5)


def test_coarse_grids_hold_much_the_same_volume() -> None:
    lesions = draw(4, wmh_ml=12.0)
    fine, coarse = (truth(person(4), lesions, grid=n).volumes_ml["wmh"] for n in (64, 24))
    assert coarse == pytest.approx(fine, rel=0.15)


def test_hyperintensities_lie_in_white_matter_around_the_ventricles() -> None:
    healthy, ill = (
        truth(person(3), lesions) for lesions in (NO_LESIONS, draw(3, wmh_ml=6.0, tumor_ml=25.0))
    )
    wmh = ill.lesion_DHW["wmh"]
    was = healthy.labels_DHW[wmh]
    assert (was == Tissue.WHITE).mean() > 0.85
    ventricles = np.argwhere(healthy.labels_DHW == Tissue.VENTRICLES)
    white = np.argwhere(healthy.labels_DHW == Tissue.WHITE)
    away = [
        np.median([np.linalg.norm(ventricles - place, axis=1).min() for place in places])
        for places in (np.argwhere(wmh), white[::200])
    ]
    assert away[0] < 0.5 * away[1]  # control: white matter at large is farther away


def test_tumor_is_a_core_in_a_rim_in_edema_and_spares_the_ventricles() -> None:
    labels = with_both().labels_DHW
    core, rim, edema = (labels == t for t in (Tissue.TUMOR_CORE, Tissue.TUMOR_RIM, Tissue.EDEMA))
    assert core.sum() > 20
    middle = np.argwhere(core).mean(0)
    reach = [np.linalg.norm(np.argwhere(m) - middle, axis=1).mean() for m in (core, rim, edema)]
    assert reach[0] < reach[1] < reach[2]
    beside = np.zeros_like(core)
    for axis in range(3):
        for step in (-1, 1):
            beside |= np.roll(core, step, axis)
    neighbors = set(np.unique(labels[beside & ~core]))
    assert neighbors <= {Tissue.TUMOR_RIM, Tissue.VENTRICLES}
    volumes = with_both().volumes_ml
    healthy = truth(person(3), NO_LESIONS).volumes_ml
    assert volumes["ventricles"] == pytest.approx(healthy["ventricles"], rel=1e-4)
    assert volumes["brain"] == pytest.approx(healthy["brain"], rel=1e-4)


def test_counts_are_poisson_and_load_follows_age() -> None:
    anatomy = person(0, age=60.0)
    drawn = [draw_lesions(stream(7, "count", n), anatomy) for n in range(70)]
    counts = np.array([len(lesions.wmh_L4) for lesions in drawn])
    assert counts.mean() == pytest.approx(8, abs=1.2)
    assert 0.55 < counts.var() / counts.mean() < 1.6  # all alike would be 0, doubled 2
    loads = np.log([lesions.asked_ml["wmh"] for lesions in drawn])
    assert np.exp(np.median(loads)) == pytest.approx(1.5, rel=0.25)
    assert loads.std() == pytest.approx(0.6, rel=0.25)
    young = [draw_lesions(stream(7, "count", n), person(0, age=22.0)) for n in range(30)]
    old = [draw_lesions(stream(7, "count", n), person(0, age=85.0)) for n in range(10)]
    median = [np.median([ls.asked_ml["wmh"] for ls in group]) for group in (young, drawn, old)]
    assert 3 * median[0] < median[1] < median[2] / 2.5


def test_visits_share_the_lesions_and_the_load_grows() -> None:
    anatomy, lesions = person(5), draw(5, wmh_ml=6.0)
    older = age_anatomy(anatomy, stream(7, "aging"), years=6)
    later = age_lesions(lesions, older, years=6)
    assert np.array_equal(later.wmh_L4[:, :3], lesions.wmh_L4[:, :3])
    first, second = truth(anatomy, lesions), truth(older, later)
    grown = 6 * np.exp(0.05 * 6)
    assert second.volumes_ml["wmh"] == pytest.approx(grown, rel=0.03)
    both = first.lesion_DHW["wmh"] & second.lesion_DHW["wmh"]
    assert both.sum() > 0.6 * first.lesion_DHW["wmh"].sum()
    other = truth(older, draw(6, wmh_ml=8.0)).lesion_DHW["wmh"]
    assert (first.lesion_DHW["wmh"] & other).sum() < 0.5 * both.sum()


def test_tumor_comes_without_edema_where_none_is_asked_for() -> None:
    lesions = draw_lesions(stream(7, "dry"), person(2), wmh_ml=0.0, tumor_ml=9.0, edema_ml=0.0)
    found = truth(person(2), lesions)
    assert found.volumes_ml["tumor"] == pytest.approx(9, rel=0.03)
    assert found.volumes_ml["edema"] == 0


def test_load_without_room_is_refused() -> None:
    with pytest.raises(DataError, match="do not fit"):
        draw(1, wmh_ml=5_000.0)


def test_nothing_asked_is_nothing_there() -> None:
    lesions = draw(2, wmh_ml=0.0)
    assert lesions.asked_ml == {"wmh": 0, "tumor": 0, "edema": 0}
    found = truth(person(2), lesions)
    assert not any(mask.any() for mask in found.lesion_DHW.values())
    assert found.volumes_ml["wmh"] == found.volumes_ml["tumor"] == 0


def test_equal_streams_give_equal_lesions() -> None:
    one, same, other = draw(1), draw(1), draw_lesions(stream(8, "x"), person(1), wmh_ml=8.0)
    assert np.array_equal(one.wmh_L4, same.wmh_L4)
    assert one.wmh_L4.shape != other.wmh_L4.shape or not np.allclose(one.wmh_L4, other.wmh_L4)
    assert "wmh_L4" not in repr(one)
