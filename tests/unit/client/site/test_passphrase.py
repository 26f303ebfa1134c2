"""Where a passphrase comes from, in which order, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitrael.client.site.passphrase import Purpose, read_passphrase
from vitrael.core.errors import AuthError, UsageError


def secret(path: Path, text: str = "five words are enough here\n") -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def never(_words: str, _twice: bool) -> str:  # noqa: FBT001 - the shape of ``ask``
    raise AssertionError("nobody may be asked")


@pytest.mark.parametrize(
    ("purpose", "credential", "variable"),
    [
        ("keys", "vitrael-passphrase", "VITRAEL_PASSPHRASE_FILE"),
        ("backup", "vitrael-backup-passphrase", "VITRAEL_BACKUP_PASSPHRASE_FILE"),
    ],
)
def test_credential_comes_before_file_and_terminal(
    tmp_path: Path, purpose: Purpose, credential: str, variable: str
) -> None:
    named = secret(tmp_path / "named", "that of the file\n")
    both = {"CREDENTIALS_DIRECTORY": str(tmp_path), variable: str(named)}
    assert read_passphrase(purpose, environment=both, ask=never) == b"that of the file"
    secret(tmp_path / credential, "that of the credential")
    assert read_passphrase(purpose, environment=both, ask=never) == b"that of the credential"
    asked = read_passphrase(purpose, environment={}, ask=lambda *_: "that of the terminal")
    assert asked == b"that of the terminal"


def test_credential_is_read_as_systemd_shows_it(tmp_path: Path) -> None:
    """It belongs to root; what lets the service's user read it shows in the group's bits."""
    environment = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    path = secret(tmp_path / "vitrael-passphrase")
    for mode in (0o400, 0o440):
        path.chmod(mode)
        assert read_passphrase("keys", environment=environment, ask=never)
    for mode in (0o444, 0o460):
        path.chmod(mode)
        with pytest.raises(AuthError, match=r"credential .*/vitrael-passphrase is open to other"):
            read_passphrase("keys", environment=environment, ask=never)


def test_new_passphrase_is_asked_for_twice(tmp_path: Path) -> None:
    asked: list[bool] = []

    def ask(_words: str, twice: bool) -> str:  # noqa: FBT001 - the shape of ``ask``
        asked.append(twice)
        return "five words are enough here"

    read_passphrase("keys", environment={}, ask=ask)
    read_passphrase("keys", new=True, environment={}, ask=ask)
    assert asked == [False, True]
    with pytest.raises(UsageError, match="too short"):
        read_passphrase("keys", new=True, environment={}, ask=lambda *_: "short")
    assert read_passphrase("keys", environment={}, ask=lambda *_: "short") == b"short"


def test_process_without_a_terminal_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(AuthError, match=r"vitrael-passphrase.*VITRAEL_PASSPHRASE_FILE") as caught:
        read_passphrase("keys", environment={})
    assert caught.value.exit_code == 4


def test_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    environment = {"VITRAEL_PASSPHRASE_FILE": str(secret(tmp_path / "p"))}
    read_passphrase("keys", environment=environment, ask=never)
    for mode in (0o644, 0o640, 0o440):
        (tmp_path / "p").chmod(mode)
        with pytest.raises(AuthError, match=r"passphrase .*/p is open to other users"):
            read_passphrase("keys", environment=environment, ask=never)


@pytest.mark.parametrize("text", ["", "\n"])
def test_empty_passphrase_is_none(tmp_path: Path, text: str) -> None:
    environment = {"VITRAEL_PASSPHRASE_FILE": str(secret(tmp_path / "p", text))}
    with pytest.raises(AuthError, match="the passphrase of the keys is empty"):
        read_passphrase("keys", environment=environment, ask=never)


def test_file_that_is_missing_is_told(tmp_path: Path) -> None:
    environment = {"VITRAEL_PASSPHRASE_FILE": str(tmp_path / "none")}
    with pytest.raises(AuthError, match="cannot be read"):
        read_passphrase("keys", environment=environment, ask=never)
