"""What ends an intake on the terminal: files are named when asked for, those to look at alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.factories.entries import draw_head, head_entry, intake_of
from vitrael.client.site.ingest.outcome import IngestReport, tell
from vitrael.client.site.ingest.preflight import check_cohort
from vitrael.core.data.sources import LeftOut


@pytest.fixture(scope="module")
def report() -> IngestReport:
    entries = [*(head_entry(i) for i in range(25)), head_entry(99, draw_head(7))]
    findings = tuple(check_cohort(entries, expected=["age_years"]))
    origins = tuple((Path(f"/data/doe/{i}.nii"), Path(f"/data/doe/{i}.json")) for i in range(26))
    return intake_of(entries, findings=findings, origins=origins)


def test_files_of_what_a_finding_names_are_told_when_asked_for(report: IngestReport) -> None:
    lines = tell(report, paths=True).splitlines()
    place = next(i for i, line in enumerate(lines) if "are one image or show one person" in line)
    assert lines[place + 1 : place + 3] == [
        "            image 7: '/data/doe/7.nii' and 1 more",
        "            image 25: '/data/doe/25.nii' and 1 more",
    ]
    assert sum("doe" in line for line in lines) == 2, "what all images lack names none of them"
    named = {f["check"]: f["paths"] for f in report.document(paths=True)["findings"]}
    assert named["same-image"]["7"] == ["/data/doe/7.nii", "/data/doe/7.json"]
    assert named["missing-covariates"] == {}


def test_no_file_is_named_unasked(report: IngestReport) -> None:
    assert "doe" not in tell(report, paths=False)
    assert "doe" not in str(report.document(paths=False))
    assert "doe" not in repr(report)


def test_numbers_of_files_stand_in_order_beside_their_names() -> None:
    paths = [Path(f"/data/{name}") for name in "dbca"]
    left = tuple(LeftOut(tuple(each), "torn") for each in (paths[:2], paths[2:]))
    numbers = dict(zip(paths, (100, 196, 101, 197), strict=True))
    report = intake_of([], left_out=left, numbers=numbers)
    assert "4  torn (number 100, 101, 196, 197)" in tell(report, paths=False)
    (group,) = report.document(paths=True)["left_out"]
    assert group["numbers"] == [100, 101, 196, 197]
    assert group["paths"] == ["/data/d", "/data/c", "/data/b", "/data/a"]


def test_one_of_a_thing_is_told_in_the_singular() -> None:
    entries = [head_entry(0)]
    left = (LeftOut((Path("/data/a"),), "torn"),)
    told = tell(intake_of(entries, left_out=left, removed={"(0010,0010)": 1}), paths=False)
    assert "1 file, 1 series or images" in told
    assert "1 item of 1 patient, 1 read now" in told
    assert "left out: 1 file\n" in told
    assert "1 header element of 1 kind;" in told
    many = tell(intake_of([*entries, head_entry(1)]), paths=False)
    assert "2 items of 2 patients, 2 read now" in many
