"""The model's grid is laid so that its thick slices are those that were acquired."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from tests.factories import models
from tests.factories.heads import phantom_head
from vitrael.core.data.phantoms.cohorts import draw_scan
from vitrael.core.data.preprocess import center_brain
from vitrael.core.data.resample import resample_volume
from vitrael.core.data.scan import Scan
from vitrael.core.errors import ScanError
from vitrael.core.rng import stream
from vitrael.core.sampling.operators import SliceMask
from vitrael.core.workbench.thick import find_slices, place_slices

FINE = (16, 16, 16)


def fine_scan() -> Scan:
    scan, _, _ = draw_scan(1, "north", 0, 0, grid_vox=FINE, spacing_mm=models.SPACING_MM)
    return scan


def thicken(scan: Scan, axis: int, factor: int) -> Scan:
    """Return the scan with ``factor`` slices averaged into one, where they lay."""
    image = np.moveaxis(scan.image_CDHW, axis + 1, -1)
    image = image.reshape(*image.shape[:-1], -1, factor).mean(-1)
    affine = scan.affine.copy()
    affine[:3, axis] *= factor
    affine[:3, 3] += scan.affine[:3, axis] * (factor - 1) / 2
    return Scan(np.ascontiguousarray(np.moveaxis(image, -1, axis + 1)), affine, "T1w")


@pytest.mark.parametrize(("axis", "factor"), [(0, 2), (1, 4), (2, 2)])
def test_slices_are_found_in_the_file(axis: int, factor: int) -> None:
    slices = find_slices(thicken(fine_scan(), axis, factor), models.document())
    assert (slices.axis, slices.factor, slices.is_stretched) == (axis, factor, False)


def test_scan_on_a_coarse_copy_of_the_grid_is_not_moved() -> None:
    fine = fine_scan()
    thick = thicken(fine, 2, 2)
    slices = find_slices(thick, models.document())
    placed = place_slices(thick, slices, models.document())
    np.testing.assert_allclose(placed.affine, fine.affine, atol=1e-9)
    assert np.array_equal(placed.low_affine, thick.affine)
    ratio = placed.low_CDHW[thick.image_CDHW > 0.5] / thick.image_CDHW[thick.image_CDHW > 0.5]
    assert np.std(ratio) < 0.1


def test_grid_of_the_model_meets_slices_that_lie_elsewhere() -> None:
    fine, _, _ = draw_scan(1, "north", 0, 0, grid_vox=(40, 40, 40), spacing_mm=6.0)
    thick = thicken(fine, 2, 4)
    document = models.document()
    slices = find_slices(thick, document)
    assert slices.factor == 2
    placed = place_slices(thick, slices, document)
    assert placed.low_CDHW.shape == (1, 16, 16, 8)
    off_mm = (placed.low_affine[2, 3] - thick.affine[2, 3]) / thick.affine[2, 2]
    assert off_mm == pytest.approx(round(off_mm), abs=1e-9)
    np.testing.assert_allclose(placed.affine[:3, :3], np.eye(3) * models.SPACING_MM, atol=1e-9)
    first_two = placed.affine[2, 3] + models.SPACING_MM * np.array([0, 1])
    assert first_two.mean() == pytest.approx(placed.low_affine[2, 3])


def test_isotropic_scan_is_refused_unless_a_direction_is_named() -> None:
    with pytest.raises(ScanError, match="its slices are not thick"):
        find_slices(fine_scan(), models.document())
    with pytest.raises(ScanError, match="as thin as the model"):
        find_slices(fine_scan(), models.document(), axis="up-down")
    slices = find_slices(fine_scan(), models.document(), axis="front-back", factor=2)
    assert (slices.axis, slices.is_stretched) == (1, True)


def test_scan_turned_too_far_is_refused() -> None:
    thick, document = thicken(fine_scan(), 2, 2), models.document()
    assert find_slices(tilt(thick, 19), document).tilt_deg == pytest.approx(19)
    with pytest.raises(ScanError, match="oblique") as told:
        find_slices(tilt(thick, 21), document)
    assert "turned by 21 degrees" in told.value.why


@pytest.mark.parametrize("wish", [{"factor": 3}, {"thickness_mm": 36.0}, {"factor": 16}])
def test_factor_that_does_not_fit_the_grid_is_refused_with_those_that_do(
    wish: dict[str, float],
) -> None:
    thick = thicken(fine_scan(), 2, 2)
    with pytest.raises(ScanError, match=r"one of 2, 4, 8") as told:
        find_slices(thick, models.document(), **wish)  # type: ignore[arg-type]
    assert "do not fill" in told.value.what


def test_prepared_scan_keeps_its_intensities() -> None:
    thick = thicken(fine_scan(), 2, 2)
    inside = Scan(np.clip(thick.image_CDHW, 0, 1) * np.float32(0.5), thick.affine, "T1w")
    document = models.document()
    slices = find_slices(inside, document)
    kept = place_slices(inside, slices, document, prepared=True)
    assert np.array_equal(kept.low_CDHW, inside.image_CDHW)
    assert place_slices(inside, slices, document).low_CDHW.max() == 1
    bright = Scan(thick.image_CDHW * np.float32(5), thick.affine, "T1w")
    with pytest.raises(ScanError, match=r"outside \[0, 1\]"):
        place_slices(bright, slices, document, prepared=True)


def skip_slices(scan: Scan, axis: int, factor: int) -> Scan:
    """Return every ``factor``-th slice of the scan, where they lay."""
    first = (factor - 1) // 2
    image = np.moveaxis(scan.image_CDHW, axis + 1, -1)[..., first::factor]
    affine = scan.affine.copy()
    affine[:3, axis] *= factor
    affine[:3, 3] += scan.affine[:3, axis] * first
    return Scan(np.ascontiguousarray(np.moveaxis(image, -1, axis + 1)), affine, "T1w")


@pytest.mark.parametrize(("axis", "factor"), [(0, 2), (1, 4), (2, 2)])
def test_thin_slices_are_slices_of_the_grid_with_nothing_between(axis: int, factor: int) -> None:
    fine, document = fine_scan(), models.document()
    thin = skip_slices(Scan(np.clip(fine.image_CDHW, 0, 1), fine.affine, "T1w"), axis, factor)
    slices = find_slices(thin, document, profile="thin")
    assert (slices.axis, slices.factor, slices.profile) == (axis, factor, "thin")
    placed = place_slices(thin, slices, document, prepared=True)
    np.testing.assert_allclose(placed.affine, fine.affine, atol=1e-9)
    low = torch.from_numpy(placed.low_CDHW[None])
    clipped = torch.from_numpy(np.clip(fine.image_CDHW, 0, 1)[None])
    assert torch.equal(low, SliceMask(axis, factor, slices.first)(clipped))
    as_thick = find_slices(thin, document)  # the control: half a slice apart
    other = place_slices(thin, as_thick, document, prepared=True)
    assert not np.allclose(other.affine, fine.affine, atol=1e-3)


def test_grid_of_the_model_meets_thin_slices_that_lie_elsewhere() -> None:
    fine, _, _ = draw_scan(1, "north", 0, 0, grid_vox=(40, 40, 40), spacing_mm=6.0)
    thin, document = skip_slices(fine, 2, 4), models.document()
    slices = find_slices(thin, document, profile="thin")
    placed = place_slices(thin, slices, document)
    assert placed.low_CDHW.shape == (1, 16, 16, 16)
    assert placed.low_CDHW[..., slices.first :: 2].any()
    assert not placed.low_CDHW[..., slices.first + 1 :: 2].any()
    middle_mm = placed.affine[2, 3] + models.SPACING_MM * slices.first
    off = (middle_mm - thin.affine[2, 3]) / thin.affine[2, 2]
    assert off == pytest.approx(round(off), abs=1e-9)


def tilt(scan: Scan, degrees: float) -> Scan:
    """Return the scan, turned about the left-right axis through the middle of its grid."""
    angle = np.radians(degrees)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    middle = scan.affine @ np.append((np.array(scan.image_CDHW.shape[1:]) - 1) / 2, 1)
    back, forth = np.eye(4), np.eye(4)
    back[:3, 3], forth[:3, 3] = -middle[:3], middle[:3]
    return Scan(scan.image_CDHW, forth @ turn @ back @ scan.affine, "T1w")


def acquired_at(scan: Scan, low_affine: np.ndarray, place: np.ndarray) -> float:
    """Return which of a scan's slices, from front to back of its stack, lies at a place of ours."""
    world = low_affine @ np.append(place, 1)
    return float((np.linalg.inv(scan.affine) @ world)[2])


