"""The two commands of a newcomer, and the one of the machine that checks, stay what they are."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path


def targets(root: Path) -> dict[str, str]:
    """Return each target of the Makefile that has a help line, with that line."""
    text = (root / "Makefile").read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z-]+):.*?## (.+)$", text, flags=re.MULTILINE))


def test_every_target_has_its_line_of_help(root: Path) -> None:
    text = (root / "Makefile").read_text(encoding="utf-8")
    (phony,) = re.findall(r"^\.PHONY: (.+)$", text, flags=re.MULTILINE)
    assert set(phony.split()) == set(targets(root))


def test_make_help_lists_the_targets(root: Path) -> None:
    done = subprocess.run(
        ["make", "--no-print-directory", "help"],  # noqa: S607 - make is on the path
        cwd=root,
        text=True,
        capture_output=True,
        check=True,
        timeout=30,
    )
    assert all(f"make {name}" in done.stdout for name in targets(root))


def test_checks_run_without_hands(root: Path) -> None:
    script = root / ".ci" / "run"
    lines = script.read_text(encoding="utf-8").splitlines()
    assert os.access(script, os.X_OK)
    called = re.findall(r"^(?:timeout \d+ )?make ([a-z-]+)", "\n".join(lines), flags=re.MULTILINE)
    checks = ["lint", "types", "layers", "docs"]
    slow = ["test-slow", "test-federation", "test-faults", "rehearse"]
    assert called == ["test", *checks, *slow]
    assert set(called) <= set(targets(root))


def test_readme_names_the_two_commands(root: Path) -> None:
    text = (root / "README.md").read_text(encoding="utf-8")
    assert "make demo" in text
    assert "make test" in text


def test_no_python_is_told_in_one_sentence(tmp_path: Path, root: Path) -> None:
    for name in ("Makefile", "pyproject.toml"):
        (tmp_path / name).write_bytes((root / name).read_bytes())
    (tmp_path / "deploy").mkdir()
    (tmp_path / "deploy" / "constraints.txt").touch()
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("python3.11", "python3"):
        old = programs / name
        old.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
        old.chmod(0o755)
    done = subprocess.run(
        ["make", "test"],  # noqa: S607 - make is on the path
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"},
        text=True,
        capture_output=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("Python 3.11 or newer with its venv module is not installed")
    assert not (tmp_path / ".venv").exists()
