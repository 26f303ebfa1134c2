"""A made-up hospital's brain scans: a BIDS folder, a DICOM archive, or slices beside a table.

Anatomy, aging, lesions and acquisition have a stream each, named by site and patient. With
contrasts beside the T1w, patients have hyperintensities of the white matter, and a BIDS folder has
their masks; a visit whose lesions fill no voxel has no mask.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path, PurePath
from typing import Final

import numpy as np
from PIL import Image
from pydicom import dcmread

from vitrael.core.data.dicom.write import Plane, SeriesCompression, write_dicom_series
from vitrael.core.data.nifti import write_nifti
from vitrael.core.data.phantoms.acquisition import STYLES, Acquisition, draw_acquisition
from vitrael.core.data.phantoms.anatomy import Anatomy, age_anatomy, draw_anatomy, with_disease
from vitrael.core.data.phantoms.archive import Archive, Naming
from vitrael.core.data.phantoms.brain import BrainTruth, image_brain, image_slice
from vitrael.core.data.phantoms.lesions import NO_LESIONS, Lesions, age_lesions, draw_lesions
from vitrael.core.data.phantoms.orders import Facts, Hospital, TruthRow
from vitrael.core.data.phantoms.paperwork import write_json, write_rows
from vitrael.core.data.phantoms.people import (
    Person,
    Sex,
    draw_person,
    draw_visits,
    identify_visit,
    years_between,
)
from vitrael.core.data.scan import Scan
from vitrael.core.rng import stream

DISEASED_FRAC = 0.3
_SEXES: Final[tuple[Sex, Sex]] = ("F", "M")
_GROUPS = ("control", "disease")
_SITE_CONTRAST = 0.04
_BRIGHTEST = 1.2
_SLICE_MM, _SLICE_SD_MM = 6.0, 3.0
_LEAST_TO_HALVE = 32
_MASKS = "derivatives/manual-masks"


@dataclass(frozen=True, slots=True)
class _Export:
    """How a site's scanner cuts and its archive writes."""

    plane: Plane
    compression: SeriesCompression
    naming: Naming


_EXPORTS: Final[Mapping[str, _Export]] = {
    "plain": _Export("axial", "none", "numbers"),
    "sharp": _Export("sagittal", "jpeg-2000", "identifiers"),
    "noisy": _Export("coronal", "rle", "numbers"),
    "thick": _Export("axial", "none", "identifiers"),
    "whole-head": _Export("sagittal", "jpeg-ls", "numbers"),
}


@dataclass(frozen=True, slots=True, repr=False)
class _Visit:
    """One visit of one patient, before it is imaged."""

    patient: int
    number: int
    day: date
    person: Person
    anatomy: Anatomy
    lesions: Lesions
    acquisition: Acquisition

    @property
    def group(self) -> str:
        return _GROUPS[int(self.anatomy.disease)]


def write_bids(folder: Path, hospital: Hospital) -> Iterator[TruthRow]:
    """Write NIfTI files in BIDS with their tables, and yield the truth of each visit.

    ``participants.tsv`` tells sex and group, ``sub-0001_sessions.tsv`` date and age.
    """
    about = {"Name": f"Brain phantoms, site {hospital.site}", "BIDSVersion": "1.9.0"}
    write_json(folder / "dataset_description.json", {**about, "DatasetType": "raw"})
    (folder / "README").write_text("Made-up brains of made-up people. Nobody was scanned.\n")
    if len(hospital.contrasts) > 1:
        drawn = {"DatasetType": "derivative", "GeneratedBy": [{"Name": "Manual"}]}
        write_json(folder / _MASKS / "dataset_description.json", {**about, **drawn})
    participants = [("participant_id", "sex", "group")]
    for patient in range(hospital.patients):
        subject = f"sub-{patient + 1:04d}"
        sessions = [("session_id", "acq_time", "age")]
        for visit in _draw_visits(hospital, patient):
            yield _write_bids_visit(folder, subject, visit, hospital=hospital)
            age_years = f"{visit.anatomy.age_years:.2f}"
            session = f"ses-{visit.number}"
            sessions.append((session, f"{visit.day.isoformat()}T09:34:12", age_years))
            if visit.number == 1:
                participants.append((subject, visit.person.sex, visit.group))
        write_rows(folder / subject / f"{subject}_sessions.tsv", sessions, separator="\t")
    write_rows(folder / "participants.tsv", participants, separator="\t")


def write_dicom(folder: Path, hospital: Hospital) -> Iterator[TruthRow]:
    """Write DICOM studies, a localizer of three slices before the scans of each; yield the truth.

    The path of a row is the folder of the first contrast. Plane, compression and names of folders
    are the site's.
    """
    export = _EXPORTS[hospital.site]
    archive = Archive(folder, hospital, naming=export.naming)
    for patient in range(hospital.patients):
        for visit in _draw_visits(hospital, patient):
            images = _image(visit, hospital)
            identity = identify_visit(hospital, patient, visit.person, on=visit.day)
            first = next(iter(images[0].values()))
            series = {"localizer": _localizer(first), **images[0]}
            places: dict[str, PurePath] = {}
            for number, (name, scan) in enumerate(series.items(), start=1):
                paths = write_dicom_series(
                    scan,
                    archive.inbox,
                    identity=identity,
                    seed=hospital.seed,
                    series=number,
                    plane=export.plane if number > 1 else "axial",
                    compression=_compression(export, hospital) if number > 1 else "none",
                )
                if name == "localizer":
                    _call_localizer(paths)
                kept = archive.keep(paths, patient, visit.number, series=number)
                places[name] = kept[0].parent
            path = places[hospital.contrasts[0]]
            yield _row(path, visit.person.patient_id, visit, images[1])
    archive.close()


