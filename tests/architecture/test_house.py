"""The house rules that no linter knows: names, sizes, one family of errors, light starts."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from vitrael.core.cli import COMMANDS, EXTRAS, load_command

FLOORS = ("core", "privacy", "client", "server")
TOP_LEVEL = {"pyproject.toml", "README.md", "Makefile", *FLOORS, "tests", "deploy", "docs"}
MADE_BY_TOOLS = {"build", "dist", "vitrael.egg-info"}
BANNED_STEMS = {"utils", "util", "helpers", "common", "misc", "manager", "handler", "base"}
HEAVY = {"cryptography", "flwr", "mlflow", "monai", "nibabel", "numpy", "pydantic", "sqlalchemy"}
DATA_SUFFIXES = (
    *(".nii", ".nii.gz", ".dcm", ".npy", ".npz", ".pt", ".pth", ".pkl"),
    *(".safetensors", ".pem", ".key", ".sqlite"),
)
MOST_LINES = 400


def source_files(root: Path) -> list[Path]:
    return sorted(path for floor in FLOORS for path in (root / floor).rglob("*.py"))


def classes(root: Path) -> Iterator[tuple[Path, ast.ClassDef]]:
    for path in source_files(root):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                yield path, node


def base_names(node: ast.ClassDef) -> list[str]:
    return [ast.unparse(base).split(".")[-1] for base in node.bases]


def strays(found: dict[str, list[str]]) -> list[str]:
    """Return the exception classes among name -> bases that do not stem from VitraelError."""

    def stems(name: str) -> bool:
        return name == "VitraelError" or any(stems(base) for base in found.get(name, []))

    def raised(name: str) -> bool:
        ends = name.endswith(("Error", "Exception", "Warning")) or name == "BaseException"
        return ends or any(raised(base) for base in found.get(name, []))

    return [name for name in found if raised(name) and not stems(name)]


def test_every_exception_derives_from_vitrael_error(root: Path) -> None:
    assert strays({node.name: base_names(node) for _, node in classes(root)}) == []


def test_stray_exception_is_found() -> None:
    found = {"VitraelError": ["Exception"], "GoodError": ["VitraelError"], "Bad": ["ValueError"]}
    assert strays(found) == ["Bad"]


def test_visible_top_level_is_the_house(root: Path) -> None:
    visible = {path.name for path in root.iterdir() if not path.name.startswith(".")}
    assert visible - MADE_BY_TOOLS == TOP_LEVEL


def test_no_module_is_named_after_nothing(root: Path) -> None:
    assert [path for path in source_files(root) if path.stem in BANNED_STEMS] == []


def test_no_class_is_called_dataset(root: Path) -> None:
    assert [node.name for _, node in classes(root) if "dataset" in node.name.lower()] == []


def test_no_file_outgrows_a_reader(root: Path) -> None:
    paths = [*source_files(root), *(root / "tests").rglob("*.py")]
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    assert {path: count for path, count in lengths.items() if count > MOST_LINES} == {}


def test_no_scan_array_weight_or_key_lies_in_the_tree(root: Path) -> None:
    folders = [root / name for name in (*FLOORS, "tests", "deploy", "docs")]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert [path for path in files if path.name.endswith(DATA_SUFFIXES)] == []


def loaded_modules(statement: str) -> set[str]:
    """Return the top-level modules that a fresh Python holds after a statement."""
    program = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], text=True, capture_output=True, check=True, timeout=120
    )
    return {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_help_imports_nothing_heavy() -> None:
    loaded = loaded_modules("from vitrael.core.cli import run; assert run(['--help']) == 0")
    assert loaded & (HEAVY | {"torch"}) == set()


def test_heavy_import_is_noticed() -> None:
    assert "numpy" in loaded_modules("import vitrael.core.checks")


LIGHT = (
    "client/researcher",
    "client/site/cli.py",
    "client/site/courier",
    "privacy/envelope.py",
    "privacy/evidence.py",
    "privacy/gates.py",
    "privacy/keys.py",
    "privacy/release",
    "server/cli.py",
)
"""Modules that start without torch; functions inside may import it when they are called."""


@pytest.mark.parametrize("place", LIGHT)
def test_light_modules_start_without_torch(place: str, root: Path) -> None:
    path = root / place
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    names = [".".join(f.relative_to(root).with_suffix("").parts) for f in files]
    imports = ", ".join("vitrael." + name.removesuffix(".__init__") for name in names)
    assert loaded_modules(f"import {imports}") & {"torch", "monai", "opacus"} == set()


def test_researcher_starts_without_the_extras(root: Path) -> None:
    files = sorted((root / "client" / "researcher").glob("*.py"))
    imports = ", ".join(f"vitrael.client.researcher.{path.stem}" for path in files)
    loaded = loaded_modules(f"import {imports.replace('.__init__', '')}")
    assert loaded & set(EXTRAS) == set()


def command_lines(command: click.Command, words: str) -> Iterator[str]:
    yield words
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from command_lines(inner, f"{words} {name}")


@pytest.mark.parametrize("name", [name for table in COMMANDS.values() for name in table])
def test_docs_name_every_command(name: str, root: Path) -> None:
    pages = [root / "README.md", *(root / "docs").rglob("*.md")]
    text = " ".join(" ".join(page.read_text(encoding="utf-8").split()) for page in pages)
    lines = list(command_lines(load_command(name), f"vitrael {name}"))
    assert [line for line in lines if line not in text] == []


@pytest.mark.parametrize("name", [name for table in COMMANDS.values() for name in table])
def test_every_command_tells_how_it_is_used(name: str) -> None:
    lines = list(command_lines(load_command(name), f"vitrael {name}"))
    assert lines[0] == f"vitrael {name}"
    assert load_command(name).help
