"""The wheel holds what the folders hold, and the list of packages is the list of folders."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

FLOORS = ("core", "privacy", "client", "server", "deploy/nginx", "deploy/studies")
PIP_WHEEL = [
    sys.executable,
    "-m",
    "pip",
    "wheel",
    "-q",
    "--no-index",
    "--no-build-isolation",
    "--no-deps",
]


def code_files(folder: Path) -> set[str]:
    """Return every file of the four floors except what Python itself writes there."""
    return {
        path.relative_to(folder).as_posix()
        for floor in FLOORS
        for path in (folder / floor).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def canonical(requirement: str) -> str:
    """Return the distribution's name as indexes write it."""
    return re.split(r"[<>=\[ ]", requirement)[0].lower().replace("_", "-")


def imported_modules(source: str) -> set[str]:
    """Return the top-level modules that a source imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.fixture(scope="module")
def document(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_package_is_listed(root: Path, document: dict[str, Any]) -> None:
    folders = {
        "vitrael." + Path(name).parent.as_posix().replace("/", ".")
        for name in code_files(root)
        if name.endswith(".py")
    }
    assert sorted(folders) == sorted(document["tool"]["setuptools"]["packages"])


def test_every_package_has_its_init(root: Path) -> None:
    names = code_files(root)
    folders = {Path(name).parent for name in names if name.endswith(".py")}
    assert [f for f in sorted(folders) if (f / "__init__.py").as_posix() not in names] == []


def test_wheel_holds_every_file_of_the_folders(tmp_path: Path, root: Path) -> None:
    source = tmp_path / "source"
    for floor in FLOORS:
        shutil.copytree(root / floor, source / floor, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(root / name, source)
    done = subprocess.run(
        [*PIP_WHEEL, "--wheel-dir", str(tmp_path), str(source)],
        text=True,
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("vitrael-*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == {f"vitrael/{name}" for name in code_files(source)}


def test_plain_install_asks_for_neither_torch_nor_flower(document: dict[str, Any]) -> None:
    plain = " ".join(document["project"]["dependencies"])
    assert all(name not in plain for name in ("torch", "flwr", "mlflow", "monai", "sqlalchemy"))


def test_every_requirement_is_pinned(root: Path, document: dict[str, Any]) -> None:
    lines = (root / "deploy" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {canonical(line) for line in lines if "==" in line}
    project = document["project"]
    extras = project["optional-dependencies"].values()
    asked = [*project["dependencies"], *(line for extra in extras for line in extra)]
    names = {canonical(line) for line in asked}
    assert names - {"vitrael"} <= pins
    assert [line for line in lines if line and not line.startswith("#") and "==" not in line] == []


def test_typing_links_lead_to_the_folders(root: Path) -> None:
    for floor in FLOORS[:4]:
        assert (root / ".typing" / "vitrael" / floor).resolve() == root / floor


def test_every_import_is_declared(root: Path, document: dict[str, Any]) -> None:
    project = document["project"]
    extras = [project["optional-dependencies"][extra] for extra in ("site", "dcm2niix", "server")]
    lines = [*project["dependencies"], *(line for extra in extras for line in extra)]
    declared = {canonical(line) for line in lines}
    providers = metadata.packages_distributions()
    imported = {
        module
        for name in code_files(root)
        if name.endswith(".py")
        for module in imported_modules((root / name).read_text(encoding="utf-8"))
    }
    foreign = imported - set(sys.stdlib_module_names) - {"vitrael", "__future__"}
    undeclared = {
        module
        for module in foreign
        if not declared & {canonical(owner) for owner in providers.get(module, [])}
    }
    assert undeclared == set()
