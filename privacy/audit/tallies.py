"""The sites' tallies, as each signed them: what the Evidence about real scans is computed from.

The coordinator pools them into Evidence. Before a site signs a release it opens the signed replies
of all sites and pools them again: Evidence that nobody measured gets no signature.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from vitrael.core.digest import Digest, digest_json
from vitrael.core.errors import DataError, EnvelopeError, VerificationError
from vitrael.core.messages import StageName
from vitrael.core.metrics.intervals import CONFIDENCE
from vitrael.privacy.audit.parts import SiteTally
from vitrael.privacy.audit.pooling import (
    audit_measurements,
    screening_measurement,
    verification_measurement,
)
from vitrael.privacy.envelope import open_reply
from vitrael.privacy.evidence import Evidence, Measurement
from vitrael.privacy.keys import PublicKeys, roster_digest

TALLY_STAGES: Final[tuple[StageName, ...]] = ("calibration", "screening", "audit")
"""Whose replies are tallies."""
_TOLERANCE: Final = 1e-9
"""Relative: pooled again elsewhere, the last digits may differ."""


def pool_tallies(
    tallies: Mapping[str, Sequence[SiteTally]],
    *,
    confidence: float = CONFIDENCE,
    samples: tuple[Digest, ...] = (),
) -> tuple[Measurement, ...]:
    """Return all measurements that the sites' tallies of ``TALLY_STAGES`` give.

    There is one tally a stage for each site of the roster, in its order, and an empty one for a
    site that was absent: nothing that needs it is then estimable. ``samples`` names what was
    audited. Raises DataError for a tally that is none.
    """
    inputs = {stage: (digest_json(list(tallies[stage])),) for stage in TALLY_STAGES}
    try:
        return (
            screening_measurement(tallies["screening"], inputs=inputs["screening"]),
            verification_measurement(
                tallies["calibration"], confidence=confidence, inputs=inputs["calibration"]
            ),
            *audit_measurements(
                tallies["audit"], confidence=confidence, inputs=(*samples, *inputs["audit"])
            ),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(
            "a site's tally is malformed",
            why=f"a count or number is missing or none ({type(error).__name__})",
            fix="run the same package version everywhere",
        ) from error


def check_tally(stage: str, tally: SiteTally) -> None:
    """Raise DataError for a tally of ``stage`` that is empty or cannot be pooled."""
    if not tally:
        raise DataError(
            "a site's tally is empty",
            why="an answer tells at least whether there was enough to count",
            fix="run the same package version everywhere",
        )
    empty: dict[str, Sequence[SiteTally]] = dict.fromkeys(TALLY_STAGES, ())
    pool_tallies({**empty, stage: [tally]})


def check_vote(site: str, votes: SiteTally, calibration: SiteTally) -> None:
    """Raise VerificationError when a filter votes by a point that was not frozen before."""
    promised = calibration.get("commitment")
    if votes.get("estimable") and (not promised or votes.get("commitment") != promised):
        raise VerificationError(
            f"the votes of {site} are refused",
            why="its operating point is not the one that it froze before",
            fix="let the site restore its records, or start a fresh study",
        )


def check_certificate(site: str, audit: SiteTally, votes: SiteTally) -> None:
    """Raise VerificationError when the filter that was tested is not the one that voted."""
    if audit.get("commitment", "") != votes.get("commitment", ""):
        raise VerificationError(
            f"the audit of {site} is refused",
            why="the filter that it tested is not the one that judged the candidates",
            fix="let the site restore its records, or start a fresh study",
        )


def open_tallies(
    replies: Mapping[str, bytes], members: Mapping[str, PublicKeys], *, protocol: Digest
) -> dict[str, list[dict[str, Any]]]:
    """Return every member's tally of every stage, in the order of the members.

    ``replies`` holds signed envelopes by ``STAGE/SITE``. Raises VerificationError unless there is
    exactly one of each, signed by that site for this protocol and these members, and unless each
    site's votes and plants were judged by the one filter that it froze.
    """
    if replies.keys() != {f"{stage}/{site}" for stage in TALLY_STAGES for site in members}:
        raise VerificationError(
            "not every site's tallies are there",
            why="the Evidence needs the signed replies of all sites of the roster",
            fix="ask the coordinator; nothing was signed",
        )
    roster = roster_digest(members)
    opened: dict[str, list[dict[str, Any]]] = {stage: [] for stage in TALLY_STAGES}
    for stage in TALLY_STAGES:
        for site, keys in members.items():
            try:
                reply = open_reply(replies[f"{stage}/{site}"], keys)
            except EnvelopeError as error:
                raise VerificationError(
                    f"the tally of {site} for {stage} is not what it signed", why=error.what
                ) from error
            said = (reply.protocol, reply.roster, reply.site, reply.stage, reply.status)
            if said != (protocol, roster, site, stage, "done"):
                raise VerificationError(
                    f"the tally of {site} for {stage} is of something else",
                    why="its study, stage or status differs",
                )
            opened[stage].append(dict(reply.body))
    for row, site in enumerate(members):
        frozen, votes, audit = (opened[stage][row] for stage in TALLY_STAGES)
        check_vote(site, votes, frozen)
        check_certificate(site, audit, votes)
    return opened


def check_evidence(evidence: Evidence, measured: Sequence[Measurement]) -> None:
    """Raise VerificationError unless the Evidence says of the real scans what was measured."""
    for own in measured:
        told = evidence.find(own.name)
        if told is None or not _same(told, own):
            raise VerificationError(
                f"the evidence is not what the sites measured: {own.name}",
                why="this site pooled the signed tallies itself and found another number",
                fix="ask the coordinator; nothing was signed",
            )


def _same(told: Measurement, own: Measurement) -> bool:
    numbers = ("value", "low", "high")
    apart = dict.fromkeys((*numbers, "inputs"))
    return (
        told.model_copy(update=apart) == own.model_copy(update=apart)
        and set(own.inputs) <= set(told.inputs)  # told are the samples too, which no site names
        and all(_close(getattr(told, name), getattr(own, name)) for name in numbers)
    )


def _close(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
