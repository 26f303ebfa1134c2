"""The tutorial's commands run from first to last, on fewer phantoms and a smaller recipe."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.factories import models
from vitrael.core.data.nifti import read_nifti

TUTORIAL = Path(__file__).resolve().parents[4] / "docs" / "tutorial" / "brain-model.md"
PATIENCE_S = 300
SMALLER = (
    ("--patients 600", "--patients 26"),
    ("--patients 100", "--patients 14"),
    ("--count 64", "--count 3"),
)
RECIPE = models.RECIPE.replace("[16, 16, 16]", "[24, 24, 24]").replace("12.0", "8.0") + (
    "validation_frac = 0.45\n"
)
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)


@pytest.mark.slow
def test_commands_of_the_tutorial_run_one_after_another(tmp_path: Path) -> None:
    text = TUTORIAL.read_text(encoding="utf-8")
    blocks = BLOCK.findall(text)
    (program,) = (body for kind, body in blocks if kind == "python")
    commands = "".join(body for kind, body in blocks if kind == "sh")
    for whole, part in SMALLER:
        assert whole in commands
        commands = commands.replace(whole, part)
    (tmp_path / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    (tmp_path / "thicken.py").write_text(program, encoding="utf-8")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["/bin/sh", "-e"],
        input=commands,
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
        check=False,
        text=True,
        capture_output=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(list((tmp_path / "set").glob("sub-*/**/*.nii.gz"))) == 4
    assert len(list((tmp_path / "many").glob("sub-*/**/*.nii.gz"))) == 3
    assert len(list((tmp_path / "maps").glob("*_zscore.nii.gz"))) == 4
    (fine,) = (tmp_path / "fine").glob("*.nii.gz")
    assert read_nifti(fine).image_CDHW.shape == (1, 24, 24, 24)
    for told in ("ventricle_ml_r: ", "fid by ", "scorer_noise_auroc: "):
        assert told in done.stdout


def test_recipe_of_the_tutorial_is_one(tmp_path: Path) -> None:
    from vitrael.core.workbench.recipe import read_recipe

    recipe = next(
        body for kind, body in BLOCK.findall(TUTORIAL.read_text("utf-8")) if kind == "toml"
    )
    (tmp_path / "recipe.toml").write_text(recipe, encoding="utf-8")
    assert read_recipe(tmp_path / "recipe.toml").data.grid_vox == (24, 24, 24)
