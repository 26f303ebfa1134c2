"""NIfTI files in and out: RAS+, millimetres, geometry kept, bad files refused in one sentence.

A caller names the file by a ``label`` that is free of patient data ("scan 3 of 37"); no message
holds a path, a header text or a voxel value. The header is judged before a voxel is allocated.
Whether a file is compressed is told by its content, not by its name.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

import nibabel as nib
import numpy as np
from nibabel import orientations
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.imageglobals import logger
from nibabel.spatialimages import HeaderDataError, HeaderTypeError
from nibabel.wrapstruct import WrapStructError

from vitrael.core.data.files import open_file
from vitrael.core.data.scan import MAX_VOXELS, Scan
from vitrael.core.digest import write_atomically
from vitrael.core.errors import ScanError
from vitrael.core.geometry import Affine, check_affine, spacing_mm

Dtype = Literal["float32", "int16"]
Header = Any
"""Of NIfTI-1 or NIfTI-2; nibabel does not annotate what it can do."""

SPACING_RANGE_MM = (0.05, 50.0)

_GZIP = b"\x1f\x8b"
_GZIP_MAX_RATIO = 1100  # DEFLATE cannot shrink bytes by more than about 1032 to 1
_NIFTI2_BYTES = 540
"""Size of its header, which stands first."""
_BLOCK_BYTES = 1 << 20
_MOST_BLOCKS_AFTER = 16
"""Of a compressed file, behind its voxels."""
_MM_PER_UNIT = {"meter": 1000.0, "mm": 1.0, "micron": 0.001, "unknown": 1.0}
_DAMAGE = (
    ImageFileError,
    HeaderDataError,
    HeaderTypeError,
    WrapStructError,
    OSError,  # gzip.BadGzipFile and short reads among them
    EOFError,
    zlib.error,
    ValueError,
    KeyError,
    OverflowError,
)


def read_nifti(path: Path, *, label: str = "the scan", modality: str = "T1w") -> Scan:
    """Return the scan of a ``.nii`` or ``.nii.gz`` file in RAS+ order, scaled as its header says.

    Raises ScanError, named by ``label``, when the file is empty, cut short, damaged or no NIfTI;
    when it has no affine (both form codes 0), a singular one, two that disagree about left and
    right, or an absurd voxel or image size; when it is not one volume of real numbers; and when
    the image is constant or not finite. Raises OSError when the system cannot read the file.
    """
    with _named(label), open_file(path) as (file, size_bytes):
        volume, affine = _decode(file, size_bytes=size_bytes)
        return Scan(image_CDHW=volume[None], affine=affine, modality=modality)


def read_mask(path: Path, *, label: str = "the mask") -> Scan | None:
    """Return the mask of a file, or None when it is whole and marks nothing.

    Refuses what ``read_nifti`` refuses, but for an image that is 0 everywhere.
    """
    with _named(label), open_file(path) as (file, size_bytes):
        volume, affine = _decode(file, size_bytes=size_bytes)
        if not volume.any():
            return None
        return Scan(image_CDHW=volume[None], affine=affine, modality="mask")


def read_orientation(path: Path, *, label: str = "the scan") -> str:
    """Return where the index axes of a file point to, such as ``LPS``; ``read_nifti`` turns to RAS.

    Reads the header alone; raises ScanError and OSError as ``read_nifti`` does for one.
    """
    with _named(label), open_file(path) as (file, _):
        _, header = _open(file)
        return "".join(map(str, nib.aff2axcodes(_affine(header))))


@contextmanager
def _named(label: str) -> Iterator[None]:
    """Let an error begin with what the caller calls the file."""
    try:
        yield
    except ScanError as error:
        why = f"{error.what}, {error.why}" if error.why else error.what
        raise ScanError(f"{label} cannot be used", why=why, fix=error.fix) from None


def decode_nifti(data: bytes, *, label: str = "the scan", modality: str = "T1w") -> Scan:
    """Return the scan of a file's bytes; refuses what ``read_nifti`` refuses."""
    with _named(label):
        volume, affine = _decode(io.BytesIO(data), size_bytes=len(data))
        return Scan(image_CDHW=volume[None], affine=affine, modality=modality)


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


