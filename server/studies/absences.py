"""Who is asked, for how long each is waited for, and why the answer of a site does not count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from vitrael.core.errors import StudyError
from vitrael.core.messages import StageName
from vitrael.privacy.audit.tallies import TALLY_STAGES
from vitrael.server.studies.ledger import StageRecord
from vitrael.server.studies.run import StudyRun
from vitrael.server.studies.standing import EXPIRED, REPLACED

_CONTRIBUTIONS: Final[tuple[StageName, ...]] = ("codec", "latents", "teacher")
"""What a site answers to these goes into the model."""

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
    """Return the members that are not asked: barred ones, and who was absent from what was lost.

    Raises StudyError when, without the barred ones, no release can come of the study any more.
    """
    barred = find_barred(run, stage)
    _demand_release(run, stage, barred)
    absences = {site: Absence("barred", why) for site, why in barred.items()}
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


def find_contributors(run: StudyRun) -> set[str]:
    """Return the sites whose patients are in the model, also those of an earlier roster."""
    return {
        site
        for record in run.finished()
        if record.key.stage in _CONTRIBUTIONS
        for site in record.participants
    }


def _demand_release(run: StudyRun, stage: StageName, barred: Mapping[str, str]) -> None:
    """Raise StudyError, before days are spent, when what is asked for can lead to no release.

    Whoever is in the model has to judge what comes of it, and so has every member of the roster.
    """
    judged, inside = stage in TALLY_STAGES, find_contributors(run)
    outside = inside - run.members.keys() if judged else set()
    gone = {**dict.fromkeys(outside, "it is not on the roster"), **barred}
    for site in sorted(inside & gone.keys()):
        raise StudyError(
            f"site {site} takes no part any more, and its patients are in the model",
            why=f"{gone[site]}, and who is in the model has to judge and to sign what comes of it",
            fix=find_renewal(run, site, gone[site])
            or "begin without it: leave it off the roster, and name no roster.predecessor; or, "
            f"where it is enrolled again with new keys, write {run.roster} as roster.predecessor",
        )
    for site in sorted(barred) if judged else ():
        raise StudyError(
            f"site {site} is on the roster and takes no part any more",
            why=f"{barred[site]}, and every member has to judge what comes of the study",
            fix=find_renewal(run, site, barred[site])
            or f"leave it off the roster, and write {run.roster} as roster.predecessor: what is "
            "finished is kept",
        )


def find_renewal(run: StudyRun, site: str, reason: str) -> str:
    """Return what to do where a site only has or needs new keys, else nothing."""
    if reason not in {EXPIRED, REPLACED}:
        return ""
    kept = f"offer and start it with {run.roster} as roster.predecessor: what is finished is kept"
    renew = f"run `vitrael server sites rotate {site}`, approve its keys, and {kept}"
    return renew if reason == EXPIRED else kept


def find_deadlines(run: StudyRun, stage: StageName) -> dict[str, float]:
    """Return how many seconds each member has for a stage: what its canary told, or the longest."""
    longest = run.study.protocol.federation.deadline_s
    told = (run.document("canary") or {}).get("deadlines", {}).get(stage, {})
    return {site: min(float(told.get(site, longest)), longest) for site in run.members}
