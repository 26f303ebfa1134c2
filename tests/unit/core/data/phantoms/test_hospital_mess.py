"""A mess is counted as it is planted, is told by those who read it, and spoils no good scan."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from pydicom import dcmread

from tests.factories.folders import essence, find, partial
from vitrael.core.data.dicom.instance import is_dicom, read_instance
from vitrael.core.data.dicom.read import read_clip, read_volume
from vitrael.core.data.dicom.series import group_series
from vitrael.core.data.layouts.facts import IMPOSSIBLE_EF, NO_PATIENT
from vitrael.core.data.nifti import read_nifti
from vitrael.core.data.phantoms.hospital import write_hospital
from vitrael.core.data.phantoms.mess import plant_mess
from vitrael.core.data.phantoms.orders import FileFormat, Kind, order_hospital
from vitrael.core.data.pictures import read_picture_file
from vitrael.core.data.tables import FORMULA
from vitrael.core.data.video import read_video
from vitrael.core.data.walk import CIRCLE, LINKED_FOLDER, walk_files
from vitrael.core.errors import DataError, ScanError
from vitrael.privacy.pixels import region_mask

EVERYWHERE = {
    **dict.fromkeys(("truncated-copy", "zero-byte-file", "text-file", "report-named-dcm"), 1),
    **dict.fromkeys(("thumbs-db", "hidden-file", "link-to-a-folder"), 1),
    **dict.fromkeys(("copy-with-spaces", "copy-with-umlauts", "copy-with-a-newline"), 1),
    "link-in-a-circle": 2,
}
TABLE = dict.fromkeys(("row-without-id", "formula-cell", "bom-and-semicolons"), 1)
OF_VOLUMES = dict.fromkeys(("nan-volume", "constant-volume", "4d-volume", "singular-affine"), 1)
OF_SERIES = dict.fromkeys(
    (
        *("copy-under-another-uid", "repeated-slice", "missing-slice", "uneven-slices"),
        *("constant-volume", "4d-volume", "file-without-patient", "mixed-folder"),
    ),
    1,
)
OF_CINE = dict.fromkeys(
    (
        *("copy-under-another-uid", "file-without-patient", "no-region", "no-frames"),
        "variable-rate",
    ),
    1,
)
OF_VIDEOS = dict.fromkeys(("no-frames", "variable-rate"), 1)


def write(
    folder: Path, kind: Kind, form: FileFormat | None = None, *, edge: int = 16
) -> dict[str, bytes]:
    """Write a clean hospital and return its files."""
    sizes = {"edge": edge} if kind == "brain" else {"edge": 48, "frames": 4}
    write_hospital(folder, order_hospital(kind, form, patients=3, visits=2, seed=9, **sizes))
    return contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def changed(before: dict[str, bytes], folder: Path) -> set[str]:
    now = contents(folder)
    return {name for name, data in before.items() if now.get(name) != data}


def refusals(read: object, paths: list[Path]) -> Counter[str]:
    """Return how many files are refused for what, in the reader's words; "" where it reads."""
    told: Counter[str] = Counter()
    for path in paths:
        try:
            read(path)  # type: ignore[operator]
        except ScanError as error:
            told[f"{error.what} {error.why}"] += 1
        else:
            told[""] += 1
    return told


def has(told: Counter[str], words: str) -> int:
    return sum(count for text, count in told.items() if words in text)


@pytest.mark.parametrize(
    ("kind", "form", "expected"),
    [
        ("brain", "nifti", EVERYWHERE | OF_VOLUMES | TABLE),
        ("brain", "dicom", EVERYWHERE | OF_SERIES),
        ("brain", "png", EVERYWHERE | TABLE | {"constant-picture": 1}),
        ("echo", "mp4", EVERYWHERE | TABLE | OF_VIDEOS | {"impossible-ef": 1}),
        ("echo", "dicom", EVERYWHERE | OF_CINE),
        ("muscle", "mp4", EVERYWHERE | TABLE | OF_VIDEOS),
        ("muscle", "dicom", EVERYWHERE | OF_CINE),
    ],
)
def test_what_is_planted_is_counted_and_spoils_no_file(
    kind: Kind, form: FileFormat, expected: dict[str, int], tmp_path: Path
) -> None:
    before = write(tmp_path, kind, form)
    assert plant_mess(tmp_path, kind=kind, seed=1) == expected
    spoiled = changed(before, tmp_path)
    if expected.keys() & TABLE.keys():
        (table,) = spoiled
        assert table.endswith((".csv", ".tsv"))
    else:
        moved = {name for name in spoiled if name not in contents(tmp_path)}
        assert spoiled == moved
        assert len(moved) == (3 if form == "dicom" and kind == "brain" else 0)
    links = Counter(file.refusal for file in walk_files(tmp_path) if "link" in file.refusal)
    assert links == {LINKED_FOLDER: 1, CIRCLE: 2}


@pytest.mark.parametrize(
    ("kind", "form", "recipe"),
    [
        ("brain", "nifti", "brain-t1"),
        ("brain", "png", "image-2d"),
        ("echo", "mp4", "echo-apical"),
        ("muscle", "mp4", "echo-apical"),
    ],
)
def test_good_scans_keep_their_facts_in_a_mess(
    kind: Kind, form: FileFormat, recipe: str, tmp_path: Path
) -> None:
    write(tmp_path, kind, form)
    clean = find(tmp_path, recipe)
    assert partial(clean) == {}
    plant_mess(tmp_path, kind=kind, seed=1)
    messy = find(tmp_path, recipe)
    facts = {str(fact) for fact in essence(messy)}
    assert {str(fact) for fact in essence(clean)} <= facts
    paths = {source.files for source in messy.sources}
    assert {source.files for source in clean.sources} < paths


