"""A cohort gives each patient's scans to one split, and tells nothing when it fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from vitrael.core.data.cohort import Cohort
from vitrael.core.data.manifest import Item, Manifest, write_manifest
from vitrael.core.data.nifti import write_nifti
from vitrael.core.data.scan import Scan
from vitrael.core.data.splits import Split, split_of
from vitrael.core.digest import digest_file
from vitrael.core.errors import CohortError, ScanError
from vitrael.core.study import Protocol

MakeBrain = Callable[..., Scan]
KEY = b"a key of one site, 32 bytes long"

PATIENTS = 30


def item_of(folder: Path, patient: int, visit: int, **volumes: float) -> Item:
    name = f"p-{patient}_v{visit}_T1w.nii.gz"
    return Item(
        subject=f"p-{patient}",
        visit=visit,
        path=name,
        age_years=30.0 + patient,
        sex=float(patient % 2),
        digest=digest_file(folder / name),
        **volumes,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_brain: MakeBrain) -> Path:
    """Return 30 patients, every third with two visits; volumes recorded for even ones."""
    folder = tmp_path_factory.mktemp("scans")
    items = []
    for patient in range(PATIENTS):
        for visit in range(2 if patient % 3 == 0 else 1):
            scan = make_brain(
                ventricle_ml=10 + 2 * patient, noise=0.01, seed=10 * patient + visit, parts=2
            )
            write_nifti(scan, folder / f"p-{patient}_v{visit}_T1w.nii.gz")
            known = {"ventricle_ml": 50.0, "brain_ml": 1300.0} if patient % 2 == 0 else {}
            items.append(item_of(folder, patient, visit, **known))
    write_manifest(Manifest(items=tuple(items)), folder / "manifest.json")
    return folder


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_every_scan_is_in_one_split_with_its_patient(folder: Path, protocol: Protocol) -> None:
    cohort = Cohort.open(folder, protocol, key=KEY)
    images = [cohort.images(split) for split in Split]
    assert sum(len(np.unique(part.patient_B)) for part in images) == PATIENTS
    assert sum(map(len, images)) == PATIENTS + 10


def test_images_conditions_and_visits_fit_together(folder: Path, protocol: Protocol) -> None:
    images = Cohort.open(folder, protocol, key=KEY).images(Split.TRAINING)
    assert images.image_BCDHW.shape[1:] == (1, 24, 24, 24)
    assert images.image_BCDHW.dtype == images.condition_BK.dtype == np.float32
    assert 0 <= images.image_BCDHW.min() < images.image_BCDHW.max() <= 1
    members = [
        p
        for p in range(PATIENTS)
        if split_of(f"p-{p}", protocol.data.splits, key=KEY) is Split.TRAINING
    ]
    ages = sorted({round(18 + 77 * float(a)) for a in images.condition_BK[:, 0]})
    assert ages == [30 + p for p in members]
    for patient in np.unique(images.patient_B):
        visits = images.visit_B[images.patient_B == patient]
        assert visits.tolist() == list(range(len(visits)))


def test_recorded_volume_is_used_and_a_missing_one_is_measured(
    folder: Path, protocol: Protocol
) -> None:
    images = Cohort.open(folder, protocol, key=KEY).images(Split.TRAINING)
    even = images.condition_BK[:, 1] == 0
    assert np.allclose(images.condition_BK[even, 2], 50 / 110)
    assert len(np.unique(images.condition_BK[~even, 2])) > 1
    patient = 77 * images.condition_BK[~even, 0] + 18 - 30
    assert np.corrcoef(patient, images.condition_BK[~even, 2])[0, 1] > 0.95


def test_images_are_read_once(copy: Path, protocol: Protocol) -> None:
    cohort = Cohort.open(copy, protocol, key=KEY)
    first = cohort.images(Split.AUDIT)
    for file in copy.glob("*.nii.gz"):
        file.unlink()
    assert cohort.images(Split.AUDIT) is first


def test_empty_split_gives_arrays_of_length_zero(copy: Path, protocol: Protocol) -> None:
    write_manifest(Manifest(items=(item_of(copy, 0, 0),)), copy / "manifest.json")
    cohort = Cohort.open(copy, protocol, key=KEY)
    empty = [split for split in Split if not len(cohort.images(split))]
    assert len(empty) == 4
    images = cohort.images(empty[0])
    assert images.image_BCDHW.shape == (0, 1, 24, 24, 24)
    assert images.condition_BK.shape == (0, 4)


def test_repr_shows_nothing_of_a_patient(folder: Path, protocol: Protocol) -> None:
    cohort = Cohort.open(folder, protocol, key=KEY)
    assert repr(cohort) == "Cohort(private)"
    assert repr(cohort.images(Split.AUDIT)) == "PatientImages(private)"


def read_everything(folder: Path, protocol: Protocol) -> None:
    cohort = Cohort.open(folder, protocol, key=KEY)
    for split in Split:
        cohort.images(split)


def test_missing_scan_is_named_by_its_place_only(copy: Path, protocol: Protocol) -> None:
    (copy / "p-0_v1_T1w.nii.gz").unlink()
    with pytest.raises(CohortError, match="scan 1 of the manifest is missing") as caught:
        read_everything(copy, protocol)
    assert "p-0" not in str(caught.value)


def test_changed_scan_is_refused(copy: Path, protocol: Protocol, make_brain: MakeBrain) -> None:
    write_nifti(make_brain(ventricle_ml=99), copy / "p-0_v0_T1w.nii.gz")
    with pytest.raises(CohortError, match="scan 0 of the manifest is not the file"):
        read_everything(copy, protocol)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:2000]), "scan 0 .* damaged"),
        (
            lambda path: nib.save(
                nib.Nifti1Image(np.full((8, 8, 8), np.nan, np.float32), np.diag([8.0, 8, 8, 1])),
                path,
            ),
            "scan 0 .* not finite",
        ),
    ],
)
def test_corrupt_scan_is_named_by_its_place_only(
    copy: Path, protocol: Protocol, damage: object, told: str
) -> None:
    damage(copy / "p-0_v0_T1w.nii.gz")  # type: ignore[operator]
    items = [item_of(copy, p, 0) for p in range(PATIENTS)]
    write_manifest(Manifest(items=tuple(items)), copy / "manifest.json")
    with pytest.raises(ScanError, match=told) as caught:
        read_everything(copy, protocol)
    assert "p-0" not in str(caught.value)
    assert str(copy) not in str(caught.value)
