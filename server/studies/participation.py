"""Who took part in what, and how a run is told: nothing of it is left out, and nothing is private.

The ledger's details hold everything, reasons in the sites' own words included: that is for the
coordinator. What goes into a release says why in words of ours, tells counts of examples as ranges
and weights in tenths.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from vitrael.privacy.audit.tallies import TALLY_STAGES
from vitrael.privacy.leakage import bucket_of
from vitrael.server.studies.absences import KINDS
from vitrael.server.studies.ledger import StageRecord
from vitrael.server.studies.run import StudyRun

_ACTIONS: Final = {
    "bound": "far from the others, and bounded",
    "refuse": "far from the others, and refused",
}
_LONGEST_REASON = 160


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """How a run ended, in one word and one sentence."""

    status: Literal["finished", "partial"]
    sentence: str


def tell_outcome(run: StudyRun) -> RunOutcome:
    """Return ``finished`` when every site answered every time, else ``partial`` and who did not."""
    missing: dict[str, str] = {}
    for record in run.finished():
        missing.update(record.details.get("absent", {}))
    total = len(run.members)
    there = total - len(missing.keys() & run.members.keys())
    if not missing:
        return RunOutcome("finished", f"finished: {total} of {total}")
    reasons = ", ".join(f"{site}: {_short(why)}" for site, why in sorted(missing.items()))
    return RunOutcome("partial", f"partial: {there} of {total} ({reasons})")


def find_judges(run: StudyRun) -> set[str]:
    """Return the sites that calibrated, screened in every round, and audited."""
    records = [record for record in run.finished() if record.key.stage in TALLY_STAGES]
    if {record.key.stage for record in records} != set(TALLY_STAGES):
        return set()
    return set.intersection(*(set(record.participants) for record in records))


def record_participation(run: StudyRun) -> dict[str, Any]:
    """Return the participation record of a release."""
    records = [record for record in run.finished() if record.participants]
    return {
        "sites": list(run.members),
        "stages": {_title(record): list(record.participants) for record in records},
        "absent": {
            _title(r): {site: absence_words(r, site) for site in r.details["absent"]}
            for r in records
            if r.details.get("absent")
        },
        "absent_before": _earlier_absences(run),
        "outliers": {_title(r): outlier_words(r) for r in records if r.details.get("outliers")},
        "rounds": {_title(r): _round(run, r) for r in records if r.details.get("answers")},
    }


def _earlier_absences(run: StudyRun) -> dict[str, list[dict[str, str]]]:
    """Return who was absent from attempts that did not count, such as one without a quorum."""
    told: dict[str, list[dict[str, str]]] = {}
    for record in run.history():
        if record.status == "failed" and (absent := record.details.get("absent")):
            words = {site: absence_words(record, site) for site in absent}
            told.setdefault(_title(record), []).append(words)
    return told


def _title(record: StageRecord) -> str:
    return f"{record.key.stage} {record.key.round + 1}"


def absence_words(record: StageRecord, site: str) -> str:
    """Return why a site was absent, in words of ours."""
    known = {str(kind): words for kind, words in KINDS.items()}
    return known.get(record.details.get("kinds", {}).get(site, ""), "no reason was kept")


def outlier_words(record: StageRecord) -> dict[str, str]:
    """Return what became of each update that went far from the others, in words of ours."""
    told = record.details.get("outliers", {}).items()
    return {site: _ACTIONS.get(outlier["action"], "far from the others") for site, outlier in told}


def _round(run: StudyRun, record: StageRecord) -> dict[str, Any]:
    answers: Mapping[str, Any] = record.details["answers"]
    kept = {"kept_from": record.details["kept_from"]} if "kept_from" in record.details else {}
    absent = record.details.get("absent", {})
    asked = {**answers, **absent}
    counted = {s: told["examples"] for s, told in answers.items() if told["examples"]}
    weights = record.details.get("weights", {})
    return {
        "invited": [s for s in {**run.members, **asked} if s in asked],
        "seconds": {site: round(told["seconds"], 1) for site, told in answers.items()},
        "bytes": {site: told["bytes"] for site, told in answers.items()},
        **({"examples": {s: bucket_of(n).name for s, n in counted.items()}} if counted else {}),
        **({"weights": {s: round(share, 1) for s, share in weights.items()}} if weights else {}),
        **kept,
    }


def _short(reason: str) -> str:
    text = reason.rstrip(".")
    return text if len(text) <= _LONGEST_REASON else f"{text[: _LONGEST_REASON - 1]}…"
