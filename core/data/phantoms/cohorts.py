"""Phantom hospitals: a folder of NIfTI files and a manifest, like any site's scans."""

from __future__ import annotations

from pathlib import Path

from vitrael.core.data.manifest import MANIFEST_NAME, Item, Manifest, write_manifest
from vitrael.core.data.nifti import write_nifti
from vitrael.core.data.phantoms.brain import (
    age_anatomy,
    draw_acquisition,
    draw_anatomy,
    render_brain,
)
from vitrael.core.data.scan import Scan
from vitrael.core.digest import digest_file
from vitrael.core.rng import stream

_YEARS_BETWEEN_VISITS = 1.5
_SITE_CONTRAST = 0.04


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

    Equal arguments give equal scans; a patient's anatomy does not depend on the visit.
    """
    anatomy = draw_anatomy(stream(seed, "anatomy", site, patient))
    if visit:
        years = _YEARS_BETWEEN_VISITS * visit
        anatomy = age_anatomy(anatomy, stream(seed, "aging", site, patient, visit), years=years)
    contrast = float(stream(seed, "scanner", site).normal(0, _SITE_CONTRAST))
    rng = stream(seed, "acquisition", site, patient, visit)
    acquisition = draw_acquisition(rng, site_contrast=contrast)
    scan = render_brain(anatomy, acquisition, grid_vox=grid_vox, spacing_mm=spacing_mm)
    return scan, anatomy.age_years, anatomy.sex


def write_phantom_scans(
    folder: Path,
    *,
    seed: int,
    site: str,
    patients: int,
    visits: int,
    grid_vox: tuple[int, int, int],
    spacing_mm: float,
) -> Manifest:
    """Write a hospital's scans with their manifest; volumes are left to the declared measurer."""
    folder.mkdir(parents=True, exist_ok=True)
    items = []
    for patient in range(patients):
        for visit in range(visits):
            scan, age_years, sex = draw_scan(
                seed, site, patient, visit, grid_vox=grid_vox, spacing_mm=spacing_mm
            )
            name = f"ph-{patient:04d}-v{visit}.nii.gz"
            write_nifti(scan, folder / name)
            items.append(
                Item(
                    subject=f"ph-{patient:04d}",
                    visit=visit,
                    path=name,
                    age_years=age_years,
                    sex=sex,
                    digest=digest_file(folder / name),
                )
            )
    manifest = Manifest(items=tuple(items))
    write_manifest(manifest, folder / MANIFEST_NAME)
    return manifest
