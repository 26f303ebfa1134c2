"""The attack suite for pictures: the disguises of volumes that a plane has, and its own of place.

A picture has one voxel along D. Classes that turn it out of its plane, exchange its axes, remove a
face or a skull, or move slices make no sense there and are left out; the rest is as for volumes,
with the same demands.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Final

import numpy as np
from scipy import ndimage

from vitrael.privacy.audit.plants import geometry, intensity, mixtures, rows
from vitrael.privacy.audit.plants.classes import PlantClass, always, drawn, mixed
from vitrael.privacy.audit.plants.sources import Means, Sources

_PLANE: Final = (3, 4)
_GROUP_IMAGES: Final = 20
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
    several = np.repeat(sources.image_PCDHW, _GROUP_IMAGES, axis=0)
    bent = bend_pictures(several, most=0.05, rng=rng)
    return intensity.add_gaussian(bent, sigma=_GROUP_NOISE, rng=rng)


def _forms() -> list[PlantClass]:
    mirrored = [
        PlantClass(
            f"flip_{name}", says, 0.98, always(partial(geometry.mirror, axis=axis)), must=True
        )
        for name, says, axis in (
            ("rows", "mirrored upside down", 3),
            ("columns", "mirrored left to right", 4),
        )
    ]
    bent = [
        PlantClass(
            f"affine_{percent}",
            f"turned by up to {percent} degrees, stretched by up to {percent} %, moved by 4 %",
            demanded,
            drawn(partial(bend_pictures, most=percent / 100)),
            must=must,
        )
        for percent, demanded, must in ((5, 0.98, True), (10, 0.95, False))
    ]
    cropped = [
        PlantClass(
            f"crop_{percent}", f"cut to {percent} % of both edges and magnified", 0.95,
            drawn(partial(geometry.crop, share=percent / 100)),
        )
        for percent in (90, 80, 70)
    ]  # fmt: skip
    return [
        *mirrored,
        PlantClass(
            "turn", "turned by 90 degrees", 0.98, drawn(partial(geometry.turn_quarter, about=2)),
            must=True,
        ),
        *bent,
        PlantClass(
            "elastic", "bent smoothly by 2 % of the edge", 0.95, drawn(bend_pictures_elastically)
        ),
        *cropped,
        PlantClass(
            "padding", "in a margin, 80 % of both edges", 0.95,
            always(partial(geometry.pad, share=0.8)),
        ),
        PlantClass(
            "bias_field", "under a smooth gain from 0.7 to 1.3", 0.95,
            drawn(partial(intensity.vary_gain, most=0.3)),
        ),
        PlantClass(
            "rician_5", "Rician noise of 5 % of the range", 0.95,
            drawn(partial(intensity.add_rician, sigma=0.05)),
        ),
    ]  # fmt: skip


def _composites() -> list[PlantClass]:
    copied = [
        PlantClass(
            f"copy_{percent}", f"{percent} % of the picture in a stranger's", demanded,
            mixed(partial(mixtures.set_block, share=percent / 100)), needs=("stranger",),
        )
        for percent, demanded in ((50, 0.95), (25, 0.85), (10, 0.60))
    ]  # fmt: skip
    return [
        PlantClass(
            "half", "the left half beside a stranger's right half", 0.95, mixed(join_sides),
            needs=("stranger",),
        ),
        *copied,
        PlantClass(
            "lesion", "a block of a lesion's size in a stranger's", None,
            mixed(partial(mixtures.set_block, share=0.01)), needs=("stranger",),
        ),
    ]  # fmt: skip


_ROWS: Final = (
    *rows.copies(),
    *rows.noises(),
    *_forms(),
    *rows.grays(),
    *rows.losses(axes=_PLANE, plane=_PLANE),
    *rows.of_models(),
    *rows.blends(),
    *_composites(),
    *rows.other_scans(sequence="view"),
    PlantClass(
        "group_20", "20 near-copies of one patient, scattered: at least one is caught", 1.0,
        _near_copies, must=True, group_images=_GROUP_IMAGES,
    ),
)  # fmt: skip

PICTURE_PLANTS: Final[Mapping[str, PlantClass]] = MappingProxyType(
    {plant.name: plant for plant in _ROWS}
)
"""By name."""

NOT_OF_PICTURES: Final = (
    "flip_x", "turn_y", "turn_z", "axes", "masked_face", "masked_skull", "slices_all", "slices_50",
    "slices_10", "slice_1", "slices_shuffled", "slice_alone",
)  # fmt: skip
"""Classes of volumes that a picture has not: it has one plane, no third axis and no head."""
