"""A mask says what was not measured: that has no influence, and a mask that is none is refused."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.factories import models
from tests.unit.core.workbench.test_thick import fine_scan
from vitrael.core.data.scan import Scan
from vitrael.core.errors import ConfigError, ScanError
from vitrael.core.workbench.masked import HiddenVoxels, place_masked, read_hidden


def draw_hidden() -> np.ndarray:
    """Return a box beside the middle of the grid."""
    hidden_DHW = np.zeros((16, 16, 16), dtype=bool)
    hidden_DHW[5:8, 7:10, 6:10] = True
    return hidden_DHW


def write_mask(path: Path, hidden_DHW: np.ndarray, scan: Scan | None = None) -> Path:
    affine = (scan or fine_scan()).affine
    nib.Nifti1Image(hidden_DHW.astype(np.uint8), affine).to_filename(path)
    return path


def test_mask_marks_what_was_not_measured(tmp_path: Path) -> None:
    hidden = read_hidden(write_mask(tmp_path / "m.nii", draw_hidden()), models.document())
    assert np.array_equal(hidden.hidden_DHW, draw_hidden())
    np.testing.assert_allclose(hidden.affine, fine_scan().affine, atol=1e-4)


@pytest.mark.parametrize(
    ("hidden_DHW", "what"),
    [
        (np.ones((16, 16, 16)), "hides everything"),
        (np.arange(1, 4097).reshape(16, 16, 16) % 200 + 1, "hides everything"),
        (np.zeros((16, 16, 16)), "hides nothing"),
        (draw_hidden()[:8], "cannot be used"),
    ],
    ids=["ones", "numbers", "zeros", "another grid"],
)
def test_mask_that_is_none_is_refused(tmp_path: Path, hidden_DHW: np.ndarray, what: str) -> None:
    path = write_mask(tmp_path / "m.nii", hidden_DHW)
    with pytest.raises(ConfigError, match=what):
        read_hidden(path, models.document())


def test_file_that_is_no_image_is_refused_as_mask(tmp_path: Path) -> None:
    (tmp_path / "m.nii").write_bytes(b"no image")
    with pytest.raises(ConfigError, match="mask cannot be used"):
        read_hidden(tmp_path / "m.nii", models.document())
    with pytest.raises(ConfigError, match="mask cannot be used"):
        read_hidden(tmp_path / "none.nii", models.document())


@pytest.mark.parametrize("prepared", [False, True])
def test_what_stands_in_hidden_voxels_has_no_influence(*, prepared: bool) -> None:
    scan, hidden = fine_scan(), HiddenVoxels(draw_hidden(), fine_scan().affine)
    clean = Scan(np.clip(scan.image_CDHW, 0, 1), scan.affine, "T1w")
    spoiled_CDHW = np.where(draw_hidden(), np.float32(7), clean.image_CDHW)
    spoiled = Scan(spoiled_CDHW, scan.affine, "T1w")
    document = models.document()
    one = place_masked(clean, hidden, document, prepared=prepared)
    two = place_masked(spoiled, hidden, document, prepared=prepared)
    assert np.array_equal(one, two)
    assert not one[0][draw_hidden()].any()
    assert one.max() <= 1
    seen = Scan(np.where(~draw_hidden(), spoiled_CDHW * 2, spoiled_CDHW), scan.affine, "T1w")
    if prepared:  # the control: the others do have influence
        with pytest.raises(ScanError, match=r"outside \[0, 1\]"):
            place_masked(seen, hidden, document, prepared=True)


def test_scan_elsewhere_than_the_mask_is_refused() -> None:
    scan, document = fine_scan(), models.document()
    hidden = HiddenVoxels(draw_hidden(), scan.affine)
    place_masked(scan, hidden, document)  # the control
    moved = scan.affine.copy()
    moved[0, 3] += 12
    with pytest.raises(ScanError, match="where the mask lies"):
        place_masked(Scan(scan.image_CDHW, moved, "T1w"), hidden, document)
    with pytest.raises(ScanError, match="not that of the model"):
        place_masked(Scan(scan.image_CDHW[:, :8], scan.affine, "T1w"), hidden, document)


def test_scan_of_which_the_mask_leaves_nothing_is_refused() -> None:
    scan = fine_scan()
    hidden = HiddenVoxels(scan.image_CDHW[0] > 0, scan.affine)
    with pytest.raises(ScanError, match=r"constant|leaves nothing"):
        place_masked(scan, hidden, models.document())
