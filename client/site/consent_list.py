"""All consents of a site as its operator should see them: state, days, rounds and bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from vitrael.client.site.consent import Agreement, check_cohort, fault_of, open_agreement
from vitrael.client.site.departures import Departures
from vitrael.client.site.permits import CohortIdentity
from vitrael.client.site.settings import SiteSettings
from vitrael.client.site.store import Store, StoredConsent
from vitrael.core.digest import Digest
from vitrael.core.errors import CohortError, ConsentError, UsageError
from vitrael.privacy.keys import PublicKeys

State = Literal["given", "withdrawn", "expired", "other software", "other cohort"]

_DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class ConsentFacts:
    """One consent, what became of it, and what was done under it."""

    study: str
    version: int
    protocol: Digest
    roster: Digest
    state: State
    why: str
    """One sentence unless the consent stands."""
    given_utc: str
    expires_utc: str
    days_left: float
    max_rounds: int
    sent_bytes: int
    """How many bytes have left the site for the protocol."""
    rounds_answered: dict[str, int] = field(default_factory=dict)
    """Stage -> how many of its rounds were finished."""


def list_consents(
    settings: SiteSettings, store: Store, *, own: PublicKeys, now: datetime
) -> list[ConsentFacts]:
    """Return the facts of every consent that this site has signed, the oldest first.

    One that cannot be read any more covers nothing and is left out. Raises StorageError.
    """
    cohorts, departures = CohortIdentity(settings), Departures(settings.journal)
    listed = []
    for stored in store.list_consents():
        try:
            agreement = open_agreement(stored, own=own)
        except ConsentError:
            continue
        consent, protocol = agreement.consent, agreement.study.protocol
        state, why = _judge(agreement, stored, cohorts, site=settings.name, now=now)
        expires = datetime.fromisoformat(consent.expires_utc)
        listed.append(
            ConsentFacts(
                study=protocol.name,
                version=protocol.version,
                protocol=consent.protocol,
                roster=consent.roster,
                state=state,
                why=why,
                given_utc=consent.given_utc,
                expires_utc=consent.expires_utc,
                days_left=round((expires - now).total_seconds() / _DAY_S, 2),
                max_rounds=consent.max_rounds,
                sent_bytes=departures.total(consent.protocol),
                rounds_answered=store.rounds_answered(consent.protocol, consent.roster),
            )
        )
    return listed


def find_protocol(store: Store, study: str) -> Digest:
    """Return the protocol that was consented to under a name, ``NAME@VERSION`` or a digest.

    No key is needed, and it does not matter which keys signed the consent. Raises UsageError when
    there is none, and when several versions have the name.
    """
    fitting = {
        digest
        for digest, (name, version) in store.list_studies().items()
        if study in {name, f"{name}@{version}", digest}
    }
    if len(fitting) == 1:
        return fitting.pop()
    if not fitting:
        raise UsageError(
            f"this site has consented to no study {study}",
            fix="`vitrael site consents` lists those that there are",
        )
    raise UsageError(
        f"this site has consented to {len(fitting)} studies of that name",
        fix="name NAME@VERSION or the protocol's digest, as `vitrael site consents` shows them",
    )


def _judge(
    agreement: Agreement,
    stored: StoredConsent,
    cohorts: CohortIdentity,
    *,
    site: str,
    now: datetime,
) -> tuple[State, str]:
    consent = agreement.consent
    if stored.withdrawn_utc:
        return "withdrawn", f"taken back at {stored.withdrawn_utc}"
    if fault := fault_of(consent, site=site, now=now):
        expired = now >= datetime.fromisoformat(consent.expires_utc)
        return ("expired" if expired else "other software"), fault.sentence()
    try:
        name, digest = cohorts.of(agreement.study.protocol.data)
        check_cohort(consent, name=name, digest=digest)
    except (CohortError, ConsentError) as error:
        return "other cohort", error.sentence()
    return "given", ""
