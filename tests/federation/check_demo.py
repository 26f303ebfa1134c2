"""Holds what a finished demo must show; the argument is the file with its JSON on the last line."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

from mlflow import MlflowClient

LEAST_VOLUMES = 64


def main(output: Path) -> None:
    """Run the printed commands and look for volumes, report and registry entry."""
    outcome = json.loads(output.read_text(encoding="utf-8").splitlines()[-1])
    assert outcome["outcome"] == "pass", outcome["reason"]
    for name in ("pull", "verify"):
        subprocess.run(shlex.split(outcome[name]), check=True, timeout=120)
    pulled = Path(shlex.split(outcome["verify"])[2])
    volumes = len(list(pulled.glob("sub-*/anat/*.nii.gz")))
    assert volumes >= LEAST_VOLUMES, volumes
    assert Path(outcome["report"]).is_file()
    store = Path(outcome["home"]) / "mlflow" / "mlflow.sqlite"
    model = outcome["release"].partition("@")[0] + "-student"
    client = MlflowClient(tracking_uri=f"sqlite:///{store}", registry_uri=f"sqlite:///{store}")
    assert client.get_model_version_by_alias(model, "released").version
    print(f"demo: {volumes} volumes in {outcome['seconds']} s, verified")  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]))
