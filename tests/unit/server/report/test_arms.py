"""The section on three arms: rows, bounds, an outcome, and what was not compared."""

from __future__ import annotations

import json
import re

import pytest

from vitrael.core.rng import stream
from vitrael.privacy.audit.arm_counts import ArmCounts, pool_arms
from vitrael.privacy.audit.arms import Comparison
from vitrael.server.report.arms import read_arms
from vitrael.server.report.data import ReportData
from vitrael.server.report.html import render_json, render_report


def told(student: int, *, teacher: int = 80) -> Comparison:
    one = ArmCounts(
        samples=200,
        hits={"teacher": teacher, "random": teacher - 5, "student": student},
        both={"random": teacher - 10, "student": min(student, teacher) // 2},
        held_out=40,
        held_out_hits=2,
    )
    return pool_arms([one, one], rng=stream(1, "report"))


def page_of(good: ReportData, comparison: Comparison | None) -> str:
    return render_report(good.model_copy(update={"arms": comparison}), images=None)


def section(page: str) -> str:
    return page.partition('<h2 id="arms">')[2].partition("</section>")[0]


def test_each_arm_is_told_with_bounds_and_beside_its_teacher(good: ReportData) -> None:
    text = section(page_of(good, told(8)))
    rows = re.findall(r"<tr><th.*?</tr>", text, flags=re.DOTALL)
    for title, share, ratio, outcome in (
        ("Teacher, unfiltered", "0.4", "", ""),
        ("drawn at random", "0.375", "0.938", "does not fall"),
        ("that the filter kept", "0.04", "0.1", "<td>falls"),
        ("whom nobody learned from", "0.05", "", ""),
    ):
        (row,) = (one for one in rows if title in one)
        for number in filter(None, (share, ratio)):
            assert f'<span class="n">{number}</span>' in row
        assert outcome in row
    assert "less often than with a random filter of the same size" in text
    assert "no gate asks for it" in text
    assert "At the site where the student's ratio could be largest" in text


def test_no_fall_is_not_told_as_one(good: ReportData) -> None:
    text = section(page_of(good, told(78)))
    assert "No fall is shown" in text
    assert "<td>falls" not in text


@pytest.mark.parametrize(
    ("comparison", "why"),
    [
        (
            told(1, teacher=12),
            "at no site is the teacher proven to be re-identified more often than strangers",
        ),
        (pool_arms([None], rng=stream(1, "report")), "a site is absent"),
    ],
)
def test_what_could_not_be_compared_says_why(
    comparison: Comparison, why: str, good: ReportData
) -> None:
    text = section(page_of(good, comparison))
    assert "could not be told" in text
    assert why in text
    assert "<td>falls" not in text
    assert read_arms(comparison).sentence.endswith(f"{comparison.reason}.")


def test_report_without_a_comparison_says_how_to_ask_for_it(good: ReportData) -> None:
    page = page_of(good, None)
    assert "The arms were not compared" in section(page)
    assert "protocol.distillation.compare = true" in section(page)
    assert 'href="#arms"' in page
    assert json.loads(render_json(good, images=None))["arms"] is None


def test_subgroups_that_the_filter_shifted_are_named(good: ReportData) -> None:
    assert good.screening is not None
    assert "Not shown to be kept as often" not in page_of(good, None)  # the control
    screening = good.screening.model_copy(update={"shifted": ("80 or older", "male")})
    page = page_of(good.model_copy(update={"screening": screening}), None)
    told = re.sub(r"<[^>]*>", "", page)
    assert "within a ratio of 0.8 to 1.25: 80 or older, male." in told
