"""One preprocessing for both folders: it looks at one image alone, and not at its header."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from tests.unit.privacy.audit_folder.conftest import draw_clip, draw_volume, write_png, write_volume
from vitrael.core.data.planar import Clip, Picture
from vitrael.core.data.scan import Scan
from vitrael.core.errors import ConfigError, ScanError
from vitrael.privacy.audit_folder.prepare import Grid, foreground_box, prepare_image
from vitrael.privacy.audit_folder.reading import read_folder

GRID = Grid()


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


@pytest.mark.parametrize("kind", ["picture", "volume"])
def test_an_image_alone_is_prepared_as_among_many(tmp_path: Path, kind: str) -> None:
    write = write_png if kind == "picture" else write_volume
    ending = "png" if kind == "picture" else "nii.gz"
    for number in range(4):
        write(tmp_path / f"many/{number}.{ending}", number)
    write(tmp_path / f"alone/x.{ending}", 2)
    many, alone = (read_folder(tmp_path / name) for name in ("many", "alone"))
    assert np.array_equal(many.image_BCDHW[2], alone.image_BCDHW[0])
    assert not np.array_equal(many.image_BCDHW[1], alone.image_BCDHW[0])


def test_real_and_synthetic_copies_of_one_file_are_equal_arrays(tmp_path: Path) -> None:
    for folder in ("real", "synthetic"):
        write_volume(tmp_path / folder / "a.nii.gz", 1)
    real = read_folder(tmp_path / "real", side="real")
    synthetic = read_folder(tmp_path / "synthetic", side="synthetic")
    assert np.array_equal(real.image_BCDHW, synthetic.image_BCDHW)


def test_a_header_with_another_size_origin_and_tilt_changes_nothing() -> None:
    scan = draw_volume(1)
    tilt = np.deg2rad(12)
    affine = np.diag([1.0, 2.5, 0.4, 1.0])
    affine[1:3, 1:3] @= np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]])
    affine[:3, 3] = 40, -7, 300
    other = Scan(scan.image_CDHW, affine, "T1w")
    assert np.array_equal(prepare_image(scan, GRID), prepare_image(other, GRID))
    flipped = Scan(np.ascontiguousarray(scan.image_CDHW[:, ::-1]), scan.affine, "T1w")
    assert not np.array_equal(prepare_image(scan, GRID), prepare_image(flipped, GRID))


def test_brightness_and_place_of_a_volume_do_not_enter() -> None:
    scan = draw_volume(1)
    moved = np.roll(np.pad(scan.image_CDHW[0], 6), 3, axis=1) * 40 - 7
    copy = Scan(moved[None].astype(np.float32), np.eye(4), "T1w")
    assert np.abs(prepare_image(scan, GRID) - prepare_image(copy, GRID)).max() < 0.01


def test_a_copy_on_another_grid_is_nearer_than_any_stranger() -> None:
    own = [prepare_image(draw_volume(patient), GRID) for patient in range(6)]
    for patient in range(6):
        smaller = ndimage.zoom(draw_volume(patient).image_CDHW[0], (0.6, 0.5, 0.75), order=1)
        copy = prepare_image(Scan(smaller[None], np.eye(4), "T1w"), GRID)
        near = [correlation(copy, image) for image in own]
        assert int(np.argmax(near)) == patient


def test_the_foreground_fills_the_box_and_specks_do_not_move_it() -> None:
    volume = np.zeros((40, 40, 40), np.float32)
    volume[10:30, 5:35, 18:26] = 1
    first, length = foreground_box(volume)
    assert np.allclose(first, [9, 3.5, 17.6], atol=0.2)
    assert np.allclose(length, [22, 33, 8.8], atol=0.4)
    volume[0, 0, 0] = volume[39, 39, 39] = 1
    assert np.allclose(foreground_box(volume)[0], first, atol=0.2)
    volume[0:4] = 1
    assert not np.allclose(foreground_box(volume)[0], first, atol=0.2)


def test_a_slab_whose_outermost_voxels_are_tissue_is_kept() -> None:
    rng = np.random.default_rng(3)
    slab = (100 + ndimage.gaussian_filter(rng.normal(0, 60, (32, 32, 10)), 2)).astype(np.float32)
    slab[:2] = slab[-2:] = 0
    prepared = prepare_image(Scan(slab[None], np.eye(4), "T1w"), GRID)
    assert (prepared > 0.5).mean() > 0.6


def test_a_picture_is_letterboxed_with_its_aspect() -> None:
    image_HW = np.random.default_rng(0).uniform(0, 9, (20, 40)).astype(np.float32)
    prepared = prepare_image(Picture(image_HW, None, "OT"), GRID)
    assert prepared.shape == (1, 1, 64, 64)
    assert not prepared[0, 0, :16].any()
    assert not prepared[0, 0, 48:].any()
    assert prepared[0, 0, 17:47].any(axis=1).all()


def test_a_clip_of_any_length_has_as_many_frames_from_first_to_last() -> None:
    for frames in (2, 16, 61):
        assert prepare_image(draw_clip(0, frames=frames), GRID).shape == (1, 16, 64, 64)
    clip = draw_clip(0, frames=61)
    ends = clip.frames_THW[np.rint(np.linspace(0, 60, 16)).astype(int)]
    same = Clip(ends, 0.05, None, "US")
    assert np.array_equal(prepare_image(clip, GRID), prepare_image(same, GRID))
    backward = Clip(clip.frames_THW[::-1].copy(), 0.05, None, "US")
    assert not np.array_equal(prepare_image(clip, GRID), prepare_image(backward, GRID))


def test_an_animated_still_is_read_like_any_clip() -> None:
    frame = draw_clip(0).frames_THW[3]
    still = Clip(np.repeat(frame[None], 20, axis=0), 0.05, None, "US")
    prepared = prepare_image(still, GRID)
    assert (prepared == prepared[:, :1]).all()


def test_a_clip_of_one_frame_is_refused() -> None:
    one = Clip(draw_clip(0).frames_THW[:1], None, None, "US")
    with pytest.raises(ScanError, match="the clip is a still"):
        prepare_image(one, GRID)


def test_a_volume_with_a_thin_axis_is_refused_and_one_of_eight_is_not() -> None:
    image = draw_volume(0).image_CDHW[:, :, :, 12:20]
    prepare_image(Scan(image, np.eye(4), "T1w"), GRID)
    with pytest.raises(ScanError, match="an axis has 7 voxels, and 8 are needed"):
        prepare_image(Scan(image[..., :7], np.eye(4), "T1w"), GRID)


def test_a_grid_of_no_use_is_refused() -> None:
    Grid(edge_px=8, edge_vox=8, frames=2)
    for wrong in ({"edge_px": 7}, {"edge_vox": 600}, {"frames": 1}):
        with pytest.raises(ConfigError, match="cannot be used"):
            Grid(**wrong)
