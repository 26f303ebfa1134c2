"""Disguises of gray values and of sharpness: another window, noise, a field, a codec of pictures.

Intensities are in [0, 1]; whoever makes a class of these cuts the result to that range. Axes:
P images, C channels, then three of space or time and two of a picture.
"""

from __future__ import annotations

import io
import math
from typing import Final

import numpy as np
from PIL import Image
from scipy import ndimage

_LEVELS: Final = 255
_WINDOW_PERCENT: Final = (0.5, 99.5)
_DICOM_LEVELS: Final = 4095
_DARK: Final = 0.05
_FWHM: Final = 2 * math.sqrt(2 * math.log(2))
"""Of a normal curve, in standard deviations."""


def window_to_bytes(image_PCDHW: np.ndarray) -> np.ndarray:
    """Return each image in 256 levels of a window from its 0.5th to its 99.5th percentile."""
    axes = tuple(range(1, image_PCDHW.ndim))
    low, high = np.percentile(image_PCDHW, _WINDOW_PERCENT, axis=axes, keepdims=True)
    whole_low, whole_high = (
        image_PCDHW.min(axes, keepdims=True),
        image_PCDHW.max(axes, keepdims=True),
    )
    # A window on a few bright voxels in the dark has no width: the whole range then.
    empty = high <= low
    low, high = np.where(empty, whole_low, low), np.where(empty, whole_high, high)
    return np.asarray(
        np.round(np.clip((image_PCDHW - low) / (high - low), 0, 1) * _LEVELS) / _LEVELS
    )


def store_as_dicom(image_PCDHW: np.ndarray) -> np.ndarray:
    """Return the images in 12 bits, each stretched over all levels as an export to DICOM does."""
    axes = tuple(range(1, image_PCDHW.ndim))
    most = image_PCDHW.max(axes, keepdims=True)
    return np.asarray(np.round(image_PCDHW / most * _DICOM_LEVELS) / _DICOM_LEVELS)


def halve_precision(image_PCDHW: np.ndarray) -> np.ndarray:
    """Return the images as half-precision floats hold them."""
    return image_PCDHW.astype(np.float16).astype(np.float32)


