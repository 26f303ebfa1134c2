"""No face passes: of a head the brain is kept and nothing else, or the head is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from tests.factories.heads import Head, dice, label_head, phantom_head
from vitrael.core.data.brain_mask import (
    MASKED_BY_SITE,
    MASKED_HERE,
    STRIPPED,
    bare_brain,
    demand_same_place,
    extract_brain,
    find_brain,
    place_mask,
)
from vitrael.core.data.head import view_head
from vitrael.core.data.nifti import read_nifti
from vitrael.core.data.resample import resample_mask
from vitrael.core.data.scan import Scan
from vitrael.core.errors import ScanError
from vitrael.core.geometry import voxel_volume_ml

MakeBrain = Callable[..., Scan]


@pytest.fixture(scope="module")
def head() -> Head:
    return phantom_head(1)


@pytest.fixture(scope="module")
def found(head: Head) -> np.ndarray:
    return extract_brain(head.scan)


def mask_of(brain_DHW: np.ndarray, affine: np.ndarray) -> Scan:
    return Scan(brain_DHW.astype(np.float32)[None], affine, "mask")


def test_face_of_a_head_is_gone_and_its_brain_is_kept(head: Head, found: np.ndarray) -> None:
    bare, note = bare_brain(head.scan)
    assert note == MASKED_HERE
    kept = bare.image_CDHW[0] > 0
    assert (kept & head.face_DHW).sum() <= 0.001 * head.face_DHW.sum()
    assert dice(found, head.brain_DHW) > 0.9
    # Control: the head itself shows the face.
    shown = head.scan.image_CDHW[0] > 0.15 * head.scan.image_CDHW.max()
    assert (shown & head.face_DHW).sum() > 0.3 * head.face_DHW.sum()


def test_nothing_outside_the_mask_enters_the_result(head: Head, found: np.ndarray) -> None:
    site_mask = mask_of(found, head.scan.affine)
    altered = head.scan.image_CDHW.copy()
    inner = np.zeros(found.shape, dtype=bool)
    inner[1:-1, 1:-1, 1:-1] = True  # the border gives the background level
    altered[0, ~found & inner] *= 0.5
    one, note = bare_brain(head.scan, site_mask)
    other, _ = bare_brain(Scan(altered, head.scan.affine, "T1w"), site_mask)
    assert note == MASKED_BY_SITE
    assert np.array_equal(one.image_CDHW, other.image_CDHW)
    assert not one.image_CDHW[0, ~found].any()
    altered[0, found] *= 0.5  # control: what is inside does enter
    other, _ = bare_brain(Scan(altered, head.scan.affine, "T1w"), site_mask)
    assert not np.array_equal(one.image_CDHW, other.image_CDHW)


def test_stripped_scan_is_returned_as_it_is(make_brain: MakeBrain) -> None:
    scan = make_brain(shape=(64, 72, 64), spacing=3.0, noise=0.01)
    bare, note = bare_brain(scan)
    assert bare is scan
    assert note == STRIPPED
    brain_DHW, note = find_brain(scan)
    assert note == STRIPPED
    assert brain_DHW[scan.image_CDHW[0] > 0.2].mean() > 0.99
    assert brain_DHW.sum() * voxel_volume_ml(scan.affine) == pytest.approx(1250, rel=0.2)


def test_axes_of_the_file_do_not_matter(head: Head, found: np.ndarray) -> None:
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = found.shape[0] - 1
    cos, sin = np.cos(0.25), np.sin(0.25)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[cos, -sin], [sin, cos]]
    image = np.ascontiguousarray(head.scan.image_CDHW[:, ::-1])
    nodding = Scan(image, turn @ head.scan.affine @ flip, "T1w")
    assert dice(extract_brain(nodding)[::-1], found) > 0.95


def test_bridge_from_brain_to_face_keeps_no_face(head: Head) -> None:
    image = head.scan.image_CDHW.copy()
    brain, face = head.brain_DHW, head.face_DHW
    start = np.array(ndimage.center_of_mass(brain))
    front = np.stack(np.nonzero(face))
    nose = front[:, front[1].argmax()]
    steps = start[:, None] + (nose - start)[:, None] * np.linspace(0, 1, 400)
    bridge = np.zeros(brain.shape, dtype=bool)
    bridge[tuple(np.rint(steps).astype(int))] = True
    bridge = ndimage.binary_dilation(bridge, iterations=3)
    image[0, bridge] = np.percentile(image[0, brain], 80)
    try:
        kept = extract_brain(Scan(image, head.scan.affine, "T1w"))
    except ScanError as error:
        assert "the face cannot be removed" in str(error)  # noqa: PT017 - either way is right
    else:
        assert (kept & face).sum() <= 0.01 * face.sum()


def test_part_of_a_head_is_refused(head: Head) -> None:
    for part in (
        np.s_[:, :, 36:44],  # a slab
        np.s_[:, :, 45:],  # the front alone
    ):
        image = np.ascontiguousarray(head.scan.image_CDHW[part])
        with pytest.raises(ScanError, match="the face cannot be removed"):
            bare_brain(Scan(image, head.scan.affine, "T1w"))


def test_head_without_a_brain_and_coarse_head_are_refused(head: Head) -> None:
    hollow = np.where(head.brain_DHW, 0, head.scan.image_CDHW).astype(np.float32)
    for scan in (
        Scan(hollow, head.scan.affine, "T1w"),
        phantom_head(2, spacing_mm=8.0).scan,
    ):
        with pytest.raises(ScanError, match="give a brain mask"):
            bare_brain(scan)


def test_mask_on_its_own_grid_is_placed_by_world_coordinates(head: Head, found: np.ndarray) -> None:
    cos, sin = np.cos(0.4), np.sin(0.4)
    own = np.diag([2.0, 3.5, 2.5, 1])
    own[:2, :2] = np.array([[cos, -sin], [sin, cos]]) @ own[:2, :2]
    own[:3, 3] = -own[:3, :3] @ [55, 38, 45]
    on_own = resample_mask(found, head.scan.affine, own, shape=(110, 76, 90))
    placed = place_mask(mask_of(on_own, own), head.scan)
    assert dice(placed, found) > 0.95
    shifted = own.copy()  # control: 20 mm beside, the same mask is another
    shifted[0, 3] += 20
    assert dice(place_mask(mask_of(on_own, shifted), head.scan), found) < 0.9


def test_mask_that_is_not_of_this_brain_is_refused(head: Head, found: np.ndarray) -> None:
    whole = head.brain_DHW | head.face_DHW
    speck = np.zeros_like(whole)
    speck[30:34, 40:44, 38:42] = True
    for mask in (whole, speck):
        with pytest.raises(ScanError, match="not that of a brain"):
            bare_brain(head.scan, mask_of(mask, head.scan.affine))
    far = head.scan.affine.copy()
    far[2, 3] += 120
    with pytest.raises(ScanError, match="does not lie over the scan"):
        bare_brain(head.scan, mask_of(found, far))


def test_mask_that_leaves_the_scalp_of_a_small_head_is_refused(head: Head) -> None:
    affine = head.scan.affine.copy()
    affine[:3] *= 0.75
    small = Scan(head.scan.image_CDHW, affine, "T1w")
    whole = (head.brain_DHW | head.face_DHW) & (np.arange(head.brain_DHW.shape[2]) > 22)
    assert 200 < whole.sum() * voxel_volume_ml(affine) < 2500
    with pytest.raises(ScanError, match="leaves skull or scalp"):
        bare_brain(small, mask_of(whole, affine))


def test_dark_scan_under_a_mask_is_refused(head: Head, found: np.ndarray) -> None:
    dark = np.where(found, 0, head.scan.image_CDHW).astype(np.float32)
    with pytest.raises(ScanError, match="shows no brain"):
        bare_brain(Scan(dark, head.scan.affine, "T1w"), mask_of(found, head.scan.affine))


def test_second_contrast_must_show_the_brain_in_the_same_place(
    head: Head, found: np.ndarray
) -> None:
    brain_ml = found.sum() * voxel_volume_ml(head.scan.affine)
    flair = replace(head.scan, modality="FLAIR")
    demand_same_place(flair, found, brain_ml=brain_ml)
    shifted = np.roll(found, 12, axis=1)  # 36 mm forward, into the face
    with pytest.raises(ScanError, match="the FLAIR does not lie over"):
        demand_same_place(flair, shifted, brain_ml=brain_ml)
    dark = np.where(np.arange(found.shape[2]) < 45, flair.image_CDHW, 0).astype(np.float32)
    with pytest.raises(ScanError, match="the FLAIR does not lie over"):
        demand_same_place(replace(flair, image_CDHW=dark), found, brain_ml=brain_ml)


def test_refusal_tells_no_number_of_the_scan(head: Head) -> None:
    image = np.ascontiguousarray(head.scan.image_CDHW[:, :, 36:44])
    with pytest.raises(ScanError) as caught:
        bare_brain(Scan(image, head.scan.affine, "T1w"))
    assert not any(letter.isdigit() for letter in str(caught.value))


ANATOMIES = ("01", "03", "05", "07", "09", "11", "13", "15", "17", "19")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in {"01", "13"}))
        for name in ANATOMIES
    ],
)
def test_head_of_a_real_anatomy_loses_its_face(real_scans: Path, name: str) -> None:
    path = real_scans.parent / f"brain_labels/synthseg_{name}_seg_2mm.nii.gz"
    head = label_head(path, int(name))
    kept = extract_brain(head.scan)
    assert dice(kept, head.brain_DHW) >= 0.9
    assert (kept & head.face_DHW).sum() <= 0.01 * head.face_DHW.sum()
    view = view_head(head.scan)  # which has the grid of these maps
    assert not (kept & view.shallow(4)).any()


def test_real_head_gives_a_brain_of_usual_size(real_scans: Path) -> None:
    scan = read_nifti(real_scans.parent / "brain_other/studyforrest_sub-02_T1w_2mm.nii.gz")
    bare, note = bare_brain(scan)
    assert note == MASKED_HERE
    kept_ml = (bare.image_CDHW > 0).sum() * voxel_volume_ml(scan.affine)
    assert 1100 < kept_ml < 1700
    slab = Scan(np.ascontiguousarray(scan.image_CDHW[:, 40:48]), scan.affine, "T1w")
    with pytest.raises(ScanError, match="the face cannot be removed"):
        bare_brain(slab)
