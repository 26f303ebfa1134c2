"""How things stand is believed when it is signed and fresh, and written where commands look."""

from __future__ import annotations

import pytest

from tests.factories.site_study import STUDY
from tests.factories.tls import Response
from tests.unit.client.site.enrollment.conftest import FakeCoordinator, Site, hide, no_passphrase
from vitrael.client.site.enrollment.fetch import Fetched, fetch
from vitrael.client.site.enrollment.standing import read_last_standing
from vitrael.client.site.enrollment.words import send_word
from vitrael.core.digest import Digest
from vitrael.core.errors import AuthError, ConfigError, NetworkError
from vitrael.core.study import load_study
from vitrael.privacy.enrollment import Offer
from vitrael.privacy.journal import read_journal
from vitrael.privacy.keys import KeyPair, load_roster
from vitrael.privacy.node_keys import load_node_key


def ask(site: Site) -> Fetched:
    return fetch(
        site.settings,
        ask=no_passphrase,
        clock=site.clock,
        tell=site.told.append,
        patience=site.patience,
    )


@pytest.fixture
def enrolled(site: Site, coordinator: FakeCoordinator) -> Site:
    site.join()
    coordinator.approve(others=("harbour", "valley"))
    return site


def test_site_waits_until_it_is_approved(site: Site, coordinator: FakeCoordinator) -> None:
    asked = site.join()
    found = ask(site)
    assert (found.standing.status, found.fingerprint) == ("pending", asked.fingerprint)
    assert not site.settings.roster.exists()
    coordinator.approve()
    assert ask(site).standing.status == "enrolled"
    assert set(load_roster(site.settings.roster)) == {"north"}


def test_roster_and_studies_are_written(enrolled: Site, coordinator: FakeCoordinator) -> None:
    coordinator.offer(STUDY)
    found = ask(enrolled)
    assert load_roster(enrolled.settings.roster) == coordinator.approved
    path = enrolled.home / "studies" / "site-test.toml"
    assert path.read_text() == STUDY
    assert load_study(path).protocol.digest == coordinator.offers["site-test"].protocol
    assert found.changes.members_new == ("harbour", "north", "valley")
    assert found.changes.studies_new == ("site-test",)
    last = read_last_standing(enrolled.home)
    assert last is not None
    assert last.status == "enrolled"
    assert last.expires_utc == found.standing.expires_utc
    again = ask(enrolled).changes
    assert not again.roster
    assert again.studies_new == again.studies_changed == again.studies_gone == ()


def test_what_changed_is_told(enrolled: Site, coordinator: FakeCoordinator) -> None:
    coordinator.offer(STUDY)
    coordinator.offer(STUDY.replace("site-test", "other"), name="other")
    ask(enrolled)
    coordinator.offer(STUDY.replace("seed = 1", "seed = 2"))
    del coordinator.offers["other"]
    del coordinator.approved["valley"]
    coordinator.approved["harbour"] = KeyPair.create().public
    coordinator.approved["hill"] = KeyPair.create().public
    changes = ask(enrolled).changes
    assert changes.studies_changed == ("site-test",)
    assert changes.studies_gone == ("other",)
    assert not (enrolled.home / "studies" / "other.toml").exists()
    assert changes.members_new == ("hill",)
    assert changes.members_gone == ("valley",)
    assert changes.members_rekeyed == ("harbour",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (STUDY.replace("seed = 1", "seed = 3"), "another one than the coordinator says"),
        (STUDY.replace('"north", ', '"hill", '), "not for site north"),
        ("seed = ", "is not TOML"),
    ],
)
def test_offer_that_is_not_what_it_says_is_not_taken(
    enrolled: Site, coordinator: FakeCoordinator, text: str, words: str
) -> None:
    coordinator.offer(STUDY)
    ask(enrolled)
    digest = coordinator.offers["site-test"].protocol
    coordinator.offers["site-test"] = Offer(study=text, protocol=digest)
    coordinator.offer(STUDY.replace("site-test", "other"), name="other")
    found = ask(enrolled)
    assert words in found.changes.refused["site-test"]
    assert (enrolled.home / "studies" / "site-test.toml").read_text() == STUDY
    assert found.changes.studies_new == ("other",)  # the others come for all that
    del coordinator.offers["site-test"]
    assert ask(enrolled).changes.studies_gone == ("site-test",)


@pytest.mark.parametrize("status", ["revoked", "left"])
def test_site_that_takes_part_no_more_is_told_so(
    enrolled: Site, coordinator: FakeCoordinator, status: str
) -> None:
    ask(enrolled)
    roster = enrolled.settings.roster.read_bytes()
    coordinator.status = status
    coordinator.changes = {"members": {}, "offers": {}}
    with pytest.raises(AuthError, match=r"revoked|left") as caught:
        ask(enrolled)
    assert caught.value.exit_code == 4
    assert enrolled.settings.roster.read_bytes() == roster
    last = read_last_standing(enrolled.home)
    assert last is not None
    assert last.status == status


