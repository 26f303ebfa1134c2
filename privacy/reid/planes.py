"""Planes: which single slices, or frames, are those of some scan, wherever they stand in it.

A volume may be put together from slices of several patients, or show a patient's slices in another
order; a clip may hold one frame that is somebody's. Every plane of a candidate is compared with
every plane of every scan along the same axis, by the correlation of their fine detail: what a
smooth difference of brightness leaves. An image is then known by its best plane, and by the means
over its best tenth, its best half and all of them.

All planes of a candidate are looked at. Of a scan in the gallery that has many, some may do: two
neighboring frames of a clip differ by less than two patients' frames.

Axes: B candidates, N scans, M images of either kind, S planes along an axis, K components.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

from vitrael.core.training.warps import Along
from vitrael.privacy.reid.template import chunk_of

_FINE_PX, _COARSE_PX = 0.5, 2.0
"""Detail lies between these two."""
_COMPONENTS: Final = 96
_FULL_FRAC: Final = 0.3
"""Of the median detail: a plane with less, at the end of a head, is nobody's."""
_CHUNK: Final = 4
_CHUNK_PAIRS: Final = 2**24
"""Pairs of planes that are compared at a time."""
_FITTED: Final = 2048
"""Planes that are enough to find the components by."""
_RANK: Final = 1e-6
_ALL_FRAMES: Final = 32
_LARGEST_STEP: Final = 4
SHARES: Final = (0.0, 0.1, 0.5, 1.0)
"""Of the planes of an image whose best matches are averaged; 0 stands for one plane."""


@dataclass(frozen=True, slots=True, repr=False)
class Planes:
    """The planes of images along one axis; private."""

    code_MSK: torch.Tensor
    norm_MS: torch.Tensor
    """Length of the code; 0 for a plane that shows too little."""

    def __repr__(self) -> str:
        """Show nothing of a patient."""
        return "Planes(private)"


@dataclass(frozen=True, slots=True, repr=False)
class PlaneBasis:
    """What planes along one axis are described by."""

    axis: int
    """Of ``[D, H, W]``."""
    basis_KV: torch.Tensor


def plane_axes(shape_DHW: tuple[int, ...], *, along: Along) -> tuple[int, ...]:
    """Return the axes along which an image has planes: a volume has three, a clip its frames.

    A picture is one plane itself.
    """
    if along == "time":
        return (0,)
    return tuple(range(3)) if min(shape_DHW) > 1 else ()


def gallery_step(frames: int, *, along: Along) -> int:
    """Return that every how-manieth plane of a scan is in the gallery.

    Of volumes, and of clips of fewer than 64 frames, it is each one; of longer clips fewer, and
    every fourth at least, so that no copied frame is further than two from one that is there.
    """
    return min(_LARGEST_STEP, max(1, frames // _ALL_FRAMES)) if along == "time" else 1


def fit_planes(volume_NDHW: torch.Tensor, axis: int) -> PlaneBasis:
    """Return the first principal components of scans' planes along an axis.

    Of many planes 2,048 are looked at, evenly over the scans, and the smaller of the two products
    of the planes with themselves is decomposed.
    """
    scans, depth = len(volume_NDHW), volume_NDHW.shape[1 + axis]
    chosen = torch.linspace(0, scans * depth - 1, min(scans * depth, _FITTED)).long()
    rows = [
        _detail(volume_NDHW[scan : scan + 1], axis)[0, chosen[chosen // depth == scan] % depth]
        for scan in (chosen // depth).unique().tolist()
    ]
    detail_MV = torch.cat(rows) / len(chosen) ** 0.5
    if detail_MV.shape[0] < detail_MV.shape[1]:
        values, vectors = torch.linalg.eigh(detail_MV @ detail_MV.T)
        there = values > _RANK * values[-1]
        basis = functional.normalize(vectors.T[there] @ detail_MV, dim=1)
    else:
        _, vectors = torch.linalg.eigh(detail_MV.T @ detail_MV)
        basis = vectors.T
    return PlaneBasis(axis, basis[-_COMPONENTS:].contiguous())


def describe_planes(volume_MDHW: torch.Tensor, basis: PlaneBasis, *, step: int = 1) -> Planes:
    """Return every ``step``-th plane of images, each by itself."""
    parts = volume_MDHW.split(chunk_of(tuple(volume_MDHW.shape[1:])))
    code = torch.cat([_detail(part, basis.axis, step=step) @ basis.basis_KV.T for part in parts])
    norm = code.norm(dim=2)
    usual = norm.median(1, keepdim=True).values.clamp_min(1e-6)
    return Planes(code, torch.where(norm < _FULL_FRAC * usual, 0.0, norm))


def best_planes(
    candidates: Planes, gallery: Planes, *, allowed_BN: torch.Tensor | None
) -> torch.Tensor:
    """Return ``[B, 4]``: the best match of one plane, and the means of ``SHARES`` of them.

    A plane's match is the largest correlation with any plane of any scan that is allowed.
    """
    scans, known_planes = gallery.norm_MS.shape
    planes = candidates.norm_MS.shape[1]
    scale = torch.where(gallery.norm_MS > 0, 1 / gallery.norm_MS.clamp_min(1e-9), 0.0)
    known = (gallery.code_MSK * scale[..., None]).flatten(0, 1)
    size = max(1, min(_CHUNK, _CHUNK_PAIRS // (planes * len(known))))
    rows = []
    for at in range(0, len(candidates.norm_MS), size):
        part = slice(at, at + size)
        norm = candidates.norm_MS[part]
        match = candidates.code_MSK[part].flatten(0, 1) @ known.T
        best = match.reshape(len(norm), planes, scans, known_planes).amax(3)
        if allowed_BN is not None:
            best = best.masked_fill(~allowed_BN[part][:, None], -torch.inf)
        found = (best.amax(2) / norm.clamp_min(1e-9)).clamp_min(-1.0)
        rows.append(_averages(torch.where(norm > 0, found, -1.0), (norm > 0).sum(1)))
    return torch.cat(rows)


def join_planes(parts: Sequence[Planes]) -> Planes:
    """Return all images, in order."""
    return Planes(
        torch.cat([part.code_MSK for part in parts]), torch.cat([part.norm_MS for part in parts])
    )


def _averages(best_BS: torch.Tensor, shown_B: torch.Tensor) -> torch.Tensor:
    falling = best_BS.sort(1, descending=True).values
    rank = torch.arange(1, falling.shape[1] + 1, device=falling.device)
    means = falling.cumsum(1) / rank
    counts = [(share * shown_B).ceil().long().clamp_min(1) for share in SHARES]
    return torch.cat([means.gather(1, count[:, None] - 1) for count in counts], 1)


def _detail(volume_MDHW: torch.Tensor, axis: int, *, step: int = 1) -> torch.Tensor:
    """Return ``[M, S, V]``: the fine detail of every ``step``-th plane along an axis."""
    planes = np.moveaxis(volume_MDHW.cpu().numpy(), 1 + axis, 1)[:, ::step]
    fine, coarse = (
        ndimage.gaussian_filter(planes, (0, 0, sigma, sigma)) for sigma in (_FINE_PX, _COARSE_PX)
    )
    return torch.from_numpy(fine - coarse).to(volume_MDHW.device).flatten(2)
