"""A dry run says what the intake would do, refuses what it would refuse, and writes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.factories.intake import (
    BRAIN,
    files_below,
    identity_of,
    refused,
    set_aside,
    take_in,
    write_brain,
    write_brains,
    write_slices,
)
from vitrael.client.site.ingest.outcome import IngestReport, tell
from vitrael.client.site.ingest.pipeline import WITHDRAWN, Choices, foresee_folder
from vitrael.client.site.ingest.places import Home
from vitrael.client.site.ingest.withdraw import find_patient, remove_patient
from vitrael.core.errors import CohortError, UsageError, VitraelError


@pytest.fixture
def scans(scans: Path) -> Path:
    """Three brains as NIfTI and one as DICOM."""
    write_slices(scans / "pacs", 7)
    return scans


def foresee(root: Path, home: Home, *, may_replace: bool = False) -> IngestReport:
    return foresee_folder(
        root,
        home,
        "main",
        choices=Choices(BRAIN, workers=0),
        tell=lambda *_: None,
        may_replace=may_replace,
    )


def test_withdrawn_patients_are_foreseen_to_stay_out(scans: Path, home: Home) -> None:
    assert foresee(scans, home).items == 4
    for who in ("sub-01", identity_of(7).patient_id):
        remove_patient(home, find_patient(home, who))
    foreseen, done = foresee(scans, home), take_in(scans, home)
    assert (foreseen.items, foreseen.patients, foreseen.sources) == (2, 2, 4)
    assert (done.items, done.patients, done.sources) == (2, 2, 4)
    assert set_aside(foreseen) == set_aside(done) == {WITHDRAWN: 17}


def elsewhere(scans: Path, home: Home) -> Home:
    del scans
    (home.folder.parent / "used").mkdir()
    (home.folder.parent / "used" / "notes.txt").touch()
    return Home(home.folder.parent / "used")


def inside(scans: Path, home: Home) -> Home:
    del home
    return Home(scans / "deep" / "home")


def of_another_folder(scans: Path, home: Home) -> Home:
    write_brains(scans.parent / "others", range(5, 7))
    take_in(scans.parent / "others", home)
    return home


def with_a_damaged_list(scans: Path, home: Home) -> Home:
    del scans
    home.withdrawn.write_text("{")
    return home


def with_a_damaged_manifest(scans: Path, home: Home) -> Home:
    take_in(scans, home)
    home.cohort("main").manifest.write_text("{")
    return home


HOMES: dict[Callable[[Path, Home], Home], type[VitraelError]] = {
    elsewhere: UsageError,
    inside: UsageError,
    of_another_folder: UsageError,
    with_a_damaged_list: CohortError,
    with_a_damaged_manifest: CohortError,
}


@pytest.mark.parametrize("make", HOMES)
def test_dry_run_refuses_what_the_intake_refuses(
    make: Callable[[Path, Home], Home], scans: Path, home: Home
) -> None:
    asked = make(scans, home)
    before = files_below(scans.parent)
    with pytest.raises(HOMES[make]) as foreseen:
        foresee(scans, asked)
    assert files_below(scans.parent) == before
    with pytest.raises(HOMES[make]) as done:
        take_in(scans, asked)
    assert foreseen.value.sentence() == done.value.sentence()


def test_home_in_the_folder_of_the_scans_is_refused_before_anything_is_written(
    scans: Path, tmp_path: Path
) -> None:
    before = files_below(scans)
    link = tmp_path / "link"
    link.symlink_to(scans)
    for home in (Home(scans / "home"), Home(link / "a" / "home")):
        with pytest.raises(UsageError, match="home may not lie in the folder of the scans"):
            take_in(scans, home)
    assert files_below(scans) == before
    assert take_in(scans, Home(tmp_path / "scans-home")).items == 4


def test_replacing_is_foreseen_as_well(scans: Path, home: Home) -> None:
    of_another_folder(scans, home)
    assert foresee(scans, home, may_replace=True).items == 4


def test_nothing_for_the_recipe_is_foreseen_with_its_reasons(tmp_path: Path, home: Home) -> None:
    root = tmp_path / "texts"
    root.mkdir()
    assert foresee(root, home).is_vain
    (root / "notes.txt").write_text("nothing to see")
    report = foresee(root, home)
    assert (report.is_vain, report.is_partial, set_aside(report)) == (True, False, {"a text": 1})
    assert "to take in 0 items" in tell(report, paths=False)
    with pytest.raises(CohortError, match="nothing for the recipe"):
        take_in(root, home)
    write_brain(root / "sub-01_T1w.nii.gz", 1)
    assert not foresee(root, home).is_vain


def test_vain_intake_tells_what_the_cohort_holds(scans: Path, home: Home, tmp_path: Path) -> None:
    root = tmp_path / "broken"
    root.mkdir()
    (root / "sub-X_T1w.nii.gz").touch()
    first = take_in(root, home)
    assert (first.is_vain, first.version, first.digest) == (True, 0, "")
    assert "nothing could be taken in; the cohort is as it was before" in tell(first, paths=False)
    before = take_in(scans, home)
    assert (before.is_vain, refused(before)) == (False, {})
    vain = take_in(root, home, may_replace=True)
    assert (vain.is_vain, vain.version, vain.digest) == (True, 1, before.digest)


def test_intake_of_nobody_but_withdrawn_patients_is_not_vain(home: Home, tmp_path: Path) -> None:
    root = tmp_path / "one"
    write_brains(root, [1])
    take_in(root, home)
    remove_patient(home, find_patient(home, "sub-01"))
    for report in (foresee(root, home), take_in(root, home)):
        assert (report.items, report.is_vain, report.is_partial) == (0, False, False)
