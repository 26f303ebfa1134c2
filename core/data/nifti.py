"""NIfTI files in and out: RAS+, millimetres, geometry kept, bad files refused in one sentence.

A caller names the file by a ``label`` that is free of patient data ("scan 3 of 37"); no message
holds a path, a header text or a voxel value. The header is judged before a voxel is allocated.
"""

from __future__ import annotations

import gzip
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
from nibabel import orientations
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from vitrael.core.data.scan import MAX_VOXELS, Scan
from vitrael.core.digest import write_atomically
from vitrael.core.errors import ScanError
from vitrael.core.geometry import Affine, check_affine, spacing_mm

Dtype = Literal["float32", "int16"]

SPACING_RANGE_MM = (0.05, 50.0)

_GZIP_MAX_RATIO = 1100  # DEFLATE cannot shrink bytes by more than about 1032 to 1
_MM_PER_UNIT = {"meter": 1000.0, "mm": 1.0, "micron": 0.001, "unknown": 1.0}
_DAMAGE = (
    ImageFileError,
    HeaderDataError,
    OSError,  # gzip.BadGzipFile and short reads among them
    EOFError,
    zlib.error,
    ValueError,
    KeyError,
    OverflowError,
)


def read_nifti(path: Path, *, label: str = "the scan", modality: str = "T1w") -> Scan:
    """Return the scan of a ``.nii`` or ``.nii.gz`` file in RAS+ order, scaled as its header says.

    Raises ScanError, named by ``label``, when the file is missing, empty, cut short or no NIfTI;
    when it has no affine (both form codes 0), a singular one or an absurd voxel or image size;
    when it is not one volume of real numbers; and when the image is constant or not finite.
    """
    with _named(label):
        volume, affine = _read(path)
        return Scan(image_CDHW=volume[None], affine=affine, modality=modality)


def read_mask(path: Path, *, label: str = "the mask") -> Scan | None:
    """Return the mask of a file, or None when it is whole and marks nothing.

    Refuses what ``read_nifti`` refuses, but for an image that is 0 everywhere.
    """
    with _named(label):
        volume, affine = _read(path)
        if not volume.any():
            return None
        return Scan(image_CDHW=volume[None], affine=affine, modality="mask")


@contextmanager
def _named(label: str) -> Iterator[None]:
    """Let an error begin with what the caller calls the file."""
    try:
        yield
    except ScanError as error:
        why = f"{error.what}, {error.why}" if error.why else error.what
        raise ScanError(f"{label} cannot be used", why=why, fix=error.fix) from None


def decode_nifti(data: bytes, *, label: str = "the scan", modality: str = "T1w") -> Scan:
    """Return the scan of a compressed file's bytes; refuses what ``read_nifti`` refuses."""
    with tempfile.NamedTemporaryFile(suffix=".nii.gz") as file:
        file.write(data)
        file.flush()
        return read_nifti(Path(file.name), label=label, modality=modality)


def write_nifti(scan: Scan, path: Path, *, dtype: Dtype = "float32") -> None:
    """Write a one-channel scan, atomically; a ``.gz`` name is compressed. See ``encode_nifti``."""
    write_atomically(path, encode_nifti(scan, dtype=dtype, compressed=path.suffix == ".gz"))


def encode_nifti(scan: Scan, *, dtype: Dtype, compressed: bool) -> bytes:
    """Return the bytes of a one-channel scan's file; equal scans give equal bytes.

    ``int16`` stores rounded values with a slope and an intercept: half a step of
    (max - min) / 65535 is lost. The compressed file has time stamp 0.
    """
    if scan.image_CDHW.shape[0] != 1:
        raise ScanError(
            f"the scan has {scan.image_CDHW.shape[0]} channels", why="a NIfTI file holds one here"
        )
    image = nib.Nifti1Image(scan.image_CDHW[0], scan.affine)
    image.set_data_dtype(dtype)
    image.header.set_xyzt_units("mm")
    image.set_sform(scan.affine, code=1)
    image.set_qform(scan.affine, code=1)
    data: bytes = image.to_bytes()
    return gzip.compress(data, compresslevel=6, mtime=0) if compressed else data


