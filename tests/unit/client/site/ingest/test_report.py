"""The page for the data steward: whole, offline, for this user alone, and without a name."""

from __future__ import annotations

import base64
import re
from collections import Counter
from datetime import UTC, datetime
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.factories.entries import (
    draw_head,
    head_entry,
    intake_of,
    item,
    manifest_of,
    prepare_volume,
)
from vitrael.client.site.ingest import report as page_module
from vitrael.client.site.ingest.montage import thumbnail
from vitrael.client.site.ingest.outcome import tell
from vitrael.client.site.ingest.preflight import Entry, check_cohort
from vitrael.client.site.ingest.report import render_report, write_report
from vitrael.client.site.ingest.subtraction import silence
from vitrael.client.site.ingest.summary import summarize
from vitrael.core.data.sources import LeftOut
from vitrael.core.errors import StorageError

NOW = datetime(2026, 3, 1, 8, 30, tzinfo=UTC)
VOID = {"meta", "img", "br", "rect", "line", "link", "input", "hr", "path", "circle"}


class Reader(HTMLParser):
    """Collects the text and the attributes of a page, and whether its elements close."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in {"td", "th", "p", "h3", "dt", "dd"}:
            self.text += " "
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in {"style", "title"}:
            self.text += data


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    reader.text = " ".join(reader.text.split())
    return reader


@pytest.fixture(scope="module")
def entries() -> list[Entry]:
    known = [{"age_years": 30.0 + i, "sex": float(i % 2), "brain_ml": 1200.0} for i in range(25)]
    known[3] = {}
    described = [item(i, covariates=c, labels={"group": "a"}) for i, c in enumerate(known)]
    made = [head_entry(i, described=each) for i, each in enumerate(described)]
    return [*made, head_entry(99, draw_head(7), described=item(99, labels={"group": "b"}))]


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    return [thumbnail(prepare_volume(draw_head(i))) for i in range(26)]


def render(entries: list[Entry], pictures: list[bytes], **changes: Any) -> str:
    findings = tuple(check_cohort(entries, expected=["age_years"]))
    summary = summarize(manifest_of([entry.item for entry in entries]), findings=findings)
    return render_report(
        intake_of(entries, **{"findings": findings, **changes}),
        entries=entries,
        thumbnails=pictures,
        summary=summary,
        created_utc=NOW,
    )


def test_page_says_that_it_stays_and_what_was_done(
    entries: list[Entry], pictures: list[bytes]
) -> None:
    text = read(render(entries, pictures, anew=20, sources=30)).text
    assert text.index("Stays at this site") < text.index("What an intake found")
    assert "26 images of 26 patients are in the cohort." in text
    assert "Taken in 26 Read in this run; the others were known 20 of 30" in text
    assert "brain-t1, version 1" in text
    assert "24 × 24 × 24 voxels of 8 mm" in text  # noqa: RUF001 - the sign for times
    assert manifest_of([entry.item for entry in entries]).digest in text
    assert "2026-03-01 08:30 UTC" in text


def test_page_tells_findings_with_images_to_compare(
    entries: list[Entry], pictures: list[bytes]
) -> None:
    page = render(entries, pictures)
    text = read(page).text
    assert "1 problem, 2 warnings and 0 notes" in text
    assert "2 images of different patients are one image or show one person" in text
    assert "7, 25" in text
    assert page.count("tile flagged") == 2 + 2 + 2  # compared, named by a finding, among all


def test_page_shows_covariates_labels_and_geometry(
    entries: list[Entry], pictures: list[bytes]
) -> None:
    text = read(render(entries, pictures)).text
    assert "female: 13; male: 11; unknown: 2" in text
    assert "Age, years" in text
    assert "24 images; 2 without a value" in text
    assert "Brain volume, ml" in text
    assert "group a 25 25 group b 1 1" in text
    assert "RAS, isotropic 26" in text


def test_page_tells_what_was_removed_by_tag_and_left_out_by_reason(
    entries: list[Entry], pictures: list[bytes]
) -> None:
    left = (
        LeftOut((Path("/data/doe/scan.dcm"),), "slices are missing: 2 positions are absent"),
        LeftOut((Path("/data/doe/LICENSE"),), "it is no image", expected=True),
    )
    removed = {"(0010,0010)": 26, "(0009,1001)": 3, "nonsense": 1}
    numbers = {left[0].paths[0]: 17}
    page = render(entries, pictures, left_out=left, numbers=numbers, removed=removed)
    text = read(page).text
    assert "(0010,0010) Patient's Name 26" in text
    assert "(0009,1001) an element of the maker or of no name 3" in text
    assert "slices are missing: 2 positions are absent 1 17" in text
    assert "it is no image (expected) 1" in text
    assert "/doe" not in text
    assert "scan.dcm" not in page


def test_page_shows_what_a_coordinator_may_be_told(
    entries: list[Entry], pictures: list[bytes]
) -> None:
    text = read(render(entries, pictures)).text
    told = text[text.index("What a coordinator may be told") :]
    assert "Patients 26" in told
    assert "unknown or female or male: 26" in told
    assert "Withdrawn patients 0" in told


def test_page_shows_the_counts_that_leave_and_says_when_they_are_not_those_of_this_version(
    entries: list[Entry], pictures: list[bytes]
) -> None:
    now = manifest_of([entry.item for entry in entries])
    older = summarize(manifest_of([item(i) for i in range(31)]))
    shown = [
        read(render_report(intake_of(entries), entries=entries, thumbnails=pictures, summary=each))
        for each in (summarize(now), older, silence(summarize(now)))
    ]
    told = [page.text[page.text.index("What a coordinator may be told") :] for page in shown]
    assert ["Patients 26" in text for text in told] == [True, False, False]
    assert ["Patients 31" in text for text in told] == [False, True, False]
    assert ["Patients not told" in text for text in told] == [False, False, True]
    assert ["counts of an older version" in text for text in told] == [False, True, False]
    assert ["No number of this cohort leaves" in text for text in told] == [False, False, True]


def test_page_names_the_files_of_an_image_by_their_place(
    entries: list[Entry], pictures: list[bytes]
) -> None:
    names = [tuple(Path(f"/data/doe/{i}-{n}") for n in range(1 + i % 6)) for i in range(26)]
    numbers = {path: place for place, path in enumerate(sum(names, ()), start=1)}
    page = render(entries, pictures, origins=tuple(names), numbers=numbers)
    text = read(page).text
    assert "0 p-0000, visit 0 file 1 " in text
    assert "1 p-0001, visit 0 files 2, 3 " in text
    assert "3 p-0003, visit 0 4 files from 7 " in text
    assert "/doe" not in page


def test_patient_whose_sex_contradicts_itself_counts_as_unknown() -> None:
    described = [item(0, covariates={"sex": 0.0}), item(0, visit=1, covariates={"sex": 1.0})]
    described += [item(1, covariates={"sex": 1.0}), item(1, visit=1)]
    entries = [head_entry(each.visit, described=each) for each in described]
    text = read(render_report(intake_of(entries), entries=entries, thumbnails=[b""] * 4)).text
    assert "male: 1; unknown: 1" in text


def test_page_needs_nothing_from_elsewhere(entries: list[Entry], pictures: list[bytes]) -> None:
    page = render(entries, pictures)
    reader = read(page)
    assert reader.tags["script"] == reader.tags["link"] == reader.tags["iframe"] == 0
    for tag, name, value in reader.attributes:
        assert not name.startswith("on")
        if name in {"src", "href"}:
            assert value.startswith(("data:image/png;base64,", "#")), tag
    assert "url(" not in page
    assert "@import" not in page
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert ("meta", "content", policy) in reader.attributes


def test_control_something_from_elsewhere_would_be_seen() -> None:
    reader = read('<p><img src="https://example.org/x.png"></p>')
    assert ("img", "src", "https://example.org/x.png") in reader.attributes


def test_everything_is_escaped(entries: list[Entry], pictures: list[bytes]) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=y>"
    page = render(
        entries,
        pictures,
        cohort=evil,
        notes=(evil,),
        left_out=(LeftOut((Path("x"),), evil),),
        removed={evil: 1},
    )
    reader = read(page)
    assert reader.tags["script"] == 0
    assert not [a for a in reader.attributes if a[1] == "onerror"]
    assert reader.text.count(evil) >= 4


def test_pictures_are_those_of_the_items_and_not_too_many(
    entries: list[Entry], pictures: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = re.findall(r'base64,([^"]+)"', render(entries, pictures))
    assert {base64.b64decode(each) for each in shown} == set(pictures)
    monkeypatch.setattr(page_module, "MOST_SHOWN", 5)
    page = render(entries, pictures)
    assert "The first 5 of 26 images." in read(page).text
    assert page.count("data:image/png") == 2 + 2 + 5


def test_item_without_a_thumbnail_is_not_shown(entries: list[Entry], pictures: list[bytes]) -> None:
    page = render(entries, [b"" if i == 3 else each for i, each in enumerate(pictures)])
    assert page.count("data:image/png") == 2 + 2 + 25


def test_empty_intake_has_a_page() -> None:
    text = read(render([], [])).text
    assert "0 images of 0 patients" in text
    assert "There is no image to show." in text
    bare = render_report(intake_of([]), entries=[], thumbnails=[])
    assert "What a coordinator may be told" not in bare
    assert "The checks found nothing unusual." in read(bare).text


def test_page_counts_one_image_in_the_singular(entries: list[Entry], pictures: list[bytes]) -> None:
    text = read(render(entries[:1], pictures[:1])).text
    assert "1 image of 1 patient is in the cohort." in text
    assert not re.findall(r"\b1 (?:images|patients|problems|warnings|notes|files)\b", text)


def test_page_counts_every_note_that_the_terminal_prints(
    entries: list[Entry], pictures: list[bytes]
) -> None:
    notes = ("hidden files and folders, skipped: 3", "without a skull as it came: 26")
    findings = tuple(check_cohort(entries, expected=["age_years"]))
    text = read(render(entries, pictures, notes=notes)).text
    lines = tell(intake_of(entries, findings=findings, notes=notes), paths=False).splitlines()
    assert sum(line.startswith("  note ") for line in lines) == 2
    assert "There is 1 problem, 2 warnings and 2 notes." in text
    assert all(f"note {note}" in text for note in notes)


def test_page_is_for_this_user_alone(
    tmp_path: Path, entries: list[Entry], pictures: list[bytes]
) -> None:
    path = tmp_path / "report.html"
    path.write_text("before")
    path.chmod(0o666)
    intake = intake_of(entries)
    assert write_report(path, intake, entries=entries, thumbnails=pictures) == path
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_page_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="report of the intake"):
        write_report(tmp_path / "file" / "report.html", intake_of([]), entries=[], thumbnails=[])


@pytest.mark.parametrize(
    ("low", "high"), [(18.0, 93.0), (0.0, 0.0), (1200.0, 1200.0), (0.31, 0.78), (1e-6, 2e-6)]
)
def test_bins_hold_all_values_between_round_numbers(low: float, high: float) -> None:
    edges = page_module._choose_edges(low, high)
    assert edges[0] <= low
    assert edges[-1] >= high
    assert 2 <= len(edges) <= 15
    assert all(a < b for a, b in pairwise(edges))
