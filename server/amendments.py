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
from vitrael.core.errors import AuthError, UsageError
from vitrael.core.study import Study, parse_study
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
    quorum = study.protocol.federation.quorum
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
    """Return the document, with the roster that it amends where the study has begun.

    A roster that comes back to one with which the study has begun goes on with that one: nothing
    amends itself.
    """
    begun = _list_begun(settings, study)
    if begun:
        document["roster"].pop("predecessor", None)
        amended = parse_study(tomli_w.dumps(document).encode(), label=study.protocol.name)
        same, own = _find_roster(settings, amended), _find_roster(settings, study)
        others = [roster for roster in begun if roster != same]
        if others:
            document["roster"]["predecessor"] = own if own in others else others[-1]
    return tomli_w.dumps(document).encode()


def _list_begun(settings: ServerSettings, study: Study) -> list[Digest]:
    """Return the rosters with their keys with which the study was run, the last one last.

    Where there are any that have experts, they alone: what amends another would train them again.
    One that was offered and never begun is amended no more than a draft.
    """
    engine = open_database(settings.database)
    try:
        history = Ledger(engine).history(study.protocol.digest)
    finally:
        engine.dispose()
    told = [record for record in history if "roster" in record.details]
    trained = [r for r in told if (r.key.stage, r.status) == ("expert", "finished")]
    return [Digest(record.details["roster"]) for record in trained or told]


def _find_roster(settings: ServerSettings, study: Study) -> Digest | None:
    """Return a study's roster with its keys, None where a site of it is not enrolled."""
    try:
        members = demand_enrolled(settings, study)
    except AuthError:
        return None  # who was never enrolled here, or has left before the study began
    return roster_digest(members, labels=study.roster.labels)
