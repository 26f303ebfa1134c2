"""Who may import whom: the contracts of pyproject.toml hold, and each catches a planted breach."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

FLOORS = ("core", "privacy", "client", "server")

BREACHES = {
    "layers": ("server/federation/planted.py", "import vitrael.client.site"),
    "no-frameworks-below": ("privacy/planted.py", "import sqlalchemy"),
    "cohort-is-private": ("server/federation/planted.py", "import vitrael.core.data.cohort"),
    "no-circles": ("privacy/reid/__init__.py", "import vitrael.privacy.release.planted"),
    "flower-in-two-places": ("client/site/planted.py", "import flwr"),
    "mlflow-in-one-place": ("server/federation/planted.py", "import mlflow"),
    "core-floors": ("core/digest.py", "import vitrael.core.study"),
    "researcher-is-light": ("client/researcher/planted.py", "import vitrael.client.planted"),
    "courier-is-light": ("client/site/courier/planted.py", "import vitrael.client.planted"),
}
"""Contract -> a file and the line that is added to it."""

SECOND_HALVES = {
    "no-circles": ("privacy/release/planted.py", "import vitrael.privacy.reid"),
    "researcher-is-light": ("client/planted.py", "import torch"),
    "courier-is-light": ("client/planted.py", "import torch"),
}
"""The other file of a breach that needs two."""


@pytest.fixture
def copied_house(tmp_path: Path, root: Path) -> Path:
    """Return a copy of the code, laid out as it is imported, with the contracts beside it."""
    for floor in FLOORS:
        shutil.copytree(
            root / floor,
            tmp_path / "vitrael" / floor,
            ignore=lambda folder, names: [
                n for n in names if not (n.endswith(".py") or (Path(folder) / n).is_dir())
            ],
        )
    shutil.copy(root / "pyproject.toml", tmp_path)
    return tmp_path


def lint_imports(folder: Path, *contracts: str) -> subprocess.CompletedProcess[str]:
    chosen = [part for contract in contracts for part in ("--contract", contract)]
    program = str(Path(sys.executable).parent / "lint-imports")
    return subprocess.run(
        [program, "--no-cache", *chosen],
        cwd=folder,
        text=True,
        capture_output=True,
        check=False,
        timeout=120,
    )


def plant(folder: Path, breach: tuple[str, str]) -> None:
    path = folder / "vitrael" / breach[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(f"\n{breach[1]}\n")


def test_contracts_hold(copied_house: Path) -> None:
    done = lint_imports(copied_house)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("contract", list(BREACHES))
def test_planted_breach_is_caught(contract: str, copied_house: Path) -> None:
    plant(copied_house, BREACHES[contract])
    if contract in SECOND_HALVES:
        plant(copied_house, SECOND_HALVES[contract])
    done = lint_imports(copied_house, contract)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"Contracts: 0 kept, 1 broken", done.stdout), done.stdout + done.stderr


def test_every_contract_has_its_planted_breach(root: Path) -> None:
    document = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = document["tool"]["importlinter"]["contracts"]
    assert {contract["id"] for contract in contracts} == set(BREACHES)
