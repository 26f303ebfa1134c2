"""A site makes its keys at home and sends public ones; nothing that is killed loses a key."""

from __future__ import annotations

import errno
import stat
from contextlib import closing
from pathlib import Path

import pytest

from tests.factories.tls import Response
from tests.unit.client.site.enrollment.conftest import FakeCoordinator, Site, hide, refuse
from vitrael.client.site.control import Control
from vitrael.client.site.enrollment import join as joining
from vitrael.client.site.enrollment.join import read_invitation
from vitrael.client.site.ingest.places import Home
from vitrael.client.site.settings import load_settings
from vitrael.client.site.store import Store
from vitrael.core.errors import AuthError, ConfigError, NetworkError, ProcessError, UsageError
from vitrael.privacy.enrollment import join_fingerprint
from vitrael.privacy.journal import Journal, read_journal, verify_journal
from vitrael.privacy.keys import KeyPair, is_protected, load_public_keys
from vitrael.privacy.node_keys import create_node_key


def test_join_makes_a_home_and_sends_public_keys_alone(
    site: Site, coordinator: FakeCoordinator
) -> None:
    asked = site.join()
    (request,) = coordinator.joined
    keys = KeyPair.load(site.home / "keys")
    assert request.keys == keys.public
    assert asked.standing.status == "pending"
    ours = coordinator.keys.public
    assert asked.fingerprint == join_fingerprint(keys.public, request.node, coordinator=ours)
    assert len(asked.fingerprint.split()) == 16
    assert request.node.encode() == create_node_key(site.home / "keys" / "node")
    sent = request.to_bytes()
    for data in site.private_files().values():
        assert data not in sent
    assert load_public_keys(site.home / "coordinator.json") == coordinator.keys.public
    document = load_settings(site.home).document
    assert (document.name, document.address) == ("north", coordinator.address)


def test_private_keys_are_for_their_owner_alone(site: Site) -> None:
    site.join()
    for name in site.private_files():
        assert stat.S_IMODE((site.home / "keys" / name).stat().st_mode) == 0o600


def test_what_leaves_is_in_the_journal_before_it_goes(
    site: Site, coordinator: FakeCoordinator
) -> None:
    coordinator.refusal = Response(403, b"no")
    with pytest.raises(NetworkError):
        site.join()
    (line,) = read_journal(site.settings.journal)
    assert (line.event, line.reason) == ("joined", "public keys")
    assert line.bytes > 1000
    assert line.to.startswith("coordinator ")
    assert verify_journal(site.settings.journal) == []


STEPS = (
    "save_public_keys",
    "write_atomically",
    "load_settings",
    "make_keys",
    "create_node_key",
    "ask_to_join",
    "exchange",
)


