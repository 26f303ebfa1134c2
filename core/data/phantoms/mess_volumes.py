"""NIfTI files that no study can use: values, axes or places that are not what they should be."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np

from vitrael.core.data.nifti import read_nifti
from vitrael.core.data.phantoms.mess_ground import Ground
from vitrael.core.data.scan import Scan

_QFORM_CODE, _LAST_ROW = slice(252, 254), slice(312, 328)
"""Of a NIfTI-1 header: the code of the one affine, and the third row of the other."""
_CONSTANT = 7.0


def plant_nan(ground: Ground, rng: np.random.Generator) -> int:
    """Give a stranger a scan with a NaN in its middle."""
    scan = _read(ground, rng)
    volume = scan.image_CDHW[0].copy()
    volume[tuple(size // 2 for size in volume.shape)] = np.nan
    _write(ground.stranger(rng), volume, scan)
    return 1


def plant_constant(ground: Ground, rng: np.random.Generator) -> int:
    """Give a stranger a scan of one value."""
    scan = _read(ground, rng)
    _write(ground.stranger(rng), np.full_like(scan.image_CDHW[0], _CONSTANT), scan)
    return 1


def plant_4d(ground: Ground, rng: np.random.Generator) -> int:
    """Give a stranger three volumes over time in one file."""
    scan = _read(ground, rng)
    _write(ground.stranger(rng), np.stack([scan.image_CDHW[0]] * 3, axis=-1), scan)
    return 1


def plant_singular(ground: Ground, rng: np.random.Generator) -> int:
    """Give a stranger a scan whose third axis leads nowhere."""
    scan = _read(ground, rng)
    _write(ground.stranger(rng), scan.image_CDHW[0], scan, is_singular=True)
    return 1


def _read(ground: Ground, rng: np.random.Generator) -> Scan:
    return read_nifti(ground.pick(rng))


def _write(path: Path, volume: np.ndarray, scan: Scan, *, is_singular: bool = False) -> None:
    data = bytearray(nib.Nifti1Image(volume, scan.affine).to_bytes())
    if is_singular:
        for part in (_QFORM_CODE, _LAST_ROW):
            data[part] = bytes(part.stop - part.start)
    path.write_bytes(gzip.compress(bytes(data), mtime=0))
