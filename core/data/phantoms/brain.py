"""A procedural brain in MR: who it is, how it was scanned, and the truth beside the scan.

Anatomy, lesions and acquisition have separate random streams: a patient keeps the anatomy over
visits while position, bias field and noise change, so the same head can be scanned twice. The
shapes are implicit functions of head coordinates: an ellipsoid whose radius is modulated by a few
waves over the sphere (the identity), folded outside, with fissures, ventricles, deep gray nuclei,
hippocampi, cerebellum and brainstem inside. Unless the acquisition shows the whole head,
everything outside the brain is zero, as after skull stripping. World axes are RAS+ millimetres.

Axes: C channels, D H W, K tissues, P points that are looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vitrael.core.data.phantoms.acquisition import (
    Acquisition,
    add_noise,
    draw_acquisition,
    receive_field,
    slice_operators,
)
from vitrael.core.data.phantoms.anatomy import (
    Anatomy,
    age_anatomy,
    draw_anatomy,
    with_disease,
)
from vitrael.core.data.phantoms.contrasts import CONTRASTS, signals
from vitrael.core.data.phantoms.forms import Points, draw_waves, wave_sum
from vitrael.core.data.phantoms.lesions import NO_LESIONS, Lesions
from vitrael.core.data.phantoms.truth import BrainTruth, tell_truth
from vitrael.core.data.phantoms.view import View, axial_plane, center_grid, look
from vitrael.core.data.planar import Picture
from vitrael.core.data.scan import Scan
from vitrael.core.errors import DataError
from vitrael.core.rng import stream

__all__ = [
    "Acquisition",
    "Anatomy",
    "BrainImages",
    "BrainSlice",
    "BrainTruth",
    "age_anatomy",
    "draw_acquisition",
    "draw_anatomy",
    "image_brain",
    "image_slice",
    "render_brain",
    "with_disease",
]

_TEXTURE_WAVES, _TEXTURE_FREQUENCY = 24, (0.25, 0.6)
"""Radians per millimetre: 10 to 25 mm from crest to crest."""
_BRIGHTEST = 1.2


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class BrainImages:
    """One session: a scan for every contrast, in the same position, and the truth."""

    scans: Mapping[str, Scan]
    truth: BrainTruth


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class BrainSlice:
    """One axial slice: a picture for every contrast, and the truth."""

    pictures: Mapping[str, Picture]
    truth: BrainTruth


def render_brain(
    anatomy: Anatomy,
    acquisition: Acquisition,
    *,
    grid_vox: tuple[int, int, int],
    spacing_mm: float,
) -> Scan:
    """Return the T1-weighted scan of a patient, ``[1, D, H, W]`` float32, intensities near [0, 1].

    Tissue borders are softened over one voxel, which stands for partial volume.
    """
    view = look(anatomy, acquisition, NO_LESIONS, center_grid(grid_vox, spacing_mm))
    image = _expose(view, anatomy, acquisition, "T1w")
    return Scan(image_CDHW=image[None], affine=view.grid.affine, modality="T1w")


def image_brain(
    anatomy: Anatomy,
    acquisition: Acquisition,
    *,
    grid_vox: tuple[int, int, int],
    spacing_mm: float,
    contrasts: Sequence[str] = ("T1w",),
    lesions: Lesions = NO_LESIONS,
) -> BrainImages:
    """Return a session of a patient with the truth; contrasts are among ``CONTRASTS``.

    The T1-weighted scan without lesions is that of ``render_brain``. Raises DataError for an
    unknown contrast.
    """
    _check(contrasts)
    view = look(anatomy, acquisition, lesions, center_grid(grid_vox, spacing_mm))
    scans = {
        name: Scan(_expose(view, anatomy, acquisition, name)[None], view.grid.affine, name)
        for name in contrasts
    }
    return BrainImages(scans, tell_truth(view, anatomy, lesions))


def image_slice(
    anatomy: Anatomy,
    acquisition: Acquisition,
    *,
    grid_px: tuple[int, int],
    spacing_mm: float,
    height_mm: float = 6.0,
    contrasts: Sequence[str] = ("T1w",),
    lesions: Lesions = NO_LESIONS,
) -> BrainSlice:
    """Return one axial slice ``height_mm`` above the middle of the brain, with the truth.

    ``grid_px`` is H, W. Rows go from front to back, columns from the patient's left to his right.
    Slices are as thick as their pixels are wide. Raises DataError for an unknown contrast, and
    ScanError where the slice misses the head.
    """
    _check(contrasts)
    plane = axial_plane(grid_px, spacing_mm, height_mm=height_mm)
    view = look(anatomy, acquisition, lesions, plane)
    pictures = {
        name: Picture(
            _upright(_expose(view, anatomy, acquisition, name))[0], (spacing_mm, spacing_mm), "MR"
        )
        for name in contrasts
    }
    truth = tell_truth(view, anatomy, lesions)
    turned = BrainTruth(
        labels_DHW=_upright(truth.labels_DHW),
        brain_DHW=_upright(truth.brain_DHW),
        face_DHW=_upright(truth.face_DHW),
        lesion_DHW={kind: _upright(mask) for kind, mask in truth.lesion_DHW.items()},
        volumes_ml=truth.volumes_ml,
        covariates=truth.covariates,
        coefficients=truth.coefficients,
    )
    return BrainSlice(pictures, turned)


def _check(contrasts: Sequence[str]) -> None:
    if not contrasts or not set(contrasts) <= set(CONTRASTS):
        raise DataError("the contrast is unknown", fix=f"choose from {', '.join(CONTRASTS)}")


def _expose(view: View, anatomy: Anatomy, acquisition: Acquisition, name: str) -> np.ndarray:
    """Return the image of one contrast, ``[D, H, W]`` float32."""
    level_K = signals(CONTRASTS[name], contrast=acquisition.contrast)
    value_P = level_K @ view.mixture.fraction_KP
    if acquisition.texture_frac:
        value_P *= 1 + np.float32(acquisition.texture_frac) * _texture(anatomy, view.head)
    image = view.spread(value_P) * receive_field(acquisition, view.grid.axes_mm)
    cover = np.ones_like(image) if acquisition.head else view.spread(view.mixture.brain_P)
    noise = (
        np.random.Generator(np.random.PCG64(acquisition.noise_seed))
        if name == "T1w"
        else stream(acquisition.noise_seed, name)
    )
    if acquisition.thickness_mm > view.grid.spacing_mm and image.shape[2] > 1:
        down, up = slice_operators(image.shape[2], view.grid.spacing_mm, acquisition.thickness_mm)
        image = image @ down.T
        image = add_noise(image, acquisition, cover @ down.T, noise) @ up.T
    else:
        image = add_noise(image, acquisition, cover, noise)
    return np.asarray(np.clip(image, 0, _BRIGHTEST) * acquisition.gain, dtype=np.float32)


def _texture(anatomy: Anatomy, head: Points) -> np.ndarray:
    """Return the unevenness of the tissue, of unit variance; it belongs to the head."""
    waves = draw_waves(
        stream(anatomy.detail_seed, "texture"),
        _TEXTURE_WAVES,
        frequency=_TEXTURE_FREQUENCY,
        amplitude=1.0,
    )
    waves[:, 4] /= np.sqrt(np.square(waves[:, 4]).sum() / 2)
    return wave_sum(waves, head)


def _upright(image_DHW: np.ndarray) -> np.ndarray:
    """Return ``[1, H, W]`` as a picture is looked at, from an array ``[x, y, 1]``."""
    return np.ascontiguousarray(image_DHW[:, ::-1].transpose(2, 1, 0))