@pytest.mark.parametrize("step", STEPS)
def test_join_that_was_killed_goes_on_with_the_same_keys(
    site: Site, coordinator: FakeCoordinator, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(joining, step, killed)
        with pytest.raises(KeyboardInterrupt):
            site.join()
    before = {path: path.read_bytes() for path in (site.home / "keys").iterdir()}
    asked = site.join()
    assert {path: path.read_bytes() for path in before} == before
    assert coordinator.joined[-1].keys == KeyPair.load(site.home / "keys").public
    assert site.join().fingerprint == asked.fingerprint


def test_answer_that_was_lost_is_asked_for_again(site: Site, coordinator: FakeCoordinator) -> None:
    coordinator.once = [Response(504)]
    assert site.join().standing.status == "pending"
    first, second = coordinator.joined
    assert first.keys == second.keys
    assert "Trying again" in site.told[0]


def test_scans_may_be_taken_in_before(site: Site) -> None:
    key = Home(site.home).key()
    site.join()
    assert Home(site.home).key() == key


def test_refused_token_is_told_and_nothing_is_lost(
    site: Site, coordinator: FakeCoordinator
) -> None:
    coordinator.token = "b8" * 32
    invitation = coordinator.invite(token="a7" * 32)
    with pytest.raises(AuthError, match="the token is unknown"):
        site.join(invitation)
    before = site.private_files()
    assert site.join(coordinator.invite()).standing.status == "pending"
    assert site.private_files() == before


def test_invitation_of_another_coordinator_changes_nothing(
    site: Site, coordinator: FakeCoordinator
) -> None:
    site.join()
    before = {path.name: path.stat().st_mtime_ns for path in site.home.iterdir()}
    foreign = coordinator.invite(coordinator=KeyPair.create().public)
    with pytest.raises(AuthError, match="belongs to another coordinator"):
        site.join(foreign)
    assert {path.name: path.stat().st_mtime_ns for path in site.home.iterdir()} == before


def test_invitation_of_another_site_is_refused(site: Site, coordinator: FakeCoordinator) -> None:
    site.join()
    with pytest.raises(ConfigError, match=r'name: it has "north", and this command "harbour"'):
        site.join(coordinator.invite(site="harbour"))


def test_enrolled_site_rotates_and_does_not_join(site: Site, coordinator: FakeCoordinator) -> None:
    from vitrael.client.site.enrollment.standing import keep_standing

    keys = KeyPair.load
    standing = site.join().standing
    coordinator.approve()
    standing = standing.model_copy(
        update={"status": "enrolled", "members": dict(coordinator.approved)}
    )
    keep_standing(site.settings, standing, own=keys(site.home / "keys").public)
    with pytest.raises(UsageError, match=r"enrolled already.*vitrael site rotate"):
        site.join()


def test_keys_that_were_used_up_are_set_aside(
    site: Site, coordinator: FakeCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.join()
    before = site.private_files()
    with monkeypatch.context() as patch:
        patch.setattr("os.link", refuse_link)  # as the system does for another user's file
        hide(patch, site.home / "keys.unused-1" / "node")
        site.join(new_keys=True)
    after = site.private_files()
    assert after["split.key"] == before["split.key"]
    for name in ("signing.pem", "sealing.pem", "node"):
        assert after[name] != before[name]
        assert (site.home / "keys.unused-1" / name).read_bytes() == before[name]
    first, second = coordinator.joined
    assert first.keys != second.keys


def refuse_link(*_: object) -> None:
    raise PermissionError(errno.EPERM, "Operation not permitted")


def test_half_a_pair_of_keys_says_how_to_go_on(site: Site) -> None:
    site.join()
    (site.home / "keys" / "signing.pem").rename(site.home / "lost")
    with pytest.raises(AuthError, match=r"half of the keys in keys is missing.*--new-keys"):
        site.join()
    site.join(new_keys=True)


def test_wrong_invitation_binds_no_home_before_it_is_answered(
    site: Site, coordinator: FakeCoordinator
) -> None:
    wrong = coordinator.invite(coordinator=KeyPair.create().public, token="b8" * 32)
    with pytest.raises(AuthError, match="the token is unknown"):
        site.join(wrong)
    split = (site.home / "keys" / "split.key").read_bytes()
    site.join()
    assert load_public_keys(site.home / "coordinator.json") == coordinator.keys.public
    assert (site.home / "keys" / "split.key").read_bytes() == split
    with pytest.raises(AuthError, match="belongs to another coordinator"):
        site.join(wrong)  # from the first answer on it is bound


def test_site_that_left_does_not_join_in_the_same_home(site: Site) -> None:
    site.join()
    site.plan()
    settings = site.settings
    with closing(Store(settings.store, updates=settings.updates)) as store:
        journal = Journal(settings.journal, clock=site.clock, witness=store)
        Control(store, journal, clock=site.clock).leave()
    with pytest.raises(
        UsageError,
        match=r"has left the federation.*keys/split\.key, .*told\.json and cohorts",
    ):
        site.join(new_keys=True)
    with pytest.raises(UsageError, match="has left the federation"):
        site.plan()


def test_passphrase_protects_new_keys_and_older_ones(site: Site) -> None:
    site.join()
    assert not is_protected(site.home / "keys")
    public = KeyPair.load(site.home / "keys").public
    phrase = b"five words are enough here"
    site.join(passphrase=phrase)
    assert is_protected(site.home / "keys")
    assert KeyPair.load(site.home / "keys", passphrase=lambda: phrase).public == public
    site.join(ask=lambda: phrase)
    with pytest.raises(AuthError, match="passphrase is wrong"):
        site.join(ask=lambda: b"four words are not")


def test_two_commands_do_not_change_one_home(site: Site) -> None:
    from vitrael.client.site.enrollment.home_lock import only_one_enrollment

    site.join()
    with (
        only_one_enrollment(site.home),
        pytest.raises(ProcessError, match="another command changes"),
    ):
        site.join()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"nonce": "0" * 32}, "belongs to another question"),
        ({"site": "harbour"}, "belongs to another question"),
        ({"utc": "2031-05-01T13:00:00+00:00"}, "of another time"),
    ],
)
def test_answer_to_something_else_is_refused(
    site: Site, coordinator: FakeCoordinator, changes: dict[str, object], words: str
) -> None:
    coordinator.changes = changes
    with pytest.raises(AuthError, match=words):
        site.join()
    coordinator.changes = {}
    site.join()


