"""Small sets of phantoms: a real one, two fresh ones, and three that are wrong on purpose."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy import ndimage

from vitrael.core.data.phantoms.anatomy import Anatomy
from vitrael.core.data.phantoms.brain import (
    draw_acquisition,
    draw_anatomy,
    image_slice,
    render_brain,
)
from vitrael.core.rng import stream

IMAGES = 160
DISTINCT = 5
BLUR_PX = 0.7


class Drawn(NamedTuple):
    """Images ``[B, 1, (D,) H, W]`` and what is true of their patients."""

    images: torch.Tensor
    ages: np.ndarray
    brains_ml: np.ndarray


@pytest.fixture(scope="session")
def real_slices() -> Drawn:
    return _draw(1, dimensions=2)


@pytest.fixture(scope="session")
def slice_sets(real_slices: Drawn) -> Mapping[str, torch.Tensor]:
    """Return ``real``, ``fresh``, ``second``, ``blurred``, ``quarter`` and ``repeated`` slices.

    ``quarter`` has only the largest quarter of brains, ``repeated`` five images again and again.
    """
    return _sets(real_slices, dimensions=2)


@pytest.fixture(scope="session")
def volume_sets() -> Mapping[str, torch.Tensor]:
    """Return the same six sets as volumes ``[B, 1, 24, 24, 24]``."""
    return _sets(_draw(1, dimensions=3), dimensions=3)


def _sets(real: Drawn, *, dimensions: int) -> Mapping[str, torch.Tensor]:
    fresh, second = (_draw(seed, dimensions=dimensions).images for seed in (2, 3))
    above_ml = float(np.quantile(real.brains_ml, 0.75))
    axes = (1,) * (dimensions + 1)
    blur_px = (0, 0, *(BLUR_PX,) * dimensions)
    return {
        "real": real.images,
        "fresh": fresh,
        "second": second,
        "blurred": torch.from_numpy(ndimage.gaussian_filter(second.numpy(), blur_px)),
        "quarter": _draw(4, dimensions=dimensions, above_ml=above_ml).images,
        "repeated": second[:DISTINCT].repeat(IMAGES // DISTINCT, *axes),
    }


def _draw(seed: int, *, dimensions: int, above_ml: float = 0.0) -> Drawn:
    kept = list(itertools.islice(_patients(seed, above_ml), IMAGES))
    images = [_image(seed, number, anatomy, dimensions) for number, anatomy in kept]
    return Drawn(
        torch.from_numpy(np.stack(images)),
        np.array([anatomy.age_years for _, anatomy in kept]),
        np.array([anatomy.brain_ml for _, anatomy in kept]),
    )


def _patients(seed: int, above_ml: float) -> Iterator[tuple[int, Anatomy]]:
    for number in itertools.count():
        anatomy = draw_anatomy(stream(seed, "anatomy", number))
        if anatomy.brain_ml > above_ml:
            yield number, anatomy


def _image(seed: int, number: int, anatomy: Anatomy, dimensions: int) -> np.ndarray:
    rng = stream(seed, "acquisition", number)
    acquisition = draw_acquisition(rng, site_contrast=0.0)
    if dimensions == 3:
        scan = render_brain(anatomy, acquisition, grid_vox=(24, 24, 24), spacing_mm=8.0)
        return scan.image_CDHW
    brain = image_slice(anatomy, acquisition, grid_px=(32, 32), spacing_mm=6.0)
    return brain.pictures["T1w"].image_HW[None]
