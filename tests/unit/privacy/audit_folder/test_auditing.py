"""The audit of two folders as a whole: copies are found and named, and too little is no pass."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vitrael.core.data.nifti import write_nifti
from vitrael.core.data.phantoms.cohorts import draw_scan
from vitrael.core.errors import EXIT_OK, EXIT_PARTIAL, EXIT_REFUSED
from vitrael.core.rng import stream
from vitrael.privacy.audit_folder.auditing import Order, audit_folders, chance_of
from vitrael.privacy.audit_folder.encoders import Budget
from vitrael.privacy.audit_folder.findings import Findings
from vitrael.privacy.audit_folder.pair import read_pair
from vitrael.privacy.audit_folder.prepare import Grid
from vitrael.privacy.audit_folder.report import document_of

pytestmark = pytest.mark.federation  # whole audits, as long as studies

ORDER = Order(
    rate=0.09,  # as small as 24 patients allow
    budget=Budget(length_images=64, channels=(8, 16)),
    most_plants=6,
    classes=frozenset({"exact", "noise_5", "other_visit", "half", "group_20"}),
)


def _write(path: Path, patient: int, visit: int = 0, *, disguise: bool = False) -> None:
    scan = draw_scan(1, "a", patient, visit, grid_vox=(24, 24, 24), spacing_mm=8.0)[0]
    if disguise:
        image = scan.image_CDHW[:, ::-1] if patient % 2 else scan.image_CDHW
        noise = stream(3, "disguise", patient).normal(0, 0.02 * image.max(), image.shape)
        scan = replace(scan, image_CDHW=(image + noise).astype(np.float32))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(scan, path)


def _write_real(folder: Path, patients: int) -> Path:
    for patient in range(patients):
        for visit in range(2):
            name = f"sub-{patient:02d}_ses-{visit + 1}_T1w.nii.gz"
            _write(folder / f"sub-{patient:02d}" / f"ses-{visit + 1}" / "anat" / name,
                   patient, visit)  # fmt: skip
    return folder


def _audit(real: Path, synthetic: Path, order: Order = ORDER) -> Findings:
    return audit_folders(*read_pair(real, synthetic, grid=Grid(edge_vox=12)), order)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write_real(tmp_path_factory.mktemp("audit") / "real", 24)


@pytest.fixture(scope="module")
def copied(real: Path) -> Findings:
    """A folder of 20 of which 8 are disguised copies."""
    synthetic = real.parent / "copied"
    for number in range(12):
        _write(synthetic / f"new-{number:02d}.nii.gz", 100 + number)
    for number in range(8):
        _write(synthetic / f"taken-{number:02d}.nii.gz", number, disguise=True)
    return _audit(real, synthetic)


def test_disguised_copies_are_found_and_named(copied: Findings) -> None:
    found = {one.synthetic: one.real for one in copied.conspicuous}
    for number in range(8):
        assert f"sub-{number:02d}_ses-1" in found[f"taken-{number:02d}.nii.gz"]
    assert copied.exit_code == EXIT_REFUSED
    assert not copied.same_files
    assert any("CONSPICUOUS" in sentence for sentence in copied.found)
    first = {one.synthetic for one in copied.conspicuous[:8]}
    assert first == {f"taken-{number:02d}.nii.gz" for number in range(8)}


def test_few_patients_are_not_estimable_and_never_a_pass(copied: Findings) -> None:
    classes = {one.name: one for one in copied.certificate.plants}
    assert classes["exact"].caught.value == 1.0
    assert {one.outcome for one in classes.values()} == {"not estimable"}
    assert classes["half"].caught.value is None
    assert classes["group_20"].caught.reason
    assert copied.certificate.agreement.value is None
    assert any("the scan itself" in sentence for sentence in copied.not_estimated)
    assert any("6 plants of a class" in sentence for sentence in copied.not_estimated)


def test_a_folder_of_strangers_is_no_copy(real: Path, copied: Findings, tmp_path: Path) -> None:
    for number in range(20):
        _write(tmp_path / f"new-{number:02d}.nii.gz", 200 + number)
    strangers = _audit(real, tmp_path, replace(ORDER, classes=frozenset({"exact"})))
    assert strangers.exit_code == EXIT_PARTIAL  # six plants say nothing of a class
    (exact,) = strangers.certificate.plants
    sure = exact.model_copy(update={"outcome": "reached"})
    known = strangers.certificate.model_copy(update={"plants": (sure,)})
    assert strangers.model_copy(update={"certificate": known}).exit_code == EXIT_OK
    assert strangers.chance is not None
    assert strangers.chance > 0.05
    assert strangers.neighbors is not None
    assert copied.neighbors is not None
    assert strangers.neighbors.synthetic_to_real.least > copied.neighbors.synthetic_to_real.least
    assert strangers.filter == copied.filter  # frozen before the folder is looked at


def test_too_few_patients_are_told_and_are_no_pass(tmp_path: Path) -> None:
    real = _write_real(tmp_path / "real", 3)
    _write(tmp_path / "synthetic" / "new.nii.gz", 100)
    findings = _audit(real, tmp_path / "synthetic")
    assert findings.exit_code == EXIT_PARTIAL
    assert not findings.filter.calibrated
    assert findings.conspicuous_share.value is None
    assert {one.outcome for one in findings.certificate.plants} == {"not estimable"}
    assert "22 patients" in findings.not_estimated[0]

    shutil.copy(real / "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz", tmp_path / "synthetic/x.nii.gz")
    again = _audit(real, tmp_path / "synthetic")
    assert again.exit_code == EXIT_REFUSED
    assert [one.synthetic for one in again.same_files] == ["x.nii.gz"]
    assert again.same_files[0].how == "bytes"


def test_equal_seeds_give_equal_findings(tmp_path: Path) -> None:
    real = _write_real(tmp_path / "real", 6)
    for number in range(3):
        _write(tmp_path / "synthetic" / f"new-{number}.nii.gz", 100 + number)
    order = Order(
        rate=0.3,
        seed=1,
        budget=Budget(length_images=32, channels=(4,)),
        most_plants=2,
        classes=frozenset({"noise_5"}),
    )
    first, second = (document_of(_audit(real, tmp_path / "synthetic", order)) for _ in range(2))
    assert first["filter"]["calibrated"]
    assert first["conspicuous_share"]["n"] == 3
    for document in (first, second):
        document.pop("seconds")
    assert first == second


def test_chance_counts_the_uncertainty_of_the_threshold() -> None:
    rng = stream(1, "chance")
    null, new = rng.normal(size=(20000, 24)), rng.normal(size=(20000, 20))
    above = (new > null.max(1, keepdims=True)).sum(1)
    for count in (0, 1, 2, 4):
        share = (above >= count).mean()
        assert chance_of(count, 20, null=24, rate=0.05) == pytest.approx(share, abs=0.01)
    # Of a threshold that is known exactly the same count would be far less likely.
    binomial = (rng.binomial(20, 0.04, 20000) >= 4).mean()
    assert binomial < chance_of(4, 20, null=24, rate=0.05) / 2
