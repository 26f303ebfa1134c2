"""Recipes: how what a hospital has becomes an item of a Cohort; named, versioned, frozen.

A recipe takes the images of one visit and returns arrays on its grid with their place in the
world. It never sees who the patient is. ``RECIPES`` is the literal table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

import numpy as np
import numpy.typing as npt

from vitrael.core.configs import Positive, Section
from vitrael.core.data.brain_mask import bare_brain
from vitrael.core.data.measure import measure_volumes
from vitrael.core.data.planar import Clip, Picture
from vitrael.core.data.planar_recipes import prepare_clip, prepare_picture
from vitrael.core.data.preprocess import center_brain, place_lesions, prepare_contrasts
from vitrael.core.data.scan import MAX_VOXELS, Scan
from vitrael.core.digest import Digest, digest_json
from vitrael.core.errors import ConfigError, ScanError
from vitrael.core.geometry import Affine, voxel_volume_ml
from vitrael.core.protocols import Data, StudyData

RecipeName = Literal["brain-t1", "brain-lesion", "echo-apical", "xray-2d", "image-2d"]


class RecipeSettings(Section):
    """A recipe with everything that decides its result; equal settings, equal results."""

    name: RecipeName
    version: Positive
    grid_vox: tuple[Positive, ...]
    """D, H, W of a volume; H, W of a plane."""
    spacing_mm: float | None = None
    """Isotropic, of a volume; None for a plane, whose spacing follows from the source."""
    frame_s: float | None = None
    """Of a clip."""

    @property
    def digest(self) -> Digest:
        """Name of the settings by their content."""
        return digest_json(self.model_dump(mode="json"))


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class RecipeInput:
    """The images of one patient's visit."""

    images: Mapping[str, Scan | Clip | Picture]
    """By BIDS suffix (``T1w``, ``T2w``, ``FLAIR``), or ``image`` where a recipe takes one."""
    masks: Mapping[str, Scan] = field(default_factory=dict)
    """``brain`` and ``lesion``, where the site has them."""
    unmarked: frozenset[str] = frozenset()
    """Masks that the site has and that mark nothing: a patient without a lesion."""


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Prepared:
    """What a recipe made of a visit."""

    arrays: Mapping[str, np.ndarray]
    """``image``: float32 in [0, 1], ``[C, D, H, W]`` or ``[1, H, W]``; or uint8 ``[T, H, W]``.
    ``lesion`` and ``sector``, where there are any: uint8 0 or 1, on the image's own grid."""
    affine: Affine
    """Index to world. Volumes: RAS+ mm. Planes: ``(column, row, 0)`` to the plane's own world."""
    unit: Literal["mm", "px"]
    """Of the world; ``px`` where the source gives no spacing."""
    frame_s: float | None = None
    measured: Mapping[str, float] = field(default_factory=dict)
    """Covariates that the recipe measures, such as ``ventricle_ml``."""
    notes: tuple[str, ...] = ()
    """What was done beside the usual, in words without a value, such as ``masked by the site``."""
    cut_frac: float = 0.0
    """Share of a brain's volume that lies outside the grid, and is lost."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """One line of the table."""

    settings: RecipeSettings
    """As they are without a study's or an operator's choice."""
    takes: Literal["volume", "clip", "picture"]
    images: tuple[str, ...]
    """Which images a visit must have."""
    masks: tuple[str, ...]
    """Which masks are of use."""
    covariates: tuple[str, ...]
    """What should be known of a patient; a missing one is reported."""
    prepare: Callable[[RecipeInput, RecipeSettings], Prepared]
    """Raises ScanError for a visit that cannot be used."""


def settings_for(
    name: RecipeName,
    *,
    grid_vox: tuple[int, ...] | None = None,
    spacing_mm: float | None = None,
) -> RecipeSettings:
    """Return a recipe's settings, with a grid and a spacing of one's own where they are given.

    Raises ConfigError for an unknown recipe, for a grid with another number of axes, for a plane
    that is not square, for an axis of less than 8 or an image of more than 512 x 512 x 512 voxels,
    and for a spacing that is not between 0.1 and 20 mm or has no meaning for a plane.
    """
    usual = _recipe(name).settings
    grid = usual.grid_vox if grid_vox is None else tuple(grid_vox)
    volume = usual.spacing_mm is not None
    if len(grid) != len(usual.grid_vox):
        raise ConfigError(
            f"the grid does not fit the recipe {name}",
            why=f"it has {len(grid)} axes, and {len(usual.grid_vox)} are needed",
            fix=f"give {'D, H, W' if volume else 'H, W'}",
        )
    if not volume and len(set(grid)) > 1:
        raise ConfigError(
            f"the grid does not fit the recipe {name}",
            why="a plane is padded to a square",
            fix="give two equal numbers",
        )
    if min(grid) < _LEAST_EDGE or math.prod(grid) > MAX_VOXELS:
        raise ConfigError(
            f"the grid does not fit the recipe {name}",
            why=f"an axis has less than {_LEAST_EDGE} voxels, or all have more than {MAX_VOXELS:,}",
            fix="choose another grid",
        )
    if spacing_mm is not None and not volume:
        raise ConfigError(
            f"the recipe {name} takes no spacing",
            why="that of a plane follows from its source",
            fix="leave the spacing out",
        )
    low, high = _SPACING_RANGE_MM
    if spacing_mm is not None and not low <= spacing_mm <= high:
        raise ConfigError(
            f"the spacing does not fit the recipe {name}",
            why=f"{low:g} to {high:g} mm are possible",
            fix="choose another spacing",
        )
    return usual.model_copy(update={"grid_vox": grid, "spacing_mm": spacing_mm or usual.spacing_mm})


def recipe_of_study(data: StudyData) -> RecipeSettings:
    """Return the settings that a study's data section asks for; raise ConfigError if none fit."""
    spacing_mm = data.spacing_mm if isinstance(data, Data) else None
    return settings_for(data.recipe, grid_vox=data.grid_vox, spacing_mm=spacing_mm)


