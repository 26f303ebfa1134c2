"""Sources are parted by subject; a site's folder is found again as it was, under neutral names."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.factories.folders import essence, find, only, partial, plant
from vitrael.core.data.partition import partition_by_subject, write_site_folder
from vitrael.core.data.sources import Found, Source
from vitrael.core.errors import CohortError, StorageError

KEY = b"a key of one site, 32 bytes long"
SITES = ("north", "harbour", "valley")


def fake(number: int, subject: str, *, site: str = "", session: str = "1") -> Source:
    images = {"T1w": (Path(f"{number}.nii"),)}
    return Source(kind="nifti", subject=subject, session=session, images=images, site=site)


def test_all_scans_of_a_subject_go_to_one_site_and_sites_are_balanced() -> None:
    sources = [fake(i, f"s{i // 2}", session=str(i % 2)) for i in range(74)]
    parted = partition_by_subject(sources, SITES, key=KEY)
    subjects = {site: {source.subject for source in own} for site, own in parted.items()}
    assert sum(len(s) for s in subjects.values()) == 37
    assert len(set().union(*subjects.values())) == 37
    assert sorted(len(s) for s in subjects.values()) == [12, 12, 13]
    assert sum(len(own) for own in parted.values()) == 74


def test_partition_follows_the_key_and_not_the_order() -> None:
    sources = [fake(i, f"s{i}") for i in range(30)]

    def homes(given: list[Source], key: bytes) -> dict[str, str]:
        parted = partition_by_subject(given, SITES, key=key)
        return {source.subject: site for site, members in parted.items() for source in members}

    assert homes(sources, KEY) == homes(sources[::-1], KEY)
    assert homes(sources, KEY) != homes(sources, KEY[::-1])


def test_site_folders_are_the_assignment(tmp_path: Path) -> None:
    plant(tmp_path, *(f"{site}/{site}-only.nii.gz" for site in SITES))
    parted = partition_by_subject(find(tmp_path).sources, SITES, key=KEY)
    assert {site: [s.subject for s in own] for site, own in parted.items()} == {
        site: [f"{site}-only"] for site in SITES
    }


def test_sites_of_an_index_are_the_assignment(tmp_path: Path) -> None:
    plant(tmp_path, "a.nii", "b.nii", "c.nii")
    (tmp_path / "index.csv").write_text(
        "path,subject,site\na.nii,a,valley\nb.nii,b,north\nc.nii,c,harbour\n"
    )
    parted = partition_by_subject(find(tmp_path).sources, SITES, key=KEY)
    assert {site: own[0].subject for site, own in parted.items()} == {
        "north": "b",
        "harbour": "c",
        "valley": "a",
    }


def test_subject_in_two_sites_is_refused(tmp_path: Path) -> None:
    plant(tmp_path, *(f"{site}/{site}-only.nii.gz" for site in SITES))
    plant(tmp_path, "north/sub-9_T1w.nii.gz", "valley/sub-9_T1w.nii.gz")
    with pytest.raises(CohortError, match="a subject is in two sites") as caught:
        partition_by_subject(find(tmp_path).sources, SITES, key=KEY)
    assert "sub-9" not in str(caught.value)


def test_half_named_and_empty_sites_and_too_few_subjects_are_refused() -> None:
    with pytest.raises(CohortError, match="scan 2 belongs to no site"):
        partition_by_subject([fake(1, "a", site="north"), fake(2, "b")], SITES, key=KEY)
    with pytest.raises(CohortError, match="site harbour has no scan"):
        partition_by_subject([fake(1, "a", site="north")], SITES, key=KEY)
    with pytest.raises(CohortError, match="2 subjects cannot be parted into 3 sites"):
        partition_by_subject([fake(1, "a"), fake(2, "b")], SITES, key=KEY)


def test_folders_that_are_no_sites_do_not_assign(tmp_path: Path) -> None:
    plant(tmp_path, *(f"batch{number}/s{number}.nii.gz" for number in range(3)))
    parted = partition_by_subject(find(tmp_path).sources, SITES, key=KEY)
    assert all(len(own) == 1 for own in parted.values())


def fill(root: Path) -> None:
    """Give every file a content of its own."""
    for path in root.rglob("*"):
        if path.is_file() and path.name != "index.csv":
            path.write_text(path.name)


def test_site_folder_is_found_as_it_was_under_neutral_names(tmp_path: Path) -> None:
    source = tmp_path / "jane"
    plant(source, *(f"sub-jane{i}_ses-{s}_T1w.nii.gz" for i in range(4) for s in (1, 2)))
    plant(source, "derivatives/sub-jane0_ses-1_desc-brain_mask.nii.gz", "doe.nii")
    fill(source)
    (source / "participants.tsv").write_text(
        "participant_id\tage\tsex\tgroup\nsub-jane0\t61.25\tF\tcontrol\nsub-jane1\t\tM\t\n"
    )
    before = find(source)
    assert sum(bool(s.masks) for s in before.sources) == 1
    write_site_folder(before.sources, tmp_path / "site")
    after = find(tmp_path / "site")
    assert essence(after) == essence(before)
    assert not partial(after)
    names = {p.relative_to(tmp_path / "site").as_posix() for p in (tmp_path / "site").rglob("*.*")}
    shape = r"\d{4}(/(T1w|brain))?\.nii(\.gz)?|index\.csv"
    assert len(names) == 11
    assert all(re.fullmatch(shape, name) for name in names)
    contents = [
        [path.read_text() for source in found.sources for path in source.files]
        for found in (before, after)
    ]
    assert sorted(contents[0]) == sorted(contents[1])
    # Control: what is not written down is lost.
    (tmp_path / "site/index.csv").unlink()
    assert {s.subject for s in find(tmp_path / "site").sources} != {
        s.subject for s in before.sources
    }


def test_sets_and_their_masks_stay_together(tmp_path: Path) -> None:
    for session in ("1", "2"):
        stem = f"in/sub-1/ses-{session}/sub-1_ses-{session}_"
        plant(tmp_path, *(f"{stem}{c}.nii" for c in ("T1w", "T2w", "FLAIR", "lesion")))
    plant(tmp_path, *(f"in/sub-1/ses-2/sub-1_ses-2_run-2_{c}.nii" for c in ("T1w", "T2w", "FLAIR")))
    before = find(tmp_path / "in", "brain-lesion")
    assert len(before.sources) == 3
    write_site_folder(before.sources, tmp_path / "out")
    after = find(tmp_path / "out", "brain-lesion")
    assert essence(after) == essence(before)
    assert [bool(s.masks) for s in after.sources] == [bool(s.masks) for s in before.sources]


def test_clips_and_pictures_keep_what_their_table_says(tmp_path: Path) -> None:
    plant(tmp_path, "in/Videos/x.avi", "in/Videos/y.MP4")
    (tmp_path / "in/FileList.csv").write_text(
        "FileName,EF,ESV,EDV,view,date\nx,61.7,20.1,60.3,A4C,2020-01-02\ny,0.3,,,A2C,\n"
    )
    before = find(tmp_path / "in", "echo-apical")
    write_site_folder(before.sources, tmp_path / "out")
    after = find(tmp_path / "out", "echo-apical")
    assert essence(after) == essence(before)
    assert after.sources[0].taken == date(2020, 1, 2)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "0001.avi",
        "0002.mp4",
        "index.csv",
    }
    assert after.notes == ()


def test_dicom_series_is_copied_whole_and_not_listed(tmp_path: Path) -> None:
    plant(tmp_path, "in/a", "in/b", "in/c.dcm")
    fill(tmp_path / "in")
    paths = tuple(tmp_path / "in" / name for name in ("b", "a", "c.dcm"))
    series = Source(kind="dicom", subject="x", session="1", images={"T1w": paths})
    write_site_folder([series], tmp_path / "out")
    written = sorted((tmp_path / "out").rglob("*.*"))
    assert [p.relative_to(tmp_path / "out").as_posix() for p in written] == [
        f"0001/0000{n}.dcm" for n in (1, 2, 3)
    ]
    assert [p.read_text() for p in written] == ["b", "a", "c.dcm"]


def test_files_are_linked_and_links_are_followed(tmp_path: Path) -> None:
    plant(tmp_path, "far/real.nii")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.nii").symlink_to(tmp_path / "far/real.nii")
    write_site_folder(find(tmp_path / "in").sources, tmp_path / "out")
    copy = tmp_path / "out/0001.nii"
    assert not copy.is_symlink()
    assert copy.samefile(tmp_path / "far/real.nii")


def test_files_are_copied_where_the_disk_has_no_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    plant(tmp_path, "in/a.nii")
    fill(tmp_path / "in")
    monkeypatch.setattr(os, "link", refuse)
    write_site_folder(find(tmp_path / "in").sources, tmp_path / "out")
    assert (tmp_path / "out/0001.nii").read_text() == "a.nii"
    assert not (tmp_path / "out/0001.nii").samefile(tmp_path / "in/a.nii")


@pytest.mark.parametrize("has_links", [True, False])
def test_real_scans_are_no_more_open_than_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, has_links: bool
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    plant(tmp_path, "in/a_T1w.nii", *(f"in/sub-2_{name}.nii" for name in ("T1w", "brain_mask")))
    for path in (tmp_path / "in").iterdir():
        path.chmod(0o600)
    before = os.umask(0o022)
    try:
        if not has_links:
            monkeypatch.setattr(os, "link", refuse)
        write_site_folder(find(tmp_path / "in").sources, tmp_path / "all" / "out")
        (tmp_path / "habit").write_text("")
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "all").rglob("*")}
    assert len(modes) == 6
    assert set(modes.values()) == {0o700, 0o600}
    assert stat.S_IMODE((tmp_path / "habit").stat().st_mode) == 0o644, "control"


@pytest.mark.parametrize("has_links", [True, False])
def test_folder_whose_writing_was_killed_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, has_links: bool
) -> None:
    plant(tmp_path, "in/a.nii", *(f"in/sub-2_{name}.nii" for name in ("T1w", "brain_mask")))
    fill(tmp_path / "in")
    sources = find(tmp_path / "in").sources
    write_site_folder(sources, tmp_path / "whole")
    left = 2

    def link(path: Path, target: Path) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            target.write_bytes(b"half")
            raise KeyboardInterrupt
        target.hardlink_to(path) if has_links else target.write_bytes(path.read_bytes())

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", link)
        with pytest.raises(KeyboardInterrupt):
            write_site_folder(sources, tmp_path / "out")
    assert not (tmp_path / "out/index.csv").exists(), "control: it was killed"
    write_site_folder(sources, tmp_path / "out")
    write_site_folder(sources, tmp_path / "out")
    whole, again = (
        {path.relative_to(top): path.read_bytes() for path in top.rglob("*") if path.is_file()}
        for top in (tmp_path / "whole", tmp_path / "out")
    )
    assert again == whole
    with pytest.raises(CohortError, match="is not empty"):
        write_site_folder(sources[:1], tmp_path / "out")


def test_filled_folder_and_lost_file_are_refused_without_a_name(tmp_path: Path) -> None:
    plant(tmp_path, "in/jane.nii", "out/old.nii")
    sources = find(tmp_path / "in").sources
    with pytest.raises(CohortError, match="is not empty"):
        write_site_folder(sources, tmp_path / "out")
    (tmp_path / "in/jane.nii").unlink()
    with pytest.raises(StorageError) as caught:
        write_site_folder(sources, tmp_path / "new")
    assert "jane" not in str(caught.value)


SUBJECT = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Co", "Cn", "Zl", "Zp")),
    min_size=1,
    max_size=8,
).filter(lambda text: "/" not in text and not text.startswith("."))


@settings(max_examples=60)
@given(
    names=st.sets(SUBJECT, min_size=1, max_size=4),
    covariates=st.fixed_dictionaries(
        {},
        optional={
            "age_years": st.floats(0, 130),
            "sex": st.sampled_from([0.0, 1.0]),
            "ef_frac": st.floats(0, 1),
            "edv_ml": st.floats(0, 2000),
        },
    ),
    taken=st.none() | st.dates(),
)
def test_whatever_is_known_of_a_file_is_known_after(
    names: set[str],
    covariates: dict[str, float],
    taken: date | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("parted")
    plant(folder / "in", *(f"{name}.png" for name in names))
    found = find(folder / "in", "image-2d")
    known = [replace(s, covariates=covariates, taken=taken) for s in found.sources]
    write_site_folder(known, folder / "out")
    assert essence(find(folder / "out", "image-2d")) == essence(Found(sources=tuple(known)))


def test_source_of_the_demo_is_read_by_its_site(tmp_path: Path) -> None:
    plant(tmp_path, "in/p 1.nii.gz")
    write_site_folder(find(tmp_path / "in").sources, tmp_path / "out")
    assert only(find(tmp_path / "out")).subject == "p 1"
    assert (tmp_path / "out/index.csv").read_text() == (
        "path,subject,session,modality,date\n0001.nii.gz,p 1,1,T1w,\n"
    )
