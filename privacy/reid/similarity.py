"""Registered similarity: how much of one brain's own form another shares, whatever its pose.

Every scan, real or not, is registered to one template by an affine map of twelve parameters; then
what all brains have in common (the template itself, at whatever gain) is taken away, and the rest
is compared by normalized cross-correlation inside the template's mask, over small translations
and over the left-right mirror image. Strangers correlate near 0.4, copies near 1. Registration
and plain image similarity link brain scans of one person almost without error (Sharma et al.
2026, arXiv 2602.10043), so an intruder needs no more.

Axes: B candidates, N scans of the gallery, D H W as in NIfTI (the first is left-right), V voxels.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

from vitrael.core.errors import DataError

_SMOOTH_VOX = 1.0
_STEPS = 12
_RIDGE = 1e-4
_BRAIN = 0.05
"""Mean intensity, in [0, 1], above which a voxel of the template is brain."""
_LARGEST_STRETCH = 2.0


@dataclass(frozen=True, slots=True, repr=False)
class Template:
    """What scans are registered to: a mirror-symmetric mean, and the solver of one step."""

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
    first = _template_of(_volumes(image_BCDHW).mean(0), device)
    return _template_of(register(image_BCDHW, first).mean(0).cpu(), device)


@torch.no_grad()
def register(image_BCDHW: np.ndarray, template: Template) -> torch.Tensor:
    """Return ``[B, D, H, W]``: each volume resampled onto the template.

    Inverse compositional registration (Baker and Matthews 2004, section 3.2) of smoothed images,
    with gain and offset. A volume whose map leaves the plausible range stays where it is.
    """
    volumes = _volumes(image_BCDHW)
    device = template.grid_DHWA.device
    if not len(volumes):
        return volumes.to(device)
    sigma = (0, _SMOOTH_VOX, _SMOOTH_VOX, _SMOOTH_VOX)
    smooth = torch.from_numpy(ndimage.gaussian_filter(volumes.numpy(), sigma)).to(device)
    volumes = volumes.to(device)
    target = template.smooth_DHW[template.near_DHW]
    start = torch.eye(4, device=device).repeat(len(volumes), 1, 1)
    maps = start.clone()
    for _ in range(_STEPS):
        difference = _warp(smooth, maps, template)[:, template.near_DHW] - target
        step = start.clone()
        step[:, :3] += (difference @ template.solver_PV.T)[:, :12].reshape(-1, 3, 4)
        maps = maps @ torch.linalg.inv(step)
    maps = torch.where(_plausible(maps)[:, None, None], maps, start)
    return _warp(volumes, maps, template)


@dataclass(frozen=True, slots=True, repr=False)
class Reference:
    """Registered gallery scans, ready to be compared with."""

    template: Template
    unit_NV: torch.Tensor
    """Each scan without the common part, centred, unit length."""


def build_reference(image_BCDHW: np.ndarray, template: Template) -> Reference:
    """Return the registered form of gallery scans."""
    return Reference(template, _own_form(register(image_BCDHW, template), template))


def add_scans(reference: Reference, image_BCDHW: np.ndarray) -> Reference:
    """Return the reference with more scans behind those that are there."""
    more = build_reference(image_BCDHW, reference.template)
    return Reference(reference.template, torch.cat([reference.unit_NV, more.unit_NV]))


@torch.no_grad()
def registered_similarity(
    image_BCDHW: np.ndarray, reference: Reference, *, reach_vox: int = 2, chunk: int = 256
) -> np.ndarray:
    """Return ``[B, N]`` in [-1, 1]: the best match of each candidate with each gallery scan.

    The maximum runs over both mirror images and all translations up to ``reach_vox`` along each
    axis: exact, without an index. The result for one candidate does not depend on the others.
    """
    rows = [
        _similarity_of(image_BCDHW[at : at + chunk], reference, reach_vox=reach_vox)
        for at in range(0, len(image_BCDHW), chunk)
    ]
    width = len(reference.unit_NV)
    return np.concatenate(rows) if rows else np.empty((0, width), dtype=np.float32)


def _similarity_of(image_BCDHW: np.ndarray, reference: Reference, *, reach_vox: int) -> np.ndarray:
    shape = (len(image_BCDHW), len(reference.unit_NV))
    best = torch.full(shape, -1.0, device=reference.unit_NV.device)
    for view in (image_BCDHW, image_BCDHW[:, :, ::-1]):
        aligned = register(np.ascontiguousarray(view), reference.template)
        for shift in itertools.product(range(-reach_vox, reach_vox + 1), repeat=3):
            moved = torch.roll(aligned, shift, dims=(1, 2, 3))
            match = _own_form(moved, reference.template) @ reference.unit_NV.T
            best = torch.maximum(best, match)
    return best.cpu().numpy()


def _volumes(image_BCDHW: np.ndarray) -> torch.Tensor:
    image = torch.from_numpy(np.ascontiguousarray(image_BCDHW[:, 0], dtype=np.float32))
    if not torch.isfinite(image).all():
        raise DataError("an image to compare holds values that are not finite")
    return image


def _own_form(aligned_BDHW: torch.Tensor, template: Template) -> torch.Tensor:
    """Return ``[B, V]`` without offset and common part, unit length; a blank image gives zeros."""
    values = aligned_BDHW[:, template.mask_DHW]
    centred = values - values.mean(1, keepdim=True)
    rest = centred - (centred @ template.common_V)[:, None] * template.common_V
    return functional.normalize(rest, dim=1, eps=1e-6)


def _template_of(mean_DHW: torch.Tensor, device: str) -> Template:
    mean = (mean_DHW + mean_DHW.flip(0)) / 2
    mask = mean > _BRAIN
    if not mask.any():
        raise DataError("a template needs brains, and these scans are dark")
    near = torch.from_numpy(ndimage.binary_dilation(mask.numpy(), iterations=2))
    smooth = torch.from_numpy(ndimage.gaussian_filter(mean.numpy(), _SMOOTH_VOX))
    lines = [torch.linspace(-1, 1, size) for size in mean.shape]
    grid = torch.stack([*torch.meshgrid(*lines, indexing="ij"), torch.ones_like(mean)], -1)
    spacing = [2 / (size - 1) for size in mean.shape]
    slope = torch.stack(torch.gradient(smooth, spacing=spacing), -1)
    descent = (slope[..., :, None] * grid[..., None, :]).flatten(-2)[near]
    design = torch.cat([descent, smooth[near][:, None], torch.ones(int(near.sum()), 1)], 1)
    normal = design.T @ design
    ridge = _RIDGE * normal.diagonal().mean() * torch.eye(len(normal))
    solver = torch.linalg.solve(normal + ridge, design.T)
    common = functional.normalize(mean[mask] - mean[mask].mean(), dim=0)
    parts = (smooth, near, mask, solver, grid, common)
    return Template(*(part.to(device) for part in parts))


def _warp(volume_BDHW: torch.Tensor, maps_B44: torch.Tensor, template: Template) -> torch.Tensor:
    points = torch.einsum("bij,dhwj->bdhwi", maps_B44[:, :3], template.grid_DHWA)
    return functional.grid_sample(
        volume_BDHW[:, None], points.flip(-1), align_corners=True, padding_mode="zeros"
    )[:, 0]


def _plausible(maps_B44: torch.Tensor) -> torch.Tensor:
    """Return whether each map is finite and stretches no axis by more than a factor of two."""
    finite = torch.isfinite(maps_B44).flatten(1).all(1)
    safe = torch.where(finite[:, None, None], maps_B44, torch.eye(4, device=maps_B44.device))
    stretch = torch.linalg.svdvals(safe[:, :3, :3])
    within = (stretch[:, 0] < _LARGEST_STRETCH) & (stretch[:, -1] > 1 / _LARGEST_STRETCH)
    near = safe[:, :3, 3].abs().amax(1) < 1
    return torch.stack([finite, within, near]).all(0)
