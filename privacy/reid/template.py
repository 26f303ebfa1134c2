"""The template: what all images of a gallery have in common, and how an image is laid onto it.

Every image, real or not, goes the one way of ``lay_onto``, by itself: its orientation and polarity
are found among all that a cube has, it is registered by an affine map of twelve parameters, and it
is smoothed a little. So a copy that was turned, mirrored, inverted, stretched or moved lies where
its source lies, and none of the filter's members needs to know of such disguises.

The frames of a clip have one pose: that of their mean, the clip's *still*. A template of clips is
one of stills, and what is found on a still is done to every frame.

Axes: B images, D H W as in NIfTI (the first is left-right), V voxels that are looked at, A the
coordinates of one. A picture has one voxel along D, and its left-right axis is W. In a clip D is
time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

from vitrael.core.errors import DataError
from vitrael.core.training.warps import Along
from vitrael.privacy.reid.maps import plausible, slopes_of, starts, turn, turns

_SMOOTH_VOX: Final = 1.0
"""Of what is registered, of 32 voxels or fewer an edge; in larger images in proportion."""
_USUAL_VOX: Final = 32
LAID_SMOOTH_VOX: Final = 0.7
"""Of what is compared: what a generator leaves of a scan is as smooth."""
_STEPS: Final = 12
_RIDGE: Final = 1e-4
_BRAIN: Final = 0.05
"""Mean intensity, in [0, 1], above which a voxel of the template is looked at."""
_TURNS: Final = 2
"""Orientations beside the one that an image has that are registered as well."""
_TURN_GAIN: Final = 0.01
"""By how much a turned image must agree better with the template to be taken as turned."""
_LOOKED_AT: Final = 40_000
"""Voxels that are enough to find twelve parameters by."""
_LEAST: Final = 1e-6
_LEAST_SHOWN: Final = 0.3
"""Of the template's mask, by a still."""
_TRIED: Final = 3
"""Of the starts of a still, registered."""
_CHUNK: Final = 64
_CHUNK_VOX: Final = _CHUNK * _USUAL_VOX**3


@dataclass(frozen=True, slots=True, repr=False)
class Template:
    """What images are registered to: a mirror-symmetric mean, and the solver of one step."""

    along: Along
    """What the first of an image's three axes is."""
    smooth_DHW: torch.Tensor
    near_DHW: torch.Tensor
    """bool: where registration looks; within two voxels of the brain, thinned out where many."""
    mask_DHW: torch.Tensor
    """bool: where similarity looks."""
    design_VP: torch.Tensor
    """[V, 14]: how intensities change with twelve affine parameters, gain and offset."""
    solver_PV: torch.Tensor
    """[14, V]: from an intensity difference to these."""
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


def fit_template(
    image_BCDHW: np.ndarray, *, along: Along = "space", device: str = "cpu"
) -> Template:
    """Return the template of a site's own scans: their mean, made symmetric, refined once.

    A scan that helped to make the template lacks what it gave to the mean, and is less like the
    others by about one over their number. So those whose scores are ranked together should all
    have helped, or none; a newcomer is that much more alike.
    What is registered and compared with it later happens on its device. Clips are told apart from
    volumes by ``along`` alone, nowhere by their shape.

    Raises DataError when there is no scan.
    """
    if len(image_BCDHW) == 0:
        raise DataError("a template needs at least one scan")
    still = still_of(volumes_of(image_BCDHW), along=along)
    first = _template_of(still.mean(0), along, device)
    registered = still_of(register(image_BCDHW, first), along=along)
    return _template_of(registered.mean(0).cpu(), along, device)


def still_of(volume_BDHW: torch.Tensor, *, along: Along) -> torch.Tensor:
    """Return the mean over time of clips, one voxel deep; volumes and pictures as they are."""
    return volume_BDHW if along == "space" else volume_BDHW.mean(1, keepdim=True)


