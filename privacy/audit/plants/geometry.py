"""Disguises of place and form: a scan mirrored, turned, bent, cut, or seen through a window.

A class says its shift in voxels of a grid whose edge has 128; on another grid it is the same share
of the edge, so that 5 voxels move a head by 4 % of the picture everywhere. What moves in from
outside is dark. Axes: P images, C channels, D H W as in NIfTI.
"""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
from scipy import ndimage

TURN_DEG: Final = 5.0
STRETCH_FRAC: Final = 0.05
SHIFT_VOX: Final = 1.0

_EDGE_VOX: Final = 128
"""The grid in whose voxels the suite states its shifts."""
_DARK: Final = 0.05
"""Intensity, in [0, 1], up to which a voxel is outside the head."""
_ELASTIC_VOX: Final = (2.0, 3.0)
_WAVES: Final = 8
"""How many bumps of an elastic field fit along an edge."""
_FACE: Final = (0.4, 0.35)
"""Of the head's box, from the front and from below."""
_SHELL_FRAC: Final = 0.06

Part = Literal["face", "skull"]


def bend_affinely(
    volume_DHW: np.ndarray,
    *,
    rng: np.random.Generator,
    turn_deg: float = TURN_DEG,
    stretch_frac: float = STRETCH_FRAC,
    shift_vox: float | np.ndarray = SHIFT_VOX,
) -> np.ndarray:
    """Return the volume turned, stretched and moved by draws up to the given limits.

    By default up to 5 degrees about each axis, 5 % and one voxel along it. ``shift_vox`` may be
    given for each axis.
    """
    x, y, z = np.deg2rad(rng.uniform(-turn_deg, turn_deg, 3))
    skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    # The Cayley transform turns a skew matrix into a rotation, exact for every angle.
    matrix = np.linalg.solve(np.identity(3) - skew / 2, np.identity(3) + skew / 2)
    matrix = matrix * (1 + rng.uniform(-stretch_frac, stretch_frac, 3))
    center = (np.array(volume_DHW.shape) - 1) / 2
    shift = rng.uniform(-1, 1, 3) * shift_vox
    offset = center - matrix @ center + shift
    moved: np.ndarray = ndimage.affine_transform(volume_DHW, matrix, offset, order=1)
    return moved