def test_answer_of_another_key_is_refused(site: Site, coordinator: FakeCoordinator) -> None:
    coordinator.signer = KeyPair.create()
    with pytest.raises(AuthError, match="the coordinator"):
        site.join()


def test_clock_that_differs_by_minutes_is_told(site: Site, coordinator: FakeCoordinator) -> None:
    coordinator.changes = {"utc": "2031-05-01T12:07:00+00:00"}
    site.join()
    assert site.told == ["The clock of this machine is 7 min behind the coordinator's: set it."]


def test_refusal_in_words_of_the_coordinator(site: Site, coordinator: FakeCoordinator) -> None:
    coordinator.refusal = refuse("the token has expired")
    with pytest.raises(AuthError, match=r"the token has expired: the test says so. To do: ask"):
        site.join()


def write_invitation(path: Path, coordinator: FakeCoordinator, **changes: object) -> Path:
    path.write_bytes(coordinator.invite(**changes).to_bytes())  # type: ignore[arg-type]
    return path


def test_invitation_is_read_as_it_was_written(tmp_path: Path, coordinator: FakeCoordinator) -> None:
    path = write_invitation(tmp_path / "i.json", coordinator)
    assert read_invitation(path, now=coordinator.clock()) == coordinator.invite()


def test_expired_invitation_is_refused(tmp_path: Path, coordinator: FakeCoordinator) -> None:
    path = write_invitation(tmp_path / "i.json", coordinator, hours=24)
    coordinator.clock.advance(hours=23, minutes=59)
    read_invitation(path, now=coordinator.clock())
    coordinator.clock.advance(minutes=1)
    with pytest.raises(AuthError, match=r"has expired.*vitrael server invite"):
        read_invitation(path, now=coordinator.clock())


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_damaged_invitation_is_refused_without_its_token(
    tmp_path: Path, coordinator: FakeCoordinator, cut: int
) -> None:
    path = write_invitation(tmp_path / "i.json", coordinator)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ConfigError, match="is no invitation") as caught:
        read_invitation(path, now=coordinator.clock())
    assert coordinator.token not in str(caught.value)
    assert caught.value.__suppress_context__


def test_missing_and_endless_invitations_are_refused(
    tmp_path: Path, coordinator: FakeCoordinator
) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_invitation(tmp_path / "none", now=coordinator.clock())
    (tmp_path / "large").write_bytes(bytes((1 << 20) + 1))
    with pytest.raises(ConfigError, match="too large"):
        read_invitation(tmp_path / "large", now=coordinator.clock())
