"""The list says of each site how it stands, for how long, and when it was seen."""

from __future__ import annotations

from typing import Any

from tests.factories.enrolling import JoiningSite, enroll
from tests.fakes.clock import FakeClock
from vitrael.server.config import ServerSettings
from vitrael.server.sites.desk import Desk
from vitrael.server.sites.listing import list_sites, show_sites
from vitrael.server.sites.registry import Registry


def row(settings: ServerSettings, clock: FakeClock, site: str = "north") -> dict[str, Any]:
    sites = list_sites(settings, now=clock())["sites"]
    return next(dict(one) for one in sites if one["site"] == site)


def test_a_site_goes_through_its_states(
    settings: ServerSettings, registry: Registry, desk: Desk, north: JoiningSite, clock: FakeClock
) -> None:
    token = registry.invite("north").token
    assert row(settings, clock)["status"] == "invited"
    assert row(settings, clock)["invited_until_utc"] == "2031-05-02T12:00:00+00:00"
    desk.join(north.join(token))
    waiting = row(settings, clock)
    assert (waiting["status"], waiting["fingerprint"]) == ("pending", north.fingerprint[:9])
    registry.approve("north", fingerprint=north.fingerprint)
    clock.advance(days=2)
    enrolled = row(settings, clock)
    assert (enrolled["status"], enrolled["days_left"]) == ("enrolled", 363)
    assert enrolled["seen_utc"] == "2031-05-01T12:00:00+00:00"
    clock.advance(days=400)
    assert (row(settings, clock)["status"], row(settings, clock)["days_left"]) == ("expired", -37)
    registry.revoke("north", reason="no longer needed")
    revoked = row(settings, clock)
    assert (revoked["status"], revoked["days_left"]) == ("revoked", None)
    assert revoked["reason"] == "no longer needed"


def test_no_list_shows_enough_to_approve_by(
    settings: ServerSettings, registry: Registry, desk: Desk, north: JoiningSite, clock: FakeClock
) -> None:
    desk.join(north.join(registry.invite("north").token))
    document = list_sites(settings, now=clock())
    for text in (str(document), show_sites(document)):
        assert north.fingerprint[:9] in text
        assert north.fingerprint[:14] not in text


def test_who_is_enrolled_is_shown_also_when_the_coordinator_s_keys_are_lost(
    settings: ServerSettings, registry: Registry, desk: Desk, north: JoiningSite, clock: FakeClock
) -> None:
    enroll(north, registry, desk)
    assert row(settings, clock)["fingerprint"] == north.fingerprint[:9]  # the control
    settings.keys.rename(settings.home / "lost")
    assert (row(settings, clock)["status"], row(settings, clock)["fingerprint"]) == (
        "enrolled",
        None,
    )
    assert "north  enrolled  -" in show_sites(list_sites(settings, now=clock()))


def test_new_keys_are_shown_beside_the_old(
    settings: ServerSettings, registry: Registry, desk: Desk, north: JoiningSite, clock: FakeClock
) -> None:
    enroll(north, registry, desk)
    token = registry.rotate("north").token
    assert row(settings, clock)["new_keys"] == "invited"
    assert "new keys are invited" in show_sites(list_sites(settings, now=clock()))
    renewed = north.with_new_keys()
    desk.join(renewed.join(token))
    both = row(settings, clock)
    assert (both["status"], both["new_keys"]) == ("enrolled", "pending")
    assert (both["fingerprint"], both["new_fingerprint"]) == (
        north.fingerprint[:9],
        renewed.fingerprint[:9],
    )
    assert "wait for approval" in show_sites(list_sites(settings, now=clock()))


def test_an_invitation_that_ran_out_is_not_shown(
    settings: ServerSettings, registry: Registry, clock: FakeClock
) -> None:
    registry.invite("north")
    clock.advance(hours=24)
    assert list_sites(settings, now=clock())["sites"] == []
    assert "no invitation is open" in show_sites(list_sites(settings, now=clock()))


def test_a_new_invitation_does_not_hide_what_was_before(
    settings: ServerSettings, registry: Registry, desk: Desk, north: JoiningSite, clock: FakeClock
) -> None:
    enroll(north, registry, desk)
    registry.revoke("north", reason="stolen\x1b[2K server")
    registry.invite("north")
    registry.invite("south")
    assert row(settings, clock)["before"] == "revoked"
    assert row(settings, clock, "south")["before"] is None
    lines = show_sites(list_sites(settings, now=clock())).splitlines()
    assert "revoked before" in lines[1]
    assert "before" not in lines[2]
    registry.revoke("north", reason="no \x1b[2K reason")
    assert "stolen [2K server" in show_sites(list_sites(settings, now=clock()))


def test_the_table_warns_of_what_ends_soon(
    settings: ServerSettings, registry: Registry, desk: Desk, north: JoiningSite, clock: FakeClock
) -> None:
    enroll(north, registry, desk)
    assert "rotate soon" not in show_sites(list_sites(settings, now=clock()))
    clock.advance(days=340)
    text = show_sites(list_sites(settings, now=clock()))
    assert "rotate soon" in text
    assert "certificate: 485 days left, of the coordinator's authority" in text
    assert "authority:   3310 days left" in text


def test_a_certificate_that_cannot_be_read_is_told(
    settings: ServerSettings, clock: FakeClock
) -> None:
    (settings.tls / "server.pem").unlink()
    document = list_sites(settings, now=clock())
    assert "server.pem cannot be used" in document["certificate"]["error"]
    assert "server.pem cannot be used" in show_sites(document)