def test_mess_of_volumes_is_told(tmp_path: Path) -> None:
    write(tmp_path, "brain")
    assert has(refusals(read_nifti, list(tmp_path.rglob("*.nii.gz"))), "") == 6
    plant_mess(tmp_path, kind="brain", seed=1)
    found = find(tmp_path)
    told = refusals(read_nifti, [source.images["T1w"][0] for source in found.sources])
    assert told[""] == 6 + 3  # and three copies
    for words in ("cut short", "empty", "not finite", "constant", "4 axes", "singular"):
        assert has(told, words) == 1
    assert "rows of participants.tsv that hold a formula, not used: 1" in found.notes
    assert "rows of participants.tsv that name no patient: 1" in found.notes


def test_mess_of_videos_is_told(tmp_path: Path) -> None:
    write(tmp_path, "echo")
    plant_mess(tmp_path, kind="echo", seed=1)
    found = find(tmp_path, "echo-apical")
    reasons = partial(found)
    assert {reasons[why] for why in (FORMULA, NO_PATIENT, IMPOSSIBLE_EF)} == {1}
    told = refusals(read_video, [source.images["image"][0] for source in found.sources])
    assert told[""] == 6 + 3
    for words in ("not a whole video", "the file is empty", "no video", "rate varies"):
        assert has(told, words) == 1


def test_mess_of_pictures_is_told(tmp_path: Path) -> None:
    write(tmp_path, "brain", "png")
    plant_mess(tmp_path, kind="brain", seed=1)
    found = find(tmp_path, "image-2d")
    assert {partial(found)[why] for why in (FORMULA, NO_PATIENT)} == {1}
    told = refusals(read_picture_file, [source.images["image"][0] for source in found.sources])
    assert told[""] == 6 + 3
    for words in ("not a whole picture", "the file is empty", "constant"):
        assert has(told, words) == 1


def test_mess_of_series_is_told(tmp_path: Path) -> None:
    write(tmp_path, "brain", "dicom", edge=24)
    plant_mess(tmp_path, kind="brain", seed=1)
    paths = [file.path for file in walk_files(tmp_path) if not file.refusal]
    paths = [path for path in paths if is_dicom(path)]
    told = refusals(lambda path: read_instance(path, code=str), paths)
    assert has(told, "cut short") == 1
    named = [path for path in paths if not path.name.startswith("X001")]
    read = [read_instance(path, code=str) for path in named]
    assert sum(not identity.subject for _, identity in read) == 1
    kept = [(path, one) for path, (one, who) in zip(named, read, strict=True) if who.subject]
    plans = group_series([one for _, one in kept])
    faults = Counter(plan.fault for plan in plans)
    assert faults.pop("slices are missing: 1 of 24") == 1
    assert faults.pop("its slices are unevenly spaced") == 1
    assert faults.pop("it holds several volumes over time") == 1
    assert faults.pop("it is a localizer") == 6
    assert faults == {"": 6 + 2}  # and the copy, and the constant one
    assert sum(plan.dropped for plan in plans) == 4  # three odd names, one repeated slice
    whole = [plan for plan in plans if not plan.fault]
    volumes = refusals(
        lambda plan: read_volume([kept[i][0] for i in plan.indices], plan),
        whole,  # type: ignore[arg-type]
    )
    assert has(volumes, "constant") == 1
    assert volumes[""] == 7


def test_mess_of_dicom_clips_is_told(tmp_path: Path) -> None:
    write(tmp_path, "echo", "dicom")
    plant_mess(tmp_path, kind="echo", seed=1)
    paths = [file.path for file in walk_files(tmp_path) if not file.refusal]
    paths = [path for path in paths if is_dicom(path)]
    told = refusals(read_clip, paths)
    assert has(told, "cut short") == 1
    assert has(told, "unequal times") == 1
    assert has(told, "no pixel data") == 1
    good = [path for path in paths if refusals(read_clip, [path])[""]]
    bare = refusals(lambda path: region_mask(dcmread(path, stop_before_pixels=True)), good)
    assert has(bare, "no region") == 1
    assert sum(not read_instance(path, code=str)[1].subject for path in good) == 1


def test_mess_follows_its_seed(tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        write(tmp_path / name, "brain", "png")
        plant_mess(tmp_path / name, kind="brain", seed=seed)
    assert contents(tmp_path / "one") == contents(tmp_path / "again")
    assert contents(tmp_path / "one") != contents(tmp_path / "other")


def test_folder_without_such_phantoms_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no brain phantoms"):
        plant_mess(tmp_path, kind="brain", seed=1)
    write(tmp_path, "brain", "png")
    with pytest.raises(DataError, match="no echo phantoms"):
        plant_mess(tmp_path, kind="echo", seed=1)
    plant_mess(tmp_path, kind="brain", seed=1)
    with pytest.raises(DataError, match="a mess already"):
        plant_mess(tmp_path, kind="brain", seed=1)