def _read(path: Path) -> tuple[np.ndarray, Affine]:
    """Return a volume ``[D, H, W]`` in RAS+ order with its affine; its values are not judged."""
    size_bytes = _file_size(path)
    try:
        image = nib.load(path)
    except _DAMAGE:
        raise ScanError("the file is not a whole NIfTI file", fix="export it again") from None
    if not isinstance(image, nib.Nifti1Image | nib.Nifti2Image):
        raise ScanError("the file is not a NIfTI file", fix="convert it to .nii.gz")
    shape = _volume_shape(image, size_bytes=size_bytes, compressed=path.suffix == ".gz")
    affine = _affine(image)
    try:
        with np.errstate(all="ignore"):  # what overflows becomes infinite and is refused below
            data = image.get_fdata(dtype=np.float32, caching="unchanged")
        voxels = np.asarray(data).reshape(shape)
    except _DAMAGE:
        raise ScanError("the file is cut short or damaged", fix="copy it again") from None
    to_ras = orientations.io_orientation(affine)
    volume = orientations.apply_orientation(voxels, to_ras)
    affine = affine @ orientations.inv_ornt_aff(to_ras, shape)
    return np.ascontiguousarray(volume, dtype=np.float32), affine


def _file_size(path: Path) -> int:
    try:
        size_bytes = path.stat().st_size
    except OSError:
        raise ScanError("the file cannot be opened", fix="check that it is there") from None
    if size_bytes == 0:
        raise ScanError("the file is empty", fix="copy it again")
    return size_bytes


def _volume_shape(
    image: nib.Nifti1Image, *, size_bytes: int, compressed: bool
) -> tuple[int, int, int]:
    """Return the three sizes; trailing axes of length 1 are no axes."""
    sizes = [int(size) for size in image.header.get_data_shape()]
    while len(sizes) > 3 and sizes[-1] == 1:  # noqa: PLR2004 - three axes of space
        sizes.pop()
    if len(sizes) != 3:  # noqa: PLR2004
        raise ScanError(f"the image has {len(sizes)} axes", why="one volume of three is expected")
    if min(sizes) < 1:
        raise ScanError("the header gives an axis without a voxel", fix="export the scan again")
    stored = image.get_data_dtype()
    if stored.kind not in "iuf":
        raise ScanError("the voxels are not real numbers", fix="export one gray value per voxel")
    voxels = sizes[0] * sizes[1] * sizes[2]
    if voxels > MAX_VOXELS:
        raise ScanError(
            "the header gives an absurd image size",
            why=f"at most {MAX_VOXELS:,} voxels are read",
            fix="check the file's header",
        )
    most_bytes = size_bytes * _GZIP_MAX_RATIO if compressed else size_bytes
    if voxels * stored.itemsize > most_bytes:
        raise ScanError("the file is cut short or damaged", fix="copy it again")
    return sizes[0], sizes[1], sizes[2]


def _affine(image: nib.Nifti1Image) -> Affine:
    """Return the voxel-to-world map in millimetres; sform goes before qform."""
    header = image.header
    if int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0:
        raise ScanError(
            "the file has no affine",
            why="its qform and sform codes are both 0",
            fix="export the scan again with its geometry",
        )
    try:
        unit = header.get_xyzt_units()[0]
    except KeyError:
        unit = "unknown"
    affine = np.array(image.affine, dtype=np.float64)
    with np.errstate(all="ignore"):  # what overflows becomes infinite and is refused below
        affine[:3] *= _MM_PER_UNIT.get(unit, 1.0)
    check_affine(affine)
    low, high = SPACING_RANGE_MM
    if not all(low <= size <= high for size in spacing_mm(affine)):
        raise ScanError(
            "the header gives an absurd voxel size", why=f"{low:g} to {high:g} mm are read"
        )
    return affine
