"""A token is good once, for one site, for a day; the keys that come with it prove themselves."""

from __future__ import annotations

import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from tests.factories.enrolling import Answers, JoiningSite, enroll, node_pem
from tests.fakes.clock import FakeClock
from vitrael.core.errors import AuthError, EnvelopeError, StorageError, UsageError
from vitrael.privacy.enrollment import SiteWord, join_fingerprint
from vitrael.privacy.envelope import sign_enrollment
from vitrael.privacy.journal import Entry, Journal, read_journal, verify_journal
from vitrael.privacy.keys import KeyPair, load_roster
from vitrael.server.config import ServerSettings
from vitrael.server.db.engine import open_database
from vitrael.server.db.heads import JournalHead
from vitrael.server.sites.desk import Desk
from vitrael.server.sites.registry import Registry


def test_a_request_waits_for_approval_and_learns_nothing(
    registry: Registry, answers: Answers, north: JoiningSite
) -> None:
    token = registry.invite("north").token
    standing = answers.join(north.join(token))
    assert (standing.status, standing.nonce) == ("pending", token[:32])
    assert (standing.members, standing.offers, standing.expires_utc) == ({}, {}, None)
    assert answers.word(north.word()).status == "pending"


def test_a_lost_answer_is_had_by_asking_again(
    registry: Registry, desk: Desk, answers: Answers, north: JoiningSite, clock: FakeClock
) -> None:
    token = registry.invite("north").token
    desk.join(north.join(token))
    clock.advance(minutes=1)
    assert answers.join(north.join(token)).status == "pending"
    assert [one.status for one in registry.enrollments()] == ["pending"]


def test_an_unknown_token_is_refused(desk: Desk, registry: Registry, north: JoiningSite) -> None:
    registry.invite("north")
    with pytest.raises(AuthError, match="token is unknown"):
        desk.join(north.join("0" * 64))
    assert registry.enrollments() == []


def test_a_foreign_token_is_refused(desk: Desk, registry: Registry, north: JoiningSite) -> None:
    token = registry.invite("south").token
    with pytest.raises(AuthError, match=r"not for site north.*issued to another site"):
        desk.join(north.join(token))


def test_a_used_token_is_refused_for_other_keys(
    desk: Desk, registry: Registry, north: JoiningSite, clock: FakeClock
) -> None:
    token = registry.invite("north").token
    desk.join(north.join(token))
    with pytest.raises(AuthError, match=r"token was used already.*tell the coordinator at once"):
        desk.join(north.with_new_keys().join(token))
    assert [one.keys for one in registry.enrollments()] == [north.keys.public]


def test_an_expired_token_is_refused(
    desk: Desk, registry: Registry, north: JoiningSite, south: JoiningSite, clock: FakeClock
) -> None:
    tokens = {site: registry.invite(site).token for site in ("north", "south")}
    clock.advance(hours=23, minutes=59)
    desk.join(south.join(tokens["south"]))
    clock.advance(minutes=1)
    with pytest.raises(AuthError, match=r"expired.*good until 2031-05-02 12:00 UTC.*now it is"):
        desk.join(north.join(tokens["north"]))


def test_an_older_token_is_void(desk: Desk, registry: Registry, north: JoiningSite) -> None:
    older, newer = registry.invite("north").token, registry.invite("north").token
    with pytest.raises(AuthError, match=r"token is void.*newer"):
        desk.join(north.join(older))
    desk.join(north.join(newer))


def test_only_the_digest_of_a_token_is_kept(settings: ServerSettings, registry: Registry) -> None:
    issued = registry.invite("north")
    assert issued.token not in repr(issued)
    registry.close()
    for path in settings.home.rglob("*"):
        if path.is_file():
            assert issued.token.encode() not in path.read_bytes()


@pytest.mark.parametrize("minutes", [-10, 10])
def test_a_clock_ten_minutes_off_is_told_with_both_clocks(
    desk: Desk, registry: Registry, north: JoiningSite, clock: FakeClock, minutes: int
) -> None:
    token = registry.invite("north").token
    clock.advance(minutes=minutes)
    data = north.join(token)
    clock.advance(minutes=-minutes)
    said = f"2031-05-01 {'12:10' if minutes > 0 else '11:50'}:00 UTC by the site's clock"
    way = "ahead" if minutes > 0 else "behind"
    with pytest.raises(AuthError, match=f"{said}.*2031-05-01 12:00:00 UTC: 10 minutes {way}.*NTP"):
        desk.join(data)
    desk.join(north.join(token))