def prepare(given: RecipeInput, settings: RecipeSettings) -> Prepared:
    """Return what a recipe makes of a visit; equal input and settings give equal arrays.

    Raises ScanError for a visit that cannot be used, which names a missing image by its kind, and
    ConfigError for settings of another version of the recipe.
    """
    recipe = _recipe(settings.name)
    if settings.version != recipe.settings.version:
        raise ConfigError(
            f"the recipe {settings.name} has another version here",
            why="the same settings could give other images",
            fix="use the software that the settings are from, or take the scans in again",
        )
    return recipe.prepare(given, settings)


def to_world(affine: Affine, index: npt.ArrayLike) -> np.ndarray:
    """Return the world positions ``[..., 3]`` of indices ``[..., 3]``; see ``Prepared.affine``."""
    positions = np.asarray(index, dtype=np.float64)
    return np.asarray(positions @ affine[:3, :3].T + affine[:3, 3])


def write_back(
    image: np.ndarray, affine: Affine, *, unit: Literal["mm", "px"], modality: str = "T1w"
) -> Scan:
    """Return a volume of a recipe's grid as a Scan at its place in the world.

    ``image`` is ``[C, D, H, W]``, or ``[D, H, W]`` for one channel. Raises ScanError for a plane.
    """
    image_CDHW = image if image.ndim == 4 else image[None]  # noqa: PLR2004 - C, D, H, W
    if unit != "mm" or image_CDHW.ndim != 4:  # noqa: PLR2004
        raise ScanError("a plane has no place in the world of a body", fix="write it as a picture")
    return Scan(image_CDHW.astype(np.float32), affine, modality)


def _recipe(name: str) -> Recipe:
    for recipe in RECIPES.values():
        if recipe.settings.name == name:
            return recipe
    raise ConfigError("the recipe is unknown", fix=f"choose one of {', '.join(RECIPES)}")


def _image_of(given: RecipeInput, name: str, *, alone: bool = True) -> Scan | Clip | Picture:
    """Return one image of a visit; the only image of a recipe may also be called ``image``."""
    image = given.images.get(name) or (given.images.get("image") if alone else None)
    if image is None:
        what = "image" if name == "image" else f"{name} image"
        raise ScanError(f"the visit has no {what}", fix="give all images that the recipe needs")
    return image


def _scan_of(given: RecipeInput, name: str, *, alone: bool = True) -> Scan:
    image = _image_of(given, name, alone=alone)
    if not isinstance(image, Scan):
        raise ScanError("the image is not a volume", fix="give three-dimensional scans")
    return image


def _prepare_t1(given: RecipeInput, settings: RecipeSettings) -> Prepared:
    bare, note = bare_brain(_scan_of(given, "T1w"), given.masks.get("brain"))
    grid, spacing = _volume_grid(settings)
    ready, cut_frac = center_brain(bare, grid, spacing)
    ventricle_ml_B, brain_ml_B = measure_volumes(ready.image_CDHW[None], ready.affine)
    return Prepared(
        arrays={"image": ready.image_CDHW},
        affine=ready.affine,
        unit="mm",
        measured={"ventricle_ml": float(ventricle_ml_B[0]), "brain_ml": float(brain_ml_B[0])},
        notes=(note,),
        cut_frac=cut_frac,
    )


