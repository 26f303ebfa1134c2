"""New keys take the place of older ones when the coordinator has approved them, and not before."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from tests.factories.tls import make_authority
from tests.unit.client.site.enrollment.conftest import (
    FakeCoordinator,
    Site,
    no_passphrase,
)
from vitrael.client.site import rotation
from vitrael.client.site.enrollment.fetch import Fetched, fetch, rotate
from vitrael.client.site.enrollment.join import Asked
from vitrael.client.site.rotation import is_rotating, next_keys, old_keys
from vitrael.core.errors import AuthError
from vitrael.privacy.keys import KeyPair, Passphrase, is_protected, load_roster
from vitrael.privacy.node_keys import load_node_key


def ask(site: Site, *, passphrase: Passphrase = no_passphrase) -> Fetched:
    return fetch(
        site.settings,
        ask=passphrase,
        clock=site.clock,
        tell=site.told.append,
        patience=site.patience,
    )


def renew(site: Site, /, *, passphrase: Passphrase = no_passphrase, **changes: object) -> Asked:
    site.coordinator.token = "c9" * 32
    return rotate(
        site.settings,
        site.coordinator.invite(**changes),  # type: ignore[arg-type]
        ask=passphrase,
        clock=site.clock,
        tell=site.told.append,
        patience=site.patience,
    )


@pytest.fixture
def enrolled(site: Site, coordinator: FakeCoordinator) -> Site:
    site.join()
    coordinator.approve(others=("harbour",))
    ask(site)
    return site


def test_new_keys_wait_for_approval(enrolled: Site, coordinator: FakeCoordinator) -> None:
    before = enrolled.private_files()
    asked = renew(enrolled)
    found = ask(enrolled)
    assert (found.rotating, found.rotated) == (True, False)
    assert found.fingerprint == asked.fingerprint
    assert found.standing.status == "enrolled"
    assert enrolled.private_files() == before
    assert coordinator.joined[-1].keys != coordinator.approved["north"]


def test_approved_keys_are_put_in_use(enrolled: Site, coordinator: FakeCoordinator) -> None:
    before = enrolled.private_files()
    asked = renew(enrolled)
    coordinator.approve(others=("harbour",))
    found = ask(enrolled)
    assert (found.rotating, found.rotated) == (False, True)
    assert found.fingerprint == asked.fingerprint
    after = enrolled.private_files()
    assert after["split.key"] == before["split.key"]
    assert after["signing.pem"] != before["signing.pem"]
    assert enrolled.settings.load_keys().public == coordinator.joined[-1].keys
    assert load_roster(enrolled.settings.roster)["north"] == coordinator.joined[-1].keys
    assert (old_keys(enrolled.home) / "signing.pem").read_bytes() == before["signing.pem"]
    assert not next_keys(enrolled.home).exists()
    ask(enrolled)  # the coordinator answers under the new ones: the old ones go
    assert not old_keys(enrolled.home).exists()


def test_authority_of_the_invitation_is_trusted_from_now_on(
    enrolled: Site, coordinator: FakeCoordinator
) -> None:
    path = enrolled.home / "authority.pem"
    path.write_text(make_authority("an older one").pem)
    with pytest.raises(AuthError, match="not trusted"):
        ask(enrolled)
    renew(enrolled)
    assert path.read_text() == coordinator.authority.pem
    assert ask(enrolled).rotating


def test_rotation_that_was_interrupted_goes_on_with_the_same_keys(enrolled: Site) -> None:
    first = renew(enrolled)
    assert renew(enrolled).fingerprint == first.fingerprint


def test_protected_keys_are_followed_by_protected_keys(
    site: Site, coordinator: FakeCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    phrase = b"five words are enough here"
    site.join(passphrase=phrase)
    coordinator.approve()
    ask(site, passphrase=lambda: phrase)
    renew(site, passphrase=lambda: phrase)
    assert is_protected(next_keys(site.home))
    coordinator.approve()
    assert ask(site, passphrase=lambda: phrase).rotated
    assert is_protected(site.home / "keys")


@pytest.mark.parametrize("changes", [{"site": "harbour"}, {"address": "elsewhere.example:443"}])
def test_invitation_for_another_home_makes_no_keys(enrolled: Site, changes: dict[str, str]) -> None:
    with pytest.raises(AuthError, match="not for this home"):
        renew(enrolled, **changes)
    assert not is_rotating(enrolled.home)


def test_invitation_of_another_coordinator_makes_no_keys(enrolled: Site) -> None:
    with pytest.raises(AuthError, match="another coordinator"):
        renew(enrolled, coordinator=KeyPair.create().public)
    assert not is_rotating(enrolled.home)


class _KilledError(Exception):
    pass


def count_writes(monkeypatch: pytest.MonkeyPatch, *, die_at: int) -> list[Path]:
    """Let the process be killed at the n-th change of a file during a rotation's swap."""
    done: list[Path] = []
    write, unlink, remove = rotation.write_atomically, Path.unlink, rotation.shutil.rmtree

    def step(path: Path) -> None:
        if len(done) == die_at:
            raise _KilledError
        done.append(path)

    def write_step(path: Path, data: bytes) -> None:
        step(path)
        write(path, data)

    def unlink_step(path: Path, *, missing_ok: bool = False) -> None:
        step(path)
        unlink(path, missing_ok=missing_ok)

    def remove_step(path: Path, *, ignore_errors: bool = False) -> None:
        step(path)
        remove(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(rotation, "write_atomically", write_step)
    monkeypatch.setattr(Path, "unlink", unlink_step)
    monkeypatch.setattr(rotation.shutil, "rmtree", remove_step)
    return done


STEPS = 15
"""Four old keys kept, the mark, four new ones, five files and a folder removed."""


@pytest.mark.parametrize("die_at", range(STEPS + 1))
def test_swap_that_was_killed_leaves_one_whole_set_of_keys(
    enrolled: Site, coordinator: FakeCoordinator, monkeypatch: pytest.MonkeyPatch, die_at: int
) -> None:
    old = enrolled.settings.load_keys().public
    renew(enrolled)
    new = coordinator.joined[-1].keys
    node = load_node_key(next_keys(enrolled.home) / "node").public_key()
    split = (enrolled.home / "keys" / "split.key").read_bytes()
    with monkeypatch.context() as patch:
        done = count_writes(patch, die_at=die_at)
        with contextlib.suppress(_KilledError):
            rotation.adopt_keys(enrolled.home)
    assert len(done) == min(die_at, STEPS)
    assert (enrolled.home / "keys" / "split.key").read_bytes() == split
    assert enrolled.settings.load_keys().public in (old, new)
    coordinator.approve()
    ask(enrolled)
    assert enrolled.settings.load_keys().public == new
    assert load_node_key(enrolled.home / "keys" / "node").public_key() == node
    assert not is_rotating(enrolled.home)
