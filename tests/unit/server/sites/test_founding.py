"""A coordinator's home is made once; what is there is kept."""

from __future__ import annotations

import shutil
import stat
import tomllib
from pathlib import Path

import pytest

from tests.factories.enrolling import JoiningSite, enroll
from tests.fakes.clock import START
from vitrael.core.errors import AuthError, ConfigError, UsageError
from vitrael.privacy.enrollment import Invitation
from vitrael.privacy.keys import KeyPair, load_roster
from vitrael.server.config import Ports, ServerDocument, ServerSettings, load_server
from vitrael.server.sites.desk import Desk
from vitrael.server.sites.founding import found_coordinator
from vitrael.server.sites.invitations import hand_out
from vitrael.server.sites.registry import Registry

ADDRESS = "vitrael.example.org:443"


def found(home: Path, address: str = ADDRESS) -> ServerSettings:
    return found_coordinator(home, ServerDocument(address=address), now=START)


def files(home: Path) -> dict[str, bytes]:
    kept = ("keys/*", "authority/*", "tls/*", "server.toml")
    return {str(p): p.read_bytes() for pattern in kept for p in sorted(home.glob(pattern))}


def test_a_home_is_for_its_owner_alone(tmp_path: Path) -> None:
    settings = found(tmp_path / "home")
    assert stat.S_IMODE(settings.home.stat().st_mode) == 0o700
    assert stat.S_IMODE((settings.keys / "signing.pem").stat().st_mode) == 0o600
    assert load_roster(settings.home / "roster.json") == {}


def test_what_is_there_is_kept_and_what_is_missing_made(settings: ServerSettings) -> None:
    before = files(settings.home)
    assert len(before) == 8
    (settings.tls / "server.pem").unlink()
    (settings.authority / "ca.crt").unlink()
    found(settings.home)
    after = files(settings.home)
    assert after.keys() == before.keys()
    same = [name for name in before if after[name] == before[name]]
    assert {Path(name).name for name in same} == {
        "signing.pem",
        "sealing.pem",
        "ca.key",
        "server.toml",
    }


def test_a_home_with_another_address_is_refused(settings: ServerSettings) -> None:
    with pytest.raises(UsageError, match=rf"home of a coordinator at {ADDRESS}.*server.toml"):
        found(settings.home, "other.example.org:443")


@pytest.mark.parametrize("days", [365, 30])
def test_a_home_with_other_days_is_refused(settings: ServerSettings, days: int) -> None:
    document = ServerDocument(address=ADDRESS, enrollment_days=days)
    if days == 365:
        assert found_coordinator(settings.home, document, now=START) == settings
        return
    with pytest.raises(UsageError, match=r"enrollment_days = 365.*change enrollment_days in"):
        found_coordinator(settings.home, document, now=START)


def test_keys_that_sites_know_are_not_replaced_by_new_ones(
    settings: ServerSettings, registry: Registry, desk: Desk, north: JoiningSite
) -> None:
    kept = settings.home / "kept"
    settings.keys.rename(kept)
    found(settings.home)  # the control: nobody knows the coordinator yet
    shutil.rmtree(settings.keys)
    kept.rename(settings.keys)
    enroll(north, registry, desk)
    settings.keys.rename(kept)
    with pytest.raises(AuthError, match=r"keys are gone: 1 sites know it.*restore keys/"):
        found(settings.home)
    assert not settings.keys.exists()
    kept.rename(settings.keys)
    found(settings.home)


def test_two_processes_on_one_port_are_refused(tmp_path: Path) -> None:
    text = f'address = "{ADDRESS}"\n[ports]\nenrollment = {{}}\n'
    (tmp_path / "server.toml").write_text(text.format(8100))
    with pytest.raises(ConfigError, match=r"server\.toml: ports: two of them are the same"):
        load_server(tmp_path)
    (tmp_path / "server.toml").write_text(text.format(8103))
    assert load_server(tmp_path).document.ports.enrollment == 8103


def test_half_a_pair_of_keys_is_refused(settings: ServerSettings) -> None:
    (settings.keys / "sealing.pem").unlink()
    with pytest.raises(AuthError, match="exists already"):
        found(settings.home)


def test_settings_are_written_as_they_are_read(tmp_path: Path) -> None:
    ports = Ports(superlink=18_100, enrollment=18_101, metrics=18_102)
    document = ServerDocument(address=ADDRESS, ports=ports, enrollment_days=30)
    settings = found_coordinator(tmp_path / "home", document, now=START)
    assert settings.document == document
    text = (settings.home / "server.toml").read_text()
    assert "tls" not in tomllib.loads(text)  # told in a comment alone
    assert "[tls]" in text


def test_an_invitation_holds_what_a_site_needs(
    settings: ServerSettings, registry: Registry, desk: Desk, north: JoiningSite, tmp_path: Path
) -> None:
    path = tmp_path / "north.json"
    hand_out(settings, path, issue=lambda: registry.invite("north"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    invitation = Invitation.from_bytes(path.read_bytes())
    assert (invitation.site, invitation.address) == ("north", ADDRESS)
    assert invitation.authority == (settings.authority / "ca.crt").read_text()
    assert invitation.coordinator == KeyPair.load(settings.keys).public
    assert invitation.expires_utc == "2031-05-02T12:00:00+00:00"
    assert invitation.token not in repr(invitation)
    desk.join(north.join(invitation.token))


def test_no_token_is_made_for_a_file_that_cannot_be_written(
    settings: ServerSettings, registry: Registry, tmp_path: Path
) -> None:
    there = tmp_path / "there"
    there.write_text("mine")
    for path, told in ((there, "exists already"), (tmp_path / "no" / "x", "no such folder")):
        with pytest.raises(UsageError, match=told):
            hand_out(settings, path, issue=lambda: registry.invite("north"))
    assert there.read_text() == "mine"
    assert registry.open_invitations() == []


def test_no_file_is_left_when_no_token_is_made(
    settings: ServerSettings, registry: Registry, desk: Desk, north: JoiningSite, tmp_path: Path
) -> None:
    enroll(north, registry, desk)
    with pytest.raises(UsageError, match="enrolled already"):
        hand_out(settings, tmp_path / "x", issue=lambda: registry.invite("north"))
    assert not (tmp_path / "x").exists()


def test_a_bundle_of_authorities_is_not_handed_out(
    settings: ServerSettings, registry: Registry, tmp_path: Path
) -> None:
    path = settings.authority / "ca.crt"
    path.write_bytes(path.read_bytes() * 60)
    with pytest.raises(ConfigError, match="it holds 60 authorities"):
        hand_out(settings, tmp_path / "x", issue=lambda: registry.invite("north"))