def test_a_request_that_was_changed_is_refused(
    desk: Desk, registry: Registry, north: JoiningSite
) -> None:
    token = registry.invite("north").token
    data = json.loads(north.join(token))
    data["payload"] = json.loads(north.join(token, package_version="9"))["payload"]
    with pytest.raises(EnvelopeError, match="signature does not hold"):
        desk.join(json.dumps(data).encode())


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b"\xff", b"[" * 9000])
def test_what_is_no_request_is_refused(desk: Desk, data: bytes) -> None:
    with pytest.raises(EnvelopeError):
        desk.join(data)
    with pytest.raises(EnvelopeError):
        desk.word(data)


def test_a_word_is_no_request(desk: Desk, north: JoiningSite) -> None:
    with pytest.raises(EnvelopeError):
        desk.join(north.word())
    with pytest.raises(EnvelopeError):
        desk.word(north.join("0" * 64))


def test_a_node_key_that_the_site_does_not_hold_is_refused(
    desk: Desk, registry: Registry, north: JoiningSite, south: JoiningSite
) -> None:
    token = registry.invite("north").token
    with pytest.raises(AuthError, match="node key's proof does not hold"):
        desk.join(north.join(token, node=node_pem(south.node)))
    with pytest.raises(AuthError, match="node key's proof does not hold"):
        desk.join(north.join(token, proved_for="south"))
    with pytest.raises(AuthError, match="spelled in an unusual way"):
        desk.join(north.join(token, node=node_pem(north.node) + "\n"))
    desk.join(north.join(token))


@pytest.mark.parametrize("shared", ["signing", "sealing", "node"])
def test_two_sites_with_one_key_are_refused(
    desk: Desk, registry: Registry, north: JoiningSite, south: JoiningSite, shared: str
) -> None:
    desk.join(north.join(registry.invite("north").token))
    token = registry.invite("south").token
    if shared == "node":
        south.node = north.node
    else:
        pair = {"signing": south.keys.signing, "sealing": south.keys.sealing}
        south.keys = KeyPair(**{**pair, shared: getattr(north.keys, shared)})
    with pytest.raises(AuthError, match=r"keys of site south were brought before.*no two sites"):
        desk.join(south.join(token))
    assert {one.site for one in registry.enrollments()} == {"north"}


def test_a_site_that_waits_may_bring_its_keys_with_a_newer_token(
    desk: Desk, registry: Registry, north: JoiningSite, clock: FakeClock
) -> None:
    desk.join(north.join(registry.invite("north").token))
    desk.join(north.join(registry.invite("north").token))
    assert [one.status for one in registry.enrollments()] == ["pending"]
    other = north.with_new_keys()
    desk.join(other.join(registry.invite("north").token))
    assert [one.status for one in registry.enrollments()] == ["replaced", "pending"]
    with pytest.raises(AuthError, match="not that of the keys"):
        registry.approve("north", fingerprint=north.fingerprint)
    registry.approve("north", fingerprint=other.fingerprint)


def test_of_many_at_once_one_alone_uses_a_token(
    settings: ServerSettings, registry: Registry, north: JoiningSite, clock: FakeClock
) -> None:
    token = registry.invite("north").token
    requests = [north.with_new_keys().join(token) for _ in range(6)]

    def join(data: bytes) -> str:
        with Desk(settings, clock=clock) as own:
            try:
                own.join(data)
            except AuthError as error:
                return error.what
            return "joined"

    with ThreadPoolExecutor(len(requests)) as pool:
        said = sorted(pool.map(join, requests))
    assert said == ["joined"] + ["the token was used already"] * 5
    assert [one.status for one in registry.enrollments()] == ["pending"]
    assert verify_journal(settings.journal) == []


