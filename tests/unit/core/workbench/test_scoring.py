"""Scores of files come with their p-values and maps, and stand where the scans stand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.factories import models
from vitrael.core.cli import run
from vitrael.core.data.nifti import read_nifti, write_nifti
from vitrael.core.data.scan import Scan
from vitrael.core.digest import digest_bytes
from vitrael.core.errors import ConfigError, DataError, StorageError
from vitrael.core.interfaces import Denoiser
from vitrael.core.rng import stream
from vitrael.core.scoring.calibration import SCORES
from vitrael.core.scoring.scorer import ReconstructionScorer
from vitrael.core.weights import pack_tensors
from vitrael.core.workbench.folder import (
    Model,
    Weights,
    load_model,
    read_document,
    read_tensors,
    write_model,
)
from vitrael.core.workbench.intake import Rows, rows_of, take_in
from vitrael.core.workbench.scoring import calibrate_scorer, open_scorer, score_files

FAMILIAR = 12


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scoring")


@pytest.fixture(scope="module")
def held(place: Path) -> Rows:
    document = models.document()
    scans = models.write_scans(place / "scans", patients=FAMILIAR)
    intake = take_in(scans, document.recipe, workshop=place / "workshop")
    return rows_of(intake.items, intake.shards, document.covariates)


@pytest.fixture(scope="module")
def scoring(place: Path, held: Rows, model_folder: Path) -> Path:
    """Return a model that was calibrated on the scans."""
    model = load_model(model_folder)
    weights = {part: read_tensors(model_folder, model.document, part) for part in PARTS}
    calibration = calibrate_scorer(
        model.codec,
        model.denoiser,
        model.document.system.teacher,
        held,
        identity={part: digest_bytes(pack_tensors(own)) for part, own in weights.items()},
        usual_K=[0.5] * 4,
        seed=1,
    )
    document = model.document.model_copy(update={"scorer": calibration.facts()})
    everything = Weights(weights["codec"], weights["denoiser"], calibration.to_tensors())
    write_model(document, everything, place / "model")
    return place / "model"


PARTS = ("codec", "denoiser")


@pytest.fixture(scope="module")
def model(scoring: Path) -> Model:
    return load_model(scoring)


def scan_files(place: Path) -> list[Path]:
    return sorted((place / "scans").glob("*/*/anat/*.nii.gz"))


def test_noise_is_more_foreign_than_any_familiar_scan(
    model: Model, place: Path, tmp_path: Path
) -> None:
    first = read_nifti(scan_files(place)[0])
    image = stream(1, "noise").random(first.image_CDHW.shape, dtype=np.float32)
    write_nifti(Scan(image, model.document.affine, "T1w"), tmp_path / "noise.nii.gz")
    familiar, refused = score_files(model, scan_files(place))
    foreign, _ = score_files(model, [tmp_path / "noise.nii.gz"], prepared=True)
    assert (len(familiar), refused) == (FAMILIAR, [])
    assert foreign[0].scores["two_sided"] > max(one.scores["two_sided"] for one in familiar)
    assert foreign[0].p_values["two_sided"] == pytest.approx(1 / (FAMILIAR + 1))
    assert set(foreign[0].scores) == set(SCORES)


def test_score_does_not_depend_on_the_other_files(model: Model, place: Path) -> None:
    files = scan_files(place)[:3]
    together, _ = score_files(model, files)
    alone, _ = score_files(model, files[2:])
    assert alone[0].scores["two_sided"] == pytest.approx(together[2].scores["two_sided"], abs=1e-4)


class ScarceMemory:
    """A denoiser for the first so many runs of a batch; more do not fit."""

    def __init__(self, denoiser: Denoiser, *, most: int) -> None:
        self.most = most
        self.asked: list[int] = []
        self._denoiser = denoiser

    def __call__(
        self, x_t: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor
    ) -> torch.Tensor:
        self.asked.append(len(x_t))
        if len(x_t) > self.most:
            raise torch.OutOfMemoryError
        return self._denoiser(x_t, sigma, condition)


def make_scarce(monkeypatch: pytest.MonkeyPatch, model: Model, *, most: int) -> ScarceMemory:
    whole = open_scorer(model)
    scarce = ScarceMemory(whole.reconstructor.denoiser, most=most)
    scorer = ReconstructionScorer(replace(whole.reconstructor, denoiser=scarce), whole.calibration)
    monkeypatch.setattr("vitrael.core.workbench.scoring.open_scorer", lambda _model: scorer)
    return scarce


@pytest.mark.parametrize("maps", [False, True])
def test_where_several_restorations_do_not_fit_they_are_done_one_by_one(
    model: Model, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, maps: bool
) -> None:
    files = scan_files(place)[:2]
    enough, _ = score_files(model, files)
    scarce = make_scarce(monkeypatch, model, most=1)
    found, refused = score_files(model, files, maps=tmp_path if maps else None)
    assert refused == []
    for one, other in zip(enough, found, strict=True):
        assert other.scores == pytest.approx(one.scores, abs=1e-3)
    assert scarce.asked[0] > 1
    assert set(scarce.asked[1:]) == {1}  # the second file does not try again


def test_where_not_one_restoration_fits_it_is_said_what_to_set(
    model: Model, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scarce = make_scarce(monkeypatch, model, most=0)
    with pytest.raises(ConfigError, match=r"restoration of one image.*--device cpu"):
        score_files(model, scan_files(place)[:1])
    assert len(scarce.asked) == 2


def test_memory_that_ends_later_takes_nothing_from_the_files_before(
    scoring: Path,
    model: Model,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = list(map(str, scan_files(place)[:3]))
    scarce = make_scarce(monkeypatch, model, most=1_000)
    brief = ("--device", "cpu", "--threads", "1")
    assert run(["model", "score", str(scoring), files[0], *brief]) == 0
    calls_each, scarce.most = len(scarce.asked), 1_000
    capsys.readouterr()

    class Ending(list[int]):
        def append(self, rows: int) -> None:
            super().append(rows)
            if len(self) > 2 * calls_each:
                scarce.most = 0

    scarce.asked = Ending()
    assert run(["model", "score", str(scoring), *files, *brief]) == ConfigError.exit_code
    shown = capsys.readouterr()
    assert [path in shown.out for path in files] == [True, True, False]
    assert "does not hold the restoration of one image" in shown.err
    scarce.asked, scarce.most = Ending(), 1_000
    missing = str(tmp_path / "none.nii")
    arguments = ["model", "score", str(scoring), missing, *files, *brief, "--json"]
    assert run(arguments) == ConfigError.exit_code
    told = json.loads(capsys.readouterr().out)  # one document
    assert [one["file"] for one in told["files"]] == files[:2]
    assert [one["file"] for one in told["skipped"]] == [missing]
    assert "restoration of one image" in told["error"]["what"]


def test_file_that_is_given_twice_is_scored_twice_where_no_maps_are_written(
    model: Model, place: Path, tmp_path: Path
) -> None:
    twice = scan_files(place)[:1] * 2
    found, refused = score_files(model, twice)
    assert ([one.number for one in found], refused) == ([1, 2], [])
    found, refused = score_files(model, twice, maps=tmp_path)
    assert [one.number for one in found] == [1]
    assert "same name" in refused[0].reason


def test_interrupted_json_is_one_document(
    scoring: Path,
    model: Model,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Interrupted(list[int]):
        def append(self, rows: int) -> None:
            super().append(rows)
            if len(self) > 20:
                raise KeyboardInterrupt

    scarce = make_scarce(monkeypatch, model, most=1_000)
    scarce.asked = Interrupted()
    files = list(map(str, scan_files(place)[:3]))
    brief = ("--device", "cpu", "--threads", "1")
    assert run(["model", "score", str(scoring), *files, *brief, "--json"]) == 130
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == 130
    scarce.asked = Interrupted()
    assert run(["model", "score", str(scoring), *files, *brief]) == 130  # without it, a table
    assert files[0] in capsys.readouterr().out


def test_maps_lie_where_the_scan_lies(model: Model, place: Path, tmp_path: Path) -> None:
    path = scan_files(place)[0]
    scored, _ = score_files(model, [path], maps=tmp_path)
    assert len(scored[0].maps) == 2
    for written in scored[0].maps:
        found = read_nifti(written)
        assert found.image_CDHW.shape[1:] == model.document.grid_vox
        np.testing.assert_allclose(found.affine, read_nifti(path).affine, atol=1e-4)


def test_bad_files_are_told_and_stop_nothing(model: Model, place: Path, tmp_path: Path) -> None:
    good = scan_files(place)[0]
    scan = read_nifti(good)
    flat, nan = tmp_path / "flat.nii.gz", tmp_path / "nan.nii.gz"
    write_nifti(scan, flat)
    write_nifti(scan, nan)
    spoil(flat, 0.0)
    spoil(nan, np.nan)
    scored, refused = score_files(model, [flat, nan, tmp_path / "none.nii", good])
    assert [one.number for one in scored] == [4]
    reasons = [one.reason for one in refused]
    assert "constant" in reasons[0]
    assert "finite" in reasons[1]
    assert len(reasons) == 3


def spoil(path: Path, value: float) -> None:
    """Write one value into every voxel of a file, behind the back of the checks."""
    import nibabel as nib

    image = nib.load(path)
    spoiled = np.full(image.shape, value, np.float32)
    nib.save(nib.Nifti1Image(spoiled, image.affine), path)


def test_prepared_file_of_another_grid_is_refused(model: Model, tmp_path: Path) -> None:
    image = stream(1, "noise").random((1, 8, 8, 8), dtype=np.float32)
    write_nifti(Scan(image, models.document().affine, "T1w"), tmp_path / "small.nii.gz")
    _, refused = score_files(model, [tmp_path / "small.nii.gz"], prepared=True)
    assert "grid is not that of the model" in refused[0].reason


def test_model_without_a_scorer_says_so(model_folder: Path) -> None:
    with pytest.raises(ConfigError, match="has no scorer"):
        open_scorer(load_model(model_folder))


def test_scorer_of_other_weights_is_refused(model: Model) -> None:
    other = model.document.model_copy(
        update={"files": dict.fromkeys(model.document.files, "sha256:" + "0" * 64)}
    )
    with pytest.raises(DataError, match="fitted with another identity"):
        open_scorer(replace(model, document=other))


def test_calibrated_model_comes_back_whole(scoring: Path) -> None:
    document = read_document(scoring)
    assert "scorer.safetensors" in document.files
    assert document.scorer is not None
    open_scorer(load_model(scoring))


def test_maps_that_are_whole_are_kept_and_none_are_written_over(
    model: Model, place: Path, tmp_path: Path
) -> None:
    path = scan_files(place)[0]
    (first,), _ = score_files(model, [path], maps=tmp_path)
    (again,), refused = score_files(model, [path], maps=tmp_path)
    assert refused == []
    assert again == replace(first, kept=True)
    before = [each.read_bytes() for each in first.maps]
    done, refused = score_files(model, [path], maps=tmp_path, prepared=True)
    assert done == []
    assert "there already" in refused[0].reason
    assert [each.read_bytes() for each in first.maps] == before
    first.maps[1].unlink()  # what was interrupted begins again
    (redone,), _ = score_files(model, [path], maps=tmp_path)
    assert not redone.kept
    assert [each.read_bytes() for each in redone.maps] == before


def test_disk_that_refuses_maps_is_told_with_what_is_finished(
    model: Model, place: Path, tmp_path: Path
) -> None:
    maps = tmp_path / "maps"
    maps.write_text("no folder")
    with pytest.raises(StorageError, match="the result of file 1") as told:
        score_files(model, scan_files(place)[:1], maps=maps)
    assert "finished before it: none" in told.value.why
