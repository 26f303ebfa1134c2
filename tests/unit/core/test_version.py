"""The version is that of the installed package."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from email.message import Message
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from vitrael.core import version
from vitrael.core.digest import digest_json


def test_version_is_that_of_the_project(root: Path) -> None:
    document = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    assert version.package_version() == document["project"]["version"]


def test_bare_folders_have_version_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> str:
        raise PackageNotFoundError

    monkeypatch.setattr(version, "version", missing)
    assert version.package_version() == "0"


@dataclass
class FakeDistribution:
    """What ``importlib.metadata`` says of one installed package."""

    version: str
    requires: Sequence[str] = ()

    @property
    def metadata(self) -> Message:
        message = Message()
        message["Version"] = self.version
        for requirement in self.requires:
            message["Requires-Dist"] = requirement
        return message


def install(monkeypatch: pytest.MonkeyPatch, **packages: FakeDistribution) -> None:
    def find(name: str) -> FakeDistribution:
        if name not in packages:
            raise PackageNotFoundError(name)
        return packages[name]

    monkeypatch.setattr(version, "distribution", find)
    version._digest_for.cache_clear()


@pytest.fixture
def clean() -> Iterator[None]:
    yield
    version._digest_for.cache_clear()


OWN = FakeDistribution(
    "1",
    (
        "Torch[Fast]>=2; extra == 'site'",
        "click>=8",
        'mlflow; extra == "server"',
        "gone>=1",
    ),
)
TORCH = FakeDistribution("2.6+cpu", ("click", 'quick; extra == "Fast"', 'slow; extra == "other"'))
INSTALLED = {
    "vitrael": OWN,
    "torch": TORCH,
    "click": FakeDistribution("8.1"),
    "quick": FakeDistribution("3"),
    "slow": FakeDistribution("4"),
    "mlflow": FakeDistribution("5"),
    "unrelated": FakeDistribution("6"),
}


def test_lock_names_what_runs_at_a_site_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, clean: None
) -> None:
    install(monkeypatch, **INSTALLED)
    assert version.locked_versions() == ["click==8.1", "quick==3", "torch==2.6+cpu", "vitrael==1"]
    first = version.lock_digest()
    install(monkeypatch, **{**INSTALLED, "unrelated": FakeDistribution("7")})
    assert version.lock_digest() == first
    install(monkeypatch, **{**INSTALLED, "quick": FakeDistribution("3.0.1")})
    assert version.lock_digest() != first


def test_lock_is_read_again_after_an_installation_and_not_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clean: None
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    first = version.lock_digest()
    with monkeypatch.context() as patch:
        patch.setattr(version, "locked_versions", lambda: pytest.fail("nothing was installed"))
        assert version.lock_digest() == first  # the control
    folder = tmp_path / "click-99.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: click\nVersion: 99.0\n")
    assert "click==99.0" in version.locked_versions()
    assert version.lock_digest() != first


def test_lock_of_bare_folders_is_that_of_nothing(
    monkeypatch: pytest.MonkeyPatch, clean: None
) -> None:
    install(monkeypatch)
    assert version.locked_versions() == []
    assert version.lock_digest() == digest_json([])


def test_lock_holds_what_is_installed_here() -> None:
    locked = dict(each.split("==") for each in version.locked_versions())
    assert locked["vitrael"] == version.package_version()
    assert {"numpy", "torch", "flwr", "cryptography"} <= set(locked)
    assert {"pytest", "ruff", "mlflow"} & set(locked) == set()
