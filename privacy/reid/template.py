"""The template: what all images of a gallery have in common, and how an image is laid onto it.

Every image, real or not, goes the one way of ``lay_onto``, by itself: its orientation and polarity
are found among all that a cube has, it is registered by an affine map of twelve parameters, and it
is smoothed a little. So a copy that was turned, mirrored, inverted, stretched or moved lies where
its source lies, and none of the filter's members needs to know of such disguises.

Axes: B images, D H W as in NIfTI (the first is left-right), V voxels within the mask. A picture has
one voxel along D, and its left-right axis is W.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

from vitrael.core.errors import DataError

_SMOOTH_VOX: Final = 1.0
"""Of what is registered."""
LAID_SMOOTH_VOX: Final = 0.7
"""Of what is compared: what a generator leaves of a scan is as smooth."""
_STEPS: Final = 12
_RIDGE: Final = 1e-4
_BRAIN: Final = 0.05
"""Mean intensity, in [0, 1], above which a voxel of the template is looked at."""
_LARGEST_STRETCH: Final = 2.0
_TURNS: Final = 2
"""Orientations beside the one that an image has that are registered as well."""
_TURN_GAIN: Final = 0.01
"""By how much a turned image must agree better with the template to be taken as turned."""
_CHUNK: Final = 64


@dataclass(frozen=True, slots=True, repr=False)
class Template:
    """What images are registered to: a mirror-symmetric mean, and the solver of one step."""

    smooth_DHW: torch.Tensor
    near_DHW: torch.Tensor
    """bool: where registration looks; the brain and two voxels around it."""
    mask_DHW: torch.Tensor
    """bool: where similarity looks."""
    solver_PV: torch.Tensor
    """[14, V]: from an intensity difference to twelve affine parameters, gain and offset."""
    grid_DHWA: torch.Tensor
    """[D, H, W, 4]: homogeneous coordinates in [-1, 1]."""
    common_V: torch.Tensor
    """What all brains share: the mean within the mask, centred, unit length."""

    @property
    def mirror(self) -> int:
        """The axis of an image ``[B, D, H, W]`` that runs from left to right."""
        return mirror_axis(tuple(self.mask_DHW.shape))

    @property
    def device(self) -> torch.device:
        """Where images are registered and compared."""
        return self.grid_DHWA.device


def mirror_axis(shape_DHW: tuple[int, ...]) -> int:
    """Return which axis of ``[B, D, H, W]`` runs from left to right: D, and W in pictures."""
    return 1 if shape_DHW[0] > 1 else 3


def fit_template(image_BCDHW: np.ndarray, *, device: str = "cpu") -> Template:
    """Return the template of a site's own scans: their mean, made symmetric, refined once.

    A scan that helped to make the template lacks what it gave to the mean, and is less like the
    others by about one over their number. So those whose scores are ranked together should all
    have helped, or none; a newcomer is that much more alike.
    What is registered and compared with it later happens on its device.

    Raises DataError when there is no scan.
    """
    if len(image_BCDHW) == 0:
        raise DataError("a template needs at least one scan")
    first = _template_of(volumes_of(image_BCDHW).mean(0), device)
    return _template_of(register(image_BCDHW, first).mean(0).cpu(), device)


@torch.no_grad()
def register(image_BCDHW: np.ndarray, template: Template) -> torch.Tensor:
    """Return ``[B, D, H, W]``: each volume resampled onto the template.

    Inverse compositional registration (Baker and Matthews 2004, section 3.2) of smoothed images,
    with gain and offset. A volume whose map leaves the plausible range stays where it is.
    """
    volumes = volumes_of(image_BCDHW)
    device = template.device
    if not len(volumes):
        return volumes.to(device)
    smooth = smoothed(volumes, _SMOOTH_VOX).to(device)
    volumes = volumes.to(device)
    target = template.smooth_DHW[template.near_DHW]
    start = torch.eye(4, device=device).repeat(len(volumes), 1, 1)
    maps = start.clone()
    for _ in range(_STEPS):
        difference = warp(smooth, maps, template)[:, template.near_DHW] - target
        step = start.clone()
        step[:, :3] += (difference @ template.solver_PV.T)[:, :12].reshape(-1, 3, 4)
        maps = maps @ torch.linalg.inv(step)
    maps = torch.where(plausible(maps)[:, None, None], maps, start)
    return warp(volumes, maps, template)


@torch.no_grad()
def lay_onto(image_BCDHW: np.ndarray, template: Template) -> np.ndarray:
    """Return ``[B, 1, D, H, W]`` float32: each image upright, registered and smoothed, by itself.

    The orientation is the one whose registered form agrees best with the template, among that of
    the image and the two that agree best before registration; an image that agrees better as its
    own negative is inverted. The left-right mirror image is not told apart: the template has two
    equal halves. The result for one image does not depend on the others. Raises DataError for
    values that are not finite.
    """
    return lay_both_ways(image_BCDHW, template)[0]


@torch.no_grad()
def lay_both_ways(image_BCDHW: np.ndarray, template: Template) -> tuple[np.ndarray, np.ndarray]:
    """Return images as ``lay_onto`` does, and the same upright, neither registered nor smoothed.

    A copy of which much is missing or a stranger's misleads registration, and lies where it lay.
    """
    chunks = range(0, len(image_BCDHW), _CHUNK)
    laid = [_lay_chunk(image_BCDHW[at : at + _CHUNK], template) for at in chunks]
    if not laid:
        nothing = np.asarray(image_BCDHW, dtype=np.float32)
        return nothing, nothing
    registered, upright = (np.concatenate(way) for way in zip(*laid, strict=True))
    return registered, upright


def volumes_of(image_BCDHW: np.ndarray) -> torch.Tensor:
    """Return ``[B, D, H, W]`` float32; raise DataError for values that are not finite."""
    image = torch.from_numpy(np.ascontiguousarray(image_BCDHW[:, 0], dtype=np.float32))
    if not torch.isfinite(image).all():
        raise DataError("an image to compare holds values that are not finite")
    return image


def smoothed(volume_BDHW: torch.Tensor, sigma_vox: float) -> torch.Tensor:
    """Return the volumes after a Gaussian along every axis that has more than one voxel."""
    sigma = [0.0, *(sigma_vox if size > 1 else 0.0 for size in volume_BDHW.shape[1:])]
    return torch.from_numpy(ndimage.gaussian_filter(volume_BDHW.cpu().numpy(), sigma))


def warp(volume_BDHW: torch.Tensor, maps_B44: torch.Tensor, template: Template) -> torch.Tensor:
    """Return the volumes resampled through affine maps of homogeneous coordinates in [-1, 1]."""
    points = torch.einsum("bij,dhwj->bdhwi", maps_B44[:, :3], template.grid_DHWA)
    return functional.grid_sample(
        volume_BDHW[:, None], points.flip(-1), align_corners=True, padding_mode="zeros"
    )[:, 0]


def plausible(maps_B44: torch.Tensor) -> torch.Tensor:
    """Return whether each map is finite and stretches no axis by more than a factor of two."""
    finite = torch.isfinite(maps_B44).flatten(1).all(1)
    safe = torch.where(finite[:, None, None], maps_B44, torch.eye(4, device=maps_B44.device))
    stretch = torch.linalg.svdvals(safe[:, :3, :3])
    within = (stretch[:, 0] < _LARGEST_STRETCH) & (stretch[:, -1] > 1 / _LARGEST_STRETCH)
    near = safe[:, :3, 3].abs().amax(1) < 1
    return torch.stack([finite, within, near]).all(0)


def slopes_of(smooth_DHW: torch.Tensor, grid_DHWA: torch.Tensor) -> torch.Tensor:
    """Return ``[D, H, W, 12]``: how an image changes with each parameter of an affine map."""
    axes = [axis for axis, size in enumerate(smooth_DHW.shape) if size > 1]
    spacing = [2 / (smooth_DHW.shape[axis] - 1) for axis in axes]
    slope = torch.zeros((*smooth_DHW.shape, 3), device=smooth_DHW.device)
    found = torch.gradient(smooth_DHW, spacing=spacing, dim=axes)
    for axis, values in zip(axes, found, strict=True):
        slope[..., axis] = values
    return (slope[..., :, None] * grid_DHWA[..., None, :]).flatten(-2)


def _lay_chunk(image_BCDHW: np.ndarray, template: Template) -> tuple[np.ndarray, np.ndarray]:
    volume = volumes_of(image_BCDHW)
    turns = list(_turns(tuple(volume.shape[1:])))
    smooth = smoothed(volume, _SMOOTH_VOX)
    agrees_TB = torch.stack([_agreement(_turn(smooth, turn), template) for turn in turns])
    negative = -agrees_TB.amin(0) > agrees_TB.amax(0)
    volume = torch.where(negative[:, None, None, None], _inverted(volume), volume)
    turned_BT = torch.where(negative, -agrees_TB, agrees_TB)[1:].T
    upright, best = volume, register(volume[:, None].numpy(), template).cpu()
    agreement = _agreement(best, template) + _TURN_GAIN
    for choice in turned_BT.topk(min(_TURNS, turned_BT.shape[1]), dim=1).indices.T:
        turned = torch.stack(
            [_turn(v[None], turns[1 + int(c)])[0] for v, c in zip(volume, choice, strict=True)]
        )
        registered = register(turned[:, None].numpy(), template).cpu()
        agrees = _agreement(registered, template)
        better = agrees > agreement
        best = torch.where(better[:, None, None, None], registered, best)
        upright = torch.where(better[:, None, None, None], turned, upright)
        agreement = torch.where(better, agrees, agreement)
    return smoothed(best, LAID_SMOOTH_VOX)[:, None].numpy(), upright[:, None].numpy()


def _turns(shape_DHW: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield orders of the axes and axes to reverse, that of the image first, mirrored ones once."""
    mirror = mirror_axis(shape_DHW) - 1
    free = [axis for axis in range(3) if shape_DHW[axis] > 1]
    for order in itertools.permutations(range(3)):
        if tuple(shape_DHW[axis] for axis in order) != shape_DHW:
            continue
        if any(order[axis] != axis for axis in range(3) if axis not in free):
            continue
        others = [axis for axis in free if axis != mirror]
        for count in range(len(others) + 1):
            for reverse in itertools.combinations(others, count):
                yield order, reverse


