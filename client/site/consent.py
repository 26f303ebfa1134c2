"""Consent: a site's signed yes to one protocol with one roster, without which no task starts.

It also binds what it was given for: the version of the cohort, the installed software, the terms of
privacy, a number of rounds and an end. What differs from it is refused before the task starts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from vitrael.client.site.ingest.told import read_summary
from vitrael.client.site.store import Store, StoredConsent
from vitrael.core.data.manifest import MANIFEST_NAME, read_manifest
from vitrael.core.digest import Digest, digest_json
from vitrael.core.errors import ConsentError, EnvelopeError
from vitrael.core.messages import IN_VOTES, CohortTerms, Consent, PrivacyTerms, Task
from vitrael.core.protocols import ExpertsProtocol, Protocol
from vitrael.core.study import Study
from vitrael.core.version import lock_digest, package_version
from vitrael.privacy.envelope import claimed_consent, open_consent, sign_consent
from vitrael.privacy.journal import Entry, Journal
from vitrael.privacy.keys import KeyPair, PublicKeys, roster_digest

DEFAULT_DAYS: Final = 90
"""How long a consent holds unless the operator says otherwise."""

AGAIN: Final = "run `vitrael site consent STUDY` again at the site"


@dataclass(frozen=True, slots=True)
class Agreement:
    """What a consent in the store says, with the study and the keys that were read for it."""

    consent: Consent
    study: Study
    members: Mapping[str, PublicKeys]
    """Of the roster as it was then, whoever left since."""
    envelope: bytes


def describe_cohort(folder: Path) -> CohortTerms:
    """Return name, version and counts of a cohort as a consent names them; few are not told."""
    manifest = read_manifest(folder / MANIFEST_NAME)
    summary = read_summary(folder)
    return CohortTerms(
        name=folder.name,
        version=manifest.version,
        digest=manifest.digest,
        patients=summary.patients,
        scans=summary.images,
    )


def privacy_terms(protocol: Protocol) -> PrivacyTerms:
    """Return what a protocol says of privacy; an empirical one has no epsilon."""
    if isinstance(protocol, ExpertsProtocol):
        return PrivacyTerms(
            path=protocol.path,
            policy=None,
            screening=False,
            false_match_rate=None,
            votes=0,
            features=protocol.told == "features",
        )
    screening = protocol.screening
    return PrivacyTerms(
        path=protocol.path,
        policy=protocol.policy,
        screening=screening.enabled,
        false_match_rate=screening.false_match_rate,
        votes=sum(protocol.distillation.most_votes.values()) if screening.enabled else 0,
    )


def planned_rounds(study: Study) -> int:
    """Return how many rounds the longest stage of a study has."""
    return max(study.protocol.rounds(sites=len(study.roster.sites)).values())


def members_of(study: Study, roster: Mapping[str, PublicKeys]) -> dict[str, PublicKeys]:
    """Return those of a roster whom a study names, in the study's order.

    The enrolled members may be more. Raises ConsentError when the study names one who is not among
    them.
    """
    if missing := [name for name in study.roster.sites if name not in roster]:
        raise ConsentError(
            "the study names sites that are not enrolled",
            why=f"roster.json does not hold {', '.join(missing)}",
            fix="run `vitrael site fetch`, or ask the coordinator to enroll them",
        )
    return {name: roster[name] for name in study.roster.sites}


def draft_consent(
    study: Study,
    *,
    site: str,
    keys: PublicKeys,
    members: Mapping[str, PublicKeys],
    cohort: CohortTerms,
    now: datetime,
    days: float = DEFAULT_DAYS,
    max_rounds: int | None = None,
) -> Consent:
    """Return the consent that this site would sign to a study.

    Of ``members``, all who are enrolled with their keys, those count whom the study names. Without
    ``max_rounds`` the consent covers the rounds that the protocol names. Raises ConsentError when
    the study names somebody else, when this site is not among them, and when the study does not
    admit the installed version of the package.
    """
    demand_admitted(study, site=site)
    roster = members_of(study, members)
    demand_membership(roster, site=site, own=keys)
    return Consent(
        site=site,
        protocol=study.protocol.digest,
        roster=roster_digest(roster, labels=study.roster.labels),
        members={name: digest_json(member.model_dump()) for name, member in roster.items()},
        package_version=package_version(),
        lock=lock_digest(),
        cohort=cohort,
        purpose=study.protocol.purpose,
        privacy=privacy_terms(study.protocol),
        max_rounds=planned_rounds(study) if max_rounds is None else max_rounds,
        given_utc=now.isoformat(timespec="seconds"),
        expires_utc=(now + timedelta(days=days)).isoformat(timespec="seconds"),
    )


def keep_consent(
    consent: Consent,
    study: Study,
    store: Store,
    *,
    members: Mapping[str, PublicKeys],
    keys: KeyPair,
    journal: Journal,
) -> None:
    """Sign a consent, note it in the journal and keep it; from now on tasks under it are obeyed.

    Of ``members`` those whom the study names are kept with it.

    It counts from its last step alone. Who is killed before it has given none: the next command
    writes that into the journal and says it (``control.Control.settle``), and what was consented
    to before stands as it was.
    """
    envelope = sign_consent(consent, keys)
    unfinished = Entry(
        event="repaired",
        protocol=consent.protocol,
        roster=consent.roster,
        reason=f"a consent begun at {consent.given_utc} was not finished: none was given",
    )
    given = Entry(
        event="consent",
        origin=consent.site,
        protocol=consent.protocol,
        roster=consent.roster,
        reason=f"until {consent.expires_utc}, {consent.max_rounds} rounds",
    )
    with store.acting():
        owed = store.decisions.owe(unfinished)
        journal.append(given)
        store.save_consent(
            StoredConsent(
                envelope,
                study.model_dump(mode="json"),
                {name: member.model_dump() for name, member in members_of(study, members).items()},
            ),
            protocol=consent.protocol,
            roster=consent.roster,
            given_utc=consent.given_utc,
            settles=owed,
        )


def find_agreement(
    task: Task, store: Store, *, site: str, own: PublicKeys, now: datetime
) -> Agreement:
    """Return the agreement that covers a task.

    Raises ConsentError, which says what is not covered, before anything of the task is done.
    """
    found = store.find_consents(task.protocol)
    if not found:
        raise ConsentError(
            f"site {site} has given no consent to this protocol",
            why=f"the task names {task.protocol}",
            fix="read the study and run `vitrael site consent STUDY`",
        )
    if task.roster not in found:
        raise ConsentError(
            f"site {site} has consented to this protocol with another roster",
            why=f"the task names {task.roster}",
            fix="run `vitrael site consent STUDY` for the new roster",
        )
    stored = found[task.roster]
    if stored.withdrawn_utc:
        raise _withdrawn(site, stored.withdrawn_utc)
    agreement = open_agreement(stored, own=own)
    _check_covers(agreement, task, site=site)
    if reason := fault_of(agreement.consent, site=site, now=now):
        raise reason
    if task.stage not in IN_VOTES and task.round >= agreement.consent.max_rounds:
        raise ConsentError(
            f"round {task.round + 1} of {task.stage} is more than site {site} consented to",
            why=f"the consent covers {agreement.consent.max_rounds} rounds of a stage",
            fix="run `vitrael site consent STUDY --rounds N`",
        )
    return agreement


def _withdrawn(site: str, utc: str) -> ConsentError:
    return ConsentError(
        f"site {site} has taken its consent to this protocol back",
        why=f"its operator did so at {utc}",
        fix="go on without this site, or ask it to consent again",
    )


def open_agreement(stored: StoredConsent, *, own: PublicKeys) -> Agreement:
    """Return what a stored consent says.

    Raises ConsentError when this site has not signed it, with the key and in the form of today, and
    when its study cannot be read any more or the members' keys are not those that it names.
    """
    try:
        consent = open_consent(stored.envelope, own)
    except EnvelopeError as error:
        raise ConsentError(
            "the consent of this site cannot be used any more",
            why=f"another key or version of the package signed it: {error.what}",
            fix=AGAIN,
        ) from error
    try:
        study = Study.model_validate(stored.study)
        members = {
            name: PublicKeys.model_validate(stored.members.get(name)) for name in study.roster.sites
        }
    except ValidationError as error:
        raise ConsentError(
            "the study that was consented to, or its members, cannot be read any more",
            why=f"version {consent.package_version} of the package wrote it",
            fix=AGAIN,
        ) from error
    if roster_digest(members, labels=study.roster.labels) != consent.roster:
        raise ConsentError(
            "the members that were consented to are not those in the store",
            why="the store was changed by hand",
            fix=AGAIN,
        )
    return Agreement(consent, study, members, stored.envelope)


def standing_agreements(store: Store, *, own: PublicKeys) -> Iterator[Agreement]:
    """Yield the agreements that were not taken back; one that cannot be used any more is none."""
    for stored in store.list_consents():
        if not stored.withdrawn_utc:
            with contextlib.suppress(ConsentError):
                yield open_agreement(stored, own=own)


def other_consents(store: Store, consent: Consent) -> list[Consent]:
    """Return the consents to other protocols that count beside one of the dp path, else none.

    Also those that were taken back, and what was given under keys that were rotated since: it was
    given all the same.
    """
    if consent.privacy.path != "dp":
        return []
    given = [claimed_consent(stored.envelope) for stored in store.list_consents()]
    return [each for each in given if each.protocol != consent.protocol]


def fault_of(consent: Consent, *, site: str, now: datetime) -> ConsentError | None:
    """Return why a consent covers nothing at this time with this software, or None."""
    if now >= datetime.fromisoformat(consent.expires_utc):
        return ConsentError(
            f"the consent of site {site} has expired",
            why=f"it held until {consent.expires_utc}",
            fix=AGAIN,
        )
    if consent.package_version != package_version():
        return ConsentError(
            f"site {site} consented to version {consent.package_version} of the package",
            why=f"version {package_version()} is installed",
            fix="install that version or consent again",
        )
    if consent.lock != lock_digest():
        return ConsentError(
            f"site {site} consented to other versions of the installed software",
            why=f"its consent names {consent.lock} and {lock_digest()} is installed",
            fix="install the versions of deploy/constraints.txt, or consent again",
        )
    return None


def check_cohort(consent: Consent, *, name: str, digest: Digest) -> None:
    """Raise ConsentError unless the site's cohort is the one that was consented to."""
    if (name, digest) != (consent.cohort.name, consent.cohort.digest):
        raise ConsentError(
            "the cohort has changed since the consent was given",
            why=f"the consent is for version {consent.cohort.version} of one cohort, and the "
            "site now has another one for this study",
            fix=AGAIN,
        )


def _check_covers(agreement: Agreement, task: Task, *, site: str) -> None:
    consent = agreement.consent
    said = (consent.site, consent.protocol, consent.roster, agreement.study.protocol.digest)
    if said != (site, task.protocol, task.roster, task.protocol):
        raise ConsentError(
            "the stored consent says something else than its place in the store",
            why="the store was changed by hand",
            fix=AGAIN,
        )


def demand_admitted(study: Study, *, site: str) -> None:
    """Raise ConsentError unless a study admits the version of the package that is installed."""
    federation = study.protocol.federation
    if not federation.admits(package_version()):
        raise ConsentError(
            f"version {package_version()} of the package at site {site} may take no part",
            why=f'the study {study.protocol.name} admits "{federation.software}" alone '
            "(protocol.federation.software)",
            fix="install a version that it admits; several can be installed side by side",
        )


def demand_membership(members: Mapping[str, PublicKeys], *, site: str, own: PublicKeys) -> None:
    """Raise ConsentError unless the roster names the site, with its own keys."""
    if members.get(site) != own:
        raise ConsentError(
            f"the roster does not hold site {site} with this site's own keys",
            why="no task could name it, and nobody would accept its signature",
            fix="correct name in site.toml, or ask the coordinator to correct the roster",
        )
