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
from vitrael.core.messages import IN_VOTES, StageName
from vitrael.core.metrics.intervals import CONFIDENCE, clopper_pearson
from vitrael.privacy.audit.parts import SiteTally
from vitrael.privacy.audit.pooling import (
    audit_measurements,
    screening_measurement,
    verification_measurement,
)
from vitrael.privacy.audit.power import Tally
from vitrael.privacy.envelope import open_reply
from vitrael.privacy.evidence import Evidence, Measurement
from vitrael.privacy.keys import PublicKeys, roster_digest
from vitrael.privacy.suite import MOST_LEARNED

TALLY_STAGES: Final[tuple[StageName, ...]] = ("calibration", "screening", "rescreening", "audit")
"""Whose replies are tallies."""
_VOTES: Final = tuple(stage for stage in TALLY_STAGES if stage in IN_VOTES)
Tallies = Mapping[str, Sequence[Sequence[SiteTally]]]
"""For each stage its rounds, and for each of these the tally of every site in their order."""
_PROOF: Final = 0.999
"""One-sided: at one look an honest site drops so few once in a thousand."""
_TOLERANCE: Final = 1e-9
"""Relative: pooled again elsewhere, the last digits may differ."""


def pool_tallies(
    tallies: Tallies,
    *,
    confidence: float = CONFIDENCE,
    samples: tuple[Digest, ...] = (),
) -> tuple[Measurement, ...]:
    """Return all measurements that the sites' tallies of ``TALLY_STAGES`` give.

    There is one tally a round for each site of the roster, in its order, and an empty one for a
    site that was absent: nothing that needs it is then estimable. Calibration and audit have one
    round. ``samples`` names what was audited. Raises DataError for a tally that is none.
    """
    inputs = {
        stage: (digest_json([list(sites) for sites in tallies[stage]]),) for stage in TALLY_STAGES
    }
    ((calibration,), (audit,)) = (tallies[stage] for stage in ("calibration", "audit"))
    try:
        return (
            screening_measurement(
                [sites for stage in _VOTES for sites in tallies[stage]],
                inputs=tuple(digest for stage in _VOTES for digest in inputs[stage]),
            ),
            verification_measurement(
                calibration, confidence=confidence, inputs=inputs["calibration"]
            ),
            *audit_measurements(audit, confidence=confidence, inputs=(*samples, *inputs["audit"])),
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
    empty: dict[str, Sequence[Sequence[SiteTally]]] = {key: [[]] for key in TALLY_STAGES}
    pool_tallies({**empty, stage: [[tally]]})


def check_planted(audit: SiteTally, *, planned: int) -> None:
    """Raise DataError for an audit that tells of more plants than the study asked of a site.

    The counts of all sites are added: with a number that nobody asked for, one site could pay for
    what the others miss. ``planned`` is the study's share for a site, and of memorized samples
    there are as many as a model learns patients at most.
    """
    counts = audit.get("counts", {})
    for name, count in counts.items() if isinstance(counts, Mapping) else ():
        part, _, kind = str(name).partition(".")
        asked = part in {"plants", "negatives"} and kind.endswith(".shown")
        if not asked and name != "must.patients":
            continue
        most = max(planned, MOST_LEARNED) if kind == "memorized.shown" else planned
        if type(count) is not int or count > most:
            raise DataError(
                f"a site's tally is out of range: {name}",
                why=f"the study asked for {most} at a site",
                fix="run the same package version everywhere",
            )


def check_vote(site: str, votes: SiteTally, calibration: SiteTally) -> None:
    """Raise VerificationError when a filter votes by a point that was not frozen before."""
    promised = calibration.get("commitment")
    if votes.get("estimable") and (not promised or votes.get("commitment") != promised):
        raise VerificationError(
            f"the votes of {site} are refused",
            why="its operating point is not the one that it froze before",
            fix="let the site restore its records, or start a fresh study",
        )


def check_drops(site: str, votes: Tally, *, chance: float) -> None:
    """Raise VerificationError when a site is proven to drop less than chance alone does.

    Each site drops ``chance`` of what it is shown whatever its filter says, so one that keeps
    everything votes by no filter: 0 of 227 at 3 % are proof. An honest site whose filter finds
    nothing is taken for it once in a thousand at each look, of which there is one a round.
    """
    _, high = clopper_pearson(votes.dropped, votes.shown, confidence=_PROOF)
    if high < chance:
        raise VerificationError(
            f"the votes of {site} are refused",
            why=f"it dropped {votes.dropped} of {votes.shown} images, and {chance:.0%} of all are "
            "dropped by chance alone",
            fix="ask the site whether it votes with the filter that it froze",
        )


def check_certificate(site: str, audit: SiteTally, votes: SiteTally) -> None:
    """Raise VerificationError when the filter that was tested is not the one that voted."""
    if audit.get("commitment", "") != votes.get("commitment", ""):
        raise VerificationError(
            f"the audit of {site} is refused",
            why="the filter that it tested is not the one that judged the candidates",
            fix="let the site restore its records, or start a fresh study",
        )


def tally_key(stage: str, round_index: int, site: str) -> str:
    """Return under what name a signed reply travels to those who pool it again."""
    return f"{stage}/{round_index}/{site}"


def open_tallies(
    replies: Mapping[str, bytes],
    members: Mapping[str, PublicKeys],
    *,
    protocol: Digest,
    voted: Mapping[str, int],
) -> dict[str, list[list[dict[str, Any]]]]:
    """Return every member's tally of every stage and round, in the order of the members.

    ``replies`` holds signed envelopes by ``tally_key``; ``voted`` says in how many rounds of each
    screening the site has voted that opens them. Raises VerificationError unless there is exactly
    one reply for each of these rounds, and one to calibration and audit, signed by each site for
    this protocol and these members, and unless all of a site's votes and plants were judged by the
    one filter that it froze.
    """
    rounds = {stage: voted.get(stage, 0) if stage in _VOTES else 1 for stage in TALLY_STAGES}
    asked = {
        tally_key(stage, number, site)
        for stage, count in rounds.items()
        for number in range(count)
        for site in members
    }
    if replies.keys() != asked or not all(rounds.values()):
        raise VerificationError(
            "not every site's tallies are there",
            why="the Evidence needs the signed replies of all sites of the roster, to each round "
            "that this site answered and to no other",
            fix="ask the coordinator; nothing was signed",
        )
    opened: dict[str, list[list[dict[str, Any]]]] = {
        stage: [
            [
                _open_tally(replies, members, site=site, of=(protocol, stage, number))
                for site in members
            ]
            for number in range(count)
        ]
        for stage, count in rounds.items()
    }
    for row, site in enumerate(members):
        frozen, audit = (opened[stage][0][row] for stage in ("calibration", "audit"))
        for votes in (sites[row] for stage in _VOTES for sites in opened[stage]):
            check_vote(site, votes, frozen)
            check_certificate(site, audit, votes)
    return opened


def _open_tally(
    replies: Mapping[str, bytes],
    members: Mapping[str, PublicKeys],
    *,
    site: str,
    of: tuple[Digest, StageName, int],
) -> dict[str, Any]:
    """Return what one site told of one round; raise VerificationError for anything else."""
    protocol, stage, number = of
    try:
        reply = open_reply(replies[tally_key(stage, number, site)], members[site])
    except EnvelopeError as error:
        raise VerificationError(
            f"the tally of {site} for {stage} is not what it signed", why=error.what
        ) from error
    about = (reply.protocol, reply.roster, reply.site, reply.stage, reply.round, reply.status)
    if about != (protocol, roster_digest(members), site, stage, number, "done"):
        raise VerificationError(
            f"the tally of {site} for {stage} is of something else",
            why="its study, stage, round or status differs",
        )
    return dict(reply.body)


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
