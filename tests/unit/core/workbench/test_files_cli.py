"""The commands on files say what a person must know, and advise what they offer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.factories import models
from tests.unit.core.workbench.test_thick import fine_scan, thicken
from vitrael.core.cli import run
from vitrael.core.data.nifti import read_nifti, write_nifti
from vitrael.core.data.phantoms.cohorts import draw_scan
from vitrael.core.workbench.folder import (
    Provenance,
    Weights,
    read_document,
    read_tensors,
    write_model,
)

BRIEF = ("--iterations", "2", "--threads", "1", "--device", "cpu", "--json")

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def thick(tmp_path: Path) -> Path:
    path = tmp_path / "sub-01_T1w.nii.gz"
    write_nifti(thicken(fine_scan(), 2, 2), path)
    return path


def upsample(model: Path, scan: Path, to: Path, *more: str) -> int:
    return run(["model", "upsample", str(model), str(scan), "--to", str(to), *BRIEF, *more])


def import_again(folder: Path, to: Path) -> Path:
    """Write the model of a folder as one that was imported and sees LAS."""
    document = read_document(folder)
    provenance = Provenance(package_version="0", origin="imported", notes=("of whole heads",))
    weights = Weights(*(read_tensors(folder, document, part) for part in ("codec", "denoiser")))
    changes = {"provenance": provenance, "orientation": "LAS"}
    write_model(document.model_copy(update=changes), weights, to)
    return to


def test_value_beyond_the_range_is_not_advised_an_option_that_is_not_there(
    model_folder: Path, thick: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert upsample(model_folder, thick, tmp_path / "out", "--set", "age_years=99") == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert "outside the trained range" in error["what"]
    assert "--extrapolate" not in error["fix"]
    assert "leave it out" in error["fix"]
    assert upsample(model_folder, thick, tmp_path / "out", "--set", "age_years=70") == 0


def test_imported_model_is_told_before_its_result_is(
    model_folder: Path, thick: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert upsample(model_folder, thick, tmp_path / "own") == 0
    assert "imported" not in capsys.readouterr().err  # the control
    imported = import_again(model_folder, tmp_path / "imported")
    assert upsample(imported, thick, tmp_path / "theirs") == 0
    shown = capsys.readouterr()
    assert "the model was imported" in shown.err
    assert "of whole heads" in shown.err
    found = read_nifti(Path(json.loads(shown.out)["files"][0]["path"]))
    np.testing.assert_allclose(found.affine, fine_scan().affine, atol=1e-4)


def test_same_command_again_keeps_what_is_there(
    model_folder: Path, thick: Path, tmp_path: Path, capsys: Capture
) -> None:
    told = []
    for _ in range(2):
        assert upsample(model_folder, thick, tmp_path / "out") == 0
        told += json.loads(capsys.readouterr().out)["files"]
    assert [one["kept"] for one in told] == [False, True]
    assert told[0]["digest"] == told[1]["digest"]
    assert upsample(model_folder, thick, tmp_path / "out", "--seed", "5") == 1
    skipped = json.loads(capsys.readouterr().out)["skipped"]
    assert "there already" in skipped[0]["reason"]


def test_brain_at_the_edge_of_the_grid_is_told(tmp_path: Path, capsys: Capture) -> None:
    model = models.write_untrained(tmp_path / "model")
    document = read_document(model)
    weights = Weights(*(read_tensors(model, document, part) for part in ("codec", "denoiser")))
    write_model(document.model_copy(update={"spacing_mm": EDGE_MM}), weights, tmp_path / "edge")
    path = tmp_path / "thick.nii.gz"
    fine, _, _ = draw_scan(1, "north", 0, 0, grid_vox=(48, 48, 48), spacing_mm=4.0)
    write_nifti(thicken(fine, 2, 4), path)
    assert upsample(tmp_path / "edge", path, tmp_path / "out", "--factor", "2") == 0
    shown = capsys.readouterr()
    cut_frac = json.loads(shown.out)["files"][0]["cut_frac"]
    assert 0.005 < cut_frac <= 0.03
    assert f"file 1: {100 * cut_frac:.1f} % of its brain lies outside" in shown.err


EDGE_MM = 8.5
"""Of 16 voxels, which are a little less than the phantom's brain is long."""
