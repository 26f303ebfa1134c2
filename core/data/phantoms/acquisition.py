"""How a phantom head is scanned: position, bias field, gain, slices, noise; a site's own style.

What differs from scan to scan is an ``Acquisition``, drawn apart from the anatomy; what a scanner
does to all of its scans is a ``SiteStyle``. Noise is Rician: the magnitude of a complex signal
with Gaussian noise in both parts (Gudbjartsson and Patz 1995, MRM 34:910).

Axes: D H W index axes x, y, z of a RAS+ grid; slices lie across the last one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from vitrael.core.data.phantoms.forms import draw_waves

_BIAS_WAVES = 5
_BIAS_FREQUENCY = (1.0, 2.5)
"""Radians per 100 mm."""
_SHARPEST_MM = 0.1


@dataclass(frozen=True, slots=True)
class SiteStyle:
    """What one scanner does to every scan."""

    contrast: float = 0.0
    """Added to the gap between gray and white matter, relative to it."""
    gain: float = 1.0
    bias_frac: float = 0.0
    """Strength of a smooth receive field, beside the slope that every scan has."""
    noise_frac: tuple[float, float] = (0.008, 0.016)
    """Range of the noise, relative to an intensity of one."""
    thickness_mm: float = 0.0
    """Of axial slices; 0 takes what the grid has."""
    texture_frac: float = 0.0
    """Variation within a tissue."""
    head: bool = False
    """Whether the scan shows skull, skin and face, or only the brain."""


PLAIN = "plain"
STYLES: Mapping[str, SiteStyle] = MappingProxyType(
    {
        PLAIN: SiteStyle(),
        "sharp": SiteStyle(
            contrast=0.12, bias_frac=0.10, noise_frac=(0.006, 0.012), texture_frac=0.02
        ),
        "noisy": SiteStyle(
            contrast=-0.10, gain=0.9, bias_frac=0.20, noise_frac=(0.02, 0.045), texture_frac=0.02
        ),
        "thick": SiteStyle(gain=0.95, bias_frac=0.15, thickness_mm=6.0, texture_frac=0.02),
        "whole-head": SiteStyle(
            bias_frac=0.15, noise_frac=(0.01, 0.02), texture_frac=0.02, head=True
        ),
    }
)
"""Named presets. ``plain`` is a scanner without peculiarities."""


@dataclass(frozen=True, slots=True, eq=False)
class Acquisition:
    """What differs from scan to scan: position, bias field, contrast, noise."""

    shift_mm: np.ndarray
    rotation_rad: np.ndarray
    bias: np.ndarray
    """[3] relative slope of the receive field along each axis, per 100 mm."""
    contrast: float
    noise_frac: float
    noise_seed: int
    bias_waves: np.ndarray = field(default_factory=lambda: np.zeros((0, 5)))
    """[waves, 5]: frequency vector per 100 mm, phase, amplitude of the logarithm of the field."""
    gain: float = 1.0
    thickness_mm: float = 0.0
    texture_frac: float = 0.0
    head: bool = False


def draw_acquisition(
    rng: np.random.Generator, *, site_contrast: float = 0.0, style: SiteStyle = STYLES[PLAIN]
) -> Acquisition:
    """Return the circumstances of one scan; ``site_contrast`` shifts a scanner's gray-white gap.

    Two styles draw the same position, slope and noise pattern from equal streams.
    """
    shift = rng.normal(0, 1.5, 3)
    rotation = rng.normal(0, 0.02, 3)
    bias = rng.normal(0, 0.05, 3)
    contrast = 1 + site_contrast + style.contrast + float(rng.normal(0, 0.03))
    noise_frac = float(rng.uniform(*style.noise_frac))
    noise_seed = int(rng.integers(0, 2**62))
    waves = np.zeros((0, 5))
    if style.bias_frac:
        amplitude = style.bias_frac * (2 / _BIAS_WAVES) ** 0.5
        waves = draw_waves(rng, _BIAS_WAVES, frequency=_BIAS_FREQUENCY, amplitude=amplitude)
    return Acquisition(
        shift_mm=shift,
        rotation_rad=rotation,
        bias=bias,
        contrast=contrast,
        noise_frac=noise_frac,
        noise_seed=noise_seed,
        bias_waves=waves,
        gain=style.gain,
        thickness_mm=style.thickness_mm,
        texture_frac=style.texture_frac,
        head=style.head,
    )


def receive_field(
    acquisition: Acquisition, axes_mm: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> np.ndarray:
    """Return ``[D, H, W]`` float32: the factor by which the scanner's coil weighs every voxel."""
    x, y, z = (axis.astype(np.float32) / 100 for axis in axes_mm)
    slope = acquisition.bias.astype(np.float32)
    field_DHW = np.asarray(
        (1 + x * slope[0])[:, None, None] + (y * slope[1])[:, None] + z * slope[2]
    )
    if len(acquisition.bias_waves):
        field_DHW *= np.exp(_smooth_log_field(acquisition.bias_waves, (x, y, z)))
    return field_DHW


def add_noise(
    image: np.ndarray, acquisition: Acquisition, cover: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return the magnitude of image plus complex noise; ``cover`` weighs the noise, 0 to 1."""
    if not acquisition.noise_frac:
        return image
    in_phase = rng.normal(0, acquisition.noise_frac, image.shape)
    across = rng.normal(0, acquisition.noise_frac, image.shape)
    return np.asarray(np.hypot(image + cover * in_phase, cover * across))


def slice_operators(size: int, spacing_mm: float, thickness_mm: float) -> tuple[np.ndarray, ...]:
    """Return ``(down[M, N], up[N, M])``: the mean over thick slices, and back by interpolation.

    N voxels of the grid become M slices of ``thickness_mm`` without gaps, about the same center.
    """
    edges_mm = spacing_mm * (np.arange(size + 1) - size / 2)
    count = max(2, int(np.ceil(size * spacing_mm / thickness_mm)))
    centers_mm = thickness_mm * (np.arange(count) - (count - 1) / 2)
    low = np.maximum(edges_mm[:-1], centers_mm[:, None] - thickness_mm / 2)
    high = np.minimum(edges_mm[1:], centers_mm[:, None] + thickness_mm / 2)
    down = np.clip(high - low, 0, None)
    down /= np.maximum(down.sum(1, keepdims=True), _SHARPEST_MM)
    middle_mm = (edges_mm[:-1] + edges_mm[1:]) / 2
    distance = np.abs(middle_mm[:, None] - centers_mm) / thickness_mm
    up = np.clip(1 - distance, 0, 1)
    up /= up.sum(1, keepdims=True)
    return down, up


def _smooth_log_field(
    waves: np.ndarray, axes_dm: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> np.ndarray:
    """Return the sum of the waves; a wave over a grid is a product of three short vectors."""
    total = np.zeros(tuple(len(axis) for axis in axes_dm), dtype=np.float32)
    for *frequency, phase, amplitude in waves:
        x, y, z = (
            np.exp(1j * k * axis).astype(np.complex64)
            for k, axis in zip(frequency, axes_dm, strict=True)
        )
        sheet = (x * np.exp(1j * phase).astype(np.complex64))[:, None] * y
        total += np.float32(amplitude) * (sheet[:, :, None] * z).imag
    return total
