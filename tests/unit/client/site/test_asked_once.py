"""A command asks for the passphrase of the keys once, and for a no only where it must be signed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from vitrael.client.site import service, settings
from vitrael.client.site.cli import site
from vitrael.privacy.keys import protect_keys

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.client.site.conftest import Home

SECRET = b"five words are enough here"


@pytest.fixture
def asked(home: Home, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How often a passphrase was asked for, at a site that has consented."""
    home.clock.now = datetime.now(UTC)
    home.consent()
    protect_keys(home.path / "keys", passphrase=SECRET)
    times: list[str] = []

    def ask(purpose: str) -> bytes:
        times.append(purpose)
        return SECRET

    monkeypatch.setattr(settings, "read_passphrase", ask)
    return times


def call(home: Home, *words: str) -> int:
    command = [*words, "--home", str(home.path)]
    return CliRunner().invoke(site, command, catch_exceptions=False).exit_code


def test_consent_asks_once(home: Home, study_file: Path, asked: list[str]) -> None:
    assert call(home, "consent", str(study_file), "--yes") == 0
    assert len(home.lines()) == 2
    assert asked == ["keys"]


def test_stop_asks_once_to_sign_what_the_coordinator_hears(home: Home, asked: list[str]) -> None:
    assert call(home, "stop", "site-test", "--dry-run") == 0
    assert asked == []
    assert call(home, "stop", "site-test", "--yes") == 0
    assert asked == ["keys"]


def test_steward_asks_once(home: Home, asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[object] = []
    monkeypatch.setattr(service, "serve", lambda *words, **_: served.append(words))
    assert call(home, "run") == 0
    assert (len(served), asked) == (1, ["keys"])
