"""Scans are found, parted by subject and taken in; what cannot be used is told, never hidden."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from vitrael.core.data.cohort import Cohort
from vitrael.core.data.nifti import read_nifti, write_nifti
from vitrael.core.data.partition import (
    FoundScan,
    find_scans,
    partition_by_subject,
    pseudonym_of,
    write_site_scans,
)
from vitrael.core.data.scan import Scan
from vitrael.core.data.splits import Split
from vitrael.core.errors import CohortError
from vitrael.core.study import Data, Protocol

MakeBrain = Callable[..., Scan]
KEY = b"a key of one site, 32 bytes long"

SITES = ("north", "harbour", "valley")


@pytest.fixture(scope="session")
def brain(make_brain: MakeBrain) -> Scan:
    return make_brain(shape=(48, 48, 48), spacing=4.0)


def put(scan: Scan, *paths: Path) -> None:
    """Write different brains of one shape."""
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        image = scan.image_CDHW * np.float32(1 + number)
        write_nifti(Scan(image, scan.affine, "T1w"), path)


def patients_of(cohort: Cohort) -> int:
    return sum(len(np.unique(cohort.images(split).patient_B)) for split in Split)


def test_bids_folder_gives_subjects_sessions_and_covariates(tmp_path: Path, brain: Scan) -> None:
    put(
        brain,
        tmp_path / "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz",
        tmp_path / "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz",
        tmp_path / "sub-02/anat/sub-02_T1w.nii",
        tmp_path / "sub-02/anat/sub-02_FLAIR.nii.gz",
        tmp_path / "sub-02/anat/sub-02_desc-brain_mask.nii.gz",
        tmp_path / "sub-02/anat/sub-02_dseg.nii.gz",
        tmp_path / ".hidden/sub-03_T1w.nii.gz",
    )
    (tmp_path / "participants.tsv").write_text(
        "participant_id\tage\tsex\nsub-01\t44\tF\nsub-02\tn/a\tn/a\n"
    )
    found = find_scans(tmp_path)
    rows = [(f.number, f.subject, f.session, f.age_years, f.sex) for f in found]
    assert rows == [
        (1, "sub-01", "1", 44.0, 0.0),
        (2, "sub-01", "2", 44.0, 0.0),
        (3, "sub-02", "1", None, None),
    ]
    assert repr(found[0]) == "FoundScan(1)"


def test_index_of_the_parent_folder_is_used(tmp_path: Path, brain: Scan) -> None:
    put(brain, tmp_path / "t1/a.nii.gz", tmp_path / "t1/b.nii.gz", tmp_path / "t1/c.nii.gz")
    (tmp_path / "index.csv").write_text(
        "path,modality,subject,session,notes\n"
        "t1/a.nii.gz,MR-T1w,x-7,2,age=39;sex=m\n"
        "t1/b.nii.gz,MASK-brain,x-7,2,\n"
    )
    found = find_scans(tmp_path / "t1")
    rows = [(f.path.name, f.subject, f.session, f.age_years, f.sex) for f in found]
    assert rows == [("a.nii.gz", "x-7", "2", 39.0, 1.0), ("c.nii.gz", "c", "1", None, None)]


def test_blank_cell_erases_nothing_that_another_table_says(tmp_path: Path, brain: Scan) -> None:
    put(brain, tmp_path / "sub-01_T1w.nii")
    (tmp_path / "participants.tsv").write_text("participant_id\tage\tsex\nsub-01\t44\tF\n")
    (tmp_path / "index.csv").write_text("path,subject,age,sex\nsub-01_T1w.nii,sub-01,,M\n")
    (found,) = find_scans(tmp_path)
    assert (found.age_years, found.sex) == (44.0, 1.0)


UNCLEAR = {
    "one name in the folder of each patient": ("p0/T1_a.nii.gz", "p1/T1_a.nii.gz"),
    "one name in the sessions of two patients": ("p0/ses-1/T1.nii.gz", "p1/ses-2/T1.nii.gz"),
    "one name at two sites": ("north/001.nii.gz", "valley/001.nii.gz"),
    "a session in the name and no subject": ("jane_ses-1.nii.gz", "jane_ses-2.nii.gz"),
}


@pytest.mark.parametrize("case", UNCLEAR)
def test_file_name_that_does_not_tell_the_patient_is_refused(
    tmp_path: Path, brain: Scan, case: str
) -> None:
    put(brain, *(tmp_path / name for name in UNCLEAR[case]))
    with pytest.raises(CohortError, match=r"not clear whose scan number [12] is") as caught:
        find_scans(tmp_path)
    assert "index.csv" in caught.value.fix
    assert not any(
        name in str(caught.value) for name in ("T1_a", "001", "jane", "p0", "p1", "valley")
    )


def test_index_or_bids_name_tells_apart_what_the_file_name_does_not(
    tmp_path: Path, brain: Scan
) -> None:
    put(brain, tmp_path / "t1/p0/T1.nii.gz", tmp_path / "t1/p1/T1.nii.gz")
    put(brain, tmp_path / "t1/sub-9/T1.nii.gz")
    (tmp_path / "index.csv").write_text("path,subject\nt1/p0/T1.nii.gz,a\nt1/p1/T1.nii.gz,b\n")
    assert [scan.subject for scan in find_scans(tmp_path / "t1")] == ["a", "b", "sub-9"]
    # Control: a row that is missing leaves the name alone, and another's subject is not taken.
    (tmp_path / "index.csv").write_text("path,subject\nt1/p0/T1.nii.gz,T1\n")
    with pytest.raises(CohortError, match="scan number 2"):
        find_scans(tmp_path / "t1")


def test_folder_without_a_scan_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(CohortError, match="no readable scan"):
        find_scans(tmp_path)
    with pytest.raises(CohortError, match="not a folder"):
        find_scans(tmp_path / "missing")


def fake(number: int, subject: str, site: str | None = None, session: str = "1") -> FoundScan:
    return FoundScan(Path(f"{number}.nii"), number, subject, session, site=site)


def test_all_scans_of_a_subject_go_to_one_site_and_sites_are_balanced() -> None:
    found = [fake(i, f"s{i // 2}", session=str(i % 2)) for i in range(74)]
    parted = partition_by_subject(found, SITES, key=KEY)
    subjects = {site: {scan.subject for scan in scans} for site, scans in parted.items()}
    assert sum(len(s) for s in subjects.values()) == 37
    assert len(set().union(*subjects.values())) == 37
    assert sorted(len(s) for s in subjects.values()) == [12, 12, 13]
    assert sum(len(scans) for scans in parted.values()) == 74


def test_partition_follows_the_key_and_not_the_order() -> None:
    found = [fake(i, f"s{i}") for i in range(30)]

    def homes(scans: list[FoundScan], key: bytes) -> dict[str, str]:
        parted = partition_by_subject(scans, SITES, key=key)
        return {scan.subject: site for site, members in parted.items() for scan in members}

    assert homes(found, KEY) == homes(found[::-1], KEY)
    assert homes(found, KEY) != homes(found, KEY[::-1])


def test_site_folders_are_the_assignment(tmp_path: Path, brain: Scan) -> None:
    for site in SITES:
        put(brain, tmp_path / site / f"{site}-only.nii.gz")
    parted = partition_by_subject(find_scans(tmp_path), SITES, key=KEY)
    assert {site: [s.subject for s in scans] for site, scans in parted.items()} == {
        site: [f"{site}-only"] for site in SITES
    }


def test_subject_in_two_sites_is_refused(tmp_path: Path, brain: Scan) -> None:
    for site in SITES:
        put(brain, tmp_path / site / f"{site}-only.nii.gz")
    put(brain, tmp_path / "north/sub-9_T1w.nii.gz", tmp_path / "valley/sub-9_T1w.nii.gz")
    with pytest.raises(CohortError, match="a subject is in two sites") as caught:
        partition_by_subject(find_scans(tmp_path), SITES, key=KEY)
    assert "sub-9" not in str(caught.value)


def test_half_named_and_empty_sites_and_too_few_subjects_are_refused() -> None:
    with pytest.raises(CohortError, match="scan 2 belongs to no site"):
        partition_by_subject([fake(1, "a", "north"), fake(2, "b")], SITES, key=KEY)
    with pytest.raises(CohortError, match="site harbour has no scan"):
        partition_by_subject([fake(1, "a", "north")], SITES, key=KEY)
    with pytest.raises(CohortError, match="2 subjects cannot be parted into 3 sites"):
        partition_by_subject([fake(1, "a"), fake(2, "b")], SITES, key=KEY)


def test_folders_that_are_no_sites_do_not_assign(tmp_path: Path, brain: Scan) -> None:
    for number in range(3):
        put(brain, tmp_path / f"batch{number}" / f"s{number}.nii.gz")
    parted = partition_by_subject(find_scans(tmp_path), SITES, key=KEY)
    assert all(len(scans) == 1 for scans in parted.values())


def test_scans_are_taken_in_under_pseudonyms(
    tmp_path: Path, brain: Scan, data: Data, protocol: Protocol
) -> None:
    source, home = tmp_path / "jane-doe", tmp_path / "site"
    put(brain, *(source / f"sub-jane{i}_ses-{s}_T1w.nii" for i in range(4) for s in (1, 2)))
    taken = write_site_scans(find_scans(source), home, data, key=KEY)
    assert not taken.left_out
    names = sorted(path.name for path in home.iterdir())
    assert len(names) == 9
    assert all(re.fullmatch(r"p-[0-9a-f]{16}_v[01]_T1w\.nii\.gz|manifest\.json", n) for n in names)
    assert not any(b"jane" in path.read_bytes() for path in home.iterdir())
    cohort = Cohort.open(home, protocol, key=KEY)
    assert patients_of(cohort) == 4
    one = read_nifti(home / names[1])
    assert np.allclose(one.affine, brain.affine)


def test_pseudonym_depends_on_the_site() -> None:
    assert pseudonym_of("sub-1", key=KEY) == pseudonym_of("sub-1", key=KEY)
    assert pseudonym_of("sub-1", key=KEY) != pseudonym_of("sub-1", key=KEY[::-1])
    assert pseudonym_of("sub-1", key=KEY) != pseudonym_of("sub-2", key=KEY)


def test_unknown_age_and_sex_are_counted_not_hidden(
    tmp_path: Path, brain: Scan, data: Data
) -> None:
    put(brain, tmp_path / "in/sub-1_T1w.nii", tmp_path / "in/sub-2_T1w.nii")
    (tmp_path / "in/participants.tsv").write_text("participant_id\tage\tsex\nsub-1\t33\tM\n")
    manifest = write_site_scans(
        find_scans(tmp_path / "in"), tmp_path / "out", data, key=KEY
    ).manifest
    assert dict(manifest.assumed) == {"age_years": 1, "sex": 1}
    assert {(item.age_years, item.sex) for item in manifest.items} == {(33.0, 1.0), (56.5, 0.5)}
    assert all(item.ventricle_ml is None for item in manifest.items)


def test_bad_scans_are_left_out_with_reasons_and_the_rest_goes_on(
    tmp_path: Path, brain: Scan, data: Data
) -> None:
    put(brain, tmp_path / "z1.nii", tmp_path / "z2.nii")
    voxels = brain.image_CDHW[0]
    broken = voxels.copy()
    broken[3, 3, 3] = np.nan
    bad = {
        "a_nan": nib.Nifti1Image(broken, brain.affine),
        "b_noaffine": nib.Nifti1Image(voxels, None),
        "c_4d": nib.Nifti1Image(np.stack([voxels, voxels], axis=-1), brain.affine),
        "d_2d": nib.Nifti1Image(voxels[:, :, 24], brain.affine),
        "e_constant": nib.Nifti1Image(np.ones_like(voxels), brain.affine),
    }
    for name, image in bad.items():
        nib.save(image, tmp_path / f"{name}.nii")
    (tmp_path / "f_cut.nii").write_bytes((tmp_path / "z1.nii").read_bytes()[:5000])
    taken = write_site_scans(find_scans(tmp_path), tmp_path / "out", data, key=KEY)
    assert [item.number for item in taken.unreadable] == [1, 2, 3, 4, 5, 6]
    reasons = [item.reason for item in taken.unreadable]
    told = ["not finite", "no affine", "4 axes", "2 axes", "constant", "cut short"]
    assert all(word in reason for word, reason in zip(told, reasons, strict=True))
    assert len(taken.manifest.items) == 2


def test_site_without_one_readable_scan_is_refused(tmp_path: Path, data: Data) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/sub-jane_T1w.nii.gz").write_bytes(b"no image")
    with pytest.raises(CohortError, match="no readable scan for a site") as caught:
        write_site_scans(find_scans(tmp_path / "in"), tmp_path / "out", data, key=KEY)
    assert "jane" not in str(caught.value)
    assert not (tmp_path / "out/manifest.json").exists()


def test_second_file_of_a_session_and_same_image_are_duplicates(
    tmp_path: Path, brain: Scan, data: Data
) -> None:
    put(brain, tmp_path / "sub-1_run-1_T1w.nii", tmp_path / "sub-1_run-2_T1w.nii")
    put(brain, tmp_path / "sub-2_T1w.nii")  # the image of sub-1's first run
    taken = write_site_scans(find_scans(tmp_path), tmp_path / "out", data, key=KEY)
    assert [(item.number, item.kind) for item in taken.left_out] == [
        (2, "duplicate"),
        (3, "duplicate"),
    ]
    assert not taken.unreadable
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == len(taken.manifest.items) == 1


def test_readable_second_file_stands_in_for_a_damaged_first(
    tmp_path: Path, brain: Scan, data: Data
) -> None:
    put(brain, tmp_path / "sub-1_run-2_T1w.nii")
    (tmp_path / "sub-1_run-1_T1w.nii").write_bytes(b"")
    taken = write_site_scans(find_scans(tmp_path), tmp_path / "out", data, key=KEY)
    assert len(taken.manifest.items) == 1
    assert [item.kind for item in taken.left_out] == ["unreadable"]


def test_real_scans_of_one_folder_make_three_cohorts(
    tmp_path: Path, real_scans: Path, data: Data, protocol: Protocol
) -> None:
    found = find_scans(real_scans)
    assert len({scan.subject for scan in found}) == 37
    assert all(scan.age_years is not None and scan.sex is not None for scan in found)
    parted = partition_by_subject(found, SITES, key=KEY)
    patients = 0
    for site, scans in parted.items():
        few = [scan for scan in scans if "orig" not in scan.path.parts][:4]
        taken = write_site_scans(few, tmp_path / site, data, key=KEY)
        assert not taken.left_out
        cohort = Cohort.open(tmp_path / site, protocol, key=KEY)
        patients += patients_of(cohort)
        for split in Split:
            images = cohort.images(split)
            assert np.isfinite(images.condition_BK).all()
    assert patients == 12
