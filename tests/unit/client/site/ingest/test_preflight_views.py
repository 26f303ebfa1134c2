"""An intake for a study of experts says whether an expert can learn, and asks for no filter."""

from __future__ import annotations

from tests.factories.entries import picture_entry
from vitrael.client.site.ingest.preflight import Entry, Finding, check_cohort
from vitrael.core.protocols import Splits, ViewSplits

KEY = bytes(range(32))
MOSTLY = ViewSplits(training_frac=0.98, calibration_frac=0.01, utility_frac=0.01)
SYNTHESIS = Splits(
    training_frac=0.5, filter_frac=0.15, calibration_frac=0.1, audit_frac=0.2, utility_frac=0.05
)


def entries(**patients: int) -> list[Entry]:
    """Return pictures, each of another patient, by their view; ``none`` have no word."""
    made: list[Entry] = []
    for view, count in patients.items():
        labels = {} if view == "none" else {"view": view}
        for _ in range(count):
            plain, facts = picture_entry(len(made))
            made.append(Entry(plain.model_copy(update={"labels": labels}), facts))
    return made


def few(found: list[Finding]) -> list[str]:
    return [one.sentence for one in found if one.check == "few-patients"]


def test_two_views_of_enough_patients_are_no_finding() -> None:
    assert few(check_cohort(entries(A2C=15, A4C=15), splits=MOSTLY, key=KEY)) == []


def test_expert_that_cannot_learn_is_a_problem_that_names_the_counts() -> None:
    (said,) = few(check_cohort(entries(A2C=20, A4C=8), splits=MOSTLY, key=KEY))
    assert "A4C: " in said
    assert "two views of 11 patients" in said
    (said,) = few(check_cohort(entries(none=30), splits=MOSTLY, key=KEY))
    assert "no word for its view" in said


def test_experts_need_no_filter_and_no_audit() -> None:
    checks = {one.check for one in check_cohort(entries(A2C=15, A4C=15), splits=MOSTLY, key=KEY)}
    assert "empty-splits" not in checks
    others = check_cohort(entries(A2C=15, A4C=15), splits=SYNTHESIS, key=KEY)  # the control
    assert any("filter" in sentence for sentence in few(others))
