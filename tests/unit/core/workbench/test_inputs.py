"""A file comes to the model's grid, or is refused with a reason; the others go on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.factories import models
from vitrael.core.data.nifti import read_nifti, write_nifti
from vitrael.core.data.phantoms.cohorts import draw_scan
from vitrael.core.data.scan import Scan
from vitrael.core.digest import digest_json
from vitrael.core.errors import ScanError
from vitrael.core.workbench.inputs import (
    Input,
    Refused,
    read_inputs,
    read_record,
    stem_of,
    write_record,
)


def write_phantom(path: Path, *, edge: int, spacing_mm: float) -> Path:
    scan, _, _ = draw_scan(2, "north", 0, 0, grid_vox=(edge, edge, edge), spacing_mm=spacing_mm)
    write_nifti(scan, path)
    return path


def test_file_of_another_grid_is_brought_to_the_models(tmp_path: Path) -> None:
    finer = write_phantom(tmp_path / "a.nii.gz", edge=32, spacing_mm=7.0)
    (found,) = read_inputs([finer], models.document())
    assert isinstance(found, Input)
    assert found.image_CDHW.shape == (1, 16, 16, 16)
    np.testing.assert_allclose(np.diag(found.affine)[:3], models.SPACING_MM)


def test_prepared_file_is_taken_as_it_is(tmp_path: Path) -> None:
    path = write_phantom(tmp_path / "a.nii.gz", edge=16, spacing_mm=models.SPACING_MM)
    scan = read_nifti(path)
    squeezed = Scan(0.5 * np.clip(scan.image_CDHW, 0, 1) + np.float32(0.1), scan.affine, "T1w")
    write_nifti(squeezed, path)
    (as_it_is,) = read_inputs([path], models.document(), prepared=True)
    (by_recipe,) = read_inputs([path], models.document())
    assert isinstance(as_it_is, Input)
    assert isinstance(by_recipe, Input)
    np.testing.assert_allclose(as_it_is.image_CDHW, squeezed.image_CDHW, atol=1e-6)
    assert by_recipe.image_CDHW.max() > as_it_is.image_CDHW.max() + 0.2


def test_prepared_file_beyond_its_range_is_refused(tmp_path: Path) -> None:
    path = write_phantom(tmp_path / "a.nii.gz", edge=16, spacing_mm=models.SPACING_MM)
    scan = read_nifti(path)
    write_nifti(Scan(scan.image_CDHW * 900, scan.affine, "T1w"), path)
    (found,) = read_inputs([path], models.document(), prepared=True)
    assert isinstance(found, Refused)
    assert "outside [0, 1]" in found.reason


def test_bad_file_does_not_end_the_others(tmp_path: Path) -> None:
    good = write_phantom(tmp_path / "good.nii.gz", edge=16, spacing_mm=models.SPACING_MM)
    bad = tmp_path / "bad.nii"
    bad.write_bytes(b"x" * 400)
    found = list(read_inputs([bad, tmp_path, good], models.document()))
    assert [type(one) for one in found] == [Refused, Refused, Input]
    assert [one.number for one in found] == [1, 2, 3]


def test_stem_is_the_name_without_the_suffix() -> None:
    assert stem_of(Path("x/sub-1_T1w.nii.gz")) == "sub-1_T1w"
    assert stem_of(Path("A.NII")) == "A"


def test_brain_that_the_grid_cuts_is_refused_and_what_little_is_lost_is_told(
    tmp_path: Path,
) -> None:
    path = write_phantom(tmp_path / "a.nii.gz", edge=32, spacing_mm=7.0)
    document = models.document()
    (whole,) = read_inputs([path], document)
    assert isinstance(whole, Input)
    assert whole.cut_frac < 0.005
    narrow = (8, 16, 16)
    settings = document.recipe.model_copy(update={"grid_vox": narrow})
    small = document.model_copy(update={"grid_vox": narrow, "recipe": settings})
    (cut,) = read_inputs([path], small)
    assert isinstance(cut, Refused)
    assert "too small for the brain" in cut.reason


def test_record_says_what_is_whole_and_nothing_is_written_over(tmp_path: Path) -> None:
    record, image = tmp_path / "a.json", tmp_path / "a.nii.gz"
    key, other = digest_json(["a"]), digest_json(["b"])
    assert read_record(record, key, [image]) is None
    write_record(record, key, {"loss": 1.0}, files={image: b"voxels"}, what="it")
    found = read_record(record, key, [image])
    assert found is not None
    assert found["loss"] == 1
    with pytest.raises(ScanError, match="there already"):
        read_record(record, other, [image])
    image.write_bytes(b"changed")
    with pytest.raises(ScanError, match="there already"):
        read_record(record, key, [image])
    image.unlink()
    assert read_record(record, key, [image]) is None  # what was interrupted begins again
    assert read_record(record, other, [image]) is None
    image.write_bytes(b"of somebody else")
    record.unlink()
    with pytest.raises(ScanError, match="there already"):
        read_record(record, key, [image])
    image.unlink()
    record.write_text("{}")
    with pytest.raises(ScanError, match="there already"):
        read_record(record, key, [image])
