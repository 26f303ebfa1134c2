"""The attack suite for pictures: the disguises of volumes that a plane has, and its own of place.

A picture has one voxel along D. Classes that turn it out of its plane, exchange its axes, remove a
face or a skull, or move slices make no sense there and are left out; the rest is as for volumes,
with the same demands.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Final

import numpy as np
from scipy import ndimage

from vitrael.privacy.audit.plants import geometry, intensity, mixtures, rows
from vitrael.privacy.audit.plants.classes import PlantClass, Way, always, drawn, join_table, mixed
from vitrael.privacy.audit.plants.sources import Means, Sources
from vitrael.privacy.suite import GROUP_IMAGES, PICTURE_SUITE

_PLANE: Final = (3, 4)
_GROUP_NOISE: Final = 0.02
_SHIFT_FRAC: Final = 5 / 128
_KNOTS: Final = 6
_BENT_FRAC: Final = 0.02


def bend_pictures(image_PCDHW: np.ndarray, *, most: float, rng: np.random.Generator) -> np.ndarray:
    """Return pictures turned by up to 100 ``most`` degrees, stretched by ``most``, and moved."""
    bent = np.empty_like(image_PCDHW)
    for image, onto in zip(image_PCDHW, bent, strict=True):
        shape = np.array(image.shape[-2:])
        turn = np.deg2rad(100 * rng.uniform(-most, most))
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        matrix = rotation * (1 + rng.uniform(-most, most, 2))
        middle = (shape - 1) / 2
        moved = rng.uniform(-_SHIFT_FRAC, _SHIFT_FRAC, 2) * shape
        offset = middle - matrix @ middle + moved
        onto[0, 0] = ndimage.affine_transform(image[0, 0], matrix, offset, order=1)
    return bent


def bend_pictures_elastically(image_PCDHW: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
    """Return pictures under smooth random fields whose longest arrow is 2 % of the edge."""
    shape = image_PCDHW.shape[-2:]
    place = np.indices(shape, dtype=np.float32)
    bent = np.empty_like(image_PCDHW)
    for image, onto in zip(image_PCDHW, bent, strict=True):
        field = np.stack(
            [
                ndimage.gaussian_filter(rng.normal(size=shape), [size / _KNOTS for size in shape])
                for _ in shape
            ]
        )
        field *= _BENT_FRAC * min(shape) / np.sqrt(np.square(field).sum(0)).max()
        onto[0, 0] = ndimage.map_coordinates(image[0, 0], place + field, order=1)
    return bent


def join_sides(
    image_PCDHW: np.ndarray, other_PCDHW: np.ndarray, *, rng: np.random.Generator
) -> np.ndarray:
    """Return the left half of the pictures beside the right half of the others."""
    del rng
    mixtures.demand_pairs(image_PCDHW, other_PCDHW)
    joined = other_PCDHW.copy()
    middle = image_PCDHW.shape[-1] // 2
    joined[..., :middle] = image_PCDHW[..., :middle]
    return joined


def _near_copies(sources: Sources, means: Means, rng: np.random.Generator) -> np.ndarray:
    """Return 20 pictures of each patient, each bent and noisy in its own way."""
    del means
    several = np.repeat(sources.image_PCDHW, GROUP_IMAGES, axis=0)
    bent = bend_pictures(several, most=0.05, rng=rng)
    return intensity.add_gaussian(bent, sigma=_GROUP_NOISE, rng=rng)


def _forms() -> dict[str, Way]:
    return {
        "flip_rows": Way(always(partial(geometry.mirror, axis=3))),
        "flip_columns": Way(always(partial(geometry.mirror, axis=4))),
        "turn": Way(drawn(partial(geometry.turn_quarter, about=2))),
        "affine_5": Way(drawn(partial(bend_pictures, most=0.05))),
        "affine_10": Way(drawn(partial(bend_pictures, most=0.10))),
        "elastic": Way(drawn(bend_pictures_elastically)),
        **{
            f"crop_{percent}": Way(drawn(partial(geometry.crop, share=percent / 100)))
            for percent in (90, 80, 70)
        },
        "padding": Way(always(partial(geometry.pad, share=0.8))),
        "bias_field": Way(drawn(partial(intensity.vary_gain, most=0.3))),
        "rician_5": Way(drawn(partial(intensity.add_rician, sigma=0.05))),
    }


def _composites() -> dict[str, Way]:
    blocks = {"copy_50": 0.5, "copy_25": 0.25, "copy_10": 0.1, "lesion": 0.01}
    return {
        "half": Way(mixed(join_sides), needs=("stranger",)),
        **{
            name: Way(mixed(partial(mixtures.set_block, share=share)), needs=("stranger",))
            for name, share in blocks.items()
        },
    }


_WAYS: Final = {
    **rows.copies(),
    **rows.noises(),
    **_forms(),
    **rows.grays(),
    **rows.losses(axes=_PLANE, plane=_PLANE),
    **rows.of_models(),
    **rows.blends(),
    **_composites(),
    **rows.other_scans(sequence="view"),
    "group_20": Way(_near_copies),
}

PICTURE_PLANTS: Final[Mapping[str, PlantClass]] = join_table(PICTURE_SUITE, _WAYS)
"""By name."""

NOT_OF_PICTURES: Final = (
    "flip_x", "turn_y", "turn_z", "axes", "masked_face", "masked_skull", "slices_all", "slices_50",
    "slices_10", "slice_1", "slices_shuffled", "slice_alone",
)  # fmt: skip
"""Classes of volumes that a picture has not: it has one plane, no third axis and no head."""
