"""Structural similarity of two images: several scales, and four components of the gradient.

Both work on batches of pairs ``[B, 1, H, W]`` or ``[B, 1, D, H, W]`` with Gaussian windows of 11
pixels (standard deviation 1.5), whose axes are taken one by one: a volume costs 33 products for
each voxel and not 1331. The window never leaves the image. Axes: B pairs, D H W.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch.nn import functional

from vitrael.core.errors import DataError

WINDOW_PX: Final = 11
SCALE_WEIGHTS: Final = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Of Wang et al. 2003, from the finest scale on."""
FULL_SIDE_PX: Final = 161
"""The shortest side that has room for the window at all five scales."""

_SIGMA_PX: Final = 1.5
_STABLE: Final = (0.01, 0.03)
_EDGE, _SMOOTH = 0.12, 0.06
_FLAT: Final = 1e-3
_AXES: Final = (4, 5)


class _Moments(NamedTuple):
    """Means, variances and covariance in each window."""

    mean_x: torch.Tensor
    mean_y: torch.Tensor
    var_x: torch.Tensor
    var_y: torch.Tensor
    both: torch.Tensor


def scales_of(side_px: int) -> int:
    """Return how many halvings of a side, the first one none, have room for the window: 1 to 5."""
    scales = 1
    while scales < len(SCALE_WEIGHTS) and (side_px := -(-side_px // 2)) >= WINDOW_PX:
        scales += 1
    return scales


def ms_ssim(x: torch.Tensor, y: torch.Tensor, *, data_range: float = 1.0) -> torch.Tensor:
    """Return the multi-scale structural similarity of each pair, ``[B]``, in [0, 1].

    Contrast and structure at every scale, luminance at the coarsest, each to the power of its
    weight (Wang, Simoncelli and Bovik 2003, equation 7). Below 161 px there are fewer scales: the
    first weights, scaled to sum to 1; below 11 px the window is as wide as the image allows.
    Such values are not those of full size. ``data_range`` is that of the intensities. Raises
    DataError for batches of other shapes.
    """
    _check(x, y)
    scales = scales_of(min(x.shape[2:]))
    weights = torch.tensor(SCALE_WEIGHTS[:scales], dtype=x.dtype, device=x.device)
    weights = weights / weights.sum()
    c1, c2 = ((k * data_range) ** 2 for k in _STABLE)
    terms = []
    for scale in range(scales):
        m = _moments(x, y)
        term = (2 * m.both + c2) / (m.var_x + m.var_y + c2)
        if scale == scales - 1:
            light = (2 * m.mean_x * m.mean_y + c1) / (m.mean_x**2 + m.mean_y**2 + c1)
            term = term * light
        terms.append(term.flatten(1).mean(1).clamp_min(0))
        x, y = _halve(x), _halve(y)
    return (torch.stack(terms, 1) ** weights).prod(1)


def four_component_r(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the four-component gradient similarity 4-G-r* of each pair, ``[B]``, in [-1, 1].

    1. *Gradient*: both images are replaced by the magnitude of their Sobel gradient (Chen et al.
       2006, G-SSIM), in 3D with a Sobel operator of three axes.
    2. *Structure only*: in each window ``r* = cov / (sd_x sd_y)``; 1 where neither image varies, 0
       where one alone does (Rouse and Hemami 2008, equation 5). No constant, no luminance, no
       contrast. A window that varies by less than a thousandth of the image's largest gradient
       counts as flat, or the rounding of a scan's empty air would be compared.
    3. *Four components*: a pixel is a **preserved edge** where both gradients exceed 0.12 of the
       largest, a **changed edge** where one alone does, **smooth** where both are below 0.06,
       and **texture** elsewhere (Li and Bovik 2010, section 3). They take the largest of the
       reference; here each image has its own, so that neither is the reference: x and y may
       change places, and intensities may be scaled or shifted.
    4. *Pooling*: the mean of r* in each component, and of the four with equal weights (Renieblas
       et al. 2017, 4-G-r*). A component without a pixel gives its weight to the others.

    An image with itself gives 1. Two unrelated ones of white noise give about 0.1 and not 0 (0.09
    in planes, 0.04 in volumes): sorting pixels by both gradients keeps together what happens to
    agree. What is flat in both, such as the air around two heads, counts as smooth and alike. So
    read it beside real pairs on the same grid. It works in float64. Raises DataError as
    ``ms_ssim``.
    """
    _check(x, y)
    gx, gy = _gradient(x.double()), _gradient(y.double())
    m = _moments(gx, gy)
    most_x, most_y = _largest(gx), _largest(gy)
    deviation_x, deviation_y = m.var_x.clamp_min(0).sqrt(), m.var_y.clamp_min(0).sqrt()
    flat_x, flat_y = deviation_x <= _FLAT * most_x, deviation_y <= _FLAT * most_y
    product = (deviation_x * deviation_y).clamp_min(torch.finfo(torch.float64).tiny)
    r = (m.both / product).clamp(-1, 1)
    r = torch.where(flat_x | flat_y, (flat_x & flat_y).to(r.dtype), r)
    at_x, at_y = _crop(gx, r), _crop(gy, r)
    edge_x, edge_y = at_x > _EDGE * most_x, at_y > _EDGE * most_y
    smooth = (at_x <= _SMOOTH * most_x) & (at_y <= _SMOOTH * most_y)
    parts = (edge_x & edge_y, edge_x ^ edge_y, smooth, ~(edge_x | edge_y | smooth))
    counts = torch.stack([part.flatten(1).sum(1) for part in parts], 1)
    sums = torch.stack([(r * part).flatten(1).sum(1) for part in parts], 1)
    return (sums / counts.clamp_min(1)).sum(1) / (counts > 0).sum(1)


def _check(x: torch.Tensor, y: torch.Tensor) -> None:
    if x.ndim not in _AXES or x.shape[1] != 1 or x.shape != y.shape:
        raise DataError(
            "two batches cannot be compared pair by pair",
            why=f"they are {list(x.shape)} and {list(y.shape)}",
            fix="give two batches [B, 1, H, W] or [B, 1, D, H, W] of one shape",
        )


def _moments(x: torch.Tensor, y: torch.Tensor) -> _Moments:
    # about the mean of the pair's pixels: squares of large offsets would swallow the variance
    axes = tuple(range(1, x.ndim))
    x0, y0 = x.mean(axes, keepdim=True), y.mean(axes, keepdim=True)
    dx, dy = x - x0, y - y0
    stack = torch.cat([dx, dy, dx * dx, dy * dy, dx * dy], 1)
    mx, my, xx, yy, xy = _blur(stack).split(1, 1)
    return _Moments(mx + x0, my + y0, xx - mx * mx, yy - my * my, xy - mx * my)


def _blur(x: torch.Tensor) -> torch.Tensor:
    """Return the means in Gaussian windows that lie wholly inside, axis by axis."""
    for axis in range(2, x.ndim):
        size = min(WINDOW_PX, x.shape[axis])
        taps = [math.exp(-(((i - (size - 1) / 2) / _SIGMA_PX) ** 2) / 2) for i in range(size)]
        x = _convolve(x, [tap / sum(taps) for tap in taps], axis)
    return x


def _gradient(x: torch.Tensor) -> torch.Tensor:
    """Return the magnitude of the Sobel gradient, shaped like ``x``; the border is repeated."""
    smooth, slope = (0.25, 0.5, 0.25), (-0.5, 0.0, 0.5)
    axes = range(2, x.ndim)
    padded = functional.pad(x, (1, 1) * len(axes), mode="replicate")
    square = torch.zeros_like(x)
    for along in axes:
        part = padded
        for axis in axes:
            part = _convolve(part, slope if axis == along else smooth, axis)
        square = square + part * part
    return square.sqrt()


def _convolve(x: torch.Tensor, taps: Sequence[float], axis: int) -> torch.Tensor:
    length = x.shape[axis] - len(taps) + 1
    total = x.narrow(axis, 0, length) * taps[0]
    for place, tap in enumerate(taps[1:], start=1):
        total.add_(x.narrow(axis, place, length), alpha=tap)
    return total


def _largest(gradient: torch.Tensor) -> torch.Tensor:
    """Return the largest value of each image, with axes to compare the image with."""
    return gradient.amax(tuple(range(1, gradient.ndim)), keepdim=True)


def _crop(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return the middle of ``x`` that the windows of ``like`` stand over."""
    for axis in range(2, x.ndim):
        margin = (x.shape[axis] - like.shape[axis]) // 2
        x = x.narrow(axis, margin, like.shape[axis])
    return x


def _halve(x: torch.Tensor) -> torch.Tensor:
    pool = functional.avg_pool2d if x.ndim == _AXES[0] else functional.avg_pool3d
    return torch.as_tensor(pool(x, 2, ceil_mode=True))
