"""An intake ends where its folder says: whatever was there before, in any order, and only whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.factories.intake import (
    BRAIN,
    KEY,
    PLANE,
    files_below,
    leftovers,
    make_home,
    manifest_of,
    refused,
    set_aside,
    shard_files,
    take_in,
    write_brain,
    write_brains,
    write_picture,
    write_pictures,
    write_slices,
)
from vitrael.client.site.ingest import plan, prepare
from vitrael.client.site.ingest.assemble import ONE_A_VISIT
from vitrael.client.site.ingest.pipeline import WITHDRAWN
from vitrael.client.site.ingest.places import Home, only_one
from vitrael.client.site.ingest.withdraw import find_patient, remove_patient
from vitrael.core.data.manifest import pseudonym_of
from vitrael.core.data.recipes import settings_for
from vitrael.core.errors import CohortError, DataError, StorageError, UsageError


@pytest.fixture
def scans(scans: Path) -> Path:
    """Three brains as NIfTI and one as DICOM."""
    write_slices(scans / "pacs", 7)
    return scans


def steps_of(tell: list[str]) -> Callable[[str, int, int], None]:
    return lambda what, _done, _total: tell.append(what)


def test_second_intake_reads_nothing_again(scans: Path, home: Home) -> None:
    told: list[str] = []
    first = take_in(scans, home, tell=steps_of(told))
    assert (first.anew, first.version, first.changed) == (4, 1, True)
    assert {"reading DICOM headers", "reading images"} <= set(told)
    assert told.count("reading images") == 1 + 4, "at the start, so that the time left is right"
    told.clear()
    shards = shard_files(home)
    again = take_in(scans, home, tell=steps_of(told))
    assert (again.anew, again.version, again.changed) == (0, 1, False)
    assert again.digest == first.digest
    assert set(told) == {"files found"}
    assert shard_files(home) == shards
    assert len(shards) == 4


def test_header_is_known_however_the_folder_is_spelled(
    scans: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = take_in(scans, home)
    told: list[str] = []
    monkeypatch.chdir(scans.parent)
    again = take_in(Path(scans.name), home, tell=steps_of(told))
    assert (again.anew, again.digest) == (0, first.digest)
    assert "reading DICOM headers" not in told


def test_changed_file_alone_is_read_again(scans: Path, home: Home) -> None:
    before = take_in(scans, home)
    kept = {item.subject: item.digest for item in manifest_of(home).items}
    write_brain(scans / "sub-01_T1w.nii.gz", 1, shift=300)
    report = take_in(scans, home)
    assert (report.anew, report.version, report.changed) == (1, 2, True)
    assert report.digest != before.digest
    now = {item.subject: item.digest for item in manifest_of(home).items}
    other = {subject for subject in now if now[subject] != kept[subject]}
    assert other == {pseudonym_of("sub-01", key=KEY)}
    assert leftovers(home) == set(), "the shard of the old image is gone"


def test_changed_slice_makes_its_series_be_read_again(scans: Path, home: Home) -> None:
    take_in(scans, home)
    write_slices(scans / "pacs", 8)
    report = take_in(scans, home)
    assert (report.anew, report.items, report.version) == (1, 4, 2)
    assert pseudonym_of("VX-00008", key=KEY) in {i.subject for i in manifest_of(home).items}
    assert leftovers(home) == set()


def test_removed_file_leaves_the_next_version_and_the_disk(scans: Path, home: Home) -> None:
    take_in(scans, home)
    (scans / "sub-01_T1w.nii.gz").unlink()
    shutil.rmtree(scans / "pacs")
    report = take_in(scans, home)
    assert (report.items, report.anew, report.version) == (2, 0, 2)
    subjects = {item.subject for item in manifest_of(home).items}
    assert subjects == {pseudonym_of(name, key=KEY) for name in ("sub-00", "sub-02")}
    assert len(shard_files(home)) == 2
    gone = pseudonym_of("VX-00007", key=KEY).encode()
    held = files_below(home.cohort("main").folder)
    with_patient = {name for name, data in held.items() if gone in data}
    assert with_patient == set()


def test_index_forgets_the_headers_of_files_that_are_gone(scans: Path, home: Home) -> None:
    take_in(scans, home)
    everything = count_headers(home)
    for path in sorted((scans / "pacs").iterdir())[:8]:
        path.unlink()
    write_slices(scans / "other", 8)
    take_in(scans, home)
    assert everything == 16
    assert count_headers(home) == 8 + 16


def count_headers(home: Home) -> int:
    import sqlite3

    with sqlite3.connect(home.cohort("main").index) as connection:
        (count,) = connection.execute("SELECT count(*) FROM headers").fetchone()
    connection.close()
    return int(count)


def test_order_of_files_and_number_of_processes_change_nothing(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = take_in(scans, make_home(tmp_path / "alone"))
    several = take_in(scans, make_home(tmp_path / "several"), workers=2)
    walk = plan.walk_files
    monkeypatch.setattr(plan, "walk_files", lambda root: reversed(list(walk(root))))
    backwards = take_in(scans, make_home(tmp_path / "backwards"))
    assert alone.digest == several.digest == backwards.digest
    shards = [shard_files(Home(tmp_path / n)) for n in ("alone", "several", "backwards")]
    assert shards[0] == shards[1] == shards[2]
    # Control: the same names with another site's secret are other people.
    stranger = make_home(tmp_path / "stranger", key=bytes(32))
    assert take_in(scans, stranger).digest != alone.digest


def test_folder_that_moved_makes_the_same_cohort(scans: Path, home: Home, tmp_path: Path) -> None:
    before = take_in(scans, home)
    moved = scans.rename(tmp_path / "archive")
    elsewhere = take_in(moved, make_home(tmp_path / "elsewhere"))
    assert elsewhere.digest == before.digest
    with pytest.raises(UsageError, match="another folder"):
        take_in(moved, home)
    after = take_in(moved, home, may_replace=True)
    assert (after.digest, after.anew, after.version) == (before.digest, 0, 1)


def test_cohort_of_another_folder_is_replaced_only_on_demand(
    scans: Path, home: Home, tmp_path: Path
) -> None:
    before = take_in(scans, home)
    write_brains(tmp_path / "others", range(5, 7))
    with pytest.raises(UsageError, match="another folder") as refusal:
        take_in(tmp_path / "others", home)
    assert "--replace" in refusal.value.fix
    assert manifest_of(home).digest == before.digest
    assert take_in(tmp_path / "others", home, name="second").items == 2
    replaced = take_in(tmp_path / "others", home, may_replace=True)
    assert (replaced.items, replaced.version) == (2, 2)
    assert len(shard_files(home)) == 2
    with pytest.raises(UsageError, match="another folder"):
        take_in(scans, home)


def empty(folder: Path) -> None:
    folder.mkdir()


def texts(folder: Path) -> None:
    folder.mkdir()
    (folder / "notes.txt").write_text("nothing to see")
    (folder / "scan.npz").write_bytes(b"PK")


def broken(folder: Path) -> None:
    folder.mkdir()
    for patient in range(3):
        (folder / f"sub-X{patient}_T1w.nii.gz").write_bytes(b"")


@pytest.mark.parametrize("fill", [empty, texts])
def test_nothing_found_leaves_the_cohort_as_it_was(
    fill: Callable[[Path], None], scans: Path, home: Home, tmp_path: Path
) -> None:
    before = take_in(scans, home)
    held = files_below(home.folder)
    fill(tmp_path / "wrong")
    with pytest.raises(CohortError, match="nothing for the recipe") as refusal:
        take_in(tmp_path / "wrong", home, may_replace=True)
    assert "as it was before" in refusal.value.fix
    assert str(tmp_path) not in refusal.value.sentence()
    assert files_below(home.folder) == held
    after = take_in(scans, home)  # and it still comes from its own folder
    assert (after.anew, after.digest) == (0, before.digest)


def test_nothing_usable_leaves_the_cohort_as_it_was(
    scans: Path, home: Home, tmp_path: Path
) -> None:
    before = take_in(scans, home)
    held = files_below(home.folder)
    broken(tmp_path / "wrong")
    report = take_in(tmp_path / "wrong", home, may_replace=True)
    assert (report.items, report.version, report.changed) == (0, 1, False)
    assert report.is_partial
    now = files_below(home.folder)
    assert {name for name in held if held[name] != now[name]} <= {"cohorts/main/index.sqlite"}
    after = take_in(scans, home)
    assert (after.anew, after.digest) == (0, before.digest)


@pytest.mark.parametrize("fill", [empty, broken])
def test_folder_of_a_vain_first_intake_is_no_cohorts(
    fill: Callable[[Path], None], scans: Path, home: Home, tmp_path: Path
) -> None:
    fill(tmp_path / "wrong")
    try:
        assert take_in(tmp_path / "wrong", home).version == 0
    except CohortError:
        assert fill is empty
    assert not home.cohort("main").manifest.exists()
    assert take_in(scans, home).items == 4


def test_missing_folder_is_said_to_be_missing(home: Home, tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="not a folder") as refusal:
        take_in(tmp_path / "nowhere", home)
    assert "nowhere" not in refusal.value.sentence()


def test_one_intake_at_a_time(scans: Path, home: Home) -> None:
    with only_one(home.cohort("main")), pytest.raises(StorageError, match="another process"):
        take_in(scans, home)
    assert take_in(scans, home).items == 4


def test_patient_withdrawn_while_an_intake_runs_is_not_taken_in(scans: Path, home: Home) -> None:
    pseudonym = pseudonym_of("sub-01", key=KEY)
    take_in(scans, home)
    for patient in range(3):
        write_brain(scans / f"sub-{patient:02d}_T1w.nii.gz", patient, shift=300)

    def withdraw(what: str, done: int, total: int) -> None:
        if what == "reading images" and done == total:
            home.add_withdrawn([pseudonym])

    report = take_in(scans, home, tell=withdraw)
    assert report.items == 3
    assert pseudonym not in {item.subject for item in manifest_of(home).items}
    assert set_aside(report) == {WITHDRAWN: 1}
    assert leftovers(home) == set()
    assert manifest_of(home).withdrawn == 1, "counted once, also when it is asked for again"
    assert pseudonym.encode() not in home.cohort("main").index.read_bytes()
    remove_patient(home, find_patient(home, "sub-01"))
    assert manifest_of(home).withdrawn == 1


def test_second_image_of_a_visit_is_not_read_again_each_time(scans: Path, home: Home) -> None:
    write_brain(scans / "sub-01_run-2_T1w.nii.gz", 1, visit=1)
    assert set_aside(take_in(scans, home)) == {ONE_A_VISIT: 1}
    again = take_in(scans, home)
    assert (again.anew, again.items) == (0, 4)


def test_another_grid_is_another_version(scans: Path, home: Home) -> None:
    first = take_in(scans, home)
    coarse = settings_for("brain-t1", grid_vox=(12, 12, 12), spacing_mm=16.0)
    second = take_in(scans, home, coarse)
    assert (second.anew, second.version) == (4, 2)
    assert second.digest != first.digest
    assert leftovers(home) == set()


def test_damaged_shard_is_not_believed(scans: Path, home: Home) -> None:
    take_in(scans, home)
    item = manifest_of(home).items[0]
    (home.cohort("main").shards / item.shard).unlink()
    report = take_in(scans, home)
    assert (report.anew, report.changed) == (1, False)
    assert (home.cohort("main").shards / item.shard).is_file()


@pytest.mark.parametrize("measured", [float("nan"), 1e9])
def test_impossible_measurement_costs_one_image(
    measured: float, scans: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = prepare.prepare
    calls = iter(range(9))

    def measure_wrongly(*args: object) -> object:
        prepared = real(*args)  # type: ignore[arg-type]
        if next(calls) == 1:
            dict.update(prepared.measured, brain_ml=measured)  # type: ignore[arg-type]
        return prepared

    monkeypatch.setattr(prepare, "prepare", measure_wrongly)
    report = take_in(scans, home)
    assert report.items == 3
    (reason,) = refused(report)
    assert reason.startswith("its brain volume is impossible")


def test_image_that_cannot_be_stored_costs_one_image(
    scans: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = prepare.prepare
    calls = iter(range(9))

    def leave_the_range(*args: object) -> object:
        prepared = real(*args)  # type: ignore[arg-type]
        if next(calls) == 1:
            prepared.arrays["image"][0, 0, 0, 0] = np.float32(1.5)
        return prepared

    monkeypatch.setattr(prepare, "prepare", leave_the_range)
    report = take_in(scans, home)
    assert report.items == 3
    assert list(refused(report)) == ["an array of a prepared item holds values outside of 0 to 1"]
    assert leftovers(home) == set()


def test_mask_that_is_none_is_told_before_anything_is_read(home: Home, tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures")
    missing = tmp_path / "missing.png"
    with pytest.raises(DataError, match="pixel mask"):
        take_in(tmp_path / "pictures", home, PLANE, pixel_mask=missing)
    assert not home.cohort("main").manifest.exists()
    mask = write_picture(missing, 1, size=(24, 20))
    assert take_in(tmp_path / "pictures", home, PLANE, pixel_mask=mask).items == 4


def test_another_mask_makes_everything_be_read_again(home: Home, tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures")
    mask = write_picture(tmp_path / "mask.png", 1, size=(24, 20))
    first = take_in(tmp_path / "pictures", home, PLANE, pixel_mask=mask)
    write_picture(mask, 2, size=(24, 20))
    second = take_in(tmp_path / "pictures", home, PLANE, pixel_mask=mask)
    assert second.anew == 4
    assert second.digest != first.digest


def test_source_folder_is_not_touched(scans: Path, home: Home) -> None:
    def facts() -> list[tuple[str, bytes, int]]:
        return [
            (name, data, (scans / name).stat().st_mtime_ns)
            for name, data in files_below(scans).items()
        ]

    before = facts()
    take_in(scans, home)
    assert facts() == before
    assert BRAIN.grid_vox == manifest_of(home).recipe.grid_vox