def _prepare_lesion(given: RecipeInput, settings: RecipeSettings) -> Prepared:
    missing = [name for name in _CONTRASTS if name not in given.images]
    if missing:
        raise ScanError(
            f"the visit has no {' and no '.join(missing)} image",
            why=f"{', '.join(_CONTRASTS)} are needed",
            fix="give all contrasts of the visit",
        )
    scans = [_scan_of(given, name, alone=False) for name in _CONTRASTS]
    grid, spacing = _volume_grid(settings)
    image_CDHW, affine, note, cut_frac = prepare_contrasts(
        scans, grid, spacing, brain=given.masks.get("brain")
    )
    arrays, measured = {"image": image_CDHW}, {}
    if {"lesion"} & {*given.masks, *given.unmarked}:
        brain_DHW = np.any(image_CDHW, axis=0)
        lesion_DHW = np.zeros(brain_DHW.shape, dtype=np.uint8)
        if "lesion" in given.masks:
            lesion_DHW = place_lesions(given.masks["lesion"], affine, brain_DHW=brain_DHW)
        arrays["lesion"] = lesion_DHW[None]
        measured["lesion_ml"] = float(lesion_DHW.sum()) * voxel_volume_ml(affine)
    return Prepared(
        arrays=arrays,
        affine=affine,
        unit="mm",
        measured=measured,
        notes=(note,),
        cut_frac=cut_frac,
    )


def _prepare_echo(given: RecipeInput, settings: RecipeSettings) -> Prepared:
    clip = _image_of(given, "image")
    if not isinstance(clip, Clip) or settings.frame_s is None:
        raise ScanError("the image is not a clip", fix="give videos or multi-frame ultrasound")
    ready = prepare_clip(clip, pixels=settings.grid_vox[0], frame_s=settings.frame_s)
    return Prepared(
        arrays={"image": ready.frames_THW, "sector": ready.sector_HW[None]},
        affine=ready.square.affine,
        unit=ready.square.unit,
        frame_s=ready.frame_s,
        notes=("cut to the sector that moves",),
    )


def _prepare_plane(given: RecipeInput, settings: RecipeSettings) -> Prepared:
    picture = _image_of(given, "image")
    if not isinstance(picture, Picture):
        raise ScanError("the image is not a picture", fix="give single pictures")
    image_HW, square = prepare_picture(picture, pixels=settings.grid_vox[0])
    return Prepared(arrays={"image": image_HW[None]}, affine=square.affine, unit=square.unit)


def _volume_grid(settings: RecipeSettings) -> tuple[tuple[int, int, int], float]:
    x, y, z = settings.grid_vox
    return (x, y, z), settings.spacing_mm or 1.0


_CONTRASTS = ("T1w", "T2w", "FLAIR")
_BRAIN_GRID = (160, 224, 160)
_LEAST_EDGE = 8
_SPACING_RANGE_MM = (0.1, 20.0)

RECIPES: Mapping[RecipeName, Recipe] = MappingProxyType(
    {
        "brain-t1": Recipe(
            settings=RecipeSettings(
                name="brain-t1", version=1, grid_vox=_BRAIN_GRID, spacing_mm=1.0
            ),
            takes="volume",
            images=("T1w",),
            masks=("brain",),
            covariates=("age_years", "sex"),
            prepare=_prepare_t1,
        ),
        "brain-lesion": Recipe(
            settings=RecipeSettings(
                name="brain-lesion", version=1, grid_vox=_BRAIN_GRID, spacing_mm=1.0
            ),
            takes="volume",
            images=_CONTRASTS,
            masks=("brain", "lesion"),
            covariates=("age_years", "sex", "lesion_ml"),
            prepare=_prepare_lesion,
        ),
        "echo-apical": Recipe(
            settings=RecipeSettings(
                name="echo-apical", version=1, grid_vox=(112, 112), frame_s=1 / 30
            ),
            takes="clip",
            images=("image",),
            masks=(),
            covariates=("age_years", "sex", "ef_frac"),
            prepare=_prepare_echo,
        ),
        "xray-2d": Recipe(
            settings=RecipeSettings(name="xray-2d", version=1, grid_vox=(512, 512)),
            takes="picture",
            images=("image",),
            masks=(),
            covariates=("age_years", "sex"),
            prepare=_prepare_plane,
        ),
        "image-2d": Recipe(
            settings=RecipeSettings(name="image-2d", version=1, grid_vox=(64, 64)),
            takes="picture",
            images=("image",),
            masks=(),
            covariates=(),
            prepare=_prepare_plane,
        ),
    }
)
"""Every recipe by its name."""