def bend_each(
    image_PCDHW: np.ndarray,
    *,
    turn_deg: float,
    stretch_frac: float,
    shift_vox: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return the images, each bent affinely its own way; the shift is in voxels of 128."""
    shifts = shift_vox * np.array(image_PCDHW.shape[2:]) / _EDGE_VOX
    bent = [
        bend_affinely(
            image[0], rng=rng, turn_deg=turn_deg, stretch_frac=stretch_frac, shift_vox=shifts
        )
        for image in image_PCDHW
    ]
    return np.stack(bent)[:, None]


def mirror(image_PCDHW: np.ndarray, *, axis: int) -> np.ndarray:
    """Return the images mirrored along an axis of the batch."""
    return np.flip(image_PCDHW, axis)


def turn_quarter(image_PCDHW: np.ndarray, *, about: int, rng: np.random.Generator) -> np.ndarray:
    """Return the images turned by 90 degrees, one way or the other, about an axis of the batch.

    On a grid of unequal edges the turned image is cut or filled with darkness about its middle.
    """
    first, second = (axis for axis in (2, 3, 4) if axis != about)
    turned = [
        _onto_grid(np.rot90(image, way, (first - 1, second - 1)), image_PCDHW.shape[2:])
        for image, way in zip(image_PCDHW, rng.choice([1, 3], len(image_PCDHW)), strict=True)
    ]
    return np.stack(turned)


def exchange_axes(image_PCDHW: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
    """Return the images with all three axes of space in the places of others, as in a wrong header.

    On a grid of unequal edges the image is cut or filled with darkness about its middle.
    """
    orders = ((0, 2, 3, 1), (0, 3, 1, 2))
    exchanged = [
        _onto_grid(image.transpose(orders[way]), image_PCDHW.shape[2:])
        for image, way in zip(image_PCDHW, rng.integers(2, size=len(image_PCDHW)), strict=True)
    ]
    return np.stack(exchanged)


def bend_elastically(image_PCDHW: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
    """Return the images under smooth random fields whose longest arrow is 2 to 3 voxels of 128.

    It is at least one voxel of the image's own grid: less would be no disguise there.
    """
    shape = image_PCDHW.shape[2:]
    place = np.indices(shape, dtype=np.float32)
    low, high = (max(1.0, vox * min(shape) / _EDGE_VOX) for vox in _ELASTIC_VOX)
    bent = []
    for image in image_PCDHW:
        field = np.stack([_smooth_noise(shape, rng=rng) for _ in shape])
        longest = np.sqrt(np.square(field).sum(0)).max()
        field *= rng.uniform(low, high) / longest
        bent.append(ndimage.map_coordinates(image[0], place + field, order=1))
    return np.stack(bent)[:, None]


def crop(image_PCDHW: np.ndarray, *, share: float, rng: np.random.Generator) -> np.ndarray:
    """Return a box of each image, ``share`` of every edge, at a random place, over the whole grid.

    What lies within is magnified, as by who cuts a picture and scales it to the usual size.
    """
    shape = np.array(image_PCDHW.shape[2:])
    cut = []
    for image in image_PCDHW:
        first = rng.uniform(0, 1, 3) * (shape - 1) * (1 - share)
        cut.append(ndimage.affine_transform(image[0], np.full(3, share), first, order=1))
    return np.stack(cut)[:, None]


def pad(image_PCDHW: np.ndarray, *, share: float) -> np.ndarray:
    """Return the images made smaller, to ``share`` of every edge, in a dark margin."""
    center = (np.array(image_PCDHW.shape[2:]) - 1) / 2
    padded = [
        ndimage.affine_transform(image[0], np.full(3, 1 / share), center * (1 - 1 / share), order=1)
        for image in image_PCDHW
    ]
    return np.stack(padded)[:, None]


def mask_part(image_PCDHW: np.ndarray, *, part: Part) -> np.ndarray:
    """Return the images without the face (front, below) or without the shell of the head.

    The box of the head is that of its voxels brighter than 0.05; the shell is 6 % of the box's
    shortest edge thick, at least one voxel. A head without an outside keeps its shell.
    """
    masked = image_PCDHW.copy()
    for image in masked:
        head = image[0] > _DARK
        where = [np.flatnonzero(head.any(tuple({0, 1, 2} - {axis}))) for axis in range(3)]
        if not all(map(len, where)):
            continue
        low, high = np.array([(rows[0], rows[-1] + 1) for rows in where]).T
        if part == "face":
            front = round(high[1] - _FACE[0] * (high[1] - low[1]))
            below = round(low[2] + _FACE[1] * (high[2] - low[2]))
            image[0, :, front:, :below] = 0
        else:
            steps = max(1, round(_SHELL_FRAC * int((high - low).min())))
            full = ndimage.binary_fill_holes(head)
            image[0][~ndimage.binary_erosion(full, iterations=steps, border_value=1)] = 0
    return masked


def _onto_grid(image_CDHW: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the image cut or filled with darkness about its middle."""
    grid = np.zeros((len(image_CDHW), *shape), image_CDHW.dtype)
    here, there = [], []
    for have, want in zip(image_CDHW.shape[1:], shape, strict=True):
        common = min(have, want)
        here.append(slice((have - common) // 2, (have - common) // 2 + common))
        there.append(slice((want - common) // 2, (want - common) // 2 + common))
    grid[:, *there] = image_CDHW[:, *here]
    return grid


def _smooth_noise(shape: tuple[int, ...], *, rng: np.random.Generator) -> np.ndarray:
    sigma = [size / _WAVES for size in shape]
    return np.asarray(ndimage.gaussian_filter(rng.normal(size=shape), sigma), dtype=np.float32)
