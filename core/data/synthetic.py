"""A SyntheticSet: generated images with what was asked for and where each came from.

It is what a Release carries; it holds no real scan. Axes: B samples, C channels, D H W the index
axes x, y, z of a RAS+ image, K conditions in the order of ``core.study.COVARIATES``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from vitrael.core.data.conditions import unscale_conditions
from vitrael.core.data.scan import Scan
from vitrael.core.digest import Digest
from vitrael.core.errors import DataError
from vitrael.core.geometry import Affine, check_affine
from vitrael.core.protocols import Data
from vitrael.core.records import Samples

_BCDHW_AXES = 5


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where one sample came from: equal provenance, equal sample."""

    index: int
    """Row of the sample in the whole request."""
    seed: int
    """Seed of the request."""
    generator: Digest
    """Digest of the weights that made it."""
    condition: tuple[float, ...]
    """What was asked for, in physical units, in the order of ``core.study.COVARIATES``."""


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class SyntheticSet:
    """Generated images and their provenance, sample by sample.

    A set that exists is usable: images are finite float32 in [0, 1], nothing is empty, and every
    per-sample field has one row for each image, else DataError.
    """

    image_BCDHW: np.ndarray
    affine: Affine
    provenance: tuple[Provenance, ...]
    measured: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Name with unit, such as ``ventricle_ml`` -> [B] found on the images; NaN: not measurable."""
    modality: str = "T1w"
    """BIDS suffix."""

    def __post_init__(self) -> None:
        """Raise DataError unless the set can be released as it stands."""
        image = self.image_BCDHW
        if image.ndim != _BCDHW_AXES or image.dtype != np.float32 or len(image) == 0:
            raise DataError("a synthetic set needs float32 images with the axes B, C, D, H, W")
        if not np.isfinite(image).all() or image.min() < 0 or image.max() > 1:
            raise DataError("a synthetic image holds values outside [0, 1]")
        check_affine(self.affine)
        rows = {"provenance": len(self.provenance)}
        rows |= {name: len(values) for name, values in self.measured.items()}
        for name, count in rows.items():
            if count != len(image):
                raise DataError(f"{name} has {count} rows for {len(image)} synthetic images")

    def __repr__(self) -> str:
        """Show counts only."""
        return f"SyntheticSet({len(self)} samples, {self.modality})"

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.image_BCDHW)

    def scans(self) -> Iterator[Scan]:
        """Yield each image with its geometry."""
        for image_CDHW in self.image_BCDHW:
            yield Scan(image_CDHW, self.affine, self.modality)


def synthetic_set(
    samples: Samples,
    *,
    seed: int,
    generator: Digest,
    data: Data,
    measured: Mapping[str, np.ndarray] | None = None,
    first: int = 0,
    index_B: np.ndarray | None = None,
) -> SyntheticSet:
    """Return the set of a Generator's samples, row ``first`` of the request and on.

    Where some rows of the request were left out, ``index_B`` says which each sample is.
    ``data`` is the protocol's; its ranges bring the conditions back to physical units.
    """
    asked_BK = unscale_conditions(samples.condition_BK, data)
    provenance = tuple(
        Provenance(
            index=first + row if index_B is None else int(index_B[row]),
            seed=seed,
            generator=generator,
            condition=tuple(map(float, asked_K)),
        )
        for row, asked_K in enumerate(asked_BK)
    )
    return SyntheticSet(samples.image_BCDHW, samples.affine, provenance, dict(measured or {}))
