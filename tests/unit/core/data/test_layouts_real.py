"""What is found in the public images beside the checkout, against the index that came with them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.factories.folders import find, partial, places, reasons, visits
from vitrael.core.data.layouts.masks import NO_IMAGE, UNFIT, UNUSED
from vitrael.core.data.layouts.volumes import NOT_PLAIN, SECOND
from vitrael.core.data.sources import Found

Rows = list[dict[str, str]]


def below(rows: Rows, folder: str, *modalities: str) -> Rows:
    kept = [row for row in rows if row["path"].startswith(f"{folder}/")]
    return [row for row in kept if not modalities or row["modality"] in modalities]


def subjects(found: Found) -> set[str]:
    return {source.subject for source in found.sources}


def demand_all_placed(found: Found, folder: Path) -> None:
    files = {
        (Path(home) / name).relative_to(folder).as_posix()
        for home, _, names in os.walk(folder)
        for name in names
    }
    where = places(found, folder)
    assert where.keys() == files
    assert all(len(told) == 1 for told in where.values())


def test_brain_t1_has_37_subjects_and_the_original_of_one_scan_as_a_38th_file(
    data_home: Path, rows: Rows
) -> None:
    found = find(data_home / "brain_t1")
    listed = below(rows, "brain_t1")
    assert sorted(visits(found)) == sorted((row["subject"], row["session"]) for row in listed)
    assert (len(found.sources), len(subjects(found))) == (38, 37)
    assert not found.left_out
    assert all(source.covariates.keys() == {"age_years", "sex"} for source in found.sources)
    twice = {s for s in subjects(found) if [v[0] for v in visits(found)].count(s) > 1}
    extra = [source for source in found.sources if source.site == "orig"]
    assert {source.subject for source in extra} == twice
    assert len(extra) == 1
    demand_all_placed(found, data_home / "brain_t1")


def test_brain_t1_has_no_set_of_contrasts(data_home: Path) -> None:
    found = find(data_home / "brain_t1", "brain-lesion")
    assert not found.sources
    assert partial(found) == {"the visit lacks T2w and FLAIR": 38}


def test_brain_ms_has_six_plain_t1_images_of_five_subjects(data_home: Path, rows: Rows) -> None:
    found = find(data_home / "brain_ms")
    listed = below(rows, "brain_ms", "MR-T1w")
    assert sorted(visits(found)) == sorted((row["subject"], row["session"]) for row in listed)
    assert (len(found.sources), len(subjects(found))) == (6, 5)
    assert reasons(found) == {
        "a text": len(below(rows, "brain_ms", "TEXT", "TRANSFORM")),
        "not a T1-weighted image": len(below(rows, "brain_ms", "MR-T2w", "MR-FLAIR")),
        NOT_PLAIN: len(below(rows, "brain_ms", "MR-T1w-Gd")),
        UNUSED: len(below(rows, "brain_ms", "MASK-lesion", "MASK-lesion-change")),
    }
    assert not partial(found)
    assert sum("brain" in source.masks for source in found.sources) == 4
    demand_all_placed(found, data_home / "brain_ms")


def test_brain_ms_has_six_sets_of_five_subjects_and_one_visit_lacks_t1(
    data_home: Path, rows: Rows
) -> None:
    found = find(data_home / "brain_ms", "brain-lesion")
    contrasts = {"MR-T1w", "MR-T2w", "MR-FLAIR"}
    seen: dict[tuple[str, str], set[str]] = {}
    for row in below(rows, "brain_ms", *contrasts):
        seen.setdefault((row["subject"], row["session"]), set()).add(row["modality"])
    full = [visit for visit, present in seen.items() if present == contrasts]
    assert sorted(visits(found)) == sorted(full)
    assert (len(full), len(subjects(found))) == (6, 5)
    assert partial(found) == {"the visit lacks T1w": 2}
    told = reasons(found)
    assert (told[SECOND], told[NOT_PLAIN], told[UNUSED]) == (2, 2, 3)
    # Of 17 masks of lesions, two lie beside the images of their visit.
    lesions = [source.masks["lesion"] for source in found.sources if "lesion" in source.masks]
    assert [path.parent.name for path in lesions] == ["cross_sectional_2mm"] * 2
    assert told[NO_IMAGE] + told[UNFIT] == 15
    demand_all_placed(found, data_home / "brain_ms")


def test_cxr_has_126_images_of_36_patients(data_home: Path, rows: Rows) -> None:
    found = find(data_home / "cxr", "xray-2d")
    listed = below(rows, "cxr", "CXR")
    assert sorted(visits(found)) == sorted((row["subject"], row["session"]) for row in listed)
    assert (len(found.sources), len(subjects(found))) == (126, 36)
    assert reasons(found) == {"a table that is not used": 1}
    demand_all_placed(found, data_home / "cxr")


def test_cxr_is_found_by_its_own_table_as_well(data_home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cxr"
    folder.mkdir()
    for path in (data_home / "cxr").rglob("*.*"):
        link = folder / path.relative_to(data_home / "cxr")
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(path)
    found = find(folder, "xray-2d")
    assert (len(found.sources), len(subjects(found))) == (126, 36)
    assert {source.labels["projection"] for source in found.sources} == {"ap", "pa"}
    assert all("sex" in source.covariates for source in found.sources)
    assert not found.left_out


def test_mednist_has_600_pictures_of_six_classes(data_home: Path, tmp_path: Path) -> None:
    found = find(data_home / "mednist", "image-2d")
    assert (len(found.sources), len(subjects(found))) == (600, 600)
    assert {source.labels["label"] for source in found.sources} == {
        *("AbdomenCT", "BreastMRI", "CXR", "ChestCT", "Hand", "HeadCT")
    }
    assert not found.left_out
    # Without the index, the folders tell the classes, and each picture is a patient.
    for path in (data_home / "mednist").iterdir():
        (tmp_path / path.name).mkdir()
        for picture in path.iterdir():
            (tmp_path / path.name / picture.name).symlink_to(picture)
    bare = find(tmp_path, "image-2d")
    assert (len(bare.sources), len(subjects(bare))) == (600, 600)
    assert [s.labels for s in bare.sources] == [s.labels for s in found.sources]


def test_lung_ultrasound_has_18_clips_of_six_patients(data_home: Path, rows: Rows) -> None:
    for folder in ("us_lung", "us_lung/video"):
        found = find(data_home / folder, "echo-apical")
        listed = below(rows, "us_lung", "US-video")
        assert sorted(visits(found)) == sorted((row["subject"], row["session"]) for row in listed)
        assert (len(found.sources), len(subjects(found))) == (18, 6)
        assert found.notes == ()
    arrays = reasons(find(data_home / "us_lung", "echo-apical"))
    assert arrays == {"a file of arrays, which is not read": 19}


@pytest.mark.parametrize("recipe", ["brain-t1", "brain-lesion", "echo-apical", "image-2d"])
def test_every_file_of_all_has_one_place(data_home: Path, rows: Rows, recipe: str) -> None:
    found = find(data_home, recipe)
    demand_all_placed(found, data_home)
    listed = [row for row in rows if row["modality"].endswith(("DICOM", "DICOM-multiframe"))]
    assert len(found.rest) == len(listed) == 54
