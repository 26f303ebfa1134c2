"""The page about experts stands alone and tells what was measured, and of what there is nothing."""

from __future__ import annotations

import json
import math
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.unit.server.report.test_html import Page, outward
from vitrael.core.digest import digest_bytes
from vitrael.server.report.data import Curve, Event, SiteRound, StageSummary
from vitrael.server.report.experts import (
    RISKS,
    SCHEMA,
    AccuracyRow,
    ExpertRow,
    ExpertsReport,
    RiskRow,
    SiteWeights,
    render_experts_report,
    write_experts_report,
)

START = datetime(2031, 5, 1, 12, tzinfo=UTC)
AUC, REBUILT = "experts.members_by_nearness", "experts.inversion_rebuilt_from_means"


def expert(site: str, **changes: object) -> ExpertRow:
    told = {
        "site": site,
        "labels": ("A2C", "A4C"),
        "words": {},
        "calibrated": True,
        "cohort": digest_bytes(f"scans of {site}".encode()),
        "weights": digest_bytes(f"weights of {site}".encode()),
    }
    return ExpertRow.model_validate({**told, **changes})


def row(method: str, accuracy: float) -> AccuracyRow:
    return AccuracyRow(
        method=method,
        accuracy=accuracy,
        low=accuracy - 0.123,
        high=accuracy + 0.045,
        images=1_234,
        sites={"north": accuracy - 0.017, "harbour": accuracy + 0.013},
        by_view={"A2C": accuracy - 0.029, "PLAX": accuracy + 0.031},
    )


def risk(site: str, name: str, value: float, **changes: Any) -> RiskRow:
    told = {"low": value - 0.2, "high": value + 0.2, "n": 23, "experts": ("north",), **changes}
    return RiskRow(site=site, name=name, what=RISKS[name], value=value, **told)


@pytest.fixture
def data() -> ExpertsReport:
    """A made-up report: no number in it was ever measured."""
    return ExpertsReport(
        title="Experts of views: <made up>",
        created_utc=START,
        purpose="Tell views apart & learn nothing else",
        study=digest_bytes(b"study"),
        protocol=digest_bytes(b"protocol"),
        recipe="image-2d",
        edge_px=48,
        views=("A2C", "A4C", "PLAX"),
        told="means",
        begin="fresh",
        panel="panels/0123456789abcdef",
        experts=(
            expert("north", words={"apical <4>": "A4C", "A2C": "A2C"}),
            expert("harbour", calibrated=False),
            expert("valley", in_panel=False, labels=("PLAX",), cohort=None),
        ),
        table=(row("own expert", 0.912), row("fusion", 0.871)),
        sites=(
            SiteWeights(
                site="north", images=620, heaviest=0.83, weights={"north": 0.777, "harbour": 0.223}
            ),
            SiteWeights(
                site="harbour",
                images=614,
                heaviest=0.69,
                weights={"north": 0.312, "harbour": 0.688},
            ),
        ),
        risks=(
            risk("north", AUC, 0.561),
            risk("north", REBUILT, 0.412, low=None, high=None, n=31),
        ),
        not_estimable={"harbour": "fewer than <eleven> patients"},
        curves=(
            Curve(
                title="Loss of expert",
                x_label="images",
                y_label="loss",
                series={"north": ((0.0, 1.5), (64.0, 0.5))},
            ),
        ),
        stages=(
            StageSummary(
                stage="expert",
                round=1,
                status="finished",
                started_utc=START,
                seconds=12.5,
                participants=("north", "harbour"),
                output=digest_bytes(b"output"),
            ),
        ),
        rounds=(SiteRound(stage="expert 1", site="north", answered=True, seconds=3.5),),
        events=(Event(utc=START + timedelta(seconds=3), site="north", event="expert"),),
    )


def section(page: str, name: str) -> str:
    """Return one section of the page."""
    found = re.search(rf'<section aria-labelledby="{name}">.*?</section>', page, re.DOTALL)
    assert found is not None, name
    return found[0]


