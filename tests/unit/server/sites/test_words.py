"""A site's word is heard once and in time; only who is enrolled learns who else takes part."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

import pytest

from tests.factories.enrolling import Answers, JoiningSite, enroll
from tests.fakes.clock import FakeClock
from vitrael.core.digest import Digest
from vitrael.core.errors import AuthError, EnvelopeError
from vitrael.core.study import load_study
from vitrael.privacy.keys import load_roster
from vitrael.server.config import ServerSettings
from vitrael.server.db.engine import open_database
from vitrael.server.sites.desk import Desk
from vitrael.server.sites.offers import read_offers
from vitrael.server.sites.registry import Registry
from vitrael.server.sites.words import MOST_A_DAY
from vitrael.server.studies.standing import Standings

PROTOCOL = "sha256:" + "a" * 64


@pytest.fixture
def demo_study(root: Path) -> Path:
    return root / "deploy" / "studies" / "brain-demo.toml"


@pytest.fixture
def harbour(clock: FakeClock, settings: ServerSettings) -> JoiningSite:
    return JoiningSite("harbour", clock, settings)


def withdrawn(settings: ServerSettings, protocol: str = PROTOCOL) -> dict[str, datetime]:
    """Return what whoever runs rounds is told."""
    engine = open_database(settings.database)
    try:
        return Standings(engine).find_withdrawn(Digest(protocol))
    finally:
        engine.dispose()


def offer(settings: ServerSettings, study: Path, *, name: str = "brain-demo") -> None:
    folder = settings.studies / name
    folder.mkdir()
    (folder / "study.toml").write_bytes(study.read_bytes())


def test_an_enrolled_site_learns_members_and_offers(
    settings: ServerSettings,
    registry: Registry,
    answers: Answers,
    north: JoiningSite,
    south: JoiningSite,
    harbour: JoiningSite,
    demo_study: Path,
) -> None:
    for site in (north, harbour, south):
        enroll(site, registry, answers.desk)
    offer(settings, demo_study)
    word = north.say()
    standing = answers.word(north.word(nonce=word.nonce))
    assert (standing.status, standing.nonce) == ("enrolled", word.nonce)
    assert standing.expires_utc == "2032-04-30T12:00:00+00:00"
    assert standing.members == {site.name: site.keys.public for site in (harbour, north, south)}
    assert standing.members == load_roster(settings.home / "roster.json")
    assert standing.offers["brain-demo"].study == demo_study.read_text()
    assert standing.offers["brain-demo"].protocol == load_study(demo_study).protocol.digest
    # The control: the study's roster does not name this one.
    assert answers.word(south.word()).offers == {}


def test_a_study_that_cannot_be_read_keeps_no_other_back(
    settings: ServerSettings, demo_study: Path, caplog: pytest.LogCaptureFixture
) -> None:
    offer(settings, demo_study)
    for name, text in (("bad", "[protocol"), ("Odd Name", "x"), ("wide", "#" * 300_000)):
        (settings.studies / name).mkdir()
        (settings.studies / name / "study.toml").write_text(text)
    assert list(read_offers(settings.studies, site="north")) == ["brain-demo"]
    assert "study bad is not offered" in caplog.text
    assert "study wide is not offered: it is too large" in caplog.text


def test_a_full_set_of_offers_can_be_read(
    settings: ServerSettings,
    answers: Answers,
    registry: Registry,
    north: JoiningSite,
    demo_study: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    enroll(north, registry, answers.desk)
    text = demo_study.read_text()
    text += "\n#" + '"' * (262_000 - len(text.encode()))  # in the answer each takes two bytes
    for number in range(20):
        (settings.studies / f"s-{number}").mkdir()
        (settings.studies / f"s-{number}" / "study.toml").write_text(text)
    standing = answers.word(north.word())
    assert 0 < len(standing.offers) < 20
    assert "together they are too large" in caplog.text


def test_an_unknown_site_gets_nothing(
    answers: Answers, registry: Registry, north: JoiningSite, south: JoiningSite
) -> None:
    enroll(south, registry, answers.desk)
    with pytest.raises(AuthError, match=r"site north is unknown here.*invitation"):
        answers.word(north.word())


def test_a_site_cannot_speak_for_another(
    answers: Answers, registry: Registry, north: JoiningSite, south: JoiningSite
) -> None:
    enroll(north, registry, answers.desk)
    enroll(south, registry, answers.desk)
    with pytest.raises(EnvelopeError, match="signature does not hold"):
        answers.word(south.word(site="north"))


@pytest.mark.parametrize("waits", [False, True])
def test_a_revoked_site_gets_nothing(
    settings: ServerSettings,
    answers: Answers,
    registry: Registry,
    north: JoiningSite,
    south: JoiningSite,
    demo_study: Path,
    *,
    waits: bool,
) -> None:
    offer(settings, demo_study)
    enroll(south, registry, answers.desk)
    token = registry.invite("north").token
    answers.join(north.join(token))
    if not waits:
        registry.approve("north", fingerprint=north.fingerprint)
    registry.revoke("north", reason="stolen server")
    standing = answers.word(north.word())
    assert (standing.status, standing.members, standing.offers) == ("revoked", {}, {})
    assert load_roster(settings.home / "roster.json") == {"south": south.keys.public}
    assert answers.join(north.join(token)).status == "revoked"  # asking again changes nothing
    with pytest.raises(AuthError, match="brought before"):  # nor does a new invitation: old keys
        answers.join(north.join(registry.invite("north").token))


def test_a_revoked_invitation_is_void(
    registry: Registry, answers: Answers, north: JoiningSite
) -> None:
    token = registry.invite("north").token
    registry.revoke("north", reason="sent to the wrong address")
    with pytest.raises(AuthError, match="token is void"):
        answers.join(north.join(token))


def test_an_expired_enrollment_is_told(
    answers: Answers, registry: Registry, north: JoiningSite, clock: FakeClock
) -> None:
    enroll(north, registry, answers.desk)
    clock.advance(days=364, hours=23)
    assert answers.word(north.word()).members
    clock.advance(hours=1)
    with pytest.raises(AuthError, match=r"enrollment of site north has expired.*sites rotate"):
        answers.word(north.word())
    # To take back a consent is never too late.
    standing = answers.word(north.word("withdraw", protocol=PROTOCOL))
    assert (standing.members, standing.offers) == ({}, {})


@pytest.mark.parametrize("minutes", [-10, -6, 6, 10])
def test_a_word_of_another_time_is_refused_with_both_clocks(
    answers: Answers, registry: Registry, north: JoiningSite, clock: FakeClock, minutes: int
) -> None:
    enroll(north, registry, answers.desk)
    clock.advance(minutes=minutes)
    data = north.word()
    clock.advance(minutes=-minutes)
    told = r"site north.*by the site's clock, and by the coordinator's it is 2031-05-01 12:00:00"
    with pytest.raises(AuthError, match=rf"{told} UTC: {abs(minutes)} minutes"):
        answers.word(data)


def test_a_word_within_five_minutes_is_heard(
    answers: Answers, registry: Registry, north: JoiningSite, clock: FakeClock
) -> None:
    enroll(north, registry, answers.desk)
    data = north.word()
    clock.advance(minutes=5)
    assert answers.word(data).status == "enrolled"


def test_a_word_is_heard_once(
    answers: Answers, registry: Registry, north: JoiningSite, clock: FakeClock
) -> None:
    enroll(north, registry, answers.desk)
    data = north.word()
    answers.word(data)
    for _ in range(6):  # after that it is too old
        with pytest.raises(AuthError, match=r"heard before|another|not of this moment"):
            answers.word(data)
        clock.advance(minutes=2)
        answers.word(north.word())


def test_a_withdrawal_is_kept_for_good(
    settings: ServerSettings,
    answers: Answers,
    registry: Registry,
    north: JoiningSite,
    clock: FakeClock,
) -> None:
    enroll(north, registry, answers.desk)
    answers.word(north.word("withdraw", protocol=PROTOCOL, reason="asked by our board"))
    clock.advance(days=30)
    answers.word(north.word())
    (said_utc,) = withdrawn(settings).values()
    assert (clock() - said_utc).days == 30
    assert withdrawn(settings, "sha256:" + "b" * 64) == {}  # the control: another study
    assert answers.word(north.word()).status == "enrolled"  # other studies go on


def test_withdrawals_of_a_site_do_not_grow_without_end(
    settings: ServerSettings,
    answers: Answers,
    registry: Registry,
    north: JoiningSite,
    south: JoiningSite,
    clock: FakeClock,
) -> None:
    for site in (north, south):
        enroll(site, registry, answers.desk)
    for number in range(MOST_A_DAY):
        answers.word(north.word("withdraw", protocol=f"sha256:{number:064x}"))
    lines = len(settings.journal.read_bytes().splitlines())
    with pytest.raises(AuthError, match=r"said this too often.*tomorrow"):
        answers.word(north.word("withdraw", protocol=PROTOCOL))
    assert len(settings.journal.read_bytes().splitlines()) == lines
    # Questions, other sites, another day and leaving are as before.
    assert answers.word(north.word()).status == "enrolled"
    answers.word(south.word("withdraw", protocol=PROTOCOL))
    clock.advance(days=1)
    answers.word(north.word("withdraw", protocol=PROTOCOL))
    assert answers.word(north.word("leave")).status == "left"


def test_keys_that_nobody_approved_withdraw_nothing(
    settings: ServerSettings, answers: Answers, registry: Registry, north: JoiningSite
) -> None:
    answers.join(north.join(registry.invite("north").token))
    with pytest.raises(AuthError, match="not approved yet"):
        answers.word(north.word("withdraw", protocol=PROTOCOL))
    assert withdrawn(settings) == {}


def test_a_site_that_leaves_is_out(
    settings: ServerSettings, answers: Answers, registry: Registry, north: JoiningSite
) -> None:
    enroll(north, registry, answers.desk)
    assert answers.word(north.word("leave", reason="our study ended")).status == "left"
    assert load_roster(settings.home / "roster.json") == {}
    standing = answers.word(north.word())
    assert (standing.status, standing.members) == ("left", {})
    assert answers.word(north.word("leave")).status == "left"
    assert registry.enrollments()[0].reason == "our study ended"


def test_new_keys_take_over_when_they_are_approved(
    settings: ServerSettings,
    answers: Answers,
    registry: Registry,
    north: JoiningSite,
    clock: FakeClock,
) -> None:
    enroll(north, registry, answers.desk)
    renewed = north.with_new_keys()
    assert answers.join(renewed.join(registry.rotate("north").token)).status == "pending"
    assert answers.word(north.word()).status == "enrolled"
    assert answers.word(renewed.word()).members == {}
    assert load_roster(settings.home / "roster.json") == {"north": north.keys.public}
    registry.approve("north", fingerprint=renewed.fingerprint)
    assert load_roster(settings.home / "roster.json") == {"north": renewed.keys.public}
    assert answers.word(renewed.word()).status == "enrolled"
    with pytest.raises(AuthError, match=re.escape("these keys of site north do not hold any more")):
        answers.word(north.word())


def test_approval_voids_what_is_still_open(
    answers: Answers, registry: Registry, north: JoiningSite, clock: FakeClock
) -> None:
    answers.join(north.join(registry.invite("north").token))
    lost = registry.invite("north").token
    registry.approve("north", fingerprint=north.fingerprint)
    with pytest.raises(AuthError, match="token is void"):
        answers.join(north.with_new_keys().join(lost))


def test_keys_that_nobody_approved_cannot_make_a_site_leave(
    answers: Answers, registry: Registry, north: JoiningSite, clock: FakeClock
) -> None:
    enroll(north, registry, answers.desk)
    thief = north.with_new_keys()
    answers.join(thief.join(registry.rotate("north").token))
    assert answers.word(thief.word("leave")).status == "left"
    assert answers.word(north.word()).status == "enrolled"


def test_a_site_that_left_comes_back_with_new_keys(
    answers: Answers, registry: Registry, desk: Desk, north: JoiningSite, clock: FakeClock
) -> None:
    enroll(north, registry, desk)
    answers.word(north.word("leave"))
    again = north.with_new_keys()
    enroll(again, registry, desk)
    assert registry.members() == {"north": again.keys.public}
