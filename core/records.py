"""Value objects that pass between the rooms: requests, samples, losses.

Axes: B batch, C channels, D H W depth, height, width, K conditions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vitrael.core.geometry import Affine

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """What is asked of a Generator: one row of conditions in [0, 1] for each sample."""

    condition_BK: np.ndarray
    seed: int
    first: int = 0
    """Index of the first row in the whole request: sampling does not depend on sharding."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Generated images with what was asked for; intensities in [0, 1]."""

    image_BCDHW: np.ndarray
    condition_BK: np.ndarray
    affine: Affine


@dataclass(frozen=True, slots=True)
class Loss:
    """A scalar to minimize and the parts to show beside it."""

    total: torch.Tensor
    parts: Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True, repr=False)
class ViewImages:
    """Private pictures of one split with what they show; lives inside one process of a site."""

    image_BCHW: np.ndarray
    """float32 in [0, 1], one channel."""
    label_B: tuple[str, ...]
    """In the site's own words."""
    patient_B: np.ndarray
    """int64 index of the patient; means nothing outside this object."""
    sector_BHW: np.ndarray | None
    """bool: the cone; None where the recipe finds none."""

    def __repr__(self) -> str:
        """Show nothing of a patient, not even how many there are."""
        return "ViewImages(private)"

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.image_BCHW)


@dataclass(frozen=True, slots=True, repr=False)
class PatientImages:
    """Private images of one split with whose they are; lives inside one process of a site."""

    image_BCDHW: np.ndarray
    """float32 in [0, 1]."""
    condition_BK: np.ndarray
    """float32 in [0, 1], in the order of ``core.study.COVARIATES``."""
    patient_B: np.ndarray
    """int64 index of the patient; means nothing outside this object."""
    visit_B: np.ndarray
    """int64, 0 for a patient's first scan."""

    def __repr__(self) -> str:
        """Show nothing of a patient, not even how many there are."""
        return "PatientImages(private)"

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.image_BCDHW)