def rows_of(part: str) -> dict[str, list[str]]:
    """Return the body's rows of a section's tables: what stands first, and the texts after it."""
    rows = re.findall(r"<tr[^>]*><th scope=\"row\">(.*?)</th>(.*?)</tr>", part, re.DOTALL)
    return {
        first: [re.sub(r"<[^>]+>", "", cell).strip() for cell in re.split(r"</td>", rest)][:-1]
        for first, rest in rows
    }


def test_page_runs_no_script_and_fetches_nothing(data: ExpertsReport) -> None:
    page = render_experts_report(data)
    assert outward(page) == []
    for planted in ('<script src="x.js"></script>', '<img src="x.png">', '<p onclick="x()">a</p>'):
        assert outward(page.replace("<main>", f"<main>{planted}"))  # the controls
    policies = [
        told["content"]
        for tag, told in Page(page).tags
        if tag == "meta" and told.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_texts_are_escaped(data: ExpertsReport) -> None:
    page = render_experts_report(data)
    for shown, raw in (
        ("&lt;made up&gt;", "<made up>"),
        ("apical &lt;4&gt;", "<4>"),
        ("fewer than &lt;eleven&gt; patients", "<eleven>"),
        ("apart &amp; learn", "apart & learn"),
    ):
        assert shown in page
        assert raw not in page


def test_each_way_of_asking_has_its_accuracy_bounds_and_sites(data: ExpertsReport) -> None:
    part = section(render_experts_report(data), "table")
    whole, by_view = part.split("The same by view")
    assert rows_of(whole) == {
        "own expert": ["0.912", "0.789 to 0.957", "0.895", "0.925"],
        "fusion": ["0.871", "0.748 to 0.916", "0.854", "0.884"],
    }
    assert rows_of(by_view) == {"own expert": ["0.883", "0.943"], "fusion": ["0.842", "0.902"]}
    heads = re.findall(r'<th scope="col" class="r">(.*?)</th>', whole)
    assert heads == ["all sites", "interval", "north", "harbour"]
    assert re.findall(r'<th scope="col" class="r">(.*?)</th>', by_view) == ["A2C", "PLAX"]
    assert "n = 1,234 pictures" in re.sub(r"<[^>]+>", "", part)


def test_weights_of_every_expert_at_every_site_are_told(data: ExpertsReport) -> None:
    rows = rows_of(section(render_experts_report(data), "weights"))
    assert rows == {"north": ["0.777", "0.223", "83 %"], "harbour": ["0.312", "0.688", "69 %"]}


def test_words_of_a_site_stand_beside_those_of_the_study(data: ExpertsReport) -> None:
    rows = rows_of(section(render_experts_report(data), "experts"))
    assert rows["north"][:3] == ["A2C, A4C", "apical &lt;4&gt; is A4C", "yes"]
    assert rows["harbour"][:3] == [
        "A2C, A4C",
        "those of the study",
        "no: too few patients held out",
    ]
    weights = data.experts[0].weights.removeprefix("sha256:")[:12]
    assert rows["north"][4] == weights
    assert rows["valley"][3] == ""  # of whose scans no version is known


def test_words_that_are_those_of_the_study_are_not_explained(data: ExpertsReport) -> None:
    same = expert("north", words={"A2C": "A2C", "A4C": "A4C"})
    page = render_experts_report(data.model_copy(update={"experts": (same,)}))
    assert rows_of(section(page, "experts"))["north"][1] == "those of the study"


def test_two_words_are_told_apart(data: ExpertsReport) -> None:
    mixed = {"apical 4": "A4C", "PLAX": "PLAX", "apical 2": "A2C", "PSAX": "PSAX"}
    page = render_experts_report(
        data.model_copy(update={"experts": (expert("north", words=mixed),)})
    )
    words = rows_of(section(page, "experts"))["north"][1]
    assert words == "apical 4 is A4C, apical 2 is A2C"


def test_expert_that_is_not_in_the_panel_is_named(data: ExpertsReport) -> None:
    assert data.missing == ("valley",)
    part = section(render_experts_report(data), "experts")
    assert "Not in the panel any more: valley." in part
    assert part.count('<tr class="closed">') == 1
    there = data.model_copy(update={"experts": data.experts[:2]})  # the control
    assert there.missing == ()
    assert "Not in the panel" not in render_experts_report(there)


def test_risks_stand_with_bounds_and_number_of_patients(data: ExpertsReport) -> None:
    part = section(render_experts_report(data), "risk")
    cells = [re.sub(r"<[^>]+>", " ", cell).split() for cell in re.findall("<td.*?</td>", part)]
    assert f"<code>{AUC}</code>" in part
    told = RISKS[AUC].split()
    assert cells[0] == [*told[:-1], f"{told[-1]},", "of", "what", "north", "sees", AUC]
    assert cells[1:4] == [["0.561"], ["0.361", "to", "0.761"], ["23"]]
    assert cells[5:8] == [["0.412"], [], ["31"]]  # what has no bounds gets none
    assert "harbour: not estimable, fewer than" in part


def test_what_was_told_of_single_pictures_is_said(data: ExpertsReport) -> None:
    said = "here the features of every single picture"
    assert said in render_experts_report(data.model_copy(update={"told": "features"}))
    assert said not in render_experts_report(data)


def test_what_was_not_measured_is_said(data: ExpertsReport) -> None:
    empty = {"table": (), "sites": (), "risks": (), "curves": (), "stages": (), "events": ()}
    page = render_experts_report(data.model_copy(update=empty))
    assert "It was not measured with the experts that are in the panel now" in page
    assert "It was not measured." in section(page, "weights")
    assert outward(page) == []
    whole = render_experts_report(data)  # the control
    assert "was not measured" not in whole


def test_json_says_what_the_page_says(data: ExpertsReport, tmp_path: Path) -> None:
    path = write_experts_report(tmp_path, data)
    assert path.read_text() == render_experts_report(data)
    document = json.loads((tmp_path / "report.json").read_text())
    assert document.pop("schema") == SCHEMA == "vitrael/experts-report/1"
    assert ExpertsReport.model_validate(document) == data
    shown = {float(n) for part in Page(path.read_text()).numbers for n in _NUMBER.findall(part)}
    told = {round(n, 3) for n in _numbers(document)}
    assert len(shown) > 15
    assert shown <= told
    del document["risks"]
    assert not shown <= {round(n, 3) for n in _numbers(document)}  # the control


_NUMBER = re.compile(r"\d+\.\d+")


def _numbers(value: object) -> list[float]:
    if isinstance(value, dict | list):
        parts = value.values() if isinstance(value, dict) else value
        return [number for part in parts for number in _numbers(part)]
    return [float(value)] if isinstance(value, int | float) else []


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_number_that_is_not_finite_is_refused(wrong: float, data: ExpertsReport) -> None:
    with pytest.raises(ValidationError, match="finite"):
        risk("north", AUC, wrong, low=None, high=None)
    with pytest.raises(ValidationError, match="finite"):
        SiteWeights(site="north", images=1, heaviest=0.5, weights={"north": wrong})
    with pytest.raises(ValidationError):
        AccuracyRow.model_validate({**data.table[0].model_dump(), "accuracy": wrong})


def test_number_that_is_not_finite_reaches_no_file(data: ExpertsReport, tmp_path: Path) -> None:
    spoiled = data.table[0].model_copy(update={"by_view": {"A2C": math.nan}})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_experts_report(tmp_path, data.model_copy(update={"table": (spoiled,)}))
    assert list(tmp_path.iterdir()) == []


def test_page_can_be_used_without_seeing_it(data: ExpertsReport) -> None:
    page = Page(render_experts_report(data))
    ids = [told["id"] for _, told in page.tags if "id" in told]
    assert len(ids) == len(set(ids))
    assert {told["href"] for tag, told in page.tags if tag == "a"} <= {f"#{name}" for name in ids}
    for tag, told in page.tags:
        assert tag != "th" or told["scope"] in {"col", "row"}
        assert tag != "svg" or told.get("role") == "img" or told.get("aria-hidden") == "true"
    assert dict(page.tags)["html"]["lang"] == "en"
