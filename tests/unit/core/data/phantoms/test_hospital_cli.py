"""``vitrael phantoms write``: what it says, what it writes, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from vitrael.core.data.phantoms.cli import phantoms
from vitrael.core.data.phantoms.orders import FORMATS, SITES
from vitrael.core.errors import UsageError

PNG = ("--kind", "brain", "--format", "png", "--edge", "16", "--patients", "2")


def write(*arguments: object) -> Result:
    return CliRunner().invoke(phantoms, ["write", *map(str, arguments)])


def test_writing_prints_one_document(tmp_path: Path) -> None:
    out, truth = tmp_path / "out", tmp_path / "truth"
    result = write(out, *PNG, "--truth", truth, "--messy", "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert set(document) == {
        *("kind", "format", "site", "seed", "patients", "visits", "images", "grid"),
        *("folder", "messy", "truth", "planted", "written"),
    }
    assert document["written"]
    assert document["images"] == 2
    assert document["planted"] == json.loads((truth / "planted.json").read_text())
    assert (out / "images.csv").is_file()
    assert "images: 2 of 2" in result.stderr


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    result = write(tmp_path / "out", *PNG, "--truth", tmp_path / "truth", "--dry-run")
    assert result.exit_code == 0
    assert "2 images of 2 patients would be written: brain as png" in result.stdout
    assert list(tmp_path.iterdir()) == []
    assert "2 images of 2 patients written" in write(tmp_path / "out", *PNG).stdout


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_full_folder_is_a_wrong_call(dry: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "scan").touch()
    error = write(tmp_path, *PNG, *dry).exception
    assert isinstance(error, UsageError)
    assert error.exit_code == 2


@pytest.mark.parametrize(
    "wrong",
    [
        ("--grid", "16x16"),
        ("--grid", "16x16x16"),
        ("--contrasts", "T1w,PDw"),
        ("--site", "clinic"),
    ],
)
def test_wrong_choice_is_a_wrong_call(wrong: tuple[str, ...], tmp_path: Path) -> None:
    assert isinstance(write(tmp_path / "out", *PNG, *wrong).exception, UsageError)
    assert not (tmp_path / "out").exists()


def test_grid_and_contrasts_are_taken(tmp_path: Path) -> None:
    result = write(
        *(tmp_path / "out", "--kind", "brain", "--patients", "1", "--grid", "16x20x24"),
        *("--contrasts", "T1w, FLAIR", "--json"),
    )
    assert json.loads(result.stdout)["grid"] == [16, 20, 24]
    names = {path.name for path in (tmp_path / "out").rglob("*.nii.gz")}
    assert {"sub-0001_ses-1_T1w.nii.gz", "sub-0001_ses-1_FLAIR.nii.gz"} <= names


def test_help_names_every_format_and_site() -> None:
    text = " ".join(write("--help").stdout.split())
    assert "Examples: 'vitrael phantoms write" in text
    for words in [*FORMATS.values(), *SITES.values()]:
        for word in words:
            assert word in text.replace("whole- head", "whole-head")
    command = phantoms.commands["write"]
    kind = next(option for option in command.params if option.name == "kind")
    assert isinstance(kind.type, click.Choice)
    assert set(kind.type.choices) == set(FORMATS)


def test_command_starts_without_the_heavy_libraries() -> None:
    program = "import sys, vitrael.core.data.phantoms.cli; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], text=True, capture_output=True, check=True, timeout=120
    )
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert "click" in loaded
    assert not loaded & {"numpy", "pydicom", "scipy", "av", "PIL", "nibabel"}
