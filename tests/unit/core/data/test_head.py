"""A brain without its skull is told from a head, whatever the scanner's gain, noise and axes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.factories.heads import Head, phantom_head
from vitrael.core.data.head import has_shell, is_stripped, shell_share, view_head
from vitrael.core.data.nifti import read_nifti
from vitrael.core.data.phantoms.acquisition import STYLES, draw_acquisition
from vitrael.core.data.phantoms.brain import draw_anatomy, render_brain
from vitrael.core.data.scan import Scan
from vitrael.core.errors import ScanError
from vitrael.core.rng import stream

MakeBrain = Callable[..., Scan]


@pytest.fixture(scope="module")
def head() -> Head:
    return phantom_head(1)


def stripped(scan: Scan) -> bool:
    return is_stripped(view_head(scan))


def test_head_is_not_stripped_and_its_brain_alone_is(head: Head) -> None:
    assert not stripped(head.scan)
    bare = Scan(head.scan.image_CDHW * head.brain_DHW, head.scan.affine, "T1w")
    assert stripped(bare)


@pytest.mark.parametrize("style", [name for name in STYLES if name != "whole-head"])
@pytest.mark.parametrize("spacing", [3.0, 8.0])
def test_phantom_without_a_skull_is_stripped(style: str, spacing: float) -> None:
    rng = stream(3, style)
    acquisition = draw_acquisition(rng, style=STYLES[style])
    shape = (round(192 / spacing),) * 3
    scan = render_brain(draw_anatomy(rng), acquisition, grid_vox=shape, spacing_mm=spacing)
    assert stripped(scan)


def test_noise_offset_and_gain_make_no_head_of_a_brain(make_brain: MakeBrain) -> None:
    scan = make_brain(shape=(64, 72, 64), spacing=3.0, noise=0.02, gain=900)
    assert stripped(Scan(scan.image_CDHW + np.float32(250), scan.affine, "T1w"))


def test_small_head_is_not_stripped_for_its_size(head: Head) -> None:
    affine = head.scan.affine.copy()
    affine[:3] *= 0.75
    small = Scan(head.scan.image_CDHW, affine, "T1w")
    view = view_head(small)
    assert view.outline_DHW.sum() * view.voxel_ml < 2200  # the size alone would let it pass
    assert has_shell(view)
    assert not is_stripped(view)


def test_slab_of_a_head_is_not_stripped_even_when_it_lies_obliquely(head: Head) -> None:
    slab = head.scan.image_CDHW[:, :, 38:44]
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]
    for affine in (head.scan.affine, turn @ head.scan.affine):
        assert not stripped(Scan(np.ascontiguousarray(slab), affine, "T1w"))


def test_head_of_coarse_voxels_is_not_stripped() -> None:
    assert not stripped(phantom_head(2, spacing_mm=8.0).scan)


def test_faint_rest_beside_a_brain_is_noticed(make_brain: MakeBrain) -> None:
    scan = make_brain(shape=(64, 72, 64), spacing=3.0)
    rest = scan.image_CDHW.copy()
    rest[0, 20:44, 64:70, 10:34] += 0.09  # below what counts as foreground
    assert stripped(scan)
    assert not stripped(Scan(rest, scan.affine, "T1w"))


def test_scan_far_larger_than_a_head_is_refused_before_it_is_resampled() -> None:
    image = np.zeros((1, 8, 8, 8), dtype=np.float32)
    image[0, 2:6, 2:6, 2:6] = 1
    affine = np.diag([0.5, 20_000.0, 20_000.0, 1.0])
    with pytest.raises(ScanError, match="far larger than a head"):
        view_head(Scan(image, affine, "T1w"))


def test_scan_of_specks_is_refused() -> None:
    image = np.zeros((1, 16, 16, 16), dtype=np.float32)
    image[0, 3, 3, 3] = image[0, 9, 9, 9] = 1
    with pytest.raises(ScanError, match="shows no brain"):
        view_head(Scan(image, np.diag([8.0, 8, 8, 1]), "T1w"))


def test_real_brains_are_stripped_and_real_heads_are_not(real_scans: Path) -> None:
    for path in sorted(real_scans.glob("*.nii.gz"))[::12]:
        assert stripped(read_nifti(path))
    other = real_scans.parent
    heads = [
        other / "brain_other/studyforrest_sub-02_T1w_2mm.nii.gz",
        other / "brain_ms/longitudinal_orig/openms_lg01_ses2_FLAIR_raw.nii.gz",
    ]
    for path in heads:  # both defaced: the skull is still there
        view = view_head(read_nifti(path))
        assert shell_share(view) > 0.5
        assert not is_stripped(view)
