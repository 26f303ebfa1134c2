"""The stand-alone script ends with the exit codes that it documents, whatever it is given."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vitrael.privacy.release.trust import save_trust

Releases = Any  # ReleaseFactory of tests/unit/conftest.py


@pytest.fixture
def script(
    alone: ModuleType, releases: Releases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., int]:
    """Return a call of the script with a folder, our trust file and further arguments."""
    trust = tmp_path / "trust.json"
    save_trust(releases.trust, trust)

    def call(folder: Path | str, *arguments: str, trust_file: Path = trust) -> int:
        line = ["verify_release.py", str(folder), str(trust_file), *arguments]
        monkeypatch.setattr(sys, "argv", line)
        code = alone.main()
        assert isinstance(code, int)
        return code

    return call


@pytest.mark.parametrize("text", ["brain-demo@²", "brain-demo@0", "brain-demo", "x@" + "9" * 5000])
def test_name_that_is_no_reference_is_a_wrong_call(
    text: str,
    script: Callable[..., int],
    pristine_release: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        script(pristine_release, "--expect", text)
    assert ended.value.code == 2
    assert "is not of the form NAME@VERSION" in capsys.readouterr().err
    assert script(pristine_release, "--expect", "brain-demo@1") == 0  # the control


def test_older_version_is_told(
    script: Callable[..., int], pristine_release: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script(pristine_release, "--expect", "brain-demo@2") == 4
    assert "an older version than brain-demo@2" in capsys.readouterr().err


def test_release_that_cannot_be_read_is_refused(
    script: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script(tmp_path / ("long" * 100)) == 4
    assert "the release cannot be read: File name too long" in capsys.readouterr().err


def test_file_that_cannot_be_read_is_refused(
    alone: ModuleType,
    script: Callable[..., int],
    pristine_release: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def closed(*_: object) -> None:  # root, who may run this test, can read any file
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(alone, "check_files", closed)
    assert script(pristine_release) == 4
    assert "cannot be read: Permission denied" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000])
def test_trust_file_that_is_none_ends_with_3(
    text: str, script: Callable[..., int], pristine_release: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.json"
    other.write_text(text)
    assert script(pristine_release, trust_file=other) == 3