def add_gaussian(image_PCDHW: np.ndarray, *, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Return the images under normal noise of this standard deviation."""
    return image_PCDHW + rng.normal(0, sigma, image_PCDHW.shape)


def add_rician(image_PCDHW: np.ndarray, *, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Return the magnitudes of the images once both channels of the receiver are noisy."""
    real, imaginary = (rng.normal(0, sigma, image_PCDHW.shape) for _ in range(2))
    return np.hypot(image_PCDHW + real, imaginary)


def add_speckle(image_PCDHW: np.ndarray, *, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Return the images times noise about one: the brighter, the noisier, as in ultrasound."""
    return image_PCDHW * (1 + rng.normal(0, sigma, image_PCDHW.shape))


def vary_gain(image_PCDHW: np.ndarray, *, most: float, rng: np.random.Generator) -> np.ndarray:
    """Return the images under a smooth field that runs from ``1 - most`` to ``1 + most``.

    The field is a quadratic of the place with random coefficients, as a receive coil's.
    """
    lines = [np.linspace(-1, 1, size) for size in image_PCDHW.shape[2:]]
    x, y, z = np.meshgrid(*lines, indexing="ij", sparse=True)
    varied = []
    for image in image_PCDHW:
        a = rng.normal(size=9)
        field = a[0] * x + a[1] * y + a[2] * z + a[3] * x * x + a[4] * y * y + a[5] * z * z
        field = field + a[6] * x * y + a[7] * y * z + a[8] * x * z
        low, high = field.min(), field.max()
        varied.append(image * (1 + most * (2 * (field - low) / (high - low) - 1)))
    return np.stack(varied)


def bend_grays(image_PCDHW: np.ndarray, *, gamma: float) -> np.ndarray:
    """Return the images raised to a power."""
    return np.asarray(np.power(np.clip(image_PCDHW, 0, 1), gamma))


def change_contrast(
    image_PCDHW: np.ndarray, *, share: float, rng: np.random.Generator
) -> np.ndarray:
    """Return the images with grays spread about the mean of the head, by ``share`` more or less."""
    factor = 1 + share * _signs(len(image_PCDHW), rng=rng)
    changed = []
    for image, by in zip(image_PCDHW, factor, strict=True):
        bright = image > _DARK
        mean = float(image[bright].mean()) if bright.any() else float(image.mean())
        # Darkness outside the head stays dark: a scan is not lifted out of its background.
        changed.append(np.where(bright, mean + by * (image - mean), image))
    return np.stack(changed)


def change_brightness(
    image_PCDHW: np.ndarray, *, share: float, rng: np.random.Generator
) -> np.ndarray:
    """Return the images by ``share`` brighter or darker, as at another gain."""
    factor = 1 + share * _signs(len(image_PCDHW), rng=rng)
    return image_PCDHW * factor.reshape(-1, *[1] * (image_PCDHW.ndim - 1))


def match_grays(
    image_PCDHW: np.ndarray, other_PCDHW: np.ndarray, *, rng: np.random.Generator
) -> np.ndarray:
    """Return the images with the histogram that the others' heads have; the order of grays stays.

    Only what is brighter than 0.05 is changed and looked at, so that more darkness around one head
    is not spread over the other. Nothing is drawn.
    """
    del rng
    matched = image_PCDHW.copy()
    for image, other in zip(matched, other_PCDHW, strict=True):
        bright, like = image > _DARK, np.sort(other[other > _DARK])
        if not bright.any() or not len(like):
            continue
        values = image[bright]
        levels, place, count = np.unique(values, return_inverse=True, return_counts=True)
        rank = (np.cumsum(count) - count / 2) / len(values)
        wanted = np.interp(rank, (np.arange(len(like)) + 0.5) / len(like), like)
        image[bright] = wanted[place].astype(image.dtype) if len(levels) else values
    return matched


def invert(image_PCDHW: np.ndarray) -> np.ndarray:
    """Return the negatives."""
    return 1 - image_PCDHW


def blur(image_PCDHW: np.ndarray, *, fwhm_vox: float, axes: tuple[int, ...]) -> np.ndarray:
    """Return the images under a normal kernel of this full width at half its height."""
    sigma = [fwhm_vox / _FWHM if axis in axes else 0.0 for axis in range(image_PCDHW.ndim)]
    return np.asarray(ndimage.gaussian_filter(image_PCDHW, sigma))


def resample(image_PCDHW: np.ndarray, *, factor: float, axes: tuple[int, ...]) -> np.ndarray:
    """Return the images after a grid with ``factor`` as many voxels along each of the axes."""
    shape = image_PCDHW.shape[2:]
    rough = [max(2, round(n * factor)) if 2 + at in axes else n for at, n in enumerate(shape)]
    return np.stack([_onto(_onto(image[0], tuple(rough)), shape)[None] for image in image_PCDHW])


def compress_jpeg(image_PCDHW: np.ndarray, *, quality: int, plane: tuple[int, int]) -> np.ndarray:
    """Return the images after JPEG, picture by picture; ``plane`` names rows and columns.

    The two are axes of the batch; of clips 3 and 4, of volumes those of an axial slice.
    """
    pictures = np.moveaxis(image_PCDHW, plane, (-2, -1))
    grays = np.round(np.clip(pictures, 0, 1) * _LEVELS).astype(np.uint8)
    read = np.empty_like(grays)
    for place in np.ndindex(grays.shape[:-2]):
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(grays[place])).save(
            buffer, format="JPEG", quality=quality
        )
        with Image.open(buffer) as picture:
            read[place] = np.asarray(picture)
    return np.moveaxis(read / np.float32(_LEVELS), (-2, -1), plane)


def _onto(volume_DHW: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return a volume interpolated linearly onto another number of voxels, corners together."""
    zoom = [want / have for want, have in zip(shape, volume_DHW.shape, strict=True)]
    return np.asarray(ndimage.zoom(volume_DHW, zoom, order=1, mode="nearest", grid_mode=True))


def _signs(count: int, *, rng: np.random.Generator) -> np.ndarray:
    return rng.choice([-1.0, 1.0], count)