def write_slices(folder: Path, hospital: Hospital) -> Iterator[TruthRow]:
    """Write one axial slice a visit as PNG beside ``images.csv``, and yield the truth of each."""
    columns = ("image_id", "patient_id", "visit", "study_date", "age", "sex", "diagnosis")
    rows: list[tuple[str, ...]] = [columns]
    (folder / "images").mkdir(parents=True)
    for patient in range(hospital.patients):
        for visit in _draw_visits(hospital, patient):
            rng = stream(hospital.seed, "slice", hospital.site, patient, visit.number)
            height, width = hospital.grid
            cut = image_slice(
                visit.anatomy,
                visit.acquisition,
                grid_px=(height, width),
                spacing_mm=hospital.spacing_mm,
                height_mm=float(rng.normal(_SLICE_MM, _SLICE_SD_MM)),
                lesions=visit.lesions,
            )
            gray = np.clip(cut.pictures["T1w"].image_HW * (255 / _BRIGHTEST), 0, 255)
            code = f"{hospital.seed} {hospital.site} {patient} {visit.number}"
            name = f"{hashlib.sha256(code.encode()).hexdigest()[:12]}.png"
            Image.fromarray(np.rint(gray).astype(np.uint8)).save(folder / "images" / name)
            person, day = visit.person, visit.day.isoformat()
            cells = (name, person.patient_id, str(visit.number), day)
            rows.append((*cells, f"{visit.anatomy.age_years:.2f}", person.sex, visit.group))
            yield _row(PurePath("images") / name, person.patient_id, visit, cut.truth)
    write_rows(folder / "images.csv", rows)


def _draw_visits(hospital: Hospital, patient: int) -> Iterator[_Visit]:
    """Yield the visits of a patient, who grows older by the days between them."""
    seed, site = hospital.seed, hospital.site
    days = draw_visits(hospital, patient)
    first = draw_anatomy(stream(seed, "anatomy", site, patient))
    if stream(seed, "disease", site, patient).uniform() < DISEASED_FRAC:
        first = with_disease(first)
    has_lesions = len(hospital.contrasts) > 1
    start = NO_LESIONS
    if has_lesions:
        start = draw_lesions(stream(seed, "lesions", site, patient), first)
    sex = _SEXES[int(first.sex)]
    person = draw_person(hospital, patient, sex=sex, age_years=first.age_years, on=days[0])
    contrast = float(stream(seed, "scanner", site).normal(0, _SITE_CONTRAST))
    for number, day in enumerate(days, start=1):
        years = years_between(days[0], day)
        anatomy, lesions = first, start
        if years:
            anatomy = age_anatomy(first, stream(seed, "aging", site, patient), years=years)
        if years and has_lesions:
            lesions = age_lesions(start, anatomy, years=years)
        rng = stream(seed, "acquisition", site, patient, number)
        acquisition = draw_acquisition(rng, site_contrast=contrast, style=STYLES[site])
        yield _Visit(patient, number, day, person, anatomy, lesions, acquisition)


def _image(visit: _Visit, hospital: Hospital) -> tuple[Mapping[str, Scan], BrainTruth]:
    depth, height, width = hospital.grid
    made = image_brain(
        visit.anatomy,
        visit.acquisition,
        grid_vox=(depth, height, width),
        spacing_mm=hospital.spacing_mm,
        contrasts=hospital.contrasts,
        lesions=visit.lesions,
    )
    return made.scans, made.truth


def _write_bids_visit(folder: Path, subject: str, visit: _Visit, *, hospital: Hospital) -> TruthRow:
    scans, truth = _image(visit, hospital)
    place = PurePath(subject, f"ses-{visit.number}", "anat")
    stem = f"{subject}_ses-{visit.number}"
    for name, scan in scans.items():
        write_nifti(scan, folder / place / f"{stem}_{name}.nii.gz")
    mask = truth.lesion_DHW["wmh"]
    if mask.any():
        affine = scans[hospital.contrasts[0]].affine
        drawn = Scan(mask[None].astype(np.float32), affine, "mask")
        write_nifti(drawn, folder / _MASKS / place / f"{stem}_label-lesion_mask.nii.gz")
    return _row(place / f"{stem}_{hospital.contrasts[0]}.nii.gz", subject, visit, truth)


def _row(path: PurePath, subject: str, visit: _Visit, truth: BrainTruth) -> TruthRow:
    present = {f"present_{name}_ml": value for name, value in truth.volumes_ml.items()}
    facts: Facts = {"group": visit.group, **truth.covariates, **present}
    return TruthRow(path, subject, str(visit.number), visit.day, facts)


def _compression(export: _Export, hospital: Hospital) -> SeriesCompression:
    """Return the site's compression; one that works by halving needs pixels to halve."""
    is_small = min(hospital.grid) < _LEAST_TO_HALVE
    return "none" if is_small and export.compression == "jpeg-2000" else export.compression


def _localizer(scan: Scan) -> Scan:
    """Return three thick and coarse axial slices through the middle of a scan."""
    depth = scan.image_CDHW.shape[3]
    step = depth // 4
    planes = slice(step, 3 * step + 1, step)
    affine = scan.affine @ np.diag([2.0, 2.0, float(step), 1.0])
    affine[:3, 3] = scan.affine[:3, 3] + step * scan.affine[:3, 2]
    image = np.ascontiguousarray(scan.image_CDHW[:, ::2, ::2, planes])
    return Scan(image, affine, "localizer")


def _call_localizer(paths: tuple[Path, ...]) -> None:
    for path in paths:
        header = dcmread(path)
        header.ImageType = ["ORIGINAL", "PRIMARY", "M", "LOCALIZER"]
        header.save_as(path)
