"""Regions: what part of one image is the same part of another, however unlike the rest is.

The own forms of laid images are cut into cells of four voxels an edge, or of more in larger images,
so that there are no more than about a thousand. Each cell is described by its first principal
components over the scans of split F. A region (a half, a slab, a block) is a set of cells, and the
correlation over it is read from the products of its cells. So a hemisphere, some slices or a block
that was taken from a scan is found, where the whole image is nobody's.

Axes: B candidates, N scans, M images of either kind, C cells, R regions, K components, V voxels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from vitrael.privacy.reid.template import Template

_CELL_VOX: Final = 4
_MOST_CELLS: Final = 1024
_FILLED_FRAC: Final = 0.25
"""Of a cell that must lie within the mask."""
_COMPONENTS: Final = 20
_FEWEST_CELLS: Final = 4
_BLOCKS: Final = (4, 2)
"""Edges of the blocks, in cells."""
_CHUNK: Final = 8
_CHUNK_SCORES: Final = 2**24


@dataclass(frozen=True, slots=True, repr=False)
class Parcels:
    """How an image is cut: its cells, what they are described by, and the regions."""

    template: Template
    edge_vox: int
    """Of a cell."""
    inside_C: torch.Tensor
    """bool, of all cells: those within the mask."""
    basis_CKV: torch.Tensor
    region_CR: torch.Tensor
    """1 where a cell belongs to a region."""

    @property
    def regions(self) -> int:
        """How many regions there are."""
        return self.region_CR.shape[1]


@dataclass(frozen=True, slots=True, repr=False)
class Parceled:
    """Images as the regions see them; private."""

    code_CMK: torch.Tensor
    norm_MR: torch.Tensor
    """Length of the codes within each region."""

    def __repr__(self) -> str:
        """Show nothing of a patient."""
        return "Parceled(private)"


def cut_parcels(form_NV: torch.Tensor, template: Template) -> Parcels:
    """Return cells and regions for own forms ``[N, V]`` of the scans of split F."""
    edge_vox = cell_edge(tuple(template.mask_DHW.shape))
    cell_NCV = _cells(form_NV, template, edge_vox)
    filled = _cut(template.mask_DHW[None].float(), edge_vox)[0].mean(1)
    inside = filled > _FILLED_FRAC
    if not inside.any():
        inside = filled >= filled.max()
    _, _, basis = torch.linalg.svd(cell_NCV[:, inside].transpose(0, 1), full_matrices=False)
    place_C3 = _places(template, edge_vox)[inside]
    components = basis[:, :_COMPONENTS].contiguous()
    region_CR = torch.stack(list(_sets(place_C3)), 1)
    return Parcels(template, edge_vox, inside, components, region_CR)


def cell_edge(shape_DHW: tuple[int, ...]) -> int:
    """Return the least edge of a cell, from four voxels on, that makes no more than 1,024."""
    edge_vox = _CELL_VOX
    while math.prod(-(-size // min(edge_vox, size)) for size in shape_DHW) > _MOST_CELLS:
        edge_vox += 1
    return edge_vox


def parcel(form_MV: torch.Tensor, parcels: Parcels) -> Parceled:
    """Return own forms ``[M, V]`` cell by cell, with their lengths in each region."""
    cell_MCV = _cells(form_MV, parcels.template, parcels.edge_vox)[:, parcels.inside_C]
    code = torch.einsum("mcv,ckv->cmk", cell_MCV, parcels.basis_CKV).contiguous()
    norm = ((code**2).sum(2).T @ parcels.region_CR).clamp_min(1e-8).sqrt()
    return Parceled(code, norm)


def best_regions(
    candidates: Parceled, gallery: Parceled, parcels: Parcels, *, allowed_BN: torch.Tensor | None
) -> torch.Tensor:
    """Return ``[B, R]``: over each region the best correlation with any scan that is allowed."""
    each = parcels.regions * len(gallery.norm_MR)
    size = max(1, min(_CHUNK, _CHUNK_SCORES // each))
    rows = []
    for at in range(0, candidates.code_CMK.shape[1], size):
        part = slice(at, at + size)
        dot_CBN = torch.bmm(candidates.code_CMK[:, part], gallery.code_CMK.transpose(1, 2))
        cells, rows_here, scans = dot_CBN.shape
        dot_RBN = parcels.region_CR.T @ dot_CBN.reshape(cells, -1)
        r_RBN = dot_RBN.reshape(-1, rows_here, scans)
        r_RBN = r_RBN / (candidates.norm_MR[part].T[:, :, None] * gallery.norm_MR.T[:, None])
        if allowed_BN is not None:
            r_RBN = r_RBN.masked_fill(~allowed_BN[part][None], -1.0)
        rows.append(r_RBN.amax(2).T)
    return torch.cat(rows)


def join_parceled(parts: Sequence[Parceled]) -> Parceled:
    """Return all images, in order."""
    return Parceled(
        torch.cat([part.code_CMK for part in parts], 1),
        torch.cat([part.norm_MR for part in parts]),
    )


def _cells(form_MV: torch.Tensor, template: Template, edge_vox: int) -> torch.Tensor:
    volume = torch.zeros((len(form_MV), *template.mask_DHW.shape), device=form_MV.device)
    volume[:, template.mask_DHW] = form_MV
    return _cut(volume, edge_vox)


def _cut(volume_MDHW: torch.Tensor, edge_vox: int) -> torch.Tensor:
    """Return ``[M, C, voxels of a cell]``; what is left over at the ends is filled with zeros."""
    edges = [min(edge_vox, size) for size in volume_MDHW.shape[1:]]
    pad: list[int] = []
    for size, edge in zip(reversed(volume_MDHW.shape[1:]), reversed(edges), strict=True):
        pad += [0, -size % edge]
    volume = torch.nn.functional.pad(volume_MDHW, pad)
    for axis, edge in enumerate(edges, 1):
        volume = volume.unfold(axis, edge, edge)
    cells = edges[0] * edges[1] * edges[2]
    return volume.reshape(len(volume), -1, cells)


def _places(template: Template, edge_vox: int) -> torch.Tensor:
    """Return ``[C, 3]``: where each cell stands."""
    counts = [-(-size // min(edge_vox, size)) for size in template.mask_DHW.shape]
    lines = [torch.arange(count, device=template.device) for count in counts]
    return torch.stack(torch.meshgrid(*lines, indexing="ij"), -1).reshape(-1, 3)


def _sets(place_C3: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield ``[C]`` float: the whole, both halves and all slabs along each axis, and blocks."""
    yield torch.ones(len(place_C3), device=place_C3.device)
    count = [int(n) + 1 for n in place_C3.amax(0)]
    sets = []
    for axis in range(3):
        if count[axis] > 1:
            at = place_C3[:, axis]
            sets += [at < count[axis] / 2, at >= count[axis] / 2]
            sets += [at == k for k in range(count[axis])]
    for edge in _BLOCKS:
        starts = [range(0, max(1, n - edge + 1), max(1, edge // 2)) for n in count]
        for corner in itertools.product(*starts):
            low = torch.tensor(corner, device=place_C3.device)
            sets.append(((place_C3 >= low) & (place_C3 < low + edge)).all(1))
    for members in sets:
        if members.sum() >= _FEWEST_CELLS:
            yield members.float()