def test_keys_that_name_another_coordinator_are_not_approved(
    desk: Desk, registry: Registry, north: JoiningSite
) -> None:
    """Whoever changes an invitation on its way stands between the two, who read other digits."""
    between = KeyPair.create().public
    desk.join(north.join(registry.invite("north").token))
    heard = join_fingerprint(north.keys.public, node_pem(north.node), coordinator=between)
    with pytest.raises(AuthError, match="not that of the keys which came from site north"):
        registry.approve("north", fingerprint=heard)
    registry.approve("north", fingerprint=north.fingerprint)


@pytest.mark.parametrize("version", ["1\x1b[2K", "1\n", "1\u202e"])
def test_a_request_that_would_paint_on_the_list_is_refused(
    desk: Desk, registry: Registry, north: JoiningSite, version: str
) -> None:
    token = registry.invite("north").token
    painted = north.request(token).model_copy(update={"package_version": version})
    with pytest.raises(EnvelopeError, match="join request"):
        desk.join(sign_enrollment(painted, north.keys))
    assert registry.enrollments() == []
    desk.join(north.join(token))


def test_nothing_happens_when_the_database_cannot_be_written(
    settings: ServerSettings,
    desk: Desk,
    registry: Registry,
    north: JoiningSite,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    enroll(north, registry, desk)

    def full(_: Session) -> None:
        raise OperationalError("COMMIT", {}, sqlite3.OperationalError("disk is full"))

    with monkeypatch.context() as patch:
        patch.setattr(Session, "commit", full)
        with pytest.raises(StorageError, match="disk is full"):
            registry.revoke("north", reason="stolen")
    assert [one.status for one in registry.enrollments()] == ["enrolled"]
    assert told(settings) == [("revoke", ""), ("repaired", "revoke of north was not finished")]
    registry.keep_roster()  # as the coordinator does all the time
    assert load_roster(settings.home / "roster.json") == {"north": north.keys.public}
    registry.revoke("north", reason="stolen")
    assert told(settings)[1:] == [("revoke", "")]
    assert load_roster(settings.home / "roster.json") == {}


def test_act_of_a_process_that_was_killed_is_told_by_the_next(
    settings: ServerSettings,
    registry: Registry,
    desk: Desk,
    north: JoiningSite,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    enroll(north, registry, desk)
    with monkeypatch.context() as patch:
        patch.setattr(Session, "commit", Session.rollback)  # it ends before the transaction does
        registry.revoke("north", reason="stolen")
    engine = open_database(settings.database)
    Journal(settings.journal, clock=clock, witness=JournalHead(engine)).append(
        Entry(event="asked", to="north", nonce="a" * 32)  # by a study, meanwhile
    )
    engine.dispose()
    registry.invite("south")
    assert told(settings) == [("repaired", "revoke of north was not finished"), ("invite", "")]
    registry.revoke("north", reason="stolen")
    assert told(settings) == [("invite", ""), ("revoke", "")]
    assert verify_journal(settings.journal) == []


def told(settings: ServerSettings) -> list[tuple[str, str]]:
    """Return the last two lines: what was done, and what was taken back."""
    lines = list(read_journal(settings.journal))[-2:]
    return [(line.event, line.reason * (line.event == "repaired")) for line in lines]


def test_nothing_happens_when_the_roster_cannot_be_written(
    settings: ServerSettings, desk: Desk, registry: Registry, north: JoiningSite
) -> None:
    desk.join(north.join(registry.invite("north").token))
    (settings.home / "roster.json").unlink()
    (settings.home / "roster.json").mkdir()
    with pytest.raises(OSError, match="directory"):
        registry.approve("north", fingerprint=north.fingerprint)
    assert [one.status for one in registry.enrollments()] == ["pending"]
    assert told(settings) == [("approve", ""), ("repaired", "approve of north was not finished")]


def test_approval_needs_the_fingerprint_that_was_read_out(
    settings: ServerSettings, desk: Desk, registry: Registry, north: JoiningSite
) -> None:
    with pytest.raises(UsageError, match="nobody asks to join as north"):
        registry.approve("north", fingerprint=north.fingerprint)
    desk.join(north.join(registry.invite("north").token))
    digits = "".join(north.fingerprint.split())
    last = "0" if digits[-1] != "0" else "1"
    for wrong in ("", digits[:8], digits + "0"):
        with pytest.raises(AuthError, match=f"64 digits, and {len(wrong)} were given") as caught:
            registry.approve("north", fingerprint=wrong)
        assert "revoke" not in caught.value.sentence()  # that would burn good keys
    with pytest.raises(AuthError, match="not that of the keys which came from site north"):
        registry.approve("north", fingerprint=digits[:-1] + last)
    assert load_roster(settings.home / "roster.json") == {}
    registry.approve("north", fingerprint=f"  {digits[:30].upper()}\n{digits[30:]} ")
    assert load_roster(settings.home / "roster.json") == {"north": north.keys.public}


def test_a_site_is_enrolled_for_the_days_that_server_toml_says(
    desk: Desk, registry: Registry, north: JoiningSite, clock: FakeClock
) -> None:
    enroll(north, registry, desk)
    (one,) = registry.enrollments()
    assert one.expires_utc is not None
    assert (one.expires_utc - clock()).days == 365
    assert registry.members() == {"north": north.keys.public}
    clock.advance(days=365)
    assert registry.members() == {}


def test_an_enrolled_site_is_not_invited_but_rotated(
    desk: Desk, registry: Registry, north: JoiningSite
) -> None:
    with pytest.raises(UsageError, match=r"not enrolled.*vitrael server invite north"):
        registry.rotate("north")
    enroll(north, registry, desk)
    with pytest.raises(UsageError, match=r"enrolled already.*sites rotate north"):
        registry.invite("north")


def test_every_act_stands_in_the_journal(
    settings: ServerSettings, desk: Desk, registry: Registry, north: JoiningSite
) -> None:
    enroll(north, registry, desk)
    desk.word(north.word("withdraw", protocol="sha256:" + "a" * 64, reason="by our board"))
    registry.rotate("north")
    registry.revoke("north", reason="stolen")
    registry.invite("south")
    lines = list(read_journal(settings.journal))
    assert [(line.event, line.to, line.origin) for line in lines] == [
        ("invite", "north", ""),
        ("join", "", "north"),
        ("approve", "north", ""),
        ("withdraw", "", "north"),
        ("rotate", "north", ""),
        ("revoke", "north", ""),
        ("invite", "south", ""),
    ]
    assert north.fingerprint in lines[1].reason
    assert (lines[3].protocol, lines[3].reason) == ("sha256:" + "a" * 64, "by our board")
    assert verify_journal(settings.journal) == []


def test_nothing_happens_when_the_journal_cannot_be_written(
    settings: ServerSettings, desk: Desk, registry: Registry, north: JoiningSite
) -> None:
    desk.join(north.join(registry.invite("north").token))
    lines = settings.journal.read_bytes()
    settings.journal.write_bytes(lines[10:])
    with pytest.raises(StorageError, match="journal is not whole"):
        registry.approve("north", fingerprint=north.fingerprint)
    assert [one.status for one in registry.enrollments()] == ["pending"]
    assert load_roster(settings.home / "roster.json") == {}
    settings.journal.write_bytes(lines)
    registry.approve("north", fingerprint=north.fingerprint)


def test_a_dry_run_checks_and_keeps_nothing(
    settings: ServerSettings, desk: Desk, registry: Registry, north: JoiningSite, clock: FakeClock
) -> None:
    desk.join(north.join(registry.invite("north").token))
    before = settings.journal.read_bytes()
    with Registry(settings, clock=clock, dry_run=True) as dry:
        assert dry.approve("north", fingerprint=north.fingerprint).status == "enrolled"
        dry.revoke("north", reason="x")
        dry.invite("south")
        with pytest.raises(AuthError):
            dry.approve("north", fingerprint="0" * 64)
    assert [one.status for one in registry.enrollments()] == ["pending"]
    assert registry.open_invitations() == []
    assert settings.journal.read_bytes() == before


def test_a_withdrawal_names_a_protocol_and_nothing_else_does(north: JoiningSite) -> None:
    for kind, protocol in (("withdraw", None), ("leave", "sha256:" + "a" * 64)):
        with pytest.raises(ValueError, match="names a protocol"):
            north.say(kind, protocol=protocol)
    assert isinstance(north.say("leave"), SiteWord)
    assert sign_enrollment(north.say("leave"), north.keys)
