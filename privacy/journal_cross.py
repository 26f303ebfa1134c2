"""Two journals side by side: what each says of the other must be in the other.

Of every reply three things are written down on both sides: its bytes and digests, under the nonce
of its task, and where the other's journal ended at that moment. So a site that rewrites its journal
with head and store, all of them consistently, is found by the coordinator's, and the reverse.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from vitrael.core.errors import UsageError
from vitrael.privacy.journal import verify_copy, verify_journal
from vitrael.privacy.journal_line import (
    BEGINNING,
    DEPARTURES,
    OF_THE_COORDINATOR,
    Fault,
    Line,
    parse_line,
)

COORDINATOR: Final = "the coordinator"

_SAME: Final = ("protocol", "stage", "round", "bytes", "fields", "attachments")
"""What both sides write of one reply."""


@dataclass(frozen=True, slots=True)
class Account:
    """One journal as it was read: whose it is, its lines, and what is wrong with it alone."""

    path: Path
    side: str
    """``the coordinator``, or the site's name; empty while no line tells."""
    lines: tuple[Line, ...]
    faults: tuple[Fault, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two journals say of each other."""

    site: str
    heads: int
    """How many quoted lines of the other side were looked up."""
    replies: int
    """How many replies stand in both."""
    faults: tuple[tuple[str, Fault], ...]
    """Whose journal is contradicted, and where the contradiction stands."""


def read_account(path: Path, *, in_home: bool) -> Account:
    """Return a journal with all that is wrong with it alone.

    In its home a journal has ``journal.head.json`` beside it. A copy without is taken as it is:
    then nothing but the other side tells whether lines at its end are missing.
    """
    faults = verify_journal(path) if in_home else verify_copy(path)
    with path.open("rb") as file:
        lines = tuple(line for line in map(parse_line, file) if line is not None)
    side = _find_side(lines)
    return Account(path, side, lines, (*faults, *_find_conflicts(lines)))


def compare_journals(one: Account, other: Account) -> Comparison:
    """Return what the journals of the coordinator and of a site say of each other.

    A journal that does not say whose it is counts as the side that the other is not, and that is a
    fault. Raises UsageError unless one is the coordinator's and one a site's.
    """
    coordinator, site = sorted((one, other), key=_rank)
    if _rank(coordinator) == _rank(site):
        raise UsageError(
            "these journals are of the same side",
            why=f"{one.path} and {other.path}",
            fix="compare the coordinator's with one of a site",
        )
    coordinator, name = replace(coordinator, side=COORDINATOR), site.side
    about = [line for line in coordinator.lines if name and name in {line.to, line.origin}]
    received = [line for line in about if line.event == "received"]
    left = [line for line in site.lines if line.event in DEPARTURES and line.nonce]
    left = [line for line in left if line.format > 1]  # the coordinator kept no journal before
    faults = [
        *_missing_heads(received, site, whose=COORDINATOR),
        *_missing_heads(left, coordinator, whose=name),
        *_unknown_replies(received, left, site),
        *_unknown_tasks(left, about, coordinator),
    ]
    common = {line.nonce for line in received} & {line.nonce for line in left}
    if not name:
        faults.append(("the site", Fault(0, "no line of it says which site's it is")))
    elif not about:
        faults.append((COORDINATOR, Fault(0, f"no line of it is about site {name}")))
    heads = sum(bool(line.other) for line in (*received, *left))
    return Comparison(name, heads, len(common), tuple(faults))


def _find_side(lines: Sequence[Line]) -> str:
    if any(line.event in OF_THE_COORDINATOR for line in lines):
        return COORDINATOR
    return next((line.origin for line in lines if line.origin), "")


def _rank(account: Account) -> int:
    return {COORDINATOR: 0, "": 1}.get(account.side, 2)


def _find_conflicts(lines: Sequence[Line]) -> Iterator[Fault]:
    """Yield a fault where what the other side told of its journal cannot all be true.

    It told two hashes of one line, or in two replies the same last line, though each has its own.
    """
    told: dict[tuple[str, str, int], Line] = {}
    for line in lines:
        if line.other and line.event != "asked":  # a task quotes what an earlier line tells
            first = told.setdefault((line.origin, line.key, line.other_lines), line)
            if first is not line and line.event == "received" and first.other == line.other:
                yield Fault(
                    line.line,
                    f"site {line.origin} told the same end of its journal as in line {first.line}: "
                    "the line of that reply is gone",
                )
            elif first.other != line.other:
                whose = "the coordinator" if line.event != "received" else f"site {line.origin}"
                yield Fault(
                    line.line,
                    f"{whose} told another hash of line {line.other_lines} of its journal than in "
                    f"line {first.line}: it was rewritten",
                )


def _missing_heads(
    quotes: Sequence[Line], quoted: Account, *, whose: str
) -> Iterator[tuple[str, Fault]]:
    hashes = {line.line: line.hash for line in quoted.lines}
    hashes[0] = BEGINNING
    side = quoted.side or "the site"
    for line in quotes:
        if not line.other or hashes.get(line.other_lines) == line.other:
            continue
        where = f"line {line.line} of {whose} quotes it"
        if line.other_lines in hashes:
            what = f"the line is not the one that {side} told of: {where}"
        else:
            what = f"the line is missing, which {side} told of: {where}"
        yield side, Fault(line.other_lines, what)


def _unknown_replies(
    received: Sequence[Line], left: Sequence[Line], site: Account
) -> Iterator[tuple[str, Fault]]:
    """Yield replies that the coordinator got and the site's journal does not have, as they were."""
    known = {(line.nonce, *_facts(line)) for line in left}
    for line in received:
        if (line.nonce, *_facts(line)) in known:
            continue
        yield (
            site.side or "the site",
            Fault(
                0,
                f"no line says that {line.bytes:,} bytes left for round {line.round + 1} of "
                f"{line.stage}: line {line.line} of the coordinator has received them",
            ),
        )


def _unknown_tasks(
    left: Sequence[Line], about: Sequence[Line], coordinator: Account
) -> Iterator[tuple[str, Fault]]:
    """Yield tasks that the site answered and that the coordinator's journal never asked."""
    asked = {line.nonce for line in about if line.event == "asked"}
    for line in left:
        if line.nonce not in asked:
            yield (
                coordinator.side,
                Fault(
                    0,
                    f"no line asks for round {line.round + 1} of {line.stage} with the nonce that "
                    f"line {line.line} of site {line.origin or 'unknown'} answers",
                ),
            )


def _facts(line: Line) -> tuple[str, ...]:
    return tuple(str(getattr(line, name)) for name in _SAME)
