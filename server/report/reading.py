"""A verdict in plain language: what it says, what it does not claim, and the filter's power."""

from __future__ import annotations

from typing import Final, Literal

from vitrael.core.configs import Section
from vitrael.server.report.data import ReportData
from vitrael.server.report.power import PowerReading, read_power

_COPIES: Final = {"copies.excess_share", "copies.worst_site"}
_COPIES_CONTROL: Final = "copies.control_power"


class Reading(Section):
    """The verdict for people."""

    banner: Literal["passed", "rehearsal", "refused"]
    headline: str
    mark: str
    """Stands over everything when nothing here may be published; else empty."""
    sentences: tuple[str, ...]
    not_claimed: tuple[str, ...]
    power: PowerReading


def read_verdict(data: ReportData) -> Reading:
    """Return the verdict in plain language; everything else than a publishable pass warns."""
    verdict = data.verdict
    banner: Literal["passed", "rehearsal", "refused"]
    if not verdict.passed:
        banner, headline = "refused", "Refused. Nothing of this may be published."
    elif verdict.publishable and not data.is_rehearsal:
        banner, headline = "passed", "Passed. This release may be published once it is signed."
    else:
        banner, headline = "rehearsal", "Every gate is open, in a rehearsal."
    return Reading(
        banner=banner,
        headline=headline,
        mark="Rehearsal: not for publication" if data.is_rehearsal else "",
        sentences=_sentences(data),
        not_claimed=_not_claimed(data),
        power=read_power(data),
    )


def _sentences(data: ReportData) -> tuple[str, ...]:
    findings = data.verdict.findings
    count = {
        outcome: sum(finding.outcome == outcome for finding in findings)
        for outcome in ("passed", "refused", "not estimable")
    }
    if not findings:
        return ("There is no gate, and nothing passes without one.",)
    lines = [f"{count['passed']} of {len(findings)} gates are open."]
    if count["refused"]:
        lines.append(f"Refused: {_names(data, 'refused')}.")
    if count["not estimable"]:
        names = _names(data, "not estimable")
        lines.append(f"Could not be measured, which counts as refused: {names}.")
    if proven := list(dict.fromkeys(f.gate.measurement for f in findings if f.proven)):
        lines.append(
            f"Beyond the threshold with the whole interval, so not by chance: {', '.join(proven)}."
        )
    refused = dict.fromkeys(f.gate.measurement for f in findings if f.outcome == "refused")
    if uncertain := [name for name in refused if name not in proven]:
        lines.append(
            "Refused with an interval that reaches the threshold, so uncertain and perhaps by "
            f"chance: {', '.join(uncertain)}."
        )
    if data.unscreened:
        why = f": {data.unscreened_reason}" if data.unscreened_reason else ""
        lines.append(f"Candidates and samples are unscreened{why}.")
    lines.append(
        f"The set has {data.volumes} synthetic volumes, all drawn from the distilled generator. No "
        f"scan was put among them, nor into this report. {_copies(data)}"
    )
    return tuple(lines)


def _copies(data: ReportData) -> str:
    """Return what the search for copies says of the volumes, at its worst."""
    findings = data.verdict.findings
    found = [f for f in findings if f.gate.measurement in _COPIES]
    outcomes = {finding.outcome for finding in found}
    power = {f.outcome for f in findings if f.gate.measurement == _COPIES_CONTROL}
    if any(finding.proven for finding in found):
        return "But copies of patients' scans are among them, and may be among the pictures here."
    if "refused" in outcomes:
        return "Copies of patients' scans may be among them: their gate refused."
    if not outcomes or "not estimable" in outcomes | power:
        return "Whether any of them copies a patient's scan was not measured."
    if "refused" in power:
        return "The search for copies found none too many, but it is too weak to acquit the set."
    return "The search for copies stayed within its gate, which does not say that there is none."


def _names(data: ReportData, outcome: str) -> str:
    found = [f.gate.measurement for f in data.verdict.findings if f.outcome == outcome]
    return ", ".join(dict.fromkeys(found))


def _not_claimed(data: ReportData) -> tuple[str, ...]:
    recognized = (
        "That nobody could ever be recognized. It says what the attacks listed here found, with "
        "these numbers of patients; an attack that is not listed may find more."
    )
    lines = [
        recognized,
        "That the volumes are fit for a clinical question. No gate here measures that.",
        "Anything about another release, another study or another site.",
    ]
    if data.study.path == "empirical":
        lines.insert(
            1,
            "A differential privacy budget. This study took the empirical path: it filters and "
            "audits, and no ε is stated.",
        )
    if data.is_rehearsal:
        lines.append(
            "That the thresholds suffice for publication. Those of a rehearsal are wide enough "
            "for a small study to pass."
        )
    return tuple(lines)
