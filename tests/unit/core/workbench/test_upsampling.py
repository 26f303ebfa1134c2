"""Thick slices become volumes where they lay; what cannot be used stops nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.factories import models
from tests.unit.core.workbench.test_masked import draw_hidden
from tests.unit.core.workbench.test_thick import fine_scan, skip_slices, thicken
from vitrael.core.data.nifti import read_nifti, write_nifti
from vitrael.core.data.scan import Scan
from vitrael.core.errors import StorageError
from vitrael.core.sampling.inverse import InversionSettings
from vitrael.core.workbench.folder import load_model
from vitrael.core.workbench.masked import HiddenVoxels
from vitrael.core.workbench.thick import find_slices, place_slices
from vitrael.core.workbench.upsampling import (
    UpsamplingOrder,
    result_name,
    start_condition,
    upsample_files,
)

SHORT = InversionSettings(iterations=4, patience=50)


@pytest.fixture
def thick(tmp_path: Path) -> Path:
    path = tmp_path / "sub-01_T1w.nii.gz"
    write_nifti(thicken(fine_scan(), 2, 2), path)
    return path


@pytest.mark.parametrize("strategy", ["latent", "noise"])
def test_result_lies_where_the_scan_lies(
    strategy: str, thick: Path, model_folder: Path, tmp_path: Path
) -> None:
    model = load_model(model_folder)
    order = UpsamplingOrder(strategy=strategy, settings=SHORT, steps=2)  # type: ignore[arg-type]
    done, refused = upsample_files(model, [thick], tmp_path / "fine", order)
    assert not refused
    found = read_nifti(done[0].path)
    np.testing.assert_allclose(found.affine, fine_scan().affine, atol=1e-4)
    assert found.image_CDHW.shape == fine_scan().image_CDHW.shape
    assert set(done[0].condition) == (set(models.RANGES) if strategy == "noise" else set())
    assert np.isfinite(done[0].loss)


def test_search_comes_closer_to_what_was_acquired(
    thick: Path, model_folder: Path, tmp_path: Path
) -> None:
    model = load_model(model_folder)
    losses = []
    for iterations in (1, 12):
        order = UpsamplingOrder(settings=InversionSettings(iterations=iterations))
        done, _ = upsample_files(model, [thick], tmp_path / str(iterations), order)
        losses.append(done[0].loss)
    assert losses[1] < losses[0]


@pytest.mark.parametrize("measured", ["thin", "masked"])
def test_what_was_measured_stands_in_the_result_where_it_lay(
    measured: str, model_folder: Path, tmp_path: Path
) -> None:
    fine = fine_scan()
    inside = Scan(np.clip(fine.image_CDHW, 0, 1), fine.affine, "T1w")
    path = tmp_path / "scan.nii.gz"
    exact = replace(SHORT, consistent=True)
    hidden_DHW = draw_hidden()
    if measured == "thin":
        write_nifti(skip_slices(inside, 2, 2), path)
        order = UpsamplingOrder(profile="thin", prepared=True, settings=exact)
        hidden_DHW = np.zeros_like(hidden_DHW)
        hidden_DHW[..., 1::2] = True
    else:
        write_nifti(inside, path)
        order = UpsamplingOrder(
            hidden=HiddenVoxels(hidden_DHW, fine.affine), prepared=True, settings=exact
        )
    done, refused = upsample_files(load_model(model_folder), [path], tmp_path / "whole", order)
    assert not refused
    assert done[0].measured == measured
    found = read_nifti(done[0].path)
    np.testing.assert_allclose(found.affine, fine.affine, atol=1e-4)
    seen = ~hidden_DHW
    np.testing.assert_allclose(found.image_CDHW[0][seen], inside.image_CDHW[0][seen], atol=1e-6)
    assert found.image_CDHW[0][hidden_DHW].any()
    assert not np.allclose(found.image_CDHW[0][hidden_DHW], inside.image_CDHW[0][hidden_DHW])


def test_scan_that_does_not_lie_where_the_mask_does_stops_none_of_the_others(
    thick: Path, model_folder: Path, tmp_path: Path
) -> None:
    scan = tmp_path / "whole.nii.gz"
    write_nifti(fine_scan(), scan)
    order = UpsamplingOrder(hidden=HiddenVoxels(draw_hidden(), fine_scan().affine), settings=SHORT)
    done, refused = upsample_files(load_model(model_folder), [thick, scan], tmp_path / "w", order)
    assert [one.number for one in done] == [2]
    assert "not that of the model" in refused[0].reason


def test_file_that_cannot_be_used_stops_none_of_the_others(
    thick: Path, model_folder: Path, tmp_path: Path
) -> None:
    isotropic = tmp_path / "isotropic.nii.gz"
    write_nifti(fine_scan(), isotropic)
    broken = tmp_path / "broken.nii"
    broken.write_bytes(b"no image")
    twin = tmp_path / "twin" / thick.name
    write_nifti(thicken(fine_scan(), 2, 2), twin)
    files = [isotropic, broken, tmp_path / "none.nii", thick, twin]
    order = UpsamplingOrder(settings=SHORT)
    done, refused = upsample_files(load_model(model_folder), files, tmp_path / "fine", order)
    assert [one.number for one in done] == [4]
    reasons = {one.number: one.reason for one in refused}
    assert "not thick" in reasons[1]
    assert "NIfTI" in reasons[2]
    assert "no such file" in reasons[3]
    assert "file 4 has the same name" in reasons[5]


def test_what_is_known_of_a_patient_is_not_searched(model_folder: Path) -> None:
    condition, free = start_condition(load_model(model_folder), {"sex": 1.0, "age_years": 18.0})
    assert condition.tolist() == [0, 1, 0.5, 0.5]
    assert free.tolist() == [False, False, True, True]


def test_result_is_named_as_bids_would() -> None:
    assert result_name(Path("a/sub-1_T1w.nii.gz")) == "sub-1_desc-upsampled_T1w.nii.gz"
    assert result_name(Path("scan.nii")) == "scan_upsampled.nii.gz"


def test_result_that_is_whole_is_kept_and_none_is_written_over(
    thick: Path, model_folder: Path, tmp_path: Path
) -> None:
    model, to = load_model(model_folder), tmp_path / "fine"
    order = UpsamplingOrder(strategy="noise", settings=SHORT, steps=2)
    (first,), _ = upsample_files(model, [thick], to, order)
    before = first.path.read_bytes()
    (again,), refused = upsample_files(model, [thick], to, order)
    assert refused == []
    assert again == replace(first, kept=True)
    assert again.condition
    done, refused = upsample_files(model, [thick], to, replace(order, seed=1))
    assert done == []
    assert "there already" in refused[0].reason
    assert first.path.read_bytes() == before
    first.path.unlink()  # what was interrupted begins again
    (redone,), _ = upsample_files(model, [thick], to, order)
    assert (redone.kept, redone.digest) == (False, first.digest)


def test_result_does_not_depend_on_the_files_beside_it(
    thick: Path, model_folder: Path, tmp_path: Path
) -> None:
    model, to = load_model(model_folder), tmp_path / "fine"
    for strategy in ("latent", "noise"):
        order = UpsamplingOrder(strategy=strategy, settings=SHORT, steps=3)  # type: ignore[arg-type]
        files = [tmp_path / "none.nii", thick]
        (first,), _ = upsample_files(model, files, to / strategy, order)
        (again,), refused = upsample_files(model, [thick], to / strategy, order)
        assert refused == []
        assert (again.kept, again.digest) == (True, first.digest)
        (fresh,), _ = upsample_files(model, [thick], to / strategy / "alone", order)
        assert fresh.digest == first.digest


def test_result_has_the_intensities_of_its_scan(
    thick: Path, model_folder: Path, tmp_path: Path
) -> None:
    model, order = load_model(model_folder), UpsamplingOrder(settings=SHORT)
    loud = tmp_path / "loud_T1w.nii.gz"
    scan = read_nifti(thick)
    write_nifti(Scan(scan.image_CDHW * np.float32(800), scan.affine, "T1w"), loud)
    plain, loud_too = (
        read_nifti(upsample_files(model, [path], tmp_path / "fine", order)[0][0].path)
        for path in (thick, loud)
    )
    assert loud_too.image_CDHW.max() == pytest.approx(800 * plain.image_CDHW.max(), rel=0.05)
    bright = np.percentile(scan.image_CDHW[scan.image_CDHW > 0.2], 99)
    placed = place_slices(scan, find_slices(scan, model.document), model.document)
    assert placed.gain == pytest.approx(bright, rel=0.05)
    np.testing.assert_allclose(
        placed.gain * placed.low_CDHW[placed.low_CDHW < 1].mean(),
        scan.image_CDHW[placed.low_CDHW < 1].mean(),
        rtol=0.05,
    )


def test_file_of_somebody_else_is_not_written_over(
    thick: Path, model_folder: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "fine" / result_name(thick)
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    order = UpsamplingOrder(settings=SHORT)
    done, refused = upsample_files(load_model(model_folder), [thick], mine.parent, order)
    assert (done, mine.read_bytes()) == ([], b"mine")
    assert "there already" in refused[0].reason


def test_folder_among_the_files_stops_none_of_the_others(
    thick: Path, model_folder: Path, tmp_path: Path
) -> None:
    order = UpsamplingOrder(settings=SHORT)
    files = [tmp_path, thick]
    done, refused = upsample_files(load_model(model_folder), files, tmp_path / "fine", order)
    assert [one.number for one in done] == [2]
    assert refused[0].reason == "it is a folder"


def test_disk_that_refuses_is_told_with_what_is_finished(
    thick: Path, model_folder: Path, tmp_path: Path
) -> None:
    second = tmp_path / "second.nii.gz"
    second.write_bytes(thick.read_bytes())
    to = tmp_path / "fine"

    def close(_: object) -> None:
        to.rename(tmp_path / "away")
        to.write_text("no folder any more")

    order = UpsamplingOrder(settings=SHORT)
    with pytest.raises(StorageError, match="the result of file 2") as told:
        upsample_files(load_model(model_folder), [thick, second], to, order, written=close)
    assert "finished before it: 1" in told.value.why
    assert (tmp_path / "away" / result_name(thick)).exists()
