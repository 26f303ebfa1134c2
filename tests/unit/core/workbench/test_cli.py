"""The commands translate: options to orders, results to lines, failures to sentences."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.factories import models
from tests.unit.core.workbench.test_masked import draw_hidden, write_mask
from tests.unit.core.workbench.test_thick import fine_scan, skip_slices, thicken
from vitrael.core.cli import run
from vitrael.core.data.nifti import read_nifti, write_nifti
from vitrael.core.errors import EXIT_PARTIAL
from vitrael.core.workbench.folder import read_document
from vitrael.core.workbench.options import count_threads, end_code

ONE_THREAD = ("--threads", "1", "--device", "cpu")
WHOLE = tuple(part for setting in models.ASKED for part in ("--set", setting))

Capture = pytest.CaptureFixture[str]


def told(capsys: Capture) -> dict[str, object]:
    """Return the one JSON object on stdout."""
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def test_train_show_and_sample_go_hand_in_hand(
    scans: Path, tmp_path: Path, capsys: Capture
) -> None:
    recipe, model = tmp_path / "recipe.toml", tmp_path / "model"
    recipe.write_text(models.RECIPE, encoding="utf-8")
    command = ["model", "train", str(recipe), "--from", str(scans), "--to", str(model)]
    assert run([*command, "--dry-run", "--json"]) == 0
    plan = told(capsys)
    assert (plan["scans"], plan["patients"], plan["written"]) == (5, 5, False)
    assert not model.exists()
    assert run([*command, *ONE_THREAD, "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["digest"] == read_document(model).digest
    assert "train denoiser: 32 of 32" in shown.err
    assert run(["model", "show", str(model)]) == 0
    text = capsys.readouterr().out
    assert "age_years: 18 to 95 (years)" in text
    assert "r = " in text or "not estimable" in text
    assert "nothing of it was screened or audited" in text
    out = tmp_path / "set"
    assert run(["model", "sample", str(model), "--to", str(out), *WHOLE, *ONE_THREAD]) == 0
    assert (out / "manifest.json").exists()


def test_model_can_be_trained_into_the_folder_that_one_stands_in(
    scans: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, model = tmp_path / "recipe.toml", tmp_path / "model"
    recipe.write_text(models.RECIPE, encoding="utf-8")
    model.mkdir()
    monkeypatch.chdir(model)
    command = ["model", "train", "../recipe.toml", "--from", str(scans), *ONE_THREAD, "--json"]
    assert run([*command, "--to", "/"]) == 1
    assert "holds something already" in capsys.readouterr().err
    assert run([*command, "--to", ".", "--no-scorer"]) == 0
    assert told(capsys)["folder"] == str(model)
    assert read_document(model).scorer is None
    assert not (tmp_path / "model.training").exists()


def test_launcher_is_not_told_that_a_share_of_the_work_crashed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert (end_code(is_partial=True), end_code(is_partial=False)) == (EXIT_PARTIAL, None)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert (end_code(is_partial=True), end_code(is_partial=False)) == (None, None)


def test_processes_of_one_machine_share_its_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    alone = count_threads()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert count_threads() == max(1, alone // 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(8 * alone))
    assert count_threads() == 1


def test_dry_run_of_sample_writes_nothing(
    model_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "set"
    command = ["model", "sample", str(model_folder), "--to", str(out), *WHOLE, "--count", "9"]
    assert run([*command, "--shard", "2/3", "--dry-run", "--json"]) == 0
    plan = told(capsys)
    assert (plan["count"], plan["shard"], plan["written"]) == (9, 3, False)
    assert not out.exists()


def test_shards_of_the_command_make_the_whole_set(model_folder: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    command = ["model", "sample", str(model_folder), *WHOLE, "--count", "3", *ONE_THREAD]
    assert run([*command, "--to", str(whole), "--batch", "1"]) == 0
    for shard in ("1/2", "2/2"):
        assert run([*command, "--to", str(parts), "--shard", shard, "--batch", "1"]) == 0
    names = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    assert len(names) == 3 * 2 + 6
    for name in names:
        assert (whole / name).read_bytes() == (parts / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (WHOLE[:-2], "brain_ml is missing"),
        ((*WHOLE[:-2], "--set", "brain_ml=90"), "outside the trained range"),
        ((*WHOLE, "--shard", "3/2"), "shard 3/2"),
        ((*WHOLE, "--unconditional"), "goes with no condition"),
    ],
)
def test_request_that_cannot_be_is_refused_before_a_weight_is_read(
    arguments: tuple[str, ...], sentence: str, model_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "set"
    code = run(["model", "sample", str(model_folder), "--to", str(out), *arguments])
    assert code == 2
    assert sentence in capsys.readouterr().err
    assert not out.exists()


def test_model_without_dropout_takes_neither_nothing_nor_guidance(
    tmp_path: Path, capsys: Capture
) -> None:
    model = str(models.write_untrained(tmp_path / "model"))
    out = ("--to", str(tmp_path / "set"))
    for arguments in (("--unconditional",), (*WHOLE, "--guidance", "2")):
        assert run(["model", "sample", model, *out, *arguments]) == 2
        assert "never learned an image without its condition" in capsys.readouterr().err


def test_model_with_dropout_draws_without_condition_and_guided(
    model_folder: Path, tmp_path: Path
) -> None:
    for name, arguments in (("a", ("--unconditional",)), ("b", (*WHOLE, "--guidance", "2"))):
        out = ("--to", str(tmp_path / name))
        assert run(["model", "sample", str(model_folder), *out, *arguments, *ONE_THREAD]) == 0
    rows = (tmp_path / "a" / "participants.tsv").read_text().splitlines()
    assert rows[1].split("\t")[3:7] == ["n/a"] * 4


def test_upsample_writes_what_can_be_and_ends_with_7(
    model_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    thick, fine = tmp_path / "sub-01_T1w.nii.gz", tmp_path / "isotropic.nii.gz"
    write_nifti(thicken(fine_scan(), 2, 2), thick)
    write_nifti(fine_scan(), fine)
    command = ["model", "upsample", str(model_folder), str(thick), str(fine)]
    command += ["--to", str(tmp_path / "out"), "--iterations", "2", "--json"]
    assert run([*command, "--dry-run"]) == 0
    assert not (tmp_path / "out").exists()
    capsys.readouterr()
    assert run([*command, *ONE_THREAD]) == EXIT_PARTIAL
    found = json.loads(capsys.readouterr().out)
    assert [one["factor"] for one in found["files"]] == [2]
    assert "not thick" in found["skipped"][0]["reason"]
    assert read_nifti(Path(found["files"][0]["path"])).image_CDHW.shape == (1, 16, 16, 16)


def test_upsample_takes_thin_slices_and_masks(
    model_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    thin, whole = tmp_path / "thin.nii.gz", tmp_path / "whole.nii.gz"
    write_nifti(skip_slices(fine_scan(), 2, 2), thin)
    write_nifti(fine_scan(), whole)
    mask = str(write_mask(tmp_path / "mask.nii", draw_hidden()))
    brief = ["--iterations", "2", "--json", *ONE_THREAD, "--to"]
    command = ["model", "upsample", str(model_folder)]
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    assert run([*command, str(thin), "--profile", "thin", *brief, one]) == 0
    assert json.loads(capsys.readouterr().out)["files"][0]["measured"] == "thin"
    assert run([*command, str(whole), str(thin), "--mask", mask, *brief, other]) == EXIT_PARTIAL
    found = json.loads(capsys.readouterr().out)
    assert (found["files"][0]["measured"], found["files"][0]["axis"]) == ("masked", None)
    assert "not that of the model" in found["skipped"][0]["reason"]


def test_mask_that_hides_everything_is_one_sentence(
    model_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    mask = write_mask(tmp_path / "mask.nii", np.ones((16, 16, 16)))
    command = ["model", "upsample", str(model_folder), "a.nii", "--to", str(tmp_path / "out")]
    command += ["--mask", str(mask), "--dry-run", "--json"]
    assert run(command) == 3
    error = told(capsys)["error"]
    assert isinstance(error, dict)
    assert error["what"] == "the mask hides everything"
    write_mask(mask, draw_hidden())
    assert run(command) == 0  # the control
    assert run([*command, "--profile", "thin"]) == 2


def test_score_of_a_model_without_scorer_is_one_sentence(
    model_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "a.nii.gz"
    write_nifti(fine_scan(), path)
    assert run(["model", "score", str(model_folder), str(path), *ONE_THREAD, "--json"]) == 3
    error = told(capsys)["error"]
    assert isinstance(error, dict)
    assert error["what"] == "the model has no scorer"


def test_folder_of_scans_that_is_not_there_is_a_wrong_call(
    model_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(models.RECIPE, encoding="utf-8")
    nowhere = str(tmp_path / "nowhere")
    to = str(tmp_path / "model")
    assert run(["model", "train", str(recipe), "--from", nowhere, "--to", to]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert run(["model", "evaluate", str(model_folder), "--against", nowhere]) == 2
    assert not (tmp_path / "model.training").exists()


def test_no_file_that_can_be_used_is_a_failure(
    model_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    command = ["model", "upsample", str(model_folder), str(tmp_path / "none.nii")]
    assert run([*command, "--to", str(tmp_path / "out"), *ONE_THREAD, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["files"], len(found["skipped"])) == ([], 1)


def test_dry_run_of_score_opens_no_weights(
    model_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    command = ["model", "score", str(model_folder), "a.nii", "--maps", str(tmp_path / "maps")]
    assert run([*command, "--dry-run", "--json"]) == 0
    assert told(capsys)["written"] is False
    assert not (tmp_path / "maps").exists()


def test_import_refuses_a_folder_that_is_no_bundle(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "bundle").mkdir()
    command = ["model", "import", str(tmp_path / "bundle"), "--to", str(tmp_path / "model")]
    assert run(command) == 1
    assert capsys.readouterr().err.startswith("Error: ")
    assert not (tmp_path / "model").exists()


def test_commands_start_without_torch() -> None:
    program = "import sys, vitrael.core.workbench.cli; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], text=True, capture_output=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "False"
