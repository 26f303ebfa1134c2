"""What a scan loses, as linear maps: masked slices, thick slices, coarse grids.

Each map ``f`` takes images ``[B, C, D, H, W]`` or ``[B, C, H, W]`` to what was measured of them and
has its adjoint. ``axis`` counts the axes of space from 0: of a volume D, H, W, of a picture H, W.
Where a factor divides the grid, the centers of ``factor`` voxels and of the coarse voxel that
stands for them coincide; a grid that it does not divide is refused, never padded.

Every map here has ``f f* = P / gain`` with a projection ``P``, so ``gain f*`` is its
pseudo-inverse, and the image nearest to ``x`` that agrees with ``low`` is
``x + gain f*(low - f(x))``.

Axes: B C D H W; n voxels and m coarse voxels along one axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Protocol

import torch
from torch.nn import functional

from vitrael.core.errors import DataError, UsageError

_BEFORE_SPACE: Final = 2
"""B and C."""
_IMAGE_AXES: Final = (4, 5)


class Operator(Protocol):
    """A linear map ``f`` from an image to what was measured of it."""

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Return what is measured of an image."""

    def adjoint(self, low: torch.Tensor) -> torch.Tensor:
        """Return ``f* low`` on the full grid: ``<f x, y> = <x, f* y>``."""

    def upsample(self, low: torch.Tensor) -> torch.Tensor:
        """Return the cubic interpolation on the full grid: what any method must beat."""

    def project(self, image: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
        """Return the image nearest to ``image`` that agrees with ``low``.

        It is never farther from the truth than ``image`` where ``low`` holds no noise.
        """

    def observed(self, low: torch.Tensor) -> torch.Tensor:
        """Return 1 where ``low`` was measured and 0 elsewhere, to be broadcast over B and C."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Loses nothing: plain inversion of a generator."""

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Return the image."""
        return image

    def adjoint(self, low: torch.Tensor) -> torch.Tensor:
        """Return what is given."""
        return low

    def upsample(self, low: torch.Tensor) -> torch.Tensor:
        """Return what is given."""
        return low

    def project(self, image: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
        """Return ``low``, which already is the whole image."""
        return low.expand_as(image)

    def observed(self, low: torch.Tensor) -> torch.Tensor:
        """Return 1 everywhere."""
        return _everywhere(low)


@dataclass(frozen=True, slots=True)
class SliceMask:
    """Keeps every ``every``-th slice along ``axis`` from ``first`` on; the others become 0.

    The released InverseSR stands so for slices of ``every`` mm, and fills with 1: no loss sees it.
    Raises DataError for an image of which it keeps no slice.
    """

    axis: int
    every: int
    first: int = 0

    def __post_init__(self) -> None:
        """Raise UsageError unless slices can be counted so."""
        _demand_factor(self.every)
        if not 0 <= self.first < self.every:
            raise UsageError("the first slice is out of range", fix="choose from 0 to every - 1")

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Return the image with 0 in the slices that were not acquired."""
        return image * self.observed(image).to(image.dtype)

    def adjoint(self, low: torch.Tensor) -> torch.Tensor:
        """Return the same map again: a mask is its own adjoint."""
        return self(low)

    def upsample(self, low: torch.Tensor) -> torch.Tensor:
        """Return acquired slices and, between them, cubic interpolation along ``axis``."""
        axis = _tensor_axis(low, self.axis)
        size = low.shape[axis]
        acquired = low.narrow(axis, self.first, size - self.first)
        acquired = acquired[(slice(None),) * axis + (slice(None, None, self.every),)]
        rows = _cubic_rows(size, acquired.shape[axis], self.every, float(self.first))
        return self.project(_along(acquired, rows, axis), low)

    def project(self, image: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
        """Return the image with its acquired slices put back, exactly."""
        return torch.where(self.observed(low) > 0, low, image)

    def observed(self, low: torch.Tensor) -> torch.Tensor:
        """Return 1 in the acquired slices."""
        axis = _tensor_axis(low, self.axis)
        if self.first >= low.shape[axis]:
            raise _nothing_seen()
        slices = torch.arange(low.shape[axis], device=low.device) % self.every == self.first
        lines = slices.reshape(-1, *[1] * (low.ndim - 1 - axis))
        return lines.expand(1, 1, *low.shape[_BEFORE_SPACE:]).float()


@dataclass(frozen=True, slots=True, eq=False)
class VoxelMask:
    """Keeps the voxels where ``mask`` (bool, the shape of space) is True; the others become 0.

    Raises DataError for a mask that hides everything or that has another shape than the image.
    """

    mask: torch.Tensor

    def __post_init__(self) -> None:
        """Raise DataError unless the mask shows something."""
        if self.mask.dtype != torch.bool or self.mask.ndim + _BEFORE_SPACE not in _IMAGE_AXES:
            raise DataError("the mask is not a plane or volume of truth values")
        if not self.mask.any():
            raise _nothing_seen()

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Return the image with 0 in the voxels that were not acquired."""
        return image * self.observed(image).to(image.dtype)

    def adjoint(self, low: torch.Tensor) -> torch.Tensor:
        """Return the same map again: a mask is its own adjoint."""
        return self(low)

    def upsample(self, low: torch.Tensor) -> torch.Tensor:
        """Return acquired voxels and, ring by ring around them, means of known neighbors.

        A mask has no grid of its own on which to lay cubics.
        """
        pool = (functional.avg_pool2d, functional.avg_pool3d)[self.mask.ndim - 2]
        known = self.observed(low).to(low.dtype)
        image = low * known
        for _ in range(max(low.shape[_BEFORE_SPACE:])):  # rings that a grid can need at most
            if known.all():
                break
            share = pool(known, 3, stride=1, padding=1)
            grown = pool(image, 3, stride=1, padding=1) / share.clamp_min(1e-6)
            image = torch.where(known > 0, image, grown * (share > 0))
            known = (share > 0).to(low.dtype)
        return image

    def project(self, image: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
        """Return the image with its acquired voxels put back, exactly."""
        return torch.where(self.observed(low) > 0, low, image)

    def observed(self, low: torch.Tensor) -> torch.Tensor:
        """Return 1 in the acquired voxels."""
        if low.shape[_BEFORE_SPACE:] != self.mask.shape:
            raise DataError(
                f"a mask of {tuple(self.mask.shape)} voxels does not fit the image",
                fix="give a mask on the grid of the image",
            )
        return self.mask.to(low.device)[None, None].float()


@dataclass(frozen=True, slots=True)
class ThickSlices:
    """Averages ``factor`` slices along ``axis`` into one: a rectangular slice profile, no gap."""

    axis: int
    factor: int

    def __post_init__(self) -> None:
        """Raise UsageError unless slices can be put together so."""
        _demand_factor(self.factor)

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Return the image with ``n / factor`` slices."""
        axis = _tensor_axis(image, self.axis)
        return _along(image, _mean_rows(_divided(image, axis, self.factor), self.factor), axis)

    def adjoint(self, low: torch.Tensor) -> torch.Tensor:
        """Return each thick slice spread evenly over its thin ones."""
        axis = _tensor_axis(low, self.axis)
        return _along(low, _mean_rows(low.shape[axis], self.factor).mT, axis)

    def upsample(self, low: torch.Tensor) -> torch.Tensor:
        """Return the cubic interpolation along ``axis``."""
        return _interpolate(low, [self.axis], self.factor)

    def project(self, image: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
        """Return the image with what is missing of each thick slice added to its thin ones."""
        return image + self.factor * self.adjoint(low - self(image))

    def observed(self, low: torch.Tensor) -> torch.Tensor:
        """Return 1 everywhere."""
        return _everywhere(low)


@dataclass(frozen=True, slots=True)
class Downsample:
    """Samples every axis ``factor`` times more coarsely, linearly and without smoothing.

    An even factor takes the mean of the two voxels nearest to a coarse center, an odd one the
    voxel at it, as InverseSR's trilinear resizing does.
    """

    factor: int

    def __post_init__(self) -> None:
        """Raise UsageError unless the grid can be coarsened so."""
        _demand_factor(self.factor)

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Return the image with ``n / factor`` voxels along each axis."""
        for axis in _space(image):
            rows = _linear_rows(_divided(image, axis, self.factor), self.factor)
            image = _along(image, rows, axis)
        return image

    def adjoint(self, low: torch.Tensor) -> torch.Tensor:
        """Return each coarse voxel given back to those that it was taken from."""
        for axis in _space(low):
            low = _along(low, _linear_rows(low.shape[axis], self.factor).mT, axis)
        return low

    def upsample(self, low: torch.Tensor) -> torch.Tensor:
        """Return the cubic interpolation along every axis."""
        return _interpolate(low, range(low.ndim - _BEFORE_SPACE), self.factor)

    def project(self, image: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
        """Return the image with what is missing added to the sampled voxels alone."""
        gain = 1 if self.factor % 2 else 2 ** (image.ndim - _BEFORE_SPACE)
        return image + gain * self.adjoint(low - self(image))

    def observed(self, low: torch.Tensor) -> torch.Tensor:
        """Return 1 everywhere."""
        return _everywhere(low)


def _along(image: torch.Tensor, rows: torch.Tensor, axis: int) -> torch.Tensor:
    """Return an image whose lines along an axis were multiplied by a matrix."""
    lines: torch.Tensor = torch.tensordot(image, rows.to(image), dims=([axis], [1]))
    return lines.movedim(-1, axis)


def _interpolate(low: torch.Tensor, axes: Sequence[int], factor: int) -> torch.Tensor:
    for axis in (_tensor_axis(low, axis) for axis in axes):
        count = low.shape[axis]
        rows = _cubic_rows(count * factor, count, factor, (factor - 1) / 2)
        low = _along(low, rows, axis)
    return low


@lru_cache(maxsize=64)
def _mean_rows(count: int, factor: int) -> torch.Tensor:
    """Return ``[m, n]``: means of ``factor`` neighbors."""
    return torch.eye(count, dtype=torch.float64).repeat_interleave(factor, dim=1) / factor


@lru_cache(maxsize=64)
def _linear_rows(count: int, factor: int) -> torch.Tensor:
    """Return ``[m, n]``: the one or two voxels in the middle of ``factor`` neighbors."""
    middle = torch.zeros(factor, dtype=torch.float64)
    middle[(factor - 1) // 2 : factor // 2 + 1] = 1
    return torch.kron(torch.eye(count, dtype=torch.float64), middle[None] / middle.sum())


@lru_cache(maxsize=64)
def _cubic_rows(size: int, count: int, factor: int, first: float) -> torch.Tensor:
    """Return ``[n, m]``: cubic convolution (Keys 1981, equation 15, a = -1/2), edges repeated.

    Coarse voxel ``j`` lies at ``first + factor * j`` of the fine grid.
    """
    place = (torch.arange(size, dtype=torch.float64) - first) / factor
    rows = torch.zeros(size, count, dtype=torch.float64)
    for tap in range(-1, 3):
        index = place.floor() + tap
        x = (place - index).abs()
        near = 1.5 * x**3 - 2.5 * x**2 + 1
        far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        weight = torch.where(x <= 1, near, far)
        kept = index.clamp(0, count - 1).long()
        rows.scatter_add_(1, kept[:, None], weight[:, None])
    return rows


def _everywhere(low: torch.Tensor) -> torch.Tensor:
    return torch.ones(1, 1, *low.shape[_BEFORE_SPACE:], device=low.device)


def _space(image: torch.Tensor) -> range:
    if image.ndim not in _IMAGE_AXES:
        raise DataError(
            f"the image has a wrong number of axes, {image.ndim}",
            fix="give B, C and two or three axes of space",
        )
    return range(_BEFORE_SPACE, image.ndim)


def _tensor_axis(image: torch.Tensor, axis: int) -> int:
    space = _space(image)
    if not 0 <= axis < len(space):
        raise DataError(
            f"axis {axis} is not one of the image's {len(space)} axes of space",
            fix="count the axes of space from 0",
        )
    return space[axis]


def _divided(image: torch.Tensor, axis: int, factor: int) -> int:
    if image.shape[axis] % factor:
        raise DataError(
            f"{image.shape[axis]} voxels do not divide by {factor}",
            fix=f"crop or pad the image to a multiple of {factor}",
        )
    return image.shape[axis] // factor


def _demand_factor(factor: int) -> None:
    if factor < 1:
        raise UsageError("a factor below 1 loses nothing", fix="choose 1 or more")


def _nothing_seen() -> DataError:
    return DataError("the mask hides everything", fix="keep at least one slice or voxel")
