"""The page stands alone, hides nothing, and says no number that its JSON twin does not hold."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitrael.core.errors import DataError
from vitrael.server.report.data import SCHEMA, Curve, ReportData
from vitrael.server.report.html import (
    ReportImages,
    format_number,
    render_json,
    render_report,
    write_report,
)

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects tags, attributes and the text of numbers; open tags must close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.numbers: list[str] = []
        self.stack: list[tuple[str, str]] = []
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append((tag, dict(attrs).get("class") or ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if self.stack and self.stack[-1] == ("span", "n"):
            self.numbers.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def outward(text: str) -> list[str]:
    """Return every way in which the page would reach out or run something."""
    found = re.findall(r"https?:|//\w|url\(|@import|javascript:", text)
    for tag, attributes in Page(text).tags:
        if tag in {"script", "link", "iframe", "object", "embed", "form"}:
            found.append(tag)
        found += [name for name in attributes if name.startswith("on")]
        found += [
            f"{name}={value}"
            for name, value in attributes.items()
            if name in {"src", "href", "srcset", "action", "data"}
            and not (value or "").startswith(("#", "data:image/png;base64,"))
        ]
    return found


def numbers_in(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set().union(*(numbers_in(v) for v in value.values()), set())
    if isinstance(value, list):
        return set().union(*(numbers_in(v) for v in value), set())
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {format_number(value), format_number(float(value))}
    return set()


def test_page_reaches_for_nothing(good: ReportData, images: ReportImages) -> None:
    page = render_report(good, images=images)
    without_pictures = re.sub(
        r"data:image/png;base64,[A-Za-z0-9+/=]+", "data:image/png;base64,", page
    )
    assert outward(without_pictures) == []
    # The controls: each kind of reaching out is seen.
    for planted in ('<script src="x.js"></script>', '<img src="x.png">', '<p onclick="x()">a</p>'):
        assert outward(without_pictures.replace("<main>", f"<main>{planted}"))


def test_samples_are_called_blurred_beside_what_they_are_compared_with(
    good: ReportData, images: ReportImages
) -> None:
    blurred = "They look blurred beside the phantoms"
    assert blurred in render_report(good, images=images)
    assert blurred not in render_report(good, images=None)


def test_content_security_policy_forbids_all_but_the_page_itself(good: ReportData) -> None:
    policies = [
        attributes["content"]
        for tag, attributes in Page(render_report(good, images=None)).tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


@pytest.mark.parametrize("which", ["good", "bad"])
def test_json_twin_holds_every_number_of_the_page(
    which: str, images: ReportImages, request: pytest.FixtureRequest
) -> None:
    data: ReportData = request.getfixturevalue(which)
    shown = set(Page(render_report(data, images=images)).numbers)
    twin = numbers_in(json.loads(render_json(data, images=images)))
    assert len(shown) > 30
    assert shown - twin == set()
    # The control: without the evidence and the gates, numbers would be missing.
    partial = {"study": json.loads(render_json(data, images=images))["study"]}
    assert shown - numbers_in(partial)


def test_page_shows_every_gate_with_number_threshold_and_outcome(bad: ReportData) -> None:
    page = render_report(bad, images=None)
    numbers = Page(page).numbers
    for finding in bad.verdict.findings:
        assert finding.gate.measurement in page
        assert format_number(finding.gate.threshold) in numbers
        if finding.measurement and finding.measurement.value is not None:
            assert format_number(finding.measurement.value) in numbers
            assert format_number(finding.measurement.n) in numbers
    assert page.count('<tr class="closed">') == 2
    assert "no patient had a second visit" in page
    assert page.count("proven, not by chance") == 1
    assert "uncertain, perhaps by chance" not in page


def test_refusal_that_is_not_proven_is_marked_as_uncertain(bad: ReportData) -> None:
    findings = tuple(f.model_copy(update={"proven": False}) for f in bad.verdict.findings)
    verdict = bad.verdict.model_copy(update={"findings": findings})
    page = render_report(bad.model_copy(update={"verdict": verdict}), images=None)
    assert page.count("uncertain, perhaps by chance") == 1
    assert "proven, not by chance" not in page


def test_gates_stand_by_subject_and_each_control_after_its_attack(bad: ReportData) -> None:
    reversed_ = bad.verdict.model_copy(update={"findings": bad.verdict.findings[::-1]})
    for data in (bad, bad.model_copy(update={"verdict": reversed_})):
        table = render_report(data, images=None).partition('<table class="gates">')[2]
        table = table.partition("</table>")[0]
        at = [table.index(f"<code>{name}</code>") for name in (
            "participation.complete", "screening.done", "filter.power.exact", "copies.excess_share",
            "copies.control_power", "closeness.training_share", "membership.auc",
            "membership.placebo_gap", "conditioning.ventricle_r", "conditioning.permuted_r",
        )]  # fmt: skip
        assert at == sorted(at)
        rows = re.findall(r"<tr.*?</tr>", table, flags=re.DOTALL)
        drawn = [row for row in rows if 'class="interval"' in row]
        assert len(drawn) == len(data.verdict.findings) - 1
        assert not any("not estimable" in row for row in drawn)


def test_share_of_candidates_that_were_kept_is_told_for_each_site(good: ReportData) -> None:
    numbers = Page(render_report(good, images=None)).numbers
    for number in ("151", "192", "0.786", "163", "180"):
        assert number in numbers
    page = render_report(good.model_copy(update={"screening": None}), images=None)
    assert "No candidates were screened" in page
    assert "163" not in Page(page).numbers
    assert "No samples were screened" in page
    again = render_report(good.model_copy(update={"rescreening": good.screening}), images=None)
    assert "only these are in the release" in again


def test_share_that_was_kept_is_told_for_each_subgroup_that_is_no_small_one(
    good: ReportData,
) -> None:
    page = render_report(good, images=None)
    assert {"0.25", "0.125", "0.5", "71"} <= set(Page(page).numbers)
    assert re.search(r'<th scope="row">female</th>', page)
    assert re.search(r'<th scope="row">male</th><td class="r" colspan="3">few</td>', page)


def test_count_that_is_too_small_is_no_number(good: ReportData) -> None:
    assert good.screening is not None
    few = good.screening.votes[0].model_copy(update={"kept": None})
    screening = good.screening.model_copy(update={"votes": (few,)})
    page = render_report(good.model_copy(update={"screening": screening}), images=None)
    assert "too few to tell" in page
    assert "too few to tell" not in render_report(good, images=None)  # the control


def test_unscreened_candidates_are_told_with_the_reason_that_holds(good: ReportData) -> None:
    why = {"unscreened": True, "unscreened_reason": "screening is off in the study"}
    page = render_report(good.model_copy(update=why), images=None)
    assert "They count as unscreened: screening is off in the study." in page
    assert "could not judge" not in page


@pytest.mark.parametrize("twin", [True, False])
def test_page_names_only_files_that_lie_beside_it(twin: object, good: ReportData) -> None:
    page = render_report(good, images=None, twin=bool(twin))
    assert ("report.json" in page, "evidence.json" in page) == (twin, not twin)


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [
        (-14.1, -10.7, "the ventricles are smaller than asked"),
        (10.7, 14.1, "the ventricles are larger than asked"),
        (-1.0, 2.0, "a shift is not proven"),
    ],
)
def test_shift_between_asked_and_measured_is_said(
    low: float, high: float, told: str, good: ReportData
) -> None:
    assert good.conditioning is not None
    update = {"value": (low + high) / 2, "low": low, "high": high}
    shifted = good.conditioning.difference.model_copy(update=update)
    conditioning = good.conditioning.model_copy(update={"difference": shifted})
    page = render_report(good.model_copy(update={"conditioning": conditioning}), images=None)
    assert told in page
    assert format_number((low + high) / 2) in Page(page).numbers


def test_ceiling_is_printed_before_what_the_generator_reaches(good: ReportData) -> None:
    page = render_report(good, images=None)
    assert 0 < page.index("0.931") < page.index("0.862")


def test_json_twin_has_a_stable_shape(good: ReportData) -> None:
    document = json.loads(render_json(good, images=None))
    assert document["schema"] == SCHEMA == "vitrael.report/1"
    assert sorted(document) == [
        "arms", "conditioning", "created_utc", "curves", "events", "evidence", "pictures", "plants",
        "reading", "release", "rescreening", "rounds", "schema", "screening", "sites", "stages",
        "study", "title", "unscreened", "unscreened_reason", "verdict", "volumes",
    ]  # fmt: skip


def test_power_is_not_said_to_be_of_patients_whom_the_filter_never_met(good: ReportData) -> None:
    page = render_report(good, images=None)
    assert "Its gallery and the null of its thresholds hold these patients" in page
    assert "its encoder never saw them" in page
    for false in ("whom the filter never saw", "planted among the candidates"):
        assert false not in page


def test_small_numbers_of_patients_in_training_stand_nowhere(good: ReportData) -> None:
    for text in (render_report(good, images=None), render_json(good, images=None).decode()):
        assert "fewer than 11" in text
        assert "100 to 199" in text
        assert "137" not in re.sub(r"sha256:\w+|[\d.]*\d\.\d+|title=\S+", "", text)


def test_reference_is_a_phantom_or_missing_and_says_so(
    good: ReportData, images: ReportImages
) -> None:
    alone = render_report(good, images=ReportImages(images.samples))
    assert "No phantom reference was given" in alone
    assert Page(alone).count("img") == 2
    beside = render_report(good, images=images)
    assert "No phantom reference was given" not in beside
    assert "procedural phantoms, which belong to nobody" in beside


def test_page_can_be_used_without_seeing_it(good: ReportData, images: ReportImages) -> None:
    page = Page(render_report(good, images=images))
    for tag, attributes in page.tags:
        if tag == "img":
            assert len(attributes["alt"] or "") > 20
        if tag == "svg":
            assert attributes.get("role") == "img" or attributes.get("aria-hidden") == "true"
            assert attributes.get("aria-hidden") == "true" or attributes["aria-label"]
        if tag == "th":
            assert attributes["scope"] in {"col", "row"}
    assert page.count("table") == page.count("caption")
    assert dict(page.tags)["html"]["lang"] == "en"
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {a["href"] for tag, a in page.tags if tag == "a"}
    assert targets <= {f"#{name}" for name in ids}


def test_text_is_escaped(good: ReportData) -> None:
    page = render_report(good, images=None)
    assert "Brain demo &lt;made up&gt;" in page
    assert "<made up>" not in page


def test_empty_report_still_reads(good: ReportData) -> None:
    empty = good.model_copy(update={"conditioning": None, "curves": (), "stages": (), "events": ()})
    page = render_report(empty, images=None)
    for missing in ("was not measured", "No training curve", "No event", "No sample is shown"):
        assert missing in page


def test_curve_without_points_is_left_out(good: ReportData) -> None:
    curve = Curve(title="Nothing", x_label="images", y_label="loss", series={"north": ()})
    page = render_report(good.model_copy(update={"curves": (curve,)}), images=None)
    assert "Nothing" not in Page(page).numbers
    assert "No training curve" in page


def test_both_files_are_written_and_images_that_cannot_be_drawn_write_neither(
    good: ReportData, images: ReportImages, tmp_path: Path
) -> None:
    broken = ReportImages(np.full((2, 1, 8, 8, 8), np.nan, np.float32))
    with pytest.raises(DataError, match="not finite"):
        write_report(tmp_path / "report", good, images=broken)
    assert not (tmp_path / "report").exists()
    path = write_report(tmp_path / "report", good, images=images)
    assert sorted(p.name for p in path.parent.iterdir()) == ["report.html", "report.json"]
    assert path.read_text(encoding="utf-8") == render_report(good, images=images)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (1.0, "1"), (0.95, "0.95"), (0.98765, "0.988"), (-0.0471, "-0.0471"),
        (0.0003, "0.0003"), (48.24, "48.2"), (1234.5, "1,234"), (20_250, "20,250"), (0, "0"),
        (100.0, "100"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert format_number(value) == text


def test_first_column_of_the_gates_is_wide_and_long_units_do_not_squeeze_it(
    good: ReportData,
) -> None:
    page = render_report(good, images=None)
    assert '<table class="gates">' in page
    assert re.search(r"\.gates th:first-child \{ min-width: 2\drem; \}", page)
    assert re.search(r"\.gates \.small \{ white-space: normal; \}", page)
