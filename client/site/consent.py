"""Consent: a site's signed yes to one protocol with one roster, without which no task starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from vitrael.client.site.ingest.told import read_summary
from vitrael.client.site.journal import Entry, Journal
from vitrael.client.site.store import Store, StoredConsent
from vitrael.core.errors import ConsentError
from vitrael.core.messages import Consent, Task
from vitrael.core.study import Study
from vitrael.core.version import package_version
from vitrael.privacy.envelope import open_consent, sign_consent
from vitrael.privacy.keys import KeyPair, PublicKeys, roster_digest

DEFAULT_DAYS = 90
"""How long a consent holds unless the operator says otherwise."""

Counts = dict[Literal["patients", "scans"], int | None]
"""None stands for a count that is too small to be told."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """What a consent in the store says, and the study that was read when it was given."""

    consent: Consent
    study: Study
    envelope: bytes


def count_cohort(folder: Path) -> Counts:
    """Return how many patients and scans a cohort's summary tells; small counts are not told."""
    summary = read_summary(folder)
    return {"patients": summary.patients, "scans": summary.images}


def planned_rounds(study: Study) -> int:
    """Return how many rounds the longest stage of a study has."""
    systems = study.protocol.generator
    return max(systems.codec.training.rounds, systems.teacher.training.rounds)


def draft_consent(
    study: Study,
    *,
    site: str,
    keys: PublicKeys,
    members: Mapping[str, PublicKeys],
    cohort: Counts,
    now: datetime,
    days: float = DEFAULT_DAYS,
    max_rounds: int | None = None,
) -> Consent:
    """Return the consent that this site would sign to a study.

    ``members`` are all who take part, with their keys; ``cohort`` holds counts only. Without
    ``max_rounds`` the consent covers the rounds that the protocol names. Raises ConsentError when
    the study's roster and the members differ, or when this site is not among them.
    """
    _check_members(study, members, site=site, own=keys)
    return Consent(
        site=site,
        protocol=study.protocol.digest,
        roster=roster_digest(members),
        package_version=package_version(),
        purpose=study.protocol.purpose,
        max_rounds=planned_rounds(study) if max_rounds is None else max_rounds,
        given_utc=now.isoformat(timespec="seconds"),
        expires_utc=(now + timedelta(days=days)).isoformat(timespec="seconds"),
        cohort=cohort,
    )


def keep_consent(
    consent: Consent, study: Study, store: Store, *, keys: KeyPair, journal: Journal
) -> None:
    """Sign a consent, note it in the journal and keep it; from now on tasks under it are obeyed."""
    envelope = sign_consent(consent, keys)
    journal.append(
        Entry(
            event="consent",
            protocol=consent.protocol,
            reason=f"until {consent.expires_utc}, {consent.max_rounds} rounds",
        )
    )
    store.save_consent(
        StoredConsent(envelope, study.model_dump(mode="json")),
        protocol=consent.protocol,
        roster=consent.roster,
        given_utc=consent.given_utc,
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
    agreement = _open(found[task.roster], own=own)
    _check_covers(agreement, task, site=site, now=now)
    return agreement


def _open(stored: StoredConsent, *, own: PublicKeys) -> Agreement:
    consent = open_consent(stored.envelope, own)
    try:
        study = Study.model_validate(stored.study)
    except ValidationError as error:
        raise ConsentError(
            "the study that was consented to cannot be read any more",
            why=f"version {consent.package_version} of the package wrote it",
            fix="run `vitrael site consent STUDY` again",
        ) from error
    return Agreement(consent, study, stored.envelope)


def _check_covers(agreement: Agreement, task: Task, *, site: str, now: datetime) -> None:
    consent = agreement.consent
    said = (consent.site, consent.protocol, consent.roster, agreement.study.protocol.digest)
    if said != (site, task.protocol, task.roster, task.protocol):
        raise ConsentError(
            "the stored consent says something else than its place in the store",
            why="the store was changed by hand",
            fix="run `vitrael site consent STUDY` again",
        )
    if now >= datetime.fromisoformat(consent.expires_utc):
        raise ConsentError(
            f"the consent of site {site} has expired",
            why=f"it held until {consent.expires_utc}",
            fix="run `vitrael site consent STUDY` again",
        )
    if consent.package_version != package_version():
        raise ConsentError(
            f"site {site} consented to version {consent.package_version} of the package",
            why=f"version {package_version()} is installed",
            fix="install that version or consent again",
        )
    if task.round >= consent.max_rounds:
        raise ConsentError(
            f"round {task.round + 1} of {task.stage} is more than site {site} consented to",
            why=f"the consent covers {consent.max_rounds} rounds of a stage",
            fix="run `vitrael site consent STUDY --rounds N`",
        )


def _check_members(
    study: Study, members: Mapping[str, PublicKeys], *, site: str, own: PublicKeys
) -> None:
    if set(study.roster.sites) != set(members):
        differ = ", ".join(sorted(set(study.roster.sites) ^ set(members)))
        raise ConsentError(
            "the study's roster and the enrolled members differ",
            why=f"only one of the two names {differ}",
            fix="ask the coordinator for the roster of this study",
        )
    demand_membership(members, site=site, own=own)


def demand_membership(members: Mapping[str, PublicKeys], *, site: str, own: PublicKeys) -> None:
    """Raise ConsentError unless the roster names the site, with its own keys."""
    if members.get(site) != own:
        raise ConsentError(
            f"the roster does not hold site {site} with this site's own keys",
            why="no task could name it, and nobody would accept its signature",
            fix="correct name in site.toml, or ask the coordinator to correct the roster",
        )
