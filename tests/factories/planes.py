"""Axial slices of phantom patients as arrays, with the truth behind them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vitrael.core.data.phantoms.acquisition import draw_acquisition
from vitrael.core.data.phantoms.anatomy import draw_anatomy
from vitrael.core.data.phantoms.brain import image_slice
from vitrael.core.rng import stream


@dataclass(frozen=True)
class Planes:
    """``image_B1HW`` float32 in [0, 1], and who was drawn."""

    image_B1HW: np.ndarray
    age_years: np.ndarray
    sex: np.ndarray
    ventricle_ml: np.ndarray
    brain_ml: np.ndarray


def draw_planes(
    seed: int, count: int, *, edge_px: int = 32, spacing_mm: float = 6.0, contrast: str = "T1w"
) -> Planes:
    """Return slices of as many patients; equal seeds give equal patients at every contrast."""
    images, people = [], []
    for patient in range(count):
        anatomy = draw_anatomy(stream(seed, "anatomy", patient))
        shown = image_slice(
            anatomy,
            draw_acquisition(stream(seed, "acquisition", patient)),
            grid_px=(edge_px, edge_px),
            spacing_mm=spacing_mm,
            contrasts=(contrast,),
        )
        images.append(shown.pictures[contrast].image_HW)
        people.append((anatomy.age_years, anatomy.sex, anatomy.ventricle_ml, anatomy.brain_ml))
    image_B1HW = np.clip(np.stack(images)[:, None], 0, 1).astype(np.float32)
    return Planes(image_B1HW, *np.array(people).T)
