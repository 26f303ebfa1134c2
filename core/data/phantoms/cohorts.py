"""Phantom hospitals: a BIDS folder of NIfTI files and tables, like any site's own."""

from __future__ import annotations

from pathlib import Path

from vitrael.core.data.nifti import write_nifti
from vitrael.core.data.phantoms.brain import (
    Anatomy,
    age_anatomy,
    draw_acquisition,
    draw_anatomy,
    render_brain,
)
from vitrael.core.data.scan import Scan
from vitrael.core.rng import stream

_YEARS_BETWEEN_VISITS = 1.5
_FIRST_AGED = 1
"""The visit that names the stream of a patient's rate of growth."""
_SITE_CONTRAST = 0.04
_SEXES = ("F", "M")


def draw_patient(seed: int, site: str, patient: int, visit: int) -> Anatomy:
    """Return a patient as he is at a visit, 1.5 years after the one before; visits count from 0.

    His ventricles grow by one rate over all visits.
    """
    anatomy = draw_anatomy(stream(seed, "anatomy", site, patient))
    if not visit:
        return anatomy
    rng = stream(seed, "aging", site, patient, _FIRST_AGED)
    return age_anatomy(anatomy, rng, years=_YEARS_BETWEEN_VISITS * visit)


def draw_scan(
    seed: int,
    site: str,
    patient: int,
    visit: int,
    *,
    grid_vox: tuple[int, int, int],
    spacing_mm: float,
) -> tuple[Scan, float, float]:
    """Return one visit of one phantom patient, with age in years and sex.

    Equal arguments give equal scans; it is the patient of ``draw_patient``.
    """
    anatomy = draw_patient(seed, site, patient, visit)
    contrast = float(stream(seed, "scanner", site).normal(0, _SITE_CONTRAST))
    rng = stream(seed, "acquisition", site, patient, visit)
    acquisition = draw_acquisition(rng, site_contrast=contrast)
    scan = render_brain(anatomy, acquisition, grid_vox=grid_vox, spacing_mm=spacing_mm)
    return scan, anatomy.age_years, anatomy.sex


def write_phantom_files(
    folder: Path,
    *,
    seed: int,
    site: str,
    patients: int,
    visits: int,
    grid_vox: tuple[int, int, int],
    spacing_mm: float,
) -> int:
    """Write a hospital's T1-weighted scans with their tables; return how many scans there are.

    ``participants.tsv`` tells the sex, ``sub-0001/sub-0001_sessions.tsv`` the age at every visit
    to a hundredth of a year. Patients and visits count from 1. Volumes are left to the measurer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    participants = [("participant_id", "sex")]
    for patient in range(patients):
        subject = f"sub-{patient + 1:04d}"
        sessions = [("session_id", "age")]
        for visit in range(visits):
            scan, age_years, sex = draw_scan(
                seed, site, patient, visit, grid_vox=grid_vox, spacing_mm=spacing_mm
            )
            session = f"ses-{visit + 1}"
            place = folder / subject / session / "anat"
            place.mkdir(parents=True, exist_ok=True)
            write_nifti(scan, place / f"{subject}_{session}_T1w.nii.gz")
            sessions.append((session, f"{age_years:.2f}"))
            if visit == 0:
                participants.append((subject, _SEXES[int(sex)]))
        _write_table(folder / subject / f"{subject}_sessions.tsv", sessions)
    _write_table(folder / "participants.tsv", participants)
    return patients * visits


def _write_table(path: Path, rows: list[tuple[str, str]]) -> None:
    path.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
