"""One DICOM series as an image, with whatever may show burned-in text blacked out first."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Final, Literal, TypeVar

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset as DicomHeader

from vitrael.core.data.dicom.quiet import quiet
from vitrael.core.data.dicom.read import read_clip, read_picture, read_volume, volume_grid
from vitrael.core.data.dicom.series import SeriesPlan
from vitrael.core.data.nifti import read_nifti
from vitrael.core.data.planar import Clip, Picture
from vitrael.core.data.scan import Scan
from vitrael.core.errors import ConfigError, ScanError
from vitrael.core.geometry import spacing_mm
from vitrael.privacy.pixels import apply_mask, demand_clean_pixels, read_site_mask

Converter = Literal["own", "dcm2niix"]
Planar = TypeVar("Planar", Clip, Picture)

CONVERTER_S: Final = 600.0
"""Longest time for one series."""
_FOLDER: Final = "vitrael-dcm2niix-"
_OPTIONS: Final = ("-g", "i", "-z", "n", "-b", "n", "-f", "volume")
_SAME_PLACE_VOX: Final = 0.1


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
    if "clip" in plan.kinds:
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

    The series lies alone in a private folder for the time of the conversion, and no settings of
    whoever runs it count. Values can differ from ``read_volume`` by one factor: that program
    prefers the private scale of one maker. Raises ScanError unless exactly one volume comes out,
    of the size and at the place that the headers give; ConfigError when dcm2niix is not installed.
    """
    first = plan.instances[0]
    if plan.frames and len({(place.slope, place.intercept) for place in first.places}) > 1:
        raise ScanError("its frames have scales of their own", why="dcm2niix takes one for all")
    try:
        from dcm2niix import bin as program  # noqa: PLC0415 - an extra of its own
    except ImportError as error:
        raise ConfigError(
            "dcm2niix is not installed",
            why="--converter dcm2niix needs it",
            fix="leave --converter out, or run pip install -c deploy/constraints.txt '.[dcm2niix]' "
            "in the checkout that vitrael was installed from",
        ) from error
    _remove_leftovers()
    with tempfile.TemporaryDirectory(prefix=_FOLDER) as name:
        series, out = Path(name) / "in", Path(name) / "out"
        series.mkdir()
        out.mkdir()
        for number, path in enumerate(paths):
            (series / f"{number:06d}.dcm").symlink_to(path.resolve())
        command = [program, *_OPTIONS, "-o", str(out), str(series)]
        try:
            subprocess.run(  # noqa: S603 - the program of the wheel, on names that we chose
                command,
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=CONVERTER_S,
            )
        except subprocess.TimeoutExpired:
            raise ScanError(f"dcm2niix did not end within {CONVERTER_S:g} s") from None
        made = sorted(out.glob("*.nii"))
        if len(made) != 1:
            raise ScanError(f"dcm2niix made {len(made)} volumes of the series, not one")
        scan = read_nifti(made[0], label="what dcm2niix made", modality=modality)
    _demand_same_grid(scan, plan)
    return scan


def _remove_leftovers() -> None:
    """Remove what killed conversions left behind; one that goes on is never that old."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*"):
        with suppress(OSError):  # somebody else's, or just removed
            if time.time() - folder.stat().st_mtime > 2 * CONVERTER_S:
                shutil.rmtree(folder)


def _demand_same_grid(scan: Scan, plan: SeriesPlan) -> None:
    shape, affine = volume_grid(plan)
    if scan.image_CDHW.shape[1:] != shape:
        raise ScanError("what dcm2niix made has another size than the series")
    corners = np.array([*product(*((0, size - 1) for size in shape))])
    off_mm = corners @ (scan.affine - affine)[:3, :3].T + (scan.affine - affine)[:3, 3]
    if np.linalg.norm(off_mm, axis=1).max() > _SAME_PLACE_VOX * min(spacing_mm(affine)):
        raise ScanError("what dcm2niix made lies elsewhere in the world than the series")


def read_dicom_header(path: Path) -> DicomHeader:
    """Return all that stands before the pixels of a file; raise ScanError when it is damaged."""
    try:
        with quiet():
            return dcmread(path, stop_before_pixels=True, force=True)
    except Exception:  # noqa: BLE001 - pydicom raises many kinds for a damaged header
        raise ScanError("the header is damaged", fix="export it again") from None
