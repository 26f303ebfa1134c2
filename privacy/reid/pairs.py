"""Pairwise registration: each candidate onto the few scans of the gallery that it may copy.

Laying images onto the template leaves small differences of pose, more so where a disguise misled
it. So for the best scans of every other member a candidate is registered to the scan itself, by an
affine map on the brain's mask, and the own forms are correlated there. The whole search costs as
much as there are pairs, which is why only the best few of each candidate are looked at.

The stills of two clips are registered, and their frames correlated one by one. A copy may begin
elsewhere, run backward, slower or faster, so that frames are paired along every such line through
time, and the best line counts.

Axes: P pairs, D H W, T frames, L lines through time, V voxels.
"""

from __future__ import annotations

import itertools
from typing import Final

import torch

from vitrael.privacy.reid.maps import plausible, slopes_of
from vitrael.privacy.reid.similarity import own_form
from vitrael.privacy.reid.template import (
    Template,
    chunk_of,
    look,
    still_of,
    warp,
)

_STEPS: Final = 4
_RIDGE: Final = 1e-3
_CHUNK: Final = 16
_SPEEDS: Final = (1.0, -1.0, 0.5, -0.5, 2.0, -2.0)
"""Of a copy, in frames of the scan for each of its own."""


@torch.no_grad()
def registered_pairs(
    moving_MDHW: torch.Tensor,
    fixed_NDHW: torch.Tensor,
    template: Template,
    *,
    row_P: torch.Tensor,
    scan_P: torch.Tensor,
) -> torch.Tensor:
    """Return ``[P]`` in [-1, 1]: the correlation of own forms after registration of each pair.

    Both are images that were laid onto the template; a pair is a row of the one and of the other.
    The larger of the correlations before and after is returned: registration can fail, and must
    not hide a copy. Inverse compositional steps (Baker and Matthews 2004, section 3.2) with gain
    and offset, over the mask.
    """
    if not len(row_P):
        return torch.empty(0, device=template.device)
    rows, row_P = row_P.cpu().unique(return_inverse=True)
    scans, scan_P = scan_P.cpu().unique(return_inverse=True)
    moving, fixed = moving_MDHW[rows.to(moving_MDHW.device)], fixed_NDHW[scans]
    moving, fixed = moving.to(template.device), fixed.to(template.device)
    before, form = _forms(moving, template), _forms(fixed, template)
    size = max(1, min(_CHUNK, chunk_of(tuple(template.mask_DHW.shape)) // 4))
    found = []
    for row, scan in zip(row_P.split(size), scan_P.split(size), strict=True):
        row_here, scan_here = row.to(template.device), scan.to(template.device)
        placed = _place(moving[row_here], fixed[scan_here], template)
        found.append(
            torch.maximum(
                _agreement(before[row_here], form[scan_here]),
                _agreement(_forms(placed, template), form[scan_here]),
            )
        )
    return torch.cat(found)


def lines_through_time(frames: int) -> torch.Tensor:
    """Return ``[L, T]``: the frame of a scan that each frame of a copy shows, for every line.

    A line begins at any frame, goes on at one of six speeds, and after the last frame from the
    first one on.
    """
    time = torch.arange(frames)
    lines = [
        (first + speed * time).round().long() % frames
        for speed, first in itertools.product(_SPEEDS, range(frames))
    ]
    return torch.stack(lines)


def _place(moving: torch.Tensor, fixed: torch.Tensor, template: Template) -> torch.Tensor:
    """Return images resampled onto those that they are paired with."""
    near = template.near_DHW
    still, onto = (still_of(one, along=template.along) for one in (moving, fixed))
    slopes = torch.stack([slopes_of(one, template.grid_DHWA, near) for one in onto])
    target = onto[:, near]
    design = torch.cat([slopes, target[..., None], torch.ones_like(target)[..., None]], 2)
    normal = design.transpose(1, 2) @ design
    scale = normal.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    normal = normal + _RIDGE * scale * torch.eye(normal.shape[1], device=normal.device)
    factor = torch.linalg.cholesky(normal)
    start = torch.eye(4, device=moving.device).repeat(len(moving), 1, 1)
    maps = start.clone()
    for _ in range(_STEPS):
        difference = look(still, maps, near, template) - target
        right = (difference[:, None] @ design).transpose(1, 2)
        step = start.clone()
        step[:, :3] += torch.cholesky_solve(right, factor)[:, :12, 0].reshape(-1, 3, 4)
        maps = maps @ torch.linalg.inv(step)
    maps = torch.where(plausible(maps)[:, None, None], maps, start)
    return warp(moving, maps, template)


def _forms(laid_PDHW: torch.Tensor, template: Template) -> torch.Tensor:
    """Return ``[P, T, V]``: the own form of a volume, one, or those of a clip's frames."""
    if template.along == "space":
        return own_form(laid_PDHW[:, None], template)[:, None]
    frames = laid_PDHW.flatten(0, 1)[:, None, None]
    form = own_form(frames, template)
    return form.reshape(*laid_PDHW.shape[:2], form.shape[1])


def _agreement(form_PTV: torch.Tensor, other_PTV: torch.Tensor) -> torch.Tensor:
    """Return ``[P]``: the mean correlation of paired frames, along the best line through time."""
    frames = form_PTV.shape[1]
    if frames == 1:
        return (form_PTV * other_PTV).sum((1, 2))
    dot_PTT = form_PTV @ other_PTV.transpose(1, 2)
    lines_LT = lines_through_time(frames).to(dot_PTT.device)
    time_T = torch.arange(frames, device=dot_PTT.device)
    best_P: torch.Tensor = dot_PTT[:, time_T, lines_LT].mean(2).amax(1)
    return best_P
