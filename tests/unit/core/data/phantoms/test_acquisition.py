"""A site's style: noise, receive field, slices; drawn apart from the anatomy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vitrael.core.data.phantoms.acquisition import (
    STYLES,
    Acquisition,
    SiteStyle,
    add_noise,
    draw_acquisition,
    receive_field,
    slice_operators,
)
from vitrael.core.data.phantoms.brain import draw_anatomy, image_brain
from vitrael.core.rng import stream

ZERO = np.zeros(3)
STILL = Acquisition(ZERO, ZERO, ZERO, contrast=1.0, noise_frac=0.0, noise_seed=0)


def render(acquisition: Acquisition, *, patient: int = 0) -> np.ndarray:
    anatomy = draw_anatomy(stream(6, "style", patient))
    images = image_brain(anatomy, acquisition, grid_vox=(32, 32, 32), spacing_mm=6.0)
    return images.scans["T1w"].image_CDHW[0]


def test_scans_of_earlier_studies_stay_what_they_are() -> None:
    scan = draw_acquisition(stream(1, "scan"), site_contrast=0.1)
    assert scan.shift_mm == pytest.approx([0.8600988, -1.00416535, 1.8958965], abs=1e-7)
    assert scan.bias == pytest.approx([0.00385905, 0.0184794, 0.08102358], abs=1e-7)
    assert (scan.contrast, scan.noise_frac) == pytest.approx((1.0589933110, 0.0125881927), abs=1e-9)
    assert scan.noise_seed == 1759261629392064308
    assert (len(scan.bias_waves), scan.gain, scan.thickness_mm, scan.head) == (0, 1, 0, False)


def test_two_styles_differ_in_style_alone() -> None:
    drawn = {name: draw_acquisition(stream(1, "x"), style=style) for name, style in STYLES.items()}
    plain = drawn["plain"]
    for scan in drawn.values():
        assert np.array_equal(scan.shift_mm, plain.shift_mm)
        assert np.array_equal(scan.rotation_rad, plain.rotation_rad)
        assert scan.noise_seed == plain.noise_seed
    assert drawn["sharp"].contrast > plain.contrast > drawn["noisy"].contrast
    assert drawn["noisy"].noise_frac > plain.noise_frac


def test_style_changes_the_image_and_the_head_stays() -> None:
    images = {n: render(draw_acquisition(stream(1, "x"), style=s)) for n, s in STYLES.items()}
    plain = images.pop("plain")
    inner = plain > 0.3
    for image in images.values():
        assert np.abs(image - plain)[inner].mean() > 0.01
        assert np.corrcoef(image[inner], plain[inner])[0, 1] > 0.7
    other = render(draw_acquisition(stream(1, "x")), patient=1)
    assert np.corrcoef(other[inner], plain[inner])[0, 1] < 0.7


def test_same_head_can_be_scanned_twice() -> None:
    first = render(draw_acquisition(stream(1, "x")))
    quiet = render(replace(draw_acquisition(stream(1, "x")), noise_seed=5))
    inner = first > 0.3
    difference = (first - quiet)[inner]
    noise = draw_acquisition(stream(1, "x")).noise_frac
    assert difference.std() == pytest.approx(2**0.5 * noise, rel=0.05)


def test_noise_is_rician() -> None:
    noisy = replace(STILL, noise_frac=0.1)
    rng = np.random.Generator(np.random.PCG64(3))
    dark = add_noise(np.zeros((40, 40, 40)), noisy, np.ones(1), rng)
    assert dark.mean() == pytest.approx(0.1 * (np.pi / 2) ** 0.5, rel=0.01)  # Rayleigh
    bright = add_noise(np.ones((40, 40, 40)), noisy, np.ones(1), rng)
    assert bright.std() == pytest.approx(0.1, rel=0.02)
    assert bright.mean() == pytest.approx(1 + 0.1**2 / 2, rel=0.002)
    outside = add_noise(np.zeros((4, 4, 4)), noisy, np.zeros(1), rng)
    assert not outside.any()


def test_receive_field_is_smooth_and_as_strong_as_the_style_says() -> None:
    axes = tuple(np.linspace(-90, 90, 24) for _ in range(3))
    spreads = []
    for number in range(12):
        style = SiteStyle(bias_frac=0.2)
        scan = replace(draw_acquisition(stream(2, number), style=style), bias=ZERO)
        field = receive_field(scan, axes)  # type: ignore[arg-type]
        spreads.append(np.log(field).std())
        assert np.abs(np.diff(np.log(field), axis=1)).max() < 0.1
    assert np.mean(spreads) == pytest.approx(0.15, abs=0.06)
    flat = receive_field(STILL, axes)  # type: ignore[arg-type]
    assert np.array_equal(flat, np.ones((24, 24, 24), np.float32))


def test_thick_slices_blur_along_the_body_alone_and_keep_the_mean() -> None:
    down, up = slice_operators(32, 3.0, 6.0)
    assert down.shape == (16, 32)
    np.testing.assert_allclose(down.sum(1), 1)
    np.testing.assert_allclose(up.sum(1), 1)
    assert np.array_equal(down[0, :3], [0.5, 0.5, 0])
    sharp, blurred = render(STILL), render(replace(STILL, thickness_mm=24.0))
    assert blurred.mean() == pytest.approx(sharp.mean(), rel=0.01)
    detail = [
        np.abs(np.diff(blurred, axis=a)).mean() / np.abs(np.diff(sharp, axis=a)).mean()
        for a in (0, 2)
    ]
    assert detail[0] > 0.85
    assert detail[1] < 0.8
    assert np.array_equal(render(replace(STILL, thickness_mm=2.0)), sharp)


def test_texture_belongs_to_the_head() -> None:
    plain, textured = render(STILL), render(replace(STILL, texture_frac=0.02))
    inner = plain > 0.5
    assert (textured / np.where(inner, plain, 1))[inner].std() == pytest.approx(0.02, rel=0.3)
    assert np.array_equal(render(replace(STILL, texture_frac=0.02)), textured)
