"""Shares of tissue: they add up, hold what was asked for, and agree between grids."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from vitrael.core.data.phantoms.anatomy import Anatomy, draw_anatomy
from vitrael.core.data.phantoms.forms import Points, ellipsoid_mm, inside, within
from vitrael.core.data.phantoms.tissues import Mixture, Tissue, mix_tissues
from vitrael.core.data.phantoms.ventricles import around_ventricle, ventricle_frame
from vitrael.core.rng import stream


def person(number: int = 0) -> Anatomy:
    return draw_anatomy(stream(5, "tissues", number))


@cache
def look(number: int, spacing_mm: float = 3.0, ventricle_ml: float | None = None) -> Mixture:
    anatomy = person(number)
    if ventricle_ml is not None:
        anatomy = replace(anatomy, ventricle_ml=ventricle_ml)
    line = np.arange(-96 + spacing_mm / 2, 96, spacing_mm, dtype=np.float32)
    grid = np.meshgrid(line, line, line, indexing="ij")
    return mix_tissues(anatomy, Points(*(part.ravel() for part in grid)), spacing_mm=spacing_mm)


def volume_ml(mixture: Mixture, tissue: Tissue, spacing_mm: float = 3.0) -> float:
    return float(mixture.fraction_KP[tissue].sum(dtype=np.float64) * spacing_mm**3 / 1000)


def test_shares_of_every_voxel_add_up_to_the_brain() -> None:
    for number in range(3):
        mixture = look(number)
        assert mixture.fraction_KP.min() >= 0
        np.testing.assert_allclose(mixture.fraction_KP.sum(0), mixture.brain_P, atol=1e-5)
        assert mixture.brain_P.max() == 1


def test_ventricles_and_hippocampi_have_the_volumes_asked_for() -> None:
    for number in range(4):
        asked = person(number)
        ventricles = volume_ml(look(number), Tissue.VENTRICLES)
        assert ventricles == pytest.approx(asked.ventricle_ml, rel=0.05, abs=0.6)
        hippocampi = volume_ml(look(number), Tissue.HIPPOCAMPUS)
        assert hippocampi == pytest.approx(asked.hippocampus_ml, rel=0.08)
    sizes = [volume_ml(look(0, 3.0, ml), Tissue.VENTRICLES) for ml in (8.0, 40.0, 110.0)]
    assert sizes == pytest.approx([8, 40, 110], rel=0.05, abs=0.6)


def test_small_structures_have_their_volume_in_large_voxels_too() -> None:
    line = np.arange(-40 + 1.0, 40, 8.0, dtype=np.float32)  # off center
    grid = np.meshgrid(line, line, line, indexing="ij")
    points = Points(*(part.ravel() for part in grid))
    for tissue in (Tissue.HIPPOCAMPUS, Tissue.PUTAMEN):
        fine, coarse = (volume_ml(look(1, mm), tissue, mm) for mm in (3.0, 8.0))
        assert coarse == pytest.approx(fine, rel=0.12)
    # A softened border alone would add a third to a ball as large as a voxel.
    ball = ellipsoid_mm(points, np.full(3, 7.0))
    assert inside(ball, 8.0).sum() * 0.512 > 1.25 * 4 / 3 * np.pi * 0.343


def test_sheet_thinner_than_a_voxel_fills_its_share_of_it() -> None:
    position = np.linspace(-20, 20, 4001)
    for half_mm in (0.5, 2.0, 6.0):
        for spacing_mm in (1.0, 8.0):
            filled = within(np.abs(position), half_mm, spacing_mm).mean() * 40
            assert filled == pytest.approx(2 * half_mm, rel=0.01)


def test_volumes_agree_between_fine_and_coarse_grids() -> None:
    for number in range(3):
        for tissue, tolerance in (
            (Tissue.WHITE, 0.10),
            (Tissue.CORTEX, 0.15),
            (Tissue.CSF, 0.35),
            (Tissue.BRAINSTEM, 0.10),
        ):
            fine, coarse = (volume_ml(look(number, mm), tissue, mm) for mm in (3.0, 8.0))
            assert coarse == pytest.approx(fine, rel=tolerance)


def test_sulci_are_drawn_in_fine_voxels_and_widen_with_age() -> None:
    young, old = (
        replace(person(2), age_years=age, ventricle_ml=20.0, detail_seed=4) for age in (25.0, 85.0)
    )
    line = np.arange(-94.5, 96, 3.0, dtype=np.float32)
    grid = np.meshgrid(line, line, line, indexing="ij")
    points = Points(*(part.ravel() for part in grid))
    fluid = [mix_tissues(a, points, spacing_mm=3.0).fraction_KP[Tissue.CSF] for a in (young, old)]
    assert fluid[1].sum() > 1.2 * fluid[0].sum()
    # Coarse voxels hold the layer's mean: no voxel is much darker than its neighbors.
    spread = []
    for spacing_mm in (3.0, 8.0):
        mixture = look(2, spacing_mm)
        layer = (mixture.depth_mm_P > 4) & (mixture.depth_mm_P < 9)
        low, high = np.percentile(mixture.fraction_KP[Tissue.CSF][layer], [10, 80])
        spread.append(high - low)
    assert spread[0] > 2 * spread[1]


def test_large_ventricles_push_the_thalamus_away() -> None:
    small, large = (volume_ml(look(3, 3.0, ml), Tissue.THALAMUS) for ml in (15.0, 90.0))
    assert large > 0.3 * small > 0


def test_points_on_a_ventricles_wall_are_half_filled() -> None:
    anatomy = person(1)
    frame = ventricle_frame(anatomy)
    directions = stream(5, "wall").normal(size=(200, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    shares = []
    for length in (0.7, 1.0, 1.3):
        for side in (-1, 1):
            wall = around_ventricle(length * directions, frame, side=side).astype(np.float32)
            assert (np.sign(wall[:, 0]) == side).mean() > 0.95
            mixture = mix_tissues(anatomy, Points(*wall.T), spacing_mm=2.0)
            shares.append(np.median(mixture.fraction_KP[Tissue.VENTRICLES]))
    assert shares == pytest.approx([1, 1, 0.5, 0.5, 0, 0], abs=0.15)
