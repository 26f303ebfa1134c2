"""One DICOM series as an image, with whatever may show burned-in text blacked out first."""

from __future__ import annotations

import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal, TypeVar

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset as DicomHeader

from vitrael.core.data.dicom.read import read_clip, read_picture, read_volume
from vitrael.core.data.dicom.series import SeriesPlan
from vitrael.core.data.nifti import read_nifti
from vitrael.core.data.planar import Clip, Picture
from vitrael.core.data.scan import Scan
from vitrael.core.errors import ConfigError, ScanError
from vitrael.privacy.pixels import apply_mask, demand_clean_pixels, read_site_mask

Converter = Literal["own", "dcm2niix"]
Planar = TypeVar("Planar", Clip, Picture)

CONVERTER_S: Final = 600.0
"""Longest time for one series."""


def read_series(
    paths: Sequence[Path],
    plan: SeriesPlan,
    *,
    header: DicomHeader,
    modality: str,
    mask: Path | None,
    converter: Converter,
) -> Scan | Clip | Picture:
    """Return the image of a series, whose first file has this header.

    Raises ScanError when it cannot be read, and when text in its pixels cannot be ruled out.
    """
    site_mask = None if mask is None else read_site_mask(mask)
    visible = demand_clean_pixels(header, site_mask=site_mask)
    if modality != "image":
        if visible is not None or any(each.burned_in for each in plan.instances):
            raise ScanError("text is burned into it", why="a volume is never masked")
        if converter == "dcm2niix":
            return convert_series(paths, plan, modality=modality)
        return read_volume(paths, plan, modality=modality)
    if "clip" in plan.kinds and plan.instances[0].kind == "US":
        return blacked_out(read_clip(paths[0], plan.instances[0]), visible)
    return blacked_out(read_picture(paths[0], plan.instances[0]), visible)


def blacked_out(image: Planar, visible: np.ndarray | None) -> Planar:
    """Return an image that is black outside a mask; without one, the image itself."""
    if visible is None:
        return image
    if isinstance(image, Clip):
        frames_THW = apply_mask(image.frames_THW, visible)
        return Clip(frames_THW, image.frame_s, image.spacing_mm, image.modality)
    if image.image_HW.shape != visible.shape:
        raise ScanError("the mask has another size than the image", fix="make one of its size")
    image_HW = np.where(visible, image.image_HW, image.image_HW.min()).astype(np.float32)
    return Picture(image_HW, image.spacing_mm, image.modality)


def convert_series(paths: Sequence[Path], plan: SeriesPlan, *, modality: str) -> Scan:
    """Return a volume by way of dcm2niix, whose output is judged and not its exit code.

    The series lies alone in a private folder for the time of the conversion. Raises ScanError
    unless exactly one volume comes out that has as many slices as the series; ConfigError when
    dcm2niix is not installed.
    """
    try:
        from dcm2niix import bin as program  # noqa: PLC0415 - an extra of its own
    except ImportError as error:
        raise ConfigError(
            "dcm2niix is not installed",
            why="--converter dcm2niix needs it",
            fix="pip install 'vitrael[dcm2niix]', or leave --converter out",
        ) from error
    with tempfile.TemporaryDirectory(prefix="vitrael-") as name:
        series, out = Path(name) / "in", Path(name) / "out"
        series.mkdir()
        out.mkdir()
        for number, path in enumerate(paths):
            (series / f"{number:06d}.dcm").symlink_to(path.resolve())
        command = [program, "-z", "n", "-b", "n", "-f", "volume", "-o", str(out), str(series)]
        try:
            subprocess.run(  # noqa: S603 - the program of the wheel, on names that we chose
                command, check=False, capture_output=True, timeout=CONVERTER_S
            )
        except subprocess.TimeoutExpired:
            raise ScanError(f"dcm2niix did not end within {CONVERTER_S:g} s") from None
        made = sorted(out.glob("*.nii"))
        if len(made) != 1:
            raise ScanError(f"dcm2niix made {len(made)} volumes of the series, not one")
        scan = read_nifti(made[0], label="what dcm2niix made", modality=modality)
    _demand_whole(scan, plan)
    return scan


def _demand_whole(scan: Scan, plan: SeriesPlan) -> None:
    first = plan.instances[0].stored
    slices = len(plan.frames) or len(plan.indices)
    expected = sorted((slices, first.rows, first.columns))
    if sorted(scan.image_CDHW.shape[1:]) != expected:
        raise ScanError("what dcm2niix made has another size than the series")


def read_dicom_header(path: Path) -> DicomHeader:
    """Return all that stands before the pixels of a file; raise ScanError when it is damaged."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's warnings quote values
            return dcmread(path, stop_before_pixels=True, force=True)
    except Exception:  # noqa: BLE001 - pydicom raises many kinds for a damaged header
        raise ScanError("the header is damaged", fix="export it again") from None
