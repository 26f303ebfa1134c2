"""No item goes because nobody could look whether its files are there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.factories.intake import (
    BRAIN,
    files_below,
    manifest_of,
    reason_of,
    take_in,
    write_brain,
    write_brains,
    write_slices,
)
from vitrael.client.site.ingest.outcome import IngestReport
from vitrael.client.site.ingest.pipeline import Choices, foresee_folder
from vitrael.client.site.ingest.places import Home
from vitrael.core.data import walk
from vitrael.core.data.walk import CLOSED_FILE, CLOSED_FOLDER
from vitrael.core.errors import CohortError

REFUSAL = "items of the cohort would be gone"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three patients, two of them in a folder of their own: one in NIfTI and one in DICOM."""
    write_brains(tmp_path / "scans", [1])
    write_brain(tmp_path / "scans" / "hall" / "sub-02_T1w.nii.gz", 2)
    write_slices(tmp_path / "scans" / "hall" / "pacs", 3)
    return tmp_path / "scans"


class Closing:
    """Closes files and folders to this user, whatever powers that one has."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._scandir, self._access = os.scandir, os.access
        self._closed: set[str] = set()
        patch.setattr(walk.os, "scandir", self._scan)
        patch.setattr(walk.os, "access", self._may)

    def close(self, *paths: Path) -> None:
        self._closed = {os.fspath(path) for path in paths}

    def _scan(self, path: str) -> Any:
        if path in self._closed:
            raise PermissionError(13, "Permission denied", path)
        return self._scandir(path)

    def _may(self, path: str, mode: int, **options: Any) -> bool:
        return path not in self._closed and self._access(path, mode, **options)


@pytest.fixture
def closing() -> Iterator[Closing]:
    with pytest.MonkeyPatch.context() as patch:
        yield Closing(patch)


def foresee(root: Path, home: Home, *, may_replace: bool = False) -> IngestReport:
    choices = Choices(BRAIN, workers=0)
    return foresee_folder(
        root, home, "main", choices=choices, tell=lambda *_: None, may_replace=may_replace
    )


def test_first_intake_leaves_out_what_may_not_be_read(
    root: Path, home: Home, closing: Closing
) -> None:
    closing.close(root / "hall")
    report = take_in(root, home)
    assert (report.items, report.is_partial) == (1, True)
    assert reason_of(report, root / "hall") == CLOSED_FOLDER
    closing.close()
    assert take_in(root, home).items == 3, "control: nothing is held against what is new"


@pytest.mark.parametrize(
    ("closed", "gone"),
    [("hall", 2), ("hall/pacs", 1), ("hall/sub-02_T1w.nii.gz", 1), ("sub-01_T1w.nii.gz", 1)],
)
def test_intake_stops_where_items_would_go_unseen(
    closed: str, gone: int, root: Path, home: Home, closing: Closing
) -> None:
    take_in(root, home)
    before = manifest_of(home)
    kept = files_below(home.cohort("main").folder)
    closing.close(root / closed)
    with pytest.raises(CohortError, match=REFUSAL) as refusal:
        take_in(root, home)
    assert f"closed to this user: 1; items of the present version that were not found: {gone}" in (
        refusal.value.why
    )
    assert "--replace" in refusal.value.fix
    assert str(root) not in refusal.value.sentence()
    with pytest.raises(CohortError, match=REFUSAL):
        foresee(root, home)
    assert manifest_of(home) == before
    after = files_below(home.cohort("main").folder)
    assert {name for name in kept if after.get(name) != kept[name]} <= {"index.sqlite"}
    assert foresee(root, home, may_replace=True).items == 3 - gone
    assert take_in(root, home, may_replace=True).items == 3 - gone


def test_intake_goes_on_where_no_item_would_go(root: Path, home: Home, closing: Closing) -> None:
    spare = root / "notes.txt"
    spare.touch()
    take_in(root, home)
    closing.close(spare)
    write_brain(root / "sub-09_T1w.nii.gz", 9)
    report = take_in(root, home)
    assert (report.items, reason_of(report, spare)) == (4, CLOSED_FILE)
    closing.close()
    (root / "sub-01_T1w.nii.gz").unlink()
    assert take_in(root, home).items == 3, "control: what can be seen to be gone goes"


def test_copy_that_can_be_read_keeps_its_item(root: Path, home: Home, closing: Closing) -> None:
    take_in(root, home)
    again = root / "again" / "sub-02_T1w.nii.gz"
    again.parent.mkdir()
    again.write_bytes((root / "hall" / "sub-02_T1w.nii.gz").read_bytes())
    (root / "hall" / "sub-02_T1w.nii.gz").unlink()
    assert take_in(root, home).items == 3
    closing.close(root / "sub-01_T1w.nii.gz")
    with pytest.raises(CohortError, match=REFUSAL):
        take_in(root, home)


def test_changed_recipe_hides_no_item_that_would_go(
    root: Path, home: Home, closing: Closing
) -> None:
    take_in(root, home)
    finer = BRAIN.model_copy(update={"spacing_mm": 11.0})
    closing.close(root / "hall")
    with pytest.raises(CohortError, match=REFUSAL):
        take_in(root, home, finer)
    closing.close()
    assert take_in(root, home, finer).items == 3, "control: the recipe alone is no hindrance"