def chunk_of(shape_DHW: tuple[int, ...]) -> int:
    """Return how many images of a shape are worked on at a time: 64 of 32 voxels an edge."""
    return int(np.clip(_CHUNK_VOX // max(1, int(np.prod(shape_DHW))), 1, _CHUNK))


@torch.no_grad()
def register(image_BCDHW: np.ndarray, template: Template) -> torch.Tensor:
    """Return ``[B, D, H, W]``: each image resampled onto the template, by itself.

    An image whose map leaves the plausible range stays where it is.
    """
    volumes = volumes_of(image_BCDHW).to(template.device)
    parts = [
        warp(part, _find_maps(still_of(part, along=template.along), template), template)
        for part in volumes.split(chunk_of(tuple(volumes.shape[1:])))
    ]
    return torch.cat(parts) if len(volumes) else volumes


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
    size = chunk_of(image_BCDHW.shape[2:])
    chunks = range(0, len(image_BCDHW), size)
    laid = [_lay_chunk(image_BCDHW[at : at + size], template) for at in chunks]
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


def smoothed(
    volume_BDHW: torch.Tensor, sigma_vox: float, *, along: Along = "space"
) -> torch.Tensor:
    """Return images after a Gaussian along every axis of space that has more than one voxel."""
    sizes = [1 if along == "time" else volume_BDHW.shape[1], *volume_BDHW.shape[2:]]
    sigma = [0.0, *(sigma_vox if size > 1 else 0.0 for size in sizes)]
    smooth = ndimage.gaussian_filter(volume_BDHW.cpu().numpy(), sigma)
    return torch.from_numpy(smooth).to(volume_BDHW.device)


def warp(volume_BDHW: torch.Tensor, maps_B44: torch.Tensor, template: Template) -> torch.Tensor:
    """Return images resampled through affine maps of homogeneous coordinates in [-1, 1].

    All frames of a clip go through its one map.
    """
    points = torch.einsum("bij,dhwj->bdhwi", maps_B44[:, :3], template.grid_DHWA)
    channel = 2 if template.along == "time" else 1
    return functional.grid_sample(
        volume_BDHW.unsqueeze(channel), points.flip(-1), align_corners=True, padding_mode="zeros"
    ).squeeze(channel)


def look(
    volume_BDHW: torch.Tensor, maps_B44: torch.Tensor, where_DHW: torch.Tensor, template: Template
) -> torch.Tensor:
    """Return ``[B, V]``: what ``warp`` of volumes or stills holds at some voxels."""
    points = torch.einsum("bij,vj->bvi", maps_B44[:, :3], template.grid_DHWA[where_DHW]).flip(-1)
    if volume_BDHW.shape[1] == 1:
        return functional.grid_sample(
            volume_BDHW, points[:, None, :, :2], align_corners=True, padding_mode="zeros"
        )[:, 0, 0]
    return functional.grid_sample(
        volume_BDHW[:, None], points[:, None, None], align_corners=True, padding_mode="zeros"
    )[:, 0, 0, 0]


def _find_maps(
    still_BDHW: torch.Tensor, template: Template, start_B44: torch.Tensor | None = None
) -> torch.Tensor:
    """Return ``[B, 4, 4]``: the affine map of each volume or still onto the template.

    Inverse compositional registration (Baker and Matthews 2004, section 3.2) of smoothed images,
    with gain and offset. Of a still only what lies within its picture counts.
    """
    smooth = smoothed(still_BDHW, _smooth_vox(tuple(still_BDHW.shape[1:])))
    target = template.smooth_DHW[template.near_DHW]
    nowhere = torch.eye(4, device=template.device).repeat(len(smooth), 1, 1)
    start = nowhere if start_B44 is None else start_B44
    maps = start.clone()
    for _ in range(_STEPS):
        difference = look(smooth, maps, template.near_DHW, template) - target
        if template.along == "space":
            found = difference @ template.solver_PV.T
        else:
            found = _solve_within(difference, _within(maps, template.near_DHW, template), template)
        step = nowhere.clone()
        step[:, :3] += found[:, :12].reshape(-1, 3, 4)
        maps = maps @ torch.linalg.inv(step)
    return torch.where(plausible(maps)[:, None, None], maps, start)


def _solve_within(
    difference_BV: torch.Tensor, weight_BV: torch.Tensor, template: Template
) -> torch.Tensor:
    """Return ``[B, 14]``: the step by weighted least squares, a solution for each image."""
    design = template.design_VP
    normal = torch.einsum("vp,bv,vq->bpq", design, weight_BV, design)
    scale = normal.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    eye = torch.eye(design.shape[1], device=design.device)
    right = (weight_BV * difference_BV) @ design
    found: torch.Tensor = torch.linalg.solve(normal + (_RIDGE * scale + _LEAST) * eye, right)
    return found


def _within(maps_B44: torch.Tensor, where_DHW: torch.Tensor, template: Template) -> torch.Tensor:
    """Return ``[B, V]``: 1 where a still that is mapped so shows something, 0 beyond its edges."""
    points = torch.einsum("bij,vj->bvi", maps_B44[:, 1:3], template.grid_DHWA[where_DHW])
    edges = torch.tensor(template.mask_DHW.shape[1:], device=points.device)
    beyond_px = (points.abs() - 1).clamp_min(0) * (edges - 1) / 2
    return (1 - beyond_px).clamp_min(0).prod(2)


def _smooth_vox(shape_DHW: tuple[int, ...]) -> float:
    return _SMOOTH_VOX * max(1.0, max(shape_DHW) / _USUAL_VOX)


def _lay_chunk(image_BCDHW: np.ndarray, template: Template) -> tuple[np.ndarray, np.ndarray]:
    along = template.along
    upright = volumes_of(image_BCDHW).to(template.device)
    still = still_of(upright, along=along)
    ways = list(turns(tuple(still.shape[1:]), mirror=template.mirror - 1))
    smooth = smoothed(still, _SMOOTH_VOX)
    agrees_TB = torch.stack(
        [_agreement(turn(smooth, way)[:, template.mask_DHW], template) for way in ways]
    )
    negative = -agrees_TB.amin(0) > agrees_TB.amax(0)
    volume = torch.where(negative[:, None, None, None], _inverted(upright), upright)
    turned_BT = torch.where(negative, -agrees_TB, agrees_TB)[1:].T
    upright, maps = volume, _find_maps(still_of(volume, along=along), template)
    agreement = _agrees(still_of(volume, along=along), maps, template) + _TURN_GAIN
    for choice in turned_BT.topk(min(_TURNS, turned_BT.shape[1]), dim=1).indices.T:
        turned = torch.stack(
            [turn(v[None], ways[1 + int(c)])[0] for v, c in zip(volume, choice, strict=True)]
        )
        found = _find_maps(still_of(turned, along=along), template)
        agrees = _agrees(still_of(turned, along=along), found, template)
        better = agrees > agreement
        maps = torch.where(better[:, None, None], found, maps)
        upright = torch.where(better[:, None, None, None], turned, upright)
        agreement = torch.where(better, agrees, agreement)
    if along == "time":
        maps = _try_starts(still_of(upright, along=along), maps, template)
    filled = _fill(warp(upright, maps, template), maps, template)
    laid = smoothed(filled, LAID_SMOOTH_VOX, along=along)
    return laid[:, None].cpu().numpy(), upright[:, None].cpu().numpy()


def _try_starts(
    still_BDHW: torch.Tensor, maps_B44: torch.Tensor, template: Template
) -> torch.Tensor:
    """Return the maps of stills, or better ones that were found from the most promising starts.

    The depth of an ultrasound picture is a setting, and a picture may be cut.
    """
    begun = starts(template.device)
    smooth = smoothed(still_BDHW, _SMOOTH_VOX)
    promise_SB = torch.stack([_agrees(smooth, one.expand_as(maps_B44), template) for one in begun])
    least = _agrees(still_BDHW, maps_B44, template) + _TURN_GAIN
    for choice in promise_SB.topk(_TRIED, dim=0).indices:
        found = _find_maps(still_BDHW, template, begun[choice])
        agrees = _agrees(still_BDHW, found, template)
        maps_B44 = torch.where((agrees > least)[:, None, None], found, maps_B44)
        least = torch.maximum(least, agrees)
    return maps_B44


def _agrees(still_BDHW: torch.Tensor, maps_B44: torch.Tensor, template: Template) -> torch.Tensor:
    """Return ``[B]``: the correlation with the template within its mask, once mapped.

    Of stills, over what they show; one that shows too little of it agrees with nothing.
    """
    seen = look(still_BDHW, maps_B44, template.mask_DHW, template)
    if template.along == "space":
        return _agreement(seen, template)
    weight = _within(maps_B44, template.mask_DHW, template)
    total = weight.sum(1, keepdim=True).clamp_min(1)
    mine, common = (
        weight.sqrt() * (one - (weight * one).sum(1, keepdim=True) / total)
        for one in (seen, template.common_V.expand_as(seen))
    )
    agrees = (
        functional.normalize(mine, dim=1, eps=1e-6) * functional.normalize(common, dim=1)
    ).sum(1)
    return torch.where(weight.mean(1) > _LEAST_SHOWN, agrees, -1.0)


def _fill(warped_BDHW: torch.Tensor, maps_B44: torch.Tensor, template: Template) -> torch.Tensor:
    """Return clips with the template, at their own gain and offset, beyond their picture's edges.

    What a cut has taken away is then nobody's, instead of being dark. Volumes stay as they are: a
    head has air around it.
    """
    if template.along == "space":
        return warped_BDHW
    mask, common_V = template.mask_DHW, template.common_V
    seen = still_of(warped_BDHW, along="time")[:, mask]
    within = _within(maps_B44, mask, template)
    total = within.sum(1, keepdim=True).clamp_min(1)
    level, usual = ((within * one).sum(1, keepdim=True) / total for one in (seen, common_V))
    off = common_V - usual
    gain = (within * off * (seen - level)).sum(1, keepdim=True)
    gain = gain / (within * off**2).sum(1, keepdim=True).clamp_min(_LEAST)
    filled = warped_BDHW.clone()
    filled[:, :, mask[0]] += ((1 - within) * (level + gain * off))[:, None]
    return filled


def _inverted(volume_BDHW: torch.Tensor) -> torch.Tensor:
    low, high = volume_BDHW.flatten(1).aminmax(dim=1)
    return (low + high)[:, None, None, None] - volume_BDHW


def _agreement(seen_BV: torch.Tensor, template: Template) -> torch.Tensor:
    """Return ``[B]``: the correlation of what lies within the mask with the template."""
    return _unit(seen_BV) @ template.common_V


def _unit(values_BV: torch.Tensor) -> torch.Tensor:
    return functional.normalize(values_BV - values_BV.mean(1, keepdim=True), dim=1, eps=1e-6)


def _template_of(mean_DHW: torch.Tensor, along: Along, device: str) -> Template:
    mean = (mean_DHW + mean_DHW.flip(mirror_axis(tuple(mean_DHW.shape)) - 1)) / 2
    mask = mean > _BRAIN
    if not mask.any():
        raise DataError("a template needs brains, and these scans are dark")
    near = _thinned(torch.from_numpy(ndimage.binary_dilation(mask.numpy(), iterations=2)))
    smooth = smoothed(mean[None], _smooth_vox(tuple(mean.shape)))[0]
    lines = [torch.linspace(-1, 1, n) if n > 1 else torch.zeros(1) for n in mean.shape]
    grid = torch.stack([*torch.meshgrid(*lines, indexing="ij"), torch.ones_like(mean)], -1)
    descent = slopes_of(smooth, grid, near)
    design = torch.cat([descent, smooth[near][:, None], torch.ones(int(near.sum()), 1)], 1)
    normal = design.T @ design
    ridge = _RIDGE * normal.diagonal().mean() * torch.eye(len(normal))
    solver = torch.linalg.solve(normal + ridge, design.T)
    common = functional.normalize(mean[mask] - mean[mask].mean(), dim=0)
    parts = (part.to(device) for part in (smooth, near, mask, design, solver, grid, common))
    return Template(along, *parts)


def _thinned(near_DHW: torch.Tensor) -> torch.Tensor:
    """Return the same voxels, or as many of them as are enough, evenly over the image."""
    place_V = near_DHW.flatten().nonzero()[:, 0]
    if len(place_V) <= _LOOKED_AT:
        return near_DHW
    chosen = place_V[torch.linspace(0, len(place_V) - 1, _LOOKED_AT).long()]
    return (
        torch.zeros(near_DHW.numel(), dtype=torch.bool)
        .index_fill(0, chosen, value=True)
        .view(near_DHW.shape)
    )
