"""``vitrael site consent``: what a study asks for, in words, and this site's signed yes."""

from __future__ import annotations

import json
import re
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vitrael.client.site.options import (
    AS_JSON,
    HOME,
    demand_owner,
    private_files,
    refuse_nan,
    utc_now,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vitrael.client.site.settings import SiteSettings
    from vitrael.client.site.store import Store
    from vitrael.core.messages import Consent
    from vitrael.core.study import Study
    from vitrael.privacy.keys import KeyPair, PublicKeys

MOST_DAYS = 3650
"""Ten years: longer than any study, and far from the end of the calendar."""
MOST_ROUNDS = 100_000
STUDIES = "studies"
"""In the home folder: the studies that were fetched from the coordinator."""


@click.command()
@click.argument("study")
@HOME
@click.option(
    "--days",
    type=click.FloatRange(min=0, max=MOST_DAYS, min_open=True),
    callback=refuse_nan,
    help="How long it holds; 90 days by default.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1, max=MOST_ROUNDS),
    help="How many rounds of a stage to answer; as many as the study has by default.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be signed; sign nothing.")
@click.option("--yes", is_flag=True, help="Sign without asking.")
@AS_JSON
@private_files()
def consent(
    study: str,
    home: Path,
    days: float | None,
    rounds: int | None,
    *,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Sign this site's yes to STUDY: a file, or the name of a study that was fetched.

    It holds for the members whom STUDY names, with their keys of roster.json, for this version of
    the cohort and of the installed software, and within [limits] of site.toml.

    Example: vitrael site consent brain-demo --home /srv/vitrael/north
    """
    from vitrael.client.site.consent_words import describe  # noqa: PLC0415
    from vitrael.client.site.settings import load_settings  # noqa: PLC0415
    from vitrael.client.site.store import Store  # noqa: PLC0415
    from vitrael.core.study import load_study  # noqa: PLC0415
    from vitrael.privacy.keys import (  # noqa: PLC0415
        fingerprint,
        load_public_keys,
        load_roster,
    )

    demand_owner(home)
    settings = load_settings(home)
    document, keys = load_study(find_study(settings.home, study)), settings.load_keys()
    coordinator = fingerprint(load_public_keys(settings.coordinator).signing)
    with closing(Store(settings.store, updates=settings.updates, read_only=dry_run)) as store:
        members = load_roster(settings.roster)
        draft = _draft(
            settings, document, store, members=members, own=keys.public, days=days, rounds=rounds
        )
        answered = store.rounds_answered(draft.protocol)
        words = describe(draft, document, coordinator=coordinator, answered=answered)
        document_json = json.dumps(draft.model_dump(mode="json"))
        if dry_run:
            click.echo(document_json if as_json else words)
            return
        if not as_json or not yes:
            click.echo(words, err=as_json)
        if not yes:
            click.confirm("Sign this consent?", abort=True, err=True)
        _keep(settings, draft, document, store, members=members, keys=keys)
    if as_json:  # only now: where signing fails, the error is the one document
        click.echo(document_json)
    click.echo(f"site {settings.name} has consented until {draft.expires_utc}", err=True)


def find_study(home: Path, study: str) -> Path:
    """Return the file of a study: the one that is named, or the fetched one of that name.

    Raises UsageError for the name of a study that was not fetched. A path is returned as it is.
    """
    from vitrael.core.errors import UsageError  # noqa: PLC0415

    fetched = home / STUDIES / f"{study}.toml"
    named = re.fullmatch(r"[a-z][a-z0-9-]{0,47}", study) is not None
    if not named or Path(study).is_file():
        return Path(study)
    if not fetched.is_file():
        there = ", ".join(sorted(path.stem for path in fetched.parent.glob("*.toml")))
        raise UsageError(
            f"study {study} was not fetched",
            why=f"fetched are: {there or 'none'}",
            fix="run `vitrael site fetch` once the coordinator offers it, or name its file",
        )
    return fetched


def _keep(
    settings: SiteSettings,
    draft: Consent,
    document: Study,
    store: Store,
    *,
    members: Mapping[str, PublicKeys],
    keys: KeyPair,
) -> None:
    """Sign and keep a consent, once the journal has all that it must have."""
    from vitrael.client.site.consent import keep_consent  # noqa: PLC0415
    from vitrael.client.site.control import Control  # noqa: PLC0415
    from vitrael.privacy.journal import Journal  # noqa: PLC0415

    journal = Journal(settings.journal, clock=utc_now, witness=store)
    journal.demand_whole()
    control = Control(store, journal, clock=utc_now)
    for owed in control.settle():
        click.echo(f"written down after the fact: {owed}", err=True)
    control.demand_member()
    keep_consent(draft, document, store, members=members, keys=keys, journal=journal)


def _draft(
    settings: SiteSettings,
    document: Study,
    store: Store,
    *,
    members: Mapping[str, PublicKeys],
    own: PublicKeys,
    days: float | None,
    rounds: int | None,
) -> Consent:
    """Return the consent to sign; raise ConsentError where a ceiling of the site forbids it."""
    from vitrael.client.site.ceilings import check_study  # noqa: PLC0415
    from vitrael.client.site.consent import (  # noqa: PLC0415
        DEFAULT_DAYS,
        describe_cohort,
        draft_consent,
        other_consents,
    )
    from vitrael.client.site.consent_words import demand_known_words  # noqa: PLC0415
    from vitrael.client.site.database import explain_storage  # noqa: PLC0415
    from vitrael.client.site.departures import Departures  # noqa: PLC0415
    from vitrael.core.data.cohort import find_cohort  # noqa: PLC0415

    wanted = document.protocol.data
    cohort = find_cohort(settings.cohorts, wanted, name=settings.document.cohort)
    demand_known_words(cohort, document, site=settings.name)
    draft = draft_consent(
        document,
        site=settings.name,
        keys=own,
        members=members,
        cohort=describe_cohort(cohort),
        now=utc_now(),
        days=DEFAULT_DAYS if days is None else days,
        max_rounds=rounds,
    )
    with explain_storage("the journal"):
        left_bytes = Departures(settings.journal).total_once(draft.protocol)
    limits, others = settings.document.limits, other_consents(store, draft)
    check_study(draft, document, limits, left_bytes=left_bytes, others=others)
    return draft