@pytest.mark.parametrize("profile", ["thick", "thin"])
@pytest.mark.parametrize("step_mm", [24.0, 26.0, 28.0, 36.0])
def test_stretched_slices_meet_in_the_middle_of_the_grid(step_mm: float, profile: str) -> None:
    spacing_mm = step_mm / 4
    edge = 4 * round(240 / step_mm)
    fine, _, _ = draw_scan(1, "north", 0, 0, grid_vox=(edge,) * 3, spacing_mm=spacing_mm)
    thick, document = thicken(fine, 2, 4), models.document()
    slices = find_slices(thick, document, profile=profile, factor=2)  # type: ignore[arg-type]
    assert slices.is_stretched == (step_mm != 24)
    low_affine = place_slices(thick, slices, document).low_affine
    found = np.array([acquired_at(thick, low_affine, np.array([7.5, 7.5, j])) for j in range(8)])
    ratio = 24 / step_mm
    middle = found[3:5].mean()
    assert middle % 1 == pytest.approx(0.5, abs=1e-6)
    off = found - (np.floor(middle) + np.arange(8) - 3)
    np.testing.assert_allclose(off, (np.arange(8) - 3.5) * (ratio - 1), atol=1e-6)


@pytest.mark.parametrize("degrees", [-15.0, 0.3, 3.0, 12.0])
@pytest.mark.parametrize("profile", ["thick", "thin"])
def test_grid_of_the_model_follows_slices_that_are_tilted(degrees: float, profile: str) -> None:
    fine, _, _ = draw_scan(1, "north", 0, 0, grid_vox=(40, 40, 40), spacing_mm=6.0)
    thick, document = thicken(fine, 2, 4), models.document()
    tilted = tilt(thick, degrees)
    slices = find_slices(tilted, document, profile=profile)  # type: ignore[arg-type]
    assert slices.tilt_deg == pytest.approx(abs(degrees))
    placed = place_slices(tilted, slices, document)
    level = place_slices(thick, find_slices(thick, document, profile=profile), document)  # type: ignore[arg-type]
    for place in np.ndindex(2, 2, 8):
        corner = np.array([15 * place[0], 15 * place[1], place[2]])
        at = acquired_at(tilted, placed.low_affine, corner)
        assert at == pytest.approx(round(at), abs=1e-6)
    np.testing.assert_allclose(placed.low_CDHW, level.low_CDHW, atol=1e-4)
    turn = tilted.affine @ np.linalg.inv(thick.affine)
    np.testing.assert_allclose(placed.affine, turn @ level.affine, atol=1e-6)
    if degrees > 1:  # the control: along the body's axes they drift
        along_body = placed.low_affine.copy()
        along_body[:3, :3] = level.low_affine[:3, :3]
        ends = [acquired_at(tilted, along_body, np.array([7.5, y, 4.0])) for y in (0, 15)]
        assert abs(ends[1] - ends[0]) == pytest.approx(
            180 * np.tan(np.radians(degrees)) / 24, rel=0.03
        )