def _decode(file: BinaryIO, *, size_bytes: int) -> tuple[np.ndarray, Affine]:
    """Return a volume ``[D, H, W]`` in RAS+ order with its affine; its values are not judged."""
    stream, header = _open(file)
    compressed = stream is not file
    shape = _volume_shape(header, size_bytes=size_bytes, compressed=compressed)
    affine = _affine(header)
    try:
        with np.errstate(all="ignore"):  # what overflows becomes infinite and is refused below
            data = np.asarray(ArrayProxy(stream, header, mmap=False), dtype=np.float32)
        voxels = data.reshape(shape)
        if compressed:
            _check_sum(stream)
    except _DAMAGE:
        raise ScanError("the file is cut short or damaged", fix="copy it again") from None
    to_ras = orientations.io_orientation(affine)
    volume = orientations.apply_orientation(voxels, to_ras)
    affine = affine @ orientations.inv_ornt_aff(to_ras, shape)
    return np.ascontiguousarray(volume, dtype=np.float32), affine


def _open(file: BinaryIO) -> tuple[BinaryIO | gzip.GzipFile, Header]:
    """Return a file, decompressed where it must be, and the header at its beginning."""
    compressed = file.read(len(_GZIP)) == _GZIP
    file.seek(0)
    stream = gzip.GzipFile(fileobj=file) if compressed else file
    try:
        return stream, _read_header(stream)
    except _DAMAGE:
        raise ScanError("the file is not a whole NIfTI file", fix="export it again") from None


def _read_header(stream: BinaryIO | gzip.GzipFile) -> Header:
    """Return the header at the beginning of a stream; what is attached to it is stepped over."""
    first = stream.read(4)
    is_second = _NIFTI2_BYTES in {int.from_bytes(first, "little"), int.from_bytes(first, "big")}
    kind: Any = nib.Nifti2Header if is_second else nib.Nifti1Header
    with _quiet():
        return kind(first + stream.read(kind.template_dtype.itemsize - len(first)))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep nibabel from printing what stands in a header when it mends that."""
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _check_sum(stream: BinaryIO | gzip.GzipFile) -> None:
    """Raise ValueError or what gzip raises unless all that was compressed has its check sum.

    It stands behind the voxels: whoever ends with them takes damaged ones for whole.
    """
    for _ in range(_MOST_BLOCKS_AFTER):
        if not stream.read(_BLOCK_BYTES):
            return
    msg = "far more than the header tells"
    raise ValueError(msg)


def _volume_shape(header: Header, *, size_bytes: int, compressed: bool) -> tuple[int, int, int]:
    """Return the three sizes; trailing axes of length 1 are no axes."""
    sizes = [int(size) for size in header.get_data_shape()]
    while len(sizes) > 3 and sizes[-1] == 1:  # noqa: PLR2004 - three axes of space
        sizes.pop()
    if len(sizes) != 3:  # noqa: PLR2004
        raise ScanError(f"the image has {len(sizes)} axes", why="one volume of three is expected")
    if min(sizes) < 1:
        raise ScanError("the header gives an axis without a voxel", fix="export the scan again")
    stored = header.get_data_dtype()
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


def _affine(header: Header) -> Affine:
    """Return the voxel-to-world map in millimetres; sform goes before qform."""
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
    try:
        with np.errstate(all="ignore"):
            affine = np.array(header.get_best_affine(), dtype=np.float64)
    except (HeaderDataError, ValueError):
        raise ScanError("the header gives no rotation", fix="export the scan again") from None
    low, high = SPACING_RANGE_MM
    with np.errstate(all="ignore"):  # what overflows becomes infinite and is refused
        affine[:3] *= _MM_PER_UNIT.get(unit, 1.0)
        check_affine(affine)
        sizes = spacing_mm(affine)
    _demand_one_handedness(header)
    if not all(low <= size <= high for size in sizes):
        raise ScanError(
            "the header gives an absurd voxel size", why=f"{low:g} to {high:g} mm are read"
        )
    return affine


def _demand_one_handedness(header: Header) -> None:
    """Raise ScanError where both forms are given and one is a mirror image of the other."""
    if int(header["sform_code"]) == 0 or int(header["qform_code"]) == 0:
        return
    try:
        with np.errstate(all="ignore"):
            forms = (header.get_sform(), header.get_qform())
    except (HeaderDataError, ValueError):  # a damaged one that is not used
        return
    with np.errstate(all="ignore"):
        one, other = (np.linalg.det(form[:3, :3]) for form in forms)
    if one * other < 0:
        raise ScanError(
            "left and right are not clear",
            why="its qform and its sform are mirror images of each other",
            fix="export the scan again, or set both forms with the tool that changed one",
        )
