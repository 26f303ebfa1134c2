"""The version is that of the installed package."""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from vitrael.core import version


def test_version_is_that_of_the_project(root: Path) -> None:
    document = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    assert version.package_version() == document["project"]["version"]


def test_bare_folders_have_version_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> str:
        raise PackageNotFoundError

    monkeypatch.setattr(version, "version", missing)
    assert version.package_version() == "0"
