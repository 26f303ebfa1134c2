"""From prepared sources to the manifest of a cohort: visits in time, nothing twice, nobody gone.

What a cohort holds depends on its sources alone, not on the order in which they were read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from vitrael.core.data.manifest import COVARIATE_BOUNDS, Item
from vitrael.core.digest import Digest

ONE_A_VISIT = "its visit has another image already"
SAME_IMAGE = "it is the same image as another item"


@dataclass(frozen=True, slots=True, repr=False)
class Candidate:
    """A source under its pseudonym, and what its preparation gave."""

    source: str
    """The code of the source."""
    subject: str
    session: str
    part: str
    taken: date | None
    covariates: Mapping[str, float]
    labels: Mapping[str, str]
    files: int
    outcome: Mapping[str, Any]
    """As ``prepare.Outcome.taken`` has it."""
    thumbnail: bytes = b""


@dataclass(frozen=True, slots=True, repr=False)
class Assembled:
    """Items with the candidates that they came from, and the candidates that became none."""

    items: tuple[Item, ...]
    chosen: tuple[Candidate, ...]
    """In the order of the items."""
    dropped: tuple[tuple[Candidate, str], ...]
    shared: tuple[int, ...]
    """Places of the items whose very image another patient has as well, once for each dropped."""


def assemble(candidates: Sequence[Candidate], *, one_a_visit: bool) -> Assembled:
    """Return the items in the order of pseudonym, visit and part.

    With ``one_a_visit`` a visit's first image is taken and the others are dropped. Of several
    sources with one content, the first in that order is taken.
    """
    ranks = _rank_visits(candidates)
    visit_of = {place: visit for place, (visit, _) in ranks.items()}
    ordered = sorted(
        candidates,
        key=lambda c: (c.subject, visit_of[c.subject, c.session], natural_key(c.part), c.source),
    )
    items: list[Item] = []
    chosen: list[Candidate] = []
    dropped: list[tuple[Candidate, str]] = []
    owners: dict[str, int] = {}
    parts: dict[tuple[str, int], int] = {}
    shared: list[int] = []
    for candidate in ordered:
        visit, days = ranks[candidate.subject, candidate.session]
        place = (candidate.subject, visit)
        digest = str(candidate.outcome["digest"])
        if digest in owners:
            dropped.append((candidate, SAME_IMAGE))
            if items[owners[digest]].subject != candidate.subject:
                shared.append(owners[digest])
        elif one_a_visit and place in parts:
            dropped.append((candidate, ONE_A_VISIT))
        else:
            parts[place] = parts.get(place, -1) + 1
            owners[digest] = len(items)
            items.append(_item(candidate, visit=visit, days=days, part=parts[place]))
            chosen.append(candidate)
    return Assembled(tuple(items), tuple(chosen), tuple(dropped), tuple(shared))


def _item(candidate: Candidate, *, visit: int, days: int | None, part: int) -> Item:
    outcome = candidate.outcome
    known = {**outcome["measured"], **candidate.covariates}
    return Item(
        subject=candidate.subject,
        visit=visit,
        part=part,
        shard=outcome["shard"],
        digest=Digest(outcome["digest"]),
        affine=tuple(tuple(row) for row in outcome["affine"]),
        unit=outcome["unit"],
        frame_s=outcome["frame_s"],
        days=days,
        covariates={name: known[name] for name in COVARIATE_BOUNDS if name in known},
        labels=dict(sorted(candidate.labels.items())),
    )


def _rank_visits(
    candidates: Sequence[Candidate],
) -> dict[tuple[str, str], tuple[int, int | None]]:
    """Return rank and days since the first visit of each patient's sessions.

    By date where every session of a patient has one, else by name; numbers sort as numbers.
    """
    sessions: dict[str, dict[str, date | None]] = {}
    for candidate in candidates:
        own = sessions.setdefault(candidate.subject, {})
        known = own.get(candidate.session)
        dates = [day for day in (known, candidate.taken) if day is not None]
        own[candidate.session] = min(dates) if dates else None
    ranks: dict[tuple[str, str], tuple[int, int | None]] = {}
    for subject, own in sessions.items():
        dated = {session: day for session, day in own.items() if day is not None}
        if len(dated) == len(own):
            first = min(dated.values())
            order = sorted(dated, key=lambda s: (dated[s], natural_key(s)))
            for rank, session in enumerate(order):
                ranks[subject, session] = (rank, (dated[session] - first).days)
        else:
            for rank, session in enumerate(sorted(own, key=natural_key)):
                ranks[subject, session] = (rank, None)
    return ranks


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return a key that sorts the numbers within names as numbers."""
    pieces = re.findall(r"[0-9]+|[^0-9]+", name)
    numbers = {p: p.lstrip("0") for p in pieces if p[0] in "0123456789"}
    return tuple((0, len(numbers[p]), numbers[p]) if p in numbers else (1, 0, p) for p in pieces)
