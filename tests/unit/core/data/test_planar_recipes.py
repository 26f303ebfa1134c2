"""The sector is what moves; sampling keeps levels and times; nothing beside the sector survives."""

from __future__ import annotations

import numpy as np
import pytest

from vitrael.core.data.phantoms.echo import draw_exam, render_echo
from vitrael.core.data.phantoms.echo_styles import STYLES
from vitrael.core.data.phantoms.heart import draw_heart
from vitrael.core.data.planar import Clip, Picture
from vitrael.core.data.planar_recipes import (
    find_sector,
    prepare_clip,
    prepare_picture,
    sample_square,
    square_around,
)
from vitrael.core.errors import ScanError
from vitrael.core.rng import stream

ROW, COLUMN = np.indices((120, 160))
FAN = (ROW > 10) & (ROW < 110) & (np.abs(COLUMN - 80) < 0.6 * (ROW - 8))


def fan_clip(frames: int = 24, frame_s: float = 1 / 30) -> Clip:
    """Return speckle in a fan, and text that stands still in a corner."""
    speckle = stream(1, "fan").integers(30, 200, (frames, *FAN.shape)) * FAN
    speckle[:, 5:15, 5:40] = 255
    return Clip(speckle.astype(np.uint8), frame_s, (0.5, 0.5), "US")


def test_sector_is_what_moves_and_text_beside_it_is_not() -> None:
    sector = find_sector(fan_clip().frames_THW)
    assert (sector & FAN).sum() / FAN.sum() > 0.99
    assert (sector & ~FAN).sum() / FAN.sum() < 0.06
    assert not sector[5:15, 5:40].any()


def test_shadow_within_the_sector_is_part_of_it() -> None:
    frames = fan_clip().frames_THW.copy()
    frames[:, 60:112, 70:90] = 0  # reaches the lower border
    sector = find_sector(frames)
    assert sector[60:108, 72:88].all()


def test_nothing_beside_the_sector_survives() -> None:
    clip = fan_clip()
    made = prepare_clip(clip, pixels=112, frame_s=1 / 30)
    assert made.frames_THW.shape == (24, 112, 112)
    assert not made.frames_THW[:, made.sector_HW == 0].any()
    changed = clip.frames_THW.copy()
    changed[:, ~find_sector(clip.frames_THW)] = 77  # still text of any kind
    again = prepare_clip(
        Clip(changed, clip.frame_s, clip.spacing_mm, "US"), pixels=112, frame_s=1 / 30
    )
    assert np.array_equal(made.frames_THW, again.frames_THW)


def test_edge_of_the_sector_is_not_darkened() -> None:
    frames = np.where(FAN, 150, 0)[None].repeat(20, axis=0)
    frames[::2] += 12 * FAN
    made = prepare_clip(Clip(frames.astype(np.uint8), 0.04, None, "US"), pixels=64, frame_s=0.04)
    inside = made.frames_THW[0][made.sector_HW == 1]
    assert np.percentile(inside, 10) >= 160


@pytest.mark.parametrize(("frames", "edge"), [(30, 64), (24, 150)])
def test_phantom_sector_is_found(frames: int, edge: int) -> None:
    rng = stream(2, "echo")
    style = next(iter(STYLES.values()))
    clip, truth = render_echo(
        draw_heart(rng), draw_exam(rng, style), view="A4C", frames=frames, edge_px=edge, rng=rng,
        frame_s=0.04,
    )  # fmt: skip
    sector = find_sector(clip.frames_THW)
    overlap = (sector & truth.sector_HW).sum() / (sector | truth.sector_HW).sum()
    assert overlap > 0.85


def test_still_slow_short_and_frozen_clips_are_refused() -> None:
    frames = fan_clip().frames_THW
    for clip, told in (
        (Clip(frames[:1], None, None, "US"), "is a still"),
        (Clip(frames, 0.2, None, "US"), "too few frames a second"),
        (Clip(frames[:8], 1 / 30, None, "US"), "too short"),
        (Clip(frames[:1].repeat(24, axis=0), 1 / 30, None, "US"), "no ultrasound sector"),
    ):
        with pytest.raises(ScanError, match=told):
            prepare_clip(clip, pixels=112, frame_s=1 / 30)


