"""Two processes of torchrun train one model together, and one of them tells."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.factories import models
from vitrael.core.workbench.folder import load_model

ROOT = Path(__file__).resolve().parents[4]
PATIENCE_S = 300
PROGRAM = "import sys; from vitrael.core.cli import run; sys.exit(run(sys.argv[1:]))"


@pytest.mark.slow
def test_two_processes_write_one_model_and_tell_it_once(scans: Path, tmp_path: Path) -> None:
    recipe, model = tmp_path / "recipe.toml", tmp_path / "model"
    recipe.write_text(models.RECIPE, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--standalone", "--no-python", sys.executable, "-c", PROGRAM]
    command += ["model", "train", str(recipe), "--from", str(scans), "--to", str(model)]
    command += ["--threads", "1", "--device", "cpu", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        command,
        check=False,
        env=environment,
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
    told = json.loads(line)
    assert (told["scans"], told["written"]) == (5, True)
    assert load_model(model).document.digest == told["digest"]
    assert not (tmp_path / "model.training").exists()
    assert done.stderr.count("train denoiser: 32 of 32") == 1
