"""The recipe brings every scan to the study's grid and keeps each point in its place."""

from __future__ import annotations

from collections.abc import Callable

import nibabel as nib
import numpy as np
import pytest

from tests.factories.heads import phantom_head
from vitrael.core.data.preprocess import (
    place_lesions,
    prepare_brain_t1,
    prepare_contrasts,
    prepare_scan,
    scale_intensity,
)
from vitrael.core.data.scan import Scan
from vitrael.core.errors import ScanError
from vitrael.core.geometry import spacing_mm
from vitrael.core.protocols import Data

MakeBrain = Callable[..., Scan]


def test_prepared_scan_has_the_grid_of_the_study(data: Data, make_brain: MakeBrain) -> None:
    scan = make_brain(shape=(80, 90, 75), spacing=2.5, centre_mm=(9, -7, 4), gain=900)
    ready = prepare_scan(scan, data)
    assert ready.image_CDHW.shape == (1, *data.grid_vox)
    assert ready.image_CDHW.dtype == np.float32
    assert np.allclose(spacing_mm(ready.affine), data.spacing_mm)
    assert nib.aff2axcodes(ready.affine) == ("R", "A", "S")
    assert (ready.image_CDHW.min(), ready.image_CDHW.max()) == (0, 1)
    middle_mm = ready.affine @ [*((np.array(data.grid_vox) - 1) / 2), 1]
    assert np.allclose(middle_mm[:3], [9, -7, 4], atol=2.5)


def test_orientation_of_the_file_does_not_matter(data: Data, make_brain: MakeBrain) -> None:
    scan = make_brain(shape=(48, 50, 46), spacing=4.0, centre_mm=(6, 0, 3))
    flipped_affine = scan.affine @ np.array(
        [[-1, 0, 0, 47], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    )
    flipped = Scan(scan.image_CDHW[:, ::-1].copy(), flipped_affine, "T1w")
    one, two = prepare_scan(scan, data), prepare_scan(flipped, data)
    assert np.allclose(one.affine, two.affine)
    assert np.allclose(one.image_CDHW, two.image_CDHW, atol=1e-5)
    mirrored = prepare_scan(Scan(flipped.image_CDHW, scan.affine, "T1w"), data)
    assert not np.allclose(one.affine, mirrored.affine)  # control: a wrong affine does matter


def test_gain_and_offset_of_the_scanner_do_not_matter(data: Data, make_brain: MakeBrain) -> None:
    plain = prepare_scan(make_brain(), data)
    scan = make_brain(gain=1700)
    shifted = Scan(scan.image_CDHW + np.float32(250), scan.affine, "T1w")
    assert np.allclose(plain.image_CDHW, prepare_scan(shifted, data).image_CDHW, atol=1e-3)


def test_scan_on_the_grid_is_neither_moved_nor_resampled(data: Data, make_brain: MakeBrain) -> None:
    scan = make_brain(noise=0.01)
    ready = prepare_scan(scan, data)
    assert np.array_equal(ready.affine, scan.affine)
    kept = (ready.image_CDHW > 0) & (ready.image_CDHW < 1)
    ratio = ready.image_CDHW[kept] / np.maximum(scan.image_CDHW[kept], 1e-6)
    assert np.median(ratio) == pytest.approx(1 / 0.82, rel=0.05)


def test_second_application_keeps_grid_and_intensities(data: Data, make_brain: MakeBrain) -> None:
    once = prepare_scan(make_brain(shape=(60, 70, 60), spacing=3.0, noise=0.02), data)
    twice = prepare_scan(once, data)
    assert np.array_equal(once.affine, twice.affine)
    assert np.abs(once.image_CDHW - twice.image_CDHW).max() <= 0.01


def test_one_hot_voxel_does_not_set_the_scale(data: Data, make_brain: MakeBrain) -> None:
    scan = make_brain()
    hot = scan.image_CDHW.copy()
    hot[0, 12, 12, 12] = 500
    ready = prepare_scan(Scan(hot, scan.affine, "T1w"), data)
    assert np.median(ready.image_CDHW[ready.image_CDHW > 0]) > 0.7


def test_image_without_anything_bright_is_refused() -> None:
    with pytest.raises(ScanError, match="shows no brain"):
        scale_intensity(np.zeros((4, 4, 4), dtype=np.float32))


def test_stripped_scan_is_prepared_as_if_no_face_were_looked_for(
    data: Data, make_brain: MakeBrain
) -> None:
    for scan in (make_brain(noise=0.01), make_brain(shape=(64, 72, 64), spacing=3.0)):
        ready = prepare_scan(scan, data)
        plain = prepare_brain_t1(scan, data.grid_vox, data.spacing_mm)
        assert np.array_equal(ready.image_CDHW, plain.image_CDHW)
        assert np.array_equal(ready.affine, plain.affine)


def test_head_is_prepared_without_its_face_or_refused(data: Data) -> None:
    head = phantom_head(1)
    ready = prepare_scan(head.scan, data)
    bare = Scan(head.scan.image_CDHW * head.brain_DHW, head.scan.affine, "T1w")
    wanted = prepare_scan(bare, data)
    volume = (ready.image_CDHW > 0.2).sum() / (wanted.image_CDHW > 0.2).sum()
    assert 0.85 < volume < 1.05
    # Control: without the step there is much more than the brain.
    whole = prepare_brain_t1(head.scan, data.grid_vox, data.spacing_mm)
    assert (whole.image_CDHW > 0.2).sum() > 1.5 * (wanted.image_CDHW > 0.2).sum()
    with pytest.raises(ScanError, match="the face cannot be removed"):
        prepare_scan(phantom_head(1, spacing_mm=8.0).scan, data)


def test_contrasts_of_other_grids_are_stacked_on_one(make_brain: MakeBrain) -> None:
    first = make_brain(shape=(64, 72, 64), spacing=3.0)
    flair = make_brain(shape=(48, 50, 40), spacing=4.5, gain=300)
    flair = Scan(flair.image_CDHW, flair.affine, "FLAIR")
    image_CDHW, affine, _, cut_frac = prepare_contrasts([first, flair], (40, 48, 40), 5.0)
    assert image_CDHW.shape == (2, 40, 48, 40)
    assert np.abs(image_CDHW[0] - image_CDHW[1]).mean() < 0.03
    assert np.array_equal(affine[:3, :3], np.diag([5.0] * 3))
    assert cut_frac < 0.001


def test_lesion_counts_where_it_fills_half_a_voxel_of_the_brain() -> None:
    affine = np.diag([1.0, 1, 1, 1])
    lesion = np.zeros((1, 16, 16, 16), dtype=np.float32)
    lesion[0, 4:8, 4:8, 4:8] = 255  # any level above 0 means lesion
    lesion[0, 4, 12, 12] = 255
    coarse = np.diag([4.0, 4, 4, 1])
    coarse[:3, 3] = 1.5
    brain = np.ones((4, 4, 4), dtype=bool)
    placed = place_lesions(Scan(lesion, affine, "lesion"), coarse, brain_DHW=brain)
    assert placed.dtype == np.uint8
    assert np.argwhere(placed).tolist() == [[1, 1, 1]]
    brain[1, 1, 1] = False
    assert not place_lesions(Scan(lesion, affine, "lesion"), coarse, brain_DHW=brain).any()
