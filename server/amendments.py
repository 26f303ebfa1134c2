"""A study of experts whose roster changes: a site joins with its expert, or goes with it.

What comes of it is a document that is offered in the place of the present one: the protocol is the
same, the roster names the one that it amends, and every member consents to it again.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any

import tomli_w

from vitrael.core.digest import Digest
from vitrael.core.errors import UsageError
from vitrael.core.study import Study
from vitrael.privacy.keys import roster_digest
from vitrael.server.config import ServerSettings
from vitrael.server.db.engine import open_database
from vitrael.server.offers import demand_enrolled, load_offered, offered
from vitrael.server.studies.ledger import Ledger


def add_expert(
    settings: ServerSettings, name: str, site: str, *, labels: Mapping[str, str]
) -> bytes:
    """Return the offered study with one more site, the last; ``labels`` are its words for views.

    Raises UsageError for a study that is not offered, and for a site that is on its roster;
    StudyError for a study of no experts.
    """
    study, document = _read(settings, name)
    if site in study.roster.sites:
        raise UsageError(
            f"{site} is on the roster of {name}",
            why="a site has one expert",
            fix="name a site that is to join",
        )
    roster = document["roster"]
    roster["sites"] = [*roster["sites"], site]
    if labels:
        roster.setdefault("labels", {})[site] = dict(labels)
    return _write(settings, study, document)


def drop_expert(settings: ServerSettings, name: str, site: str) -> bytes:
    """Return the offered study without a site, whose expert the others' fusion then lacks.

    Raises UsageError for a site that is not on the roster, and for the last one of it; StudyError
    for a study of no experts.
    """
    study, document = _read(settings, name)
    left = [one for one in study.roster.sites if one != site]
    if len(left) == len(study.roster.sites) or not left:
        raise UsageError(
            f"{site} cannot be left out of {name}",
            why="it is not on the roster" if left else "nobody would be left",
            fix=f"on the roster are {', '.join(study.roster.sites)}",
        )
    roster = document["roster"]
    roster["sites"] = left
    words = {one: own for one, own in roster.get("labels", {}).items() if one != site}
    roster.pop("labels", None)
    if words:
        roster["labels"] = words
    quorum = document["protocol"]["federation"]["quorum"]
    if quorum > len(left):
        raise UsageError(
            f"{name} cannot go on without {site}",
            why=f"{len(left)} sites would be left, and its quorum is {quorum}",
            fix="let another site join first",
        )
    return _write(settings, study, document)


def _read(settings: ServerSettings, name: str) -> tuple[Study, dict[str, Any]]:
    study = load_offered(settings, name)
    _ = study.experts  # another study has none, and says so
    return study, tomllib.loads(offered(settings)[name].read_text(encoding="utf-8"))


def _write(settings: ServerSettings, study: Study, document: dict[str, Any]) -> bytes:
    """Return the document, with the roster that it amends where that one has begun."""
    began = _find_begun(settings, study)
    if began is not None:
        document["roster"]["predecessor"] = began
    return tomli_w.dumps(document).encode()


def _find_begun(settings: ServerSettings, study: Study) -> Digest | None:
    """Return the roster with its keys with which the study was run last, None where it never was.

    One that was offered and never begun is amended no more than a draft.
    """
    engine = open_database(settings.database)
    try:
        history = Ledger(engine).history(study.protocol.digest)
    finally:
        engine.dispose()
    rosters = [Digest(record.details["roster"]) for record in history if "roster" in record.details]
    if not rosters:
        return None
    own = roster_digest(demand_enrolled(settings, study), labels=study.roster.labels)
    return own if own in rosters else rosters[-1]
