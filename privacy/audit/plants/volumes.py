"""The attack suite for volumes: the disguises in which a copied scan may come.

A range of a strength is tried at its ends, or drawn from evenly where a disguise has a place or a
direction. Shares of a volume are of the copied head's voxels, shares of slices of those that show
it. A block of a lesion's size and a slice alone are reported and have no bound. What differs only
in a file's header is a matter of reading files.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Final

import numpy as np

from vitrael.privacy.audit.plants import geometry, intensity, mixtures, rows
from vitrael.privacy.audit.plants.classes import PlantClass, always, drawn, mixed
from vitrael.privacy.audit.plants.sources import Means, Sources

GROUP_IMAGES: Final = 20
MOST_GROUPS: Final = 60
"""Patients who are each copied 20 times: 59 make a bound of 0.95."""

_SPACE: Final = (2, 3, 4)
_AXIAL: Final = (2, 3)
_LESION_FRAC: Final = 0.01
"""Of the head: 12 ml of a usual brain."""
_GROUP_NOISE: Final = 0.02


def _places() -> list[PlantClass]:
    names = {2: ("x", "left to right"), 3: ("y", "back to front"), 4: ("z", "upside down")}
    mirrored = [
        PlantClass(
            f"flip_{letter}", f"mirrored {says}", 0.98,
            always(partial(geometry.mirror, axis=axis)), must=True,
        )
        for axis, (letter, says) in names.items()
    ]  # fmt: skip
    turned = [
        PlantClass(
            f"turn_{letter}", f"turned by 90 degrees about the axis {letter}", 0.98,
            drawn(partial(geometry.turn_quarter, about=axis)), must=True,
        )
        for axis, (letter, _) in names.items()
    ]  # fmt: skip
    exchanged = PlantClass(
        "axes", "with its axes exchanged", 0.98, drawn(geometry.exchange_axes), must=True
    )
    return [*mirrored, *turned, exchanged]


def _forms() -> list[PlantClass]:
    bent = [
        PlantClass(
            f"affine_{degrees}",
            f"turned by up to {degrees} degrees, stretched by up to {degrees} %, "
            "moved by up to 5 voxels of 128",
            demanded,
            drawn(
                partial(
                    geometry.bend_each,
                    turn_deg=degrees,
                    stretch_frac=degrees / 100,
                    shift_vox=5.0,
                )
            ),
            must=must,
        )
        for degrees, demanded, must in ((5, 0.98, True), (10, 0.95, False))
    ]
    return [
        *bent,
        PlantClass(
            "elastic", "bent smoothly by 2 to 3 voxels of 128", 0.95,
            drawn(geometry.bend_elastically),
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


def _cuts() -> list[PlantClass]:
    cropped = [
        PlantClass(
            f"crop_{percent}", f"cut to {percent} % of every edge and magnified", 0.95,
            drawn(partial(geometry.crop, share=percent / 100)),
        )
        for percent in (90, 80, 70)
    ]  # fmt: skip
    return [
        *cropped,
        PlantClass(
            "padding", "in a margin, 80 % of every edge", 0.95,
            always(partial(geometry.pad, share=0.8)),
        ),
        PlantClass(
            "masked_face", "without the face", 0.95,
            always(partial(geometry.mask_part, part="face")),
        ),
        PlantClass(
            "masked_skull", "without the outermost shell", 0.95,
            always(partial(geometry.mask_part, part="skull")),
        ),
    ]  # fmt: skip


def _composites() -> list[PlantClass]:
    copied = [
        PlantClass(
            f"copy_{percent}", f"{percent} % of the volume in a stranger", demanded,
            mixed(partial(mixtures.set_block, share=percent / 100)), needs=("stranger",),
        )
        for percent, demanded in ((50, 0.95), (25, 0.85), (10, 0.60))
    ]  # fmt: skip
    return [
        PlantClass(
            "half", "the left half beside a stranger's right half", 0.95,
            mixed(mixtures.join_halves), needs=("stranger",),
        ),
        *copied,
        PlantClass(
            "lesion", "a block of a lesion's size in a stranger", None,
            mixed(partial(mixtures.set_block, share=_LESION_FRAC)), needs=("stranger",),
        ),
    ]  # fmt: skip


def _slices() -> list[PlantClass]:
    copied = [
        PlantClass(
            name, says, demanded, mixed(partial(mixtures.set_slices, share=share)),
            needs=("stranger",),
        )
        for name, says, demanded, share in (
            ("slices_all", "all slices in a stranger's volume", 0.98, 1.0),
            ("slices_50", "half of the slices among a stranger's", 0.95, 0.5),
            ("slices_10", "a tenth of the slices among a stranger's", 0.85, 0.1),
            ("slice_1", "one slice among a stranger's", None, None),
        )
    ]  # fmt: skip
    return [
        *copied,
        PlantClass(
            "slices_shuffled", "all slices in another order", 0.98, drawn(mixtures.shuffle_slices)
        ),
        PlantClass("slice_alone", "one slice in the dark", None, drawn(mixtures.keep_one_slice)),
    ]


def _near_copies(sources: Sources, means: Means, rng: np.random.Generator) -> np.ndarray:
    """Return 20 scans of each patient, each bent and noisy in its own way, patient by patient."""
    del means
    several = np.repeat(sources.image_PCDHW[:MOST_GROUPS], GROUP_IMAGES, axis=0)
    bent = geometry.bend_each(several, turn_deg=5, stretch_frac=0.05, shift_vox=5, rng=rng)
    return intensity.add_gaussian(bent, sigma=_GROUP_NOISE, rng=rng)


_ROWS: Final = (
    *rows.copies(),
    *rows.noises(),
    *_places(),
    *_forms(),
    *rows.grays(),
    *rows.losses(axes=_SPACE, plane=_AXIAL),
    *_cuts(),
    *rows.of_models(),
    *rows.blends(),
    *_composites(),
    *_slices(),
    *rows.other_scans(sequence="sequence"),
    PlantClass(
        "group_20", "20 near-copies of one patient, scattered: at least one is caught", 1.0,
        _near_copies, must=True, group_images=GROUP_IMAGES,
    ),
)  # fmt: skip

VOLUME_PLANTS: Final[Mapping[str, PlantClass]] = MappingProxyType(
    {plant.name: plant for plant in _ROWS}
)
"""By name."""
