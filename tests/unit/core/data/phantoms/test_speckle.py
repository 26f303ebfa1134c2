"""Speckle has the statistics of speckle at every depth, and moves with its tissue."""

from __future__ import annotations

import numpy as np
import pytest

from vitrael.core.data.phantoms.sector import (
    Sector,
    convert_scan,
    make_linear,
    make_sector,
    to_pixels,
)
from vitrael.core.data.phantoms.speckle import (
    CELL_STEPS,
    RAYLEIGH_SNR,
    PointSpread,
    attached_scale,
    compress,
    draw_noise,
    draw_scatterers,
    envelope,
    find_scatterers,
    mix_scatterers,
)
from vitrael.core.errors import DataError
from vitrael.core.rng import stream

SPREAD = PointSpread(0.8, 1.4)


def sector(edge_px: int = 160) -> Sector:
    return make_sector(edge_px=edge_px, angle_rad=1.3, reach_mm=(8.0, 160.0))


def uniform(
    number: int, *, scaled: bool = True, shift_mm: float = 0.0, frame: int = 0
) -> np.ndarray:
    """Return the envelope of tissue that is the same everywhere, ``[R, A]``."""
    grid = sector()
    rng = stream(11, "uniform", number)
    table = draw_scatterers(rng)
    cell = CELL_STEPS * grid.depth_step_mm
    across, depth = grid.sample_2RA_mm
    attached = find_scatterers(
        table, (across, np.zeros_like(across), depth + shift_mm), cell_mm=cell
    )
    scale = attached_scale(
        grid.beam_gap_mm, depth_step_mm=grid.depth_step_mm, cell_mm=cell, spread=SPREAD
    )
    if not scaled:
        scale = np.full_like(scale, scale[-1])
    fresh = draw_noise(stream(11, "fresh", number, frame), across.shape)
    return envelope(mix_scatterers(attached, fresh, scale_R=scale, spread=SPREAD), SPREAD)


def snr(values: np.ndarray) -> float:
    return float(values.mean() / values.std())


def test_uniform_tissue_has_the_signal_to_noise_of_speckle() -> None:
    fields = [uniform(number) for number in range(4)]
    for field in fields:
        assert snr(field) == pytest.approx(RAYLEIGH_SNR, abs=0.1)
        for part in np.array_split(field, 4):  # at every depth
            assert snr(part) == pytest.approx(RAYLEIGH_SNR, abs=0.15)
    # Controls: pictures averaged over four looks, and noise that is not complex, are no speckle.
    assert snr(np.mean(fields, axis=0)) > 3
    assert snr(np.abs(draw_noise(stream(11, "real"), (200, 200)).real)) < 1.5


def test_power_is_the_same_at_every_depth() -> None:
    power = np.mean([uniform(number) ** 2 for number in range(6)], axis=(0, 2))
    bands = np.array([band.mean() for band in np.array_split(power, 6)])
    np.testing.assert_allclose(bands, 1, atol=0.12)
    bare = np.mean([uniform(number, scaled=False) ** 2 for number in range(6)], axis=(0, 2))
    assert bare[:20].mean() > 2 * bare[-40:].mean()  # control: without the scale it is not


def test_speckle_moves_with_its_tissue() -> None:
    grid = sector()
    middle = slice(60, 100)
    step = 4 * grid.depth_step_mm
    still, moved = uniform(1)[:, middle], uniform(1, shift_mm=step, frame=1)[:, middle]
    deep = slice(100, 180)
    followed = np.corrcoef(still[deep].ravel(), moved[96:176].ravel())[0, 1]
    assert followed > 0.35  # part of the scatterers is new in each frame
    assert abs(np.corrcoef(still[deep].ravel(), moved[deep].ravel())[0, 1]) < 0.4 * followed
    other = uniform(2)[:, middle]
    assert abs(np.corrcoef(still[deep].ravel(), other[deep].ravel())[0, 1]) < 0.15


def test_neighbors_in_a_plane_share_no_scatterer() -> None:
    table = np.arange(1 << 17).astype(np.complex64)  # each number names its place
    first, second = np.mgrid[:110, :110].astype(np.float32)
    nothing = np.zeros_like(first)
    for plane in ((first, second, nothing), (first, nothing, second), (nothing, first, second)):
        found = find_scatterers(table, plane, cell_mm=1.0)
        assert len(np.unique(found)) == found.size
    coarse = find_scatterers(table, (first, second, nothing), cell_mm=2.0)
    assert len(np.unique(coarse)) == found.size / 4


def test_decibels_are_spread_over_the_range() -> None:
    steps = np.array([1.0, 10**-0.5, 0.1, 10**-1.5, 1e-2, 1e-9, 10.0])
    gray = compress(steps, reference=1.0, range_db=40, gain_db=0)
    np.testing.assert_allclose(gray, [1, 0.75, 0.5, 0.25, 0, 0, 1], atol=1e-6)
    louder = compress(steps, reference=1.0, range_db=40, gain_db=-10)
    np.testing.assert_allclose(louder, [0.75, 0.5, 0.25, 0, 0, 0, 1], atol=1e-6)


def test_envelope_of_a_real_field_is_refused() -> None:
    with pytest.raises(DataError):
        envelope(np.ones((8, 8)), SPREAD)


@pytest.mark.parametrize(
    "grid",
    [
        sector(64),
        make_sector(
            edge_px=96, angle_rad=1.0, reach_mm=(5, 120), tilt_rad=0.1, aspect=1.1, fill_frac=0.8
        ),
        make_linear(edge_px=64, depth_mm=50, width_mm=40),
    ],
    ids=["sector", "leaning sector", "linear"],
)
def test_conversion_keeps_every_place(grid: Sector) -> None:
    for axis in (0, 1):  # a picture of the coordinates shows the coordinates
        picture = convert_scan(grid.sample_2RA_mm[axis], grid)
        np.testing.assert_allclose(picture[grid.sector_HW], grid.pixel_2P_mm[axis], atol=0.05)
        assert not picture[~grid.sector_HW].any()
    places = to_pixels(grid.pixel_2P_mm, grid)
    np.testing.assert_allclose(places, np.argwhere(grid.sector_HW), atol=1e-3)
    steps = np.linalg.norm(np.diff(grid.sample_2RA_mm, axis=1), axis=0)
    np.testing.assert_allclose(steps, grid.depth_step_mm, rtol=1e-3)
    gaps = np.linalg.norm(np.diff(grid.sample_2RA_mm, axis=2), axis=0)
    np.testing.assert_allclose(gaps, np.broadcast_to(grid.beam_gap_mm[:, None], gaps.shape), 0.01)


def test_tiny_picture_is_refused() -> None:
    with pytest.raises(DataError):
        sector(8)
    with pytest.raises(DataError):
        make_linear(edge_px=8, depth_mm=50, width_mm=40)
