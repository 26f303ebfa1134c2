"""Small cohorts on disk: shards and a manifest, as an intake leaves them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from vitrael.core.data.cache import SHARDS_NAME, Store, write_shard
from vitrael.core.data.manifest import MANIFEST_NAME, Item, Manifest, write_manifest
from vitrael.core.data.recipes import RECIPES, RecipeSettings
from vitrael.core.geometry import centered_affine
from vitrael.core.rng import stream

Draw = Callable[[int, int], np.ndarray]
"""(patient, visit) to float32 ``[1, D, H, W]`` in [0, 1]."""


def recipe_settings(
    grid_vox: tuple[int, ...] = (24, 24, 24), spacing_mm: float | None = 8.0, **changes: object
) -> RecipeSettings:
    """Return the brain recipe's settings for a grid."""
    version = RECIPES["brain-t1"].settings.version
    known = {"name": "brain-t1", "version": version, "grid_vox": grid_vox, "spacing_mm": spacing_mm}
    return RecipeSettings.model_validate({**known, **changes})


def draw_brain(patient: int, visit: int, *, grid_vox: tuple[int, ...]) -> np.ndarray:
    """Return float32 ``[1, D, H, W]``: an ellipsoid with two dark ones, larger in later patients.

    Equal arguments give equal images; every patient and visit has an image of its own.
    """
    axes = [np.linspace(-1, 1, n, dtype=np.float32) for n in grid_vox]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    image = 0.5 * ((x / 0.7) ** 2 + (y / 0.9) ** 2 + (z / 0.7) ** 2 < 1).astype(np.float32)
    size = 0.1 + 0.005 * (patient % 40)
    for side in (-0.17, 0.17):
        inside = ((x - side) / size) ** 2 + (y / (2.5 * size)) ** 2 + ((z - 0.08) / size) ** 2 < 1
        image[inside] = 0.1
    noise = stream(patient, "brain", visit).random(grid_vox, dtype=np.float32)
    image = np.where(image > 0, image + 0.1 * noise, 0)
    return image.astype(np.float32)[None]


def write_cohort(
    folder: Path,
    *,
    recipe: RecipeSettings | None = None,
    patients: int = 6,
    visits: Callable[[int], int] = lambda _: 1,
    draw: Draw | None = None,
    covariates: Callable[[int, int], Mapping[str, float]] | None = None,
    store: Store = "int16",
    prefix: str = "p-",
) -> Manifest:
    """Write a cohort's folder and return its manifest.

    Patient ``i`` is ``p-i``, with age 20 + i % 70, sex i % 2, and no volumes, unless
    ``covariates(patient, visit)`` says otherwise.
    """
    recipe = recipe or recipe_settings()
    grid_vox = recipe.grid_vox
    spacing = recipe.spacing_mm or 1.0
    depth, height, width = grid_vox
    affine = centered_affine((depth, height, width), spacing=spacing)
    rows = tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in affine)
    items = []
    for patient in range(patients):
        for visit in range(visits(patient)):
            image = draw(patient, visit) if draw else draw_brain(patient, visit, grid_vox=grid_vox)
            shard = write_shard(folder / SHARDS_NAME, {"image": image}, store=store)
            known = {"age_years": 20.0 + patient % 70, "sex": float(patient % 2)}
            items.append(
                Item(
                    subject=f"{prefix}{patient}",
                    visit=visit,
                    shard=shard.name,
                    digest=shard.digest,
                    affine=rows,
                    days=365 * visit,
                    covariates=covariates(patient, visit) if covariates else known,
                )
            )
    manifest = Manifest(recipe=recipe, items=tuple(items))
    write_manifest(manifest, folder / MANIFEST_NAME)
    return manifest