@pytest.mark.parametrize("shear", [0.02, 0.3])
def test_slices_that_are_shifted_one_by_one_are_met(shear: float) -> None:
    fine, _, _ = draw_scan(1, "north", 0, 0, grid_vox=(40, 40, 40), spacing_mm=6.0)
    thick, document = thicken(fine, 2, 4), models.document()
    along = np.eye(4)
    along[1, 2] = shear  # each a little farther to the front than the one below
    sheared = Scan(thick.image_CDHW, along @ thick.affine, "T1w")
    slices = find_slices(sheared, document)
    assert (slices.factor, slices.is_stretched, slices.tilt_deg) == (2, False, 0)
    low_affine = place_slices(sheared, slices, document).low_affine
    for place in np.ndindex(2, 2, 8):
        corner = np.array([15 * place[0], 15 * place[1], place[2]])
        at = acquired_at(sheared, low_affine, corner)
        assert at == pytest.approx(round(at), abs=1e-6)


def test_slices_whose_planes_are_oblique_to_their_stack_are_met() -> None:
    fine, _, _ = draw_scan(1, "north", 0, 0, grid_vox=(40, 40, 40), spacing_mm=6.0)
    thick, document = thicken(fine, 2, 4), models.document()
    across = np.eye(4)
    across[2, 1] = np.tan(np.radians(8))
    sheared = Scan(thick.image_CDHW, across @ thick.affine, "T1w")
    slices = find_slices(sheared, document)
    assert slices.tilt_deg == pytest.approx(8)
    assert not slices.is_stretched
    low_affine = place_slices(sheared, slices, document).low_affine
    thickness_mm = np.linalg.norm(low_affine[:3, 2])
    assert thickness_mm == pytest.approx(24)
    apart_mm = 1 / np.linalg.norm(np.linalg.inv(sheared.affine[:3, :3])[2])
    assert apart_mm == pytest.approx(24 * np.cos(np.radians(8)))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_of_any_direction_are_met_however_they_lie(axis: int) -> None:
    fine, _, _ = draw_scan(1, "north", 0, 0, grid_vox=(40, 40, 40), spacing_mm=6.0)
    thick, document = thicken(fine, axis, 4), models.document()
    rng = stream(axis, "turns")
    for _ in range(4):
        pose = np.eye(4)
        pose[:3, :3] = Rotation.from_rotvec(rng.uniform(-0.15, 0.15, 3)).as_matrix()
        pose[:3, :3] += rng.uniform(-0.03, 0.03, (3, 3))  # no right angles either
        moved = Scan(thick.image_CDHW, pose @ thick.affine, "T1w")
        placed = place_slices(moved, find_slices(moved, document), document)
        to_slices = np.linalg.inv(moved.affine) @ placed.low_affine
        corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(placed.low_CDHW.shape[1:]) - 1)
        apart = 24 * np.linalg.norm(np.linalg.inv(moved.affine[:3, :3])[axis])
        at = corners @ to_slices[axis, :3] + to_slices[axis, 3]
        middle = at.mean()
        np.testing.assert_allclose(at - middle, (corners[:, axis] - 3.5) * apart, atol=1e-6)
        edges = placed.affine[:3, :3] / models.SPACING_MM
        np.testing.assert_allclose(edges.T @ edges, np.eye(3), atol=1e-9)
        assert np.linalg.det(edges) > 0