def _turn(volume_BDHW: torch.Tensor, turn: tuple[tuple[int, ...], tuple[int, ...]]) -> torch.Tensor:
    order, reverse = turn
    turned = volume_BDHW.permute(0, *(1 + axis for axis in order))
    return turned.flip([1 + axis for axis in reverse]).contiguous() if reverse else turned


def _inverted(volume_BDHW: torch.Tensor) -> torch.Tensor:
    low, high = volume_BDHW.flatten(1).aminmax(dim=1)
    return (low + high)[:, None, None, None] - volume_BDHW


def _agreement(laid_BDHW: torch.Tensor, template: Template) -> torch.Tensor:
    """Return ``[B]``: the correlation with the template within its mask."""
    mask = template.mask_DHW.cpu()
    return _unit(laid_BDHW[:, mask]) @ template.common_V.cpu()


def _unit(values_BV: torch.Tensor) -> torch.Tensor:
    return functional.normalize(values_BV - values_BV.mean(1, keepdim=True), dim=1, eps=1e-6)


def _template_of(mean_DHW: torch.Tensor, device: str) -> Template:
    mean = (mean_DHW + mean_DHW.flip(mirror_axis(tuple(mean_DHW.shape)) - 1)) / 2
    mask = mean > _BRAIN
    if not mask.any():
        raise DataError("a template needs brains, and these scans are dark")
    near = torch.from_numpy(ndimage.binary_dilation(mask.numpy(), iterations=2))
    smooth = smoothed(mean[None], _SMOOTH_VOX)[0]
    lines = [torch.linspace(-1, 1, n) if n > 1 else torch.zeros(1) for n in mean.shape]
    grid = torch.stack([*torch.meshgrid(*lines, indexing="ij"), torch.ones_like(mean)], -1)
    descent = slopes_of(smooth, grid)[near]
    design = torch.cat([descent, smooth[near][:, None], torch.ones(int(near.sum()), 1)], 1)
    normal = design.T @ design
    ridge = _RIDGE * normal.diagonal().mean() * torch.eye(len(normal))
    solver = torch.linalg.solve(normal + ridge, design.T)
    common = functional.normalize(mean[mask] - mean[mask].mean(), dim=0)
    parts = (smooth, near, mask, solver, grid, common)
    return Template(*(part.to(device) for part in parts))
