"""What two images that should be equal differ by: one number for each pair, in named metrics.

Axes: B batch (pairs), then channels and two or three axes of space.
"""

from __future__ import annotations

from typing import Final

import torch

from vitrael.core.sampling.edges import halvings, slopes

_FLAT: Final = 1e-3
"""Standard deviation of intensities in [0, 1] below which an image counts as flat."""

START_METRICS: Final = (
    *("square", "gradient", "offset", "contrast", "sharpness", "latent", "one_step"),
)
"""Of every start level: image errors, signed differences of looks, errors of the latent."""
IMAGE_METRICS: Final = ("codec_square", "codec_gradient", "latent_energy")
"""Once for every image: errors of the codec alone, and how large the latent is."""


def compare_images(x: torch.Tensor, other: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return five metrics of pairs, each ``[B]``: two errors and three signed differences of looks.

    ``square`` and ``gradient`` are zero for equal images. ``offset`` is the mean of ``x - other``;
    ``contrast`` and ``sharpness`` are logarithms of the ratio of their standard deviations and of
    their root mean square gradients. Signed metrics see an image that is reconstructed too well
    because it is flatter or smoother than any that was learned.
    """
    error = x - other
    spread, other_spread = (_flat(image).std(dim=1, correction=0) for image in (x, other))
    edges, other_edges = (_difference_energy(image).sqrt() for image in (x, other))
    return {
        "square": mean_square(error),
        "gradient": gradient_error(error),
        "offset": _flat(error).mean(dim=1),
        "contrast": ((spread + _FLAT) / (other_spread + _FLAT)).log(),
        "sharpness": ((edges + _FLAT) / (other_edges + _FLAT)).log(),
    }


def mean_square(values: torch.Tensor) -> torch.Tensor:
    """Return the mean of squares of each row, ``[B]``."""
    return _flat(values).square().mean(dim=1)


def gradient_error(error: torch.Tensor) -> torch.Tensor:
    """Return the multi-scale gradient error ``[B]`` of differences between images.

    It is the mean square of finite differences, summed over the axes of space and averaged over
    scales, as ``core.sampling.edges`` halves them (the distance there is of absolute values). It
    stands in for LPIPS where no weights can be had: both care for edges and texture more than for
    level.
    """
    return torch.stack([_difference_energy(scale) for scale in halvings(error)]).mean(dim=0)


def _difference_energy(error: torch.Tensor) -> torch.Tensor:
    return torch.stack([mean_square(slope) for slope in slopes(error)]).sum(0)


def _flat(values: torch.Tensor) -> torch.Tensor:
    return values.flatten(1)