@pytest.mark.parametrize("source_s", [1 / 50, 0.04, 1 / 18, 1 / 60])
def test_times_survive_another_frame_rate(source_s: float) -> None:
    count = round(1.2 / source_s)
    level = 40 + 100 * np.arange(count) * source_s  # brightens by 100 a second
    frames = level[:, None, None] * FAN + 9 * (np.arange(count) % 2)[:, None, None] * (
        FAN & (ROW < 12)
    )
    clip = Clip(np.rint(frames).astype(np.uint8), source_s, None, "US")
    made = prepare_clip(clip, pixels=64, frame_s=1 / 30)
    assert made.frame_s == 1 / 30
    told = made.frames_THW[:, 40, 32]
    wanted = 40 + 100 * np.arange(len(told)) / 30
    assert np.abs(told - wanted).max() <= 1.5
    assert (len(told) - 1) / 30 == pytest.approx((count - 1) * source_s, abs=1 / 30)


def test_clip_of_the_right_rate_keeps_its_frames() -> None:
    clip = fan_clip(frame_s=1001 / 30000)
    made = prepare_clip(clip, pixels=112, frame_s=1 / 30)
    assert len(made.frames_THW) == 24
    assert made.frame_s == 1001 / 30000


def test_picture_is_padded_to_a_square_and_nothing_is_cut() -> None:
    image = stream(3, "picture").normal(100, 10, (90, 150)).astype(np.float32)
    made, square = prepare_picture(Picture(image, (0.2, 0.2), "DX"), pixels=150)
    assert made.shape == (150, 150)
    assert not made[:30].any()
    assert not made[120:].any()
    assert square.edge_mm == pytest.approx(30)
    assert np.corrcoef(made[30:120].ravel(), image.ravel())[0, 1] > 0.99


def test_pixels_that_are_not_square_become_square() -> None:
    disc = ((ROW - 60) * 1.0) ** 2 + ((COLUMN - 80) * 0.5) ** 2 < 20**2
    image = (disc * 100.0 + ROW * 0.01).astype(np.float32)
    made, _ = prepare_picture(Picture(image, (1.0, 0.5), "DX"), pixels=120)
    rows, columns = np.nonzero(made > 0.5)
    assert np.ptp(rows) == pytest.approx(np.ptp(columns), abs=2)


def test_hot_pixels_do_not_set_the_window() -> None:
    image = stream(4, "picture").uniform(0, 100, (200, 200)).astype(np.float32)
    image[0, :5] = 1e7
    made, _ = prepare_picture(Picture(image, None, "DX"), pixels=64)
    assert made[5:].mean() == pytest.approx(0.5, abs=0.05)
    few = np.zeros((200, 200), dtype=np.float32)
    few[100, 100] = 7  # less than half a percent is anything but black
    made, _ = prepare_picture(Picture(few, None, "DX"), pixels=200)
    assert made.max() == 1


def test_sampling_averages_what_it_makes_smaller() -> None:
    fine = stream(5, "fine").uniform(0, 1, (1, 400, 400)).astype(np.float32)
    square = square_around(np.ones((400, 400), dtype=bool), None, pixels=25)
    coarse = sample_square(fine, square)[0]
    assert coarse.mean() == pytest.approx(fine.mean(), abs=0.01)
    assert coarse.std() < 0.1 * fine.std()  # control: picked pixels would keep all of it
    assert fine[0, ::16, ::16].std() > 0.8 * fine.std()


def test_constant_stays_constant_to_the_border() -> None:
    for size, pixels in ((37, 64), (64, 64), (300, 64)):
        flat = np.full((1, size, size), 5, dtype=np.float32)
        square = square_around(np.ones((size, size), dtype=bool), (0.3, 0.3), pixels=pixels)
        assert np.allclose(sample_square(flat, square), 5, atol=1e-4)
