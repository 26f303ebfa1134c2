"""A consent covers what it names and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.factories.cohort import write_cohort
from vitrael.client.site.consent import check_cohort, describe_cohort, find_agreement
from vitrael.client.site.ingest.summary import summarize
from vitrael.client.site.ingest.told import TOLD_NAME, read_summary, save_summary
from vitrael.client.site.permits import CohortIdentity
from vitrael.client.site.store import Store
from vitrael.core.data.manifest import MANIFEST_NAME, Manifest, read_manifest
from vitrael.core.digest import Digest, digest_bytes, digest_json
from vitrael.core.errors import ConsentError
from vitrael.core.messages import Reply
from vitrael.core.study import Roster
from vitrael.core.version import lock_digest
from vitrael.privacy.keys import KeyPair, PublicKeys

if TYPE_CHECKING:
    from tests.unit.client.site.conftest import Home


DIGEST = digest_bytes(b"another version")


@pytest.fixture
def store(home: Home) -> Iterator[Store]:
    opened = Store(home.settings.store, updates=home.settings.updates)
    yield opened
    opened.close()


def look(home: Home, store: Store, *, own: PublicKeys | None = None, **changes: object) -> str:
    agreement = find_agreement(
        home.task(**changes),
        store,
        site="north",
        own=own or home.keys.public,
        now=home.clock(),
    )
    assert agreement.study.protocol == home.study.protocol
    return agreement.consent.purpose


def test_given_consent_covers_its_tasks(home: Home, store: Store) -> None:
    given = home.consent()
    assert given.max_rounds == home.study.protocol.generator.codec.training.rounds
    assert look(home, store) == home.study.protocol.purpose
    assert [line.event for line in home.lines()] == ["consent"]


def test_counts_are_all_that_is_told_of_the_cohort(home: Home) -> None:
    terms = describe_cohort(home.settings.cohorts / "main")
    manifest = read_manifest(home.settings.cohorts / "main" / MANIFEST_NAME)
    assert terms.model_dump() == {
        "name": "main",
        "version": 1,
        "digest": manifest.digest,
        "patients": 12,
        "scans": None,
    }


def consent_reply(home: Home) -> Reply:
    reply, _ = home.open(home.steward().answer(home.parcel(home.task({}, stage="consent"), {})))
    return reply


def test_summary_that_leaves_with_a_consent_is_noted_as_told(home: Home) -> None:
    home.consent()
    noted = home.settings.cohorts / TOLD_NAME
    assert not noted.exists()
    reply = consent_reply(home)
    summary = read_summary(home.settings.cohorts / "main")
    assert reply.body["summary"] == summary.model_dump(mode="json")
    told = json.loads(noted.read_bytes())["told"]
    assert [(each["cohort"], each["summary"]) for each in told] == [("main", reply.body["summary"])]


def test_consent_whose_counts_are_no_longer_those_of_the_cohort_does_not_leave(home: Home) -> None:
    home.consent()
    folder = home.settings.cohorts / "main"
    manifest = read_manifest(folder / MANIFEST_NAME)
    first = manifest.items[0].subject
    items = tuple(each for each in manifest.items if each.subject != first)
    fewer = Manifest(recipe=manifest.recipe, items=items)
    save_summary(summarize(fewer), fewer, folder)
    reply = consent_reply(home)
    assert (reply.status, reply.body) == ("refused", {})
    assert "changed since the consent" in reply.reason
    assert not (home.settings.cohorts / TOLD_NAME).exists()


def test_few_patients_are_not_counted(home: Home) -> None:
    folder = home.path / "cohorts" / "few"
    manifest = write_cohort(folder, patients=10, visits=lambda _: 2)
    save_summary(summarize(manifest), manifest, folder)
    terms = describe_cohort(folder)
    assert (terms.patients, terms.scans) == (None, None)


def test_no_consent_is_refused(home: Home, store: Store) -> None:
    with pytest.raises(ConsentError, match="no consent to this protocol"):
        look(home, store)


def test_wrong_protocol_is_refused(home: Home, store: Store) -> None:
    home.consent()
    with pytest.raises(ConsentError, match="no consent to this protocol"):
        look(home, store, protocol=digest_bytes(b"a changed study"))


def test_other_roster_is_refused(home: Home, store: Store) -> None:
    home.consent()
    with pytest.raises(ConsentError, match="another roster"):
        look(home, store, roster=digest_bytes(b"one site more"))


def test_expired_consent_is_refused(home: Home, store: Store) -> None:
    home.consent(days=1)
    home.clock.advance(hours=23)
    look(home, store)
    home.clock.advance(hours=1)
    with pytest.raises(ConsentError, match="has expired"):
        look(home, store)


def test_one_round_too_many_is_refused(home: Home, store: Store) -> None:
    home.consent(max_rounds=2)
    look(home, store, round=1)
    with pytest.raises(ConsentError, match="round 3 of codec is more"):
        look(home, store, round=2)


def test_other_package_version_is_refused(
    home: Home, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.consent()
    monkeypatch.setattr("vitrael.client.site.consent.package_version", lambda: "999")
    with pytest.raises(ConsentError, match="version 999 is installed"):
        look(home, store)


def test_version_that_the_study_does_not_admit_is_not_signed_for(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = home.study.protocol.federation.model_copy(update={"software": "<2"})
    protocol = home.study.protocol.model_copy(update={"federation": federation})
    study = home.study.model_copy(update={"protocol": protocol})
    home.consent(study)  # the control
    monkeypatch.setattr("vitrael.client.site.consent.package_version", lambda: "2.1")
    with pytest.raises(ConsentError, match=r'version 2\.1 .* admits "<2" alone') as caught:
        home.consent(study)
    assert caught.value.exit_code == 4


def test_other_lock_is_refused(home: Home, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    given = home.consent()
    assert given.lock == lock_digest()
    other = digest_bytes(b"one package newer")
    monkeypatch.setattr("vitrael.client.site.consent.lock_digest", lambda: other)
    with pytest.raises(ConsentError, match="other versions of the installed software"):
        look(home, store)


def test_consent_that_was_taken_back_is_refused_and_may_be_given_again(
    home: Home, store: Store
) -> None:
    home.consent()
    look(home, store)
    home.control().stop(home.study.protocol.digest)
    with pytest.raises(ConsentError, match="has taken its consent to this protocol back"):
        look(home, store)
    home.consent()
    look(home, store)


def test_consent_says_who_takes_part_and_what_it_means_for_privacy(home: Home) -> None:
    given = home.consent()
    assert set(given.members) == {*home.study.roster.sites}
    assert given.members["valley"] == digest_json(home.members["valley"].public.model_dump())
    assert given.privacy.model_dump() == {
        "path": "empirical",
        "policy": "rehearsal",
        "screening": True,
        "false_match_rate": 0.05,
        "votes": 36,
        "epsilon": None,
    }


def test_consent_that_another_key_signed_is_refused(home: Home, store: Store) -> None:
    home.consent()
    with pytest.raises(ConsentError, match=r"signature does not hold.*consent STUDY` again"):
        look(home, store, own=KeyPair.create().public)


def test_study_that_cannot_be_read_any_more_is_refused(
    home: Home, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.consent()
    found = store.find_consents(home.study.protocol.digest)
    other = {roster: replace(stored, study={}) for roster, stored in found.items()}
    monkeypatch.setattr(Store, "find_consents", lambda *_: other)
    with pytest.raises(ConsentError, match="cannot be read any more"):
        look(home, store)


def test_later_consent_takes_the_place_of_the_earlier(home: Home, store: Store) -> None:
    home.consent(days=1)
    home.clock.advance(days=2)
    later = home.consent(days=1)
    own, now = home.keys.public, home.clock()
    agreement = find_agreement(home.task(), store, site="north", own=own, now=now)
    assert agreement.consent == later


def test_site_that_is_not_enrolled_is_not_signed_for(home: Home) -> None:
    more = Roster(sites=("north", "harbour", "valley", "hill"))
    with pytest.raises(ConsentError, match=r"roster\.json does not hold hill"):
        home.consent(home.study.model_copy(update={"roster": more}))


def test_enrolled_sites_that_the_study_does_not_name_do_not_count(home: Home) -> None:
    named = home.consent().roster
    home.members["hill"] = KeyPair.create()
    assert home.consent().roster == named
    study = home.study.model_copy(update={"roster": Roster(sites=("north", "harbour"))})
    assert home.consent(study).roster != named


def test_consent_holds_for_the_cohort_that_it_names_alone(home: Home) -> None:
    consent, data = home.consent(), home.study.protocol.data
    name, digest = CohortIdentity(home.settings).of(data)
    check_cohort(consent, name=name, digest=digest)
    for other in ({"name": "other", "digest": digest}, {"name": name, "digest": DIGEST}):
        with pytest.raises(ConsentError, match="changed since the consent"):
            check_cohort(consent, name=other["name"], digest=Digest(other["digest"]))


def test_roster_with_other_keys_for_this_site_is_not_signed(home: Home) -> None:
    home.members["north"] = KeyPair.create()
    with pytest.raises(ConsentError, match="own keys"):
        home.consent()
