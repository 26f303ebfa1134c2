"""Who is asked, for how long each is waited for, and why the answer of a site does not count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from vitrael.core.messages import StageName
from vitrael.server.studies.ledger import StageRecord
from vitrael.server.studies.run import StudyRun

Kind = Literal["barred", "silent", "declined", "failed", "unusable", "outlier"]
KINDS: Final[Mapping[Kind, str]] = {
    "barred": "takes no part any more",
    "silent": "did not answer",
    "declined": "declined",
    "failed": "could not do it",
    "unusable": "gave an answer that was refused",
    "outlier": "gave an update far from the others, which was refused",
}
"""Why a site was absent, in words of ours that anybody may read."""


@dataclass(frozen=True, slots=True)
class Absence:
    """Why the answer of a site does not count."""

    kind: Kind
    reason: str
    """One sentence; for the coordinator alone where a site wrote it."""


def find_not_asked(
    run: StudyRun, stage: StageName, again: StageRecord | None
) -> dict[str, Absence]:
    """Return the members that are not asked: barred ones, and who was absent from what was lost."""
    absences = {site: Absence("barred", why) for site, why in find_barred(run, stage).items()}
    if again is not None:
        reasons, kinds = again.details.get("absent", {}), again.details.get("kinds", {})
        for site in run.members.keys() - set(again.participants) - absences.keys():
            reason = reasons.get(site, "it was no part of the round that is made again")
            absences[site] = Absence(kinds.get(site, "silent"), reason)
    return absences


def find_barred(run: StudyRun, stage: StageName) -> dict[str, str]:
    """Return the members of whom nothing may be asked, each with the reason in our words.

    A withdrawal holds against every consent that was given before it. What a consent says is known
    once it is collected, so that of the stage ``consent`` only enrollment decides.
    """
    barred = run.standings.find_ended(run.members, now=run.clock())
    if stage == "consent":
        return barred
    withdrawn = run.standings.find_withdrawn(run.study.protocol.digest)
    consents = (run.document("consent") or {}).get("consents", {}) if withdrawn else {}
    for site, said in withdrawn.items():
        given = consents.get(site, {}).get("given_utc")
        if site in run.members and (given is None or datetime.fromisoformat(given) <= said):
            barred.setdefault(site, "it withdrew its consent")
    return barred


def find_deadlines(run: StudyRun, stage: StageName) -> dict[str, float]:
    """Return how many seconds each member has for a stage: what its canary told, or the longest."""
    longest = run.study.protocol.federation.deadline_s
    told = (run.document("canary") or {}).get("deadlines", {}).get(stage, {})
    return {site: min(float(told.get(site, longest)), longest) for site in run.members}