def test_roster_with_another_key_of_this_site_changes_nothing(
    enrolled: Site, coordinator: FakeCoordinator
) -> None:
    ask(enrolled)
    roster = enrolled.settings.roster.read_bytes()
    members = {**coordinator.approved, "north": KeyPair.create().public}
    coordinator.changes = {"members": members}
    with pytest.raises(AuthError, match="with its own keys: nothing was changed"):
        ask(enrolled)
    assert enrolled.settings.roster.read_bytes() == roster


def test_answer_that_was_given_before_is_refused(
    enrolled: Site, coordinator: FakeCoordinator
) -> None:
    ask(enrolled)
    old = coordinator.words[-1].nonce
    coordinator.changes = {"nonce": old}
    with pytest.raises(AuthError, match="another question"):
        ask(enrolled)


def test_word_is_never_said_twice(enrolled: Site, coordinator: FakeCoordinator) -> None:
    coordinator.once = [Response(502), Response(504)]
    assert ask(enrolled).standing.status == "enrolled"
    nonces = {word.nonce for word in coordinator.words}
    assert len(nonces) == len(coordinator.words) == 3
    lines = list(read_journal(enrolled.settings.journal))
    assert [line.event for line in lines] == ["joined", "sent", "sent", "sent"]
    assert {line.reason for line in lines[1:]} == {"word: standing"}


def test_word_of_the_operator_reaches_the_coordinator(
    enrolled: Site, coordinator: FakeCoordinator
) -> None:
    protocol = Digest("sha256:" + "ab" * 32)
    standing = send_word(
        enrolled.settings,
        "withdraw",
        protocol=protocol,
        reason="the board asks for it",
        clock=enrolled.clock,
    )
    assert standing.status == "enrolled"
    (word,) = coordinator.words
    assert (word.kind, word.protocol, word.reason) == (
        "withdraw",
        protocol,
        "the board asks for it",
    )
    line = list(read_journal(enrolled.settings.journal))[-1]
    assert line.reason == "word: withdraw: the board asks for it"


def test_word_of_the_operator_is_one_line(enrolled: Site, coordinator: FakeCoordinator) -> None:
    send_word(enrolled.settings, "leave", reason="a\nb" + "x" * 600, clock=enrolled.clock)
    (word,) = coordinator.words
    assert word.reason == "a b" + "x" * 497


def test_coordinator_that_is_away_is_a_matter_of_the_network(
    enrolled: Site, coordinator: FakeCoordinator
) -> None:
    coordinator.refusal = Response(503)
    with pytest.raises(NetworkError, match="not ready: it answered 503"):
        ask(enrolled)
    assert sum(path.endswith("word") for path in coordinator.asked) == 3
    assert len(enrolled.told) == 1  # one sentence, not one for each attempt


def test_node_key_of_another_user_is_no_hindrance(
    enrolled: Site, coordinator: FakeCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With users of their own for steward and SuperNode the private half cannot be read."""
    asked = enrolled.join()
    key = enrolled.home / "keys" / "node"
    hide(monkeypatch, key)
    with pytest.raises(AuthError, match=r"keys/node cannot be read: Permission denied"):
        load_node_key(key)
    assert ask(enrolled).fingerprint == asked.fingerprint
    assert key.exists()


def test_lost_node_key_is_not_made_anew(enrolled: Site) -> None:
    key = enrolled.home / "keys" / "node"
    key.unlink()
    ask(enrolled)
    assert not key.exists()


def test_site_that_has_lost_its_node_key_gets_roster_and_studies(
    enrolled: Site, coordinator: FakeCoordinator
) -> None:
    coordinator.offer(STUDY)
    key = enrolled.home / "keys" / "node.pub"
    key.unlink()
    found = ask(enrolled)
    assert (found.fingerprint, found.changes.studies_new) == ("", ("site-test",))
    assert load_roster(enrolled.settings.roster) == coordinator.approved
    assert not key.exists()


def test_site_that_waits_needs_its_node_key(site: Site) -> None:
    site.join()
    (site.home / "keys" / "node.pub").unlink()
    with pytest.raises(AuthError, match=r"keys/node\.pub cannot be read"):
        ask(site)


def test_home_that_has_not_joined_is_told_so(site: Site, coordinator: FakeCoordinator) -> None:
    site.home.mkdir()
    (site.home / "site.toml").write_text('name = "north"')
    with pytest.raises(ConfigError, match="vitrael site join FILE"):
        ask(site)


def test_damaged_last_standing_says_its_remedy(enrolled: Site) -> None:
    ask(enrolled)
    (enrolled.home / "standing.json").write_text("{")
    with pytest.raises(AuthError, match=r"remove it and run `vitrael site fetch`"):
        ask(enrolled)
    (enrolled.home / "standing.json").unlink()
    ask(enrolled)