def test_upright_face_behind_tilted_slices_does_not_pass() -> None:
    head = phantom_head(1)
    middle = head.scan.affine @ np.append((np.array(head.scan.image_CDHW.shape[1:]) - 1) / 2, 1)
    size = (64, 80, 45)
    level = np.diag([3.0, 3.0, 5.0, 1.0])
    level[:3, 3] = middle[:3] - level[:3, :3] @ (np.array(size) - 1) / 2
    blank = Scan(stream(1, "blank").random((1, *size), dtype=np.float32), level, "T1w")
    acquired = tilt(blank, 12).affine

    def seen(volume_DHW: np.ndarray) -> np.ndarray:
        return resample_volume(volume_DHW, head.scan.affine, acquired, shape=size)

    thick = Scan(seen(head.scan.image_CDHW[0])[None], acquired, "T1w")
    document = models.document().model_copy(update={"grid_vox": (80, 96, 80), "spacing_mm": 2.5})
    found = find_slices(thick, document)
    assert found.tilt_deg == pytest.approx(12)
    placed = place_slices(thick, found, document)
    x, y, z = placed.low_CDHW.shape[1:]

    def shown(mask_DHW: np.ndarray) -> np.ndarray:
        whole = mask_DHW.astype(np.float32)
        return resample_volume(whole, head.scan.affine, placed.low_affine, shape=(x, y, z)) > 0.5

    kept, face = placed.low_CDHW[0] > 0, shown(head.face_DHW)
    assert face.sum() > 1000
    assert (kept & face).sum() <= 0.002 * face.sum()
    brain = shown(head.brain_DHW)
    assert 2 * (kept & brain).sum() / (kept.sum() + brain.sum()) > 0.85


def test_turn_within_the_slices_is_followed_too() -> None:
    fine, _, _ = draw_scan(1, "north", 0, 0, grid_vox=(40, 40, 40), spacing_mm=6.0)
    thick, angle = thicken(fine, 2, 4), np.radians(10)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    turned, document = Scan(thick.image_CDHW, turn @ thick.affine, "T1w"), models.document()
    placed = place_slices(turned, find_slices(turned, document), document)
    np.testing.assert_allclose(placed.affine[:3, :3], 12 * turn[:3, :3], atol=1e-9)


def test_brain_that_the_grid_cuts_is_refused_and_one_at_its_edge_is_told() -> None:
    fine, _, _ = draw_scan(1, "north", 0, 0, grid_vox=(40, 40, 40), spacing_mm=6.0)
    thick, document = thicken(fine, 2, 4), models.document()
    slices = find_slices(thick, document)
    assert place_slices(thick, slices, document).cut_frac < 0.005
    small = document.model_copy(update={"grid_vox": (8, 16, 16)})
    with pytest.raises(ScanError, match="too small for the brain"):
        place_slices(thick, slices, small)


def test_what_the_moved_grid_cuts_counts() -> None:
    fine, _, _ = draw_scan(1, "north", 0, 0, grid_vox=(48, 48, 48), spacing_mm=4.0)
    thick = thicken(fine, 2, 6)
    tight = models.document().model_copy(update={"grid_vox": (24, 24, 12), "spacing_mm": 10.0})
    assert center_brain(thick, tight.grid_vox, tight.spacing_mm)[1] == 0  # before it is moved
    with pytest.raises(ScanError, match="too small for the brain"):
        place_slices(thick, find_slices(thick, tight, factor=4), tight)
    roomy = tight.model_copy(update={"grid_vox": (24, 24, 16)})
    assert place_slices(thick, find_slices(thick, roomy, factor=4), roomy).cut_frac == 0
