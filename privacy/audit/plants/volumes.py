"""The attack suite for volumes: the disguises in which a copied scan may come.

A range of a strength is tried at its ends, or drawn from evenly where a disguise has a place or a
direction. Shares of a volume are of the copied head's voxels, shares of slices of those that show
it. A block of a lesion's size and a slice alone are reported and have no bound. What differs only
in a file's header is a matter of reading files.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Final

import numpy as np

from vitrael.privacy.audit.plants import geometry, intensity, mixtures, rows
from vitrael.privacy.audit.plants.classes import PlantClass, Way, always, drawn, join_table, mixed
from vitrael.privacy.audit.plants.sources import Means, Sources
from vitrael.privacy.suite import GROUP_IMAGES, MOST_GROUPS, VOLUME_SUITE

_SPACE: Final = (2, 3, 4)
_AXIAL: Final = (2, 3)
_LESION_FRAC: Final = 0.01
"""Of the head: 12 ml of a usual brain."""
_GROUP_NOISE: Final = 0.02


_AXES: Final = {"x": 2, "y": 3, "z": 4}


def _places() -> dict[str, Way]:
    return {
        **{
            f"flip_{name}": Way(always(partial(geometry.mirror, axis=axis)))
            for name, axis in _AXES.items()
        },
        **{
            f"turn_{name}": Way(drawn(partial(geometry.turn_quarter, about=axis)))
            for name, axis in _AXES.items()
        },
        "axes": Way(drawn(geometry.exchange_axes)),
    }


def _forms() -> dict[str, Way]:
    bent = {
        f"affine_{degrees}": Way(
            drawn(
                partial(
                    geometry.bend_each,
                    turn_deg=degrees,
                    stretch_frac=degrees / 100,
                    shift_vox=5.0,
                )
            )
        )
        for degrees in (5, 10)
    }
    return {
        **bent,
        "elastic": Way(drawn(geometry.bend_elastically)),
        "bias_field": Way(drawn(partial(intensity.vary_gain, most=0.3))),
        "rician_5": Way(drawn(partial(intensity.add_rician, sigma=0.05))),
    }


def _cuts() -> dict[str, Way]:
    cropped = {
        f"crop_{percent}": Way(drawn(partial(geometry.crop, share=percent / 100)))
        for percent in (90, 80, 70)
    }
    return {
        **cropped,
        "padding": Way(always(partial(geometry.pad, share=0.8))),
        "masked_face": Way(always(partial(geometry.mask_part, part="face"))),
        "masked_skull": Way(always(partial(geometry.mask_part, part="skull"))),
    }


def _composites() -> dict[str, Way]:
    blocks = {"copy_50": 0.5, "copy_25": 0.25, "copy_10": 0.1, "lesion": _LESION_FRAC}
    return {
        "half": Way(mixed(mixtures.join_halves), needs=("stranger",)),
        **{
            name: Way(mixed(partial(mixtures.set_block, share=share)), needs=("stranger",))
            for name, share in blocks.items()
        },
    }


def _slices() -> dict[str, Way]:
    shares = {"slices_all": 1.0, "slices_50": 0.5, "slices_10": 0.1, "slice_1": None}
    return {
        **{
            name: Way(mixed(partial(mixtures.set_slices, share=share)), needs=("stranger",))
            for name, share in shares.items()
        },
        "slices_shuffled": Way(drawn(mixtures.shuffle_slices)),
        "slice_alone": Way(drawn(mixtures.keep_one_slice)),
    }


def _near_copies(sources: Sources, means: Means, rng: np.random.Generator) -> np.ndarray:
    """Return 20 scans of each patient, each bent and noisy in its own way, patient by patient."""
    del means
    several = np.repeat(sources.image_PCDHW[:MOST_GROUPS], GROUP_IMAGES, axis=0)
    bent = geometry.bend_each(several, turn_deg=5, stretch_frac=0.05, shift_vox=5, rng=rng)
    return intensity.add_gaussian(bent, sigma=_GROUP_NOISE, rng=rng)


VOLUME_PLANTS: Final[Mapping[str, PlantClass]] = join_table(
    VOLUME_SUITE,
    {
        **rows.copies(),
        **rows.noises(),
        **_places(),
        **_forms(),
        **rows.grays(),
        **rows.losses(axes=_SPACE, plane=_AXIAL),
        **_cuts(),
        **rows.of_models(),
        **rows.blends(),
        **_composites(),
        **_slices(),
        **rows.other_scans(sequence="sequence"),
        "group_20": Way(_near_copies),
    },
)
"""By name."""
