"""A verdict in plain language never sounds better than it is."""

from __future__ import annotations

import pytest

from vitrael.privacy.gates import POLICIES
from vitrael.server.report.data import ReportData
from vitrael.server.report.reading import read_verdict


def _under_public(data: ReportData, *, publishable: bool) -> ReportData:
    update = {"policy": "public", "publishable": publishable}
    return data.model_copy(update={"verdict": data.verdict.model_copy(update=update)})


def test_rehearsal_that_passes_is_marked_and_not_green(good: ReportData) -> None:
    reading = read_verdict(good)
    assert (reading.banner, reading.mark) == ("rehearsal", "Rehearsal: not for publication")
    assert any("thresholds suffice" in line for line in reading.not_claimed)


def test_only_a_publishable_pass_is_green(good: ReportData) -> None:
    assert read_verdict(_under_public(good, publishable=True)).banner == "passed"
    assert read_verdict(_under_public(good, publishable=True)).mark == ""
    assert read_verdict(_under_public(good, publishable=False)).banner != "passed"


def test_refusal_names_what_refused_and_what_could_not_be_measured(bad: ReportData) -> None:
    reading = read_verdict(bad)
    assert reading.banner == "refused"
    text = " ".join(reading.sentences)
    gates = len(bad.verdict.findings)
    assert gates == len(POLICIES["rehearsal"].gates)
    assert f"{gates - 2} of {gates} gates are open" in text
    assert "Refused: copies.excess_share." in text
    assert "Could not be measured, which counts as refused: filter.power.blend_80." in text
    assert "not by chance: copies.excess_share" in text
    assert "uncertain" not in text


def test_refusal_that_is_only_uncertain_is_named_as_such(bad: ReportData) -> None:
    findings = tuple(f.model_copy(update={"proven": False}) for f in bad.verdict.findings)
    verdict = bad.verdict.model_copy(update={"findings": findings})
    text = " ".join(read_verdict(bad.model_copy(update={"verdict": verdict})).sentences)
    assert "uncertain and perhaps by chance: copies.excess_share." in text
    assert "so not by chance" not in text


@pytest.mark.parametrize("why", ["screening is off in the study", ""])
def test_unscreened_candidates_are_told_with_the_true_reason(why: str, good: ReportData) -> None:
    unscreened = good.model_copy(update={"unscreened": True, "unscreened_reason": why})
    told = " ".join(read_verdict(unscreened).sentences)
    assert ("Candidates and samples are unscreened" + (f": {why}." if why else ".")) in told
    assert "too few" not in told
    assert "unscreened" not in " ".join(read_verdict(good).sentences)


def test_set_with_copies_is_not_called_free_of_them(good: ReportData, bad: ReportData) -> None:
    def told(data: ReportData) -> str:
        return read_verdict(data).sentences[-1]

    assert "stayed within its gate" in told(good)
    assert "copies of patients' scans are among them" in told(bad)
    findings = {f.gate.measurement: f for f in bad.verdict.findings}
    doubtful = findings["copies.excess_share"].model_copy(update={"proven": False})
    blind = doubtful.model_copy(update={"outcome": "not estimable"})
    for finding, words in ((doubtful, "may be among them"), (blind, "was not measured")):
        verdict = bad.verdict.model_copy(update={"findings": (finding,)})
        assert words in told(bad.model_copy(update={"verdict": verdict}))
    passed = {f.gate.measurement: f for f in good.verdict.findings}
    weak = passed["copies.control_power"].model_copy(update={"outcome": "refused"})
    verdict = good.verdict.model_copy(update={"findings": (passed["copies.excess_share"], weak)})
    assert "too weak to acquit" in told(good.model_copy(update={"verdict": verdict}))
    for data in (good, bad):
        assert "No scan of a patient is in it" not in told(data)


def test_verdict_without_gates_says_so(good: ReportData) -> None:
    verdict = good.verdict.model_copy(update={"findings": (), "outcome": "refuse"})
    reading = read_verdict(good.model_copy(update={"verdict": verdict}))
    assert reading.banner == "refused"
    assert reading.sentences == ("There is no gate, and nothing passes without one.",)


def test_empirical_path_claims_no_budget(good: ReportData) -> None:
    def claims(path: str) -> str:
        study = good.study.model_copy(update={"path": path})
        return " ".join(read_verdict(good.model_copy(update={"study": study})).not_claimed)

    assert "no ε is stated" in claims("empirical")
    assert "ε" not in claims("dp")


def test_power_counts_what_was_caught_and_says_what_could_not_be_judged(bad: ReportData) -> None:
    power = {row.kind: row for row in read_verdict(bad).power.classes}
    assert (power["exact"].planted, power["exact"].caught, power["exact"].low) == (60, 59, 0.911)
    assert power["exact"].demanded == 0.8
    assert (power["blend_80"].caught, power["blend_80"].outcome) == (None, "not estimable")
    assert power["blend_80"].reason == "no patient had a second visit"
