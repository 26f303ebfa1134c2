"""Pairwise registration: each candidate onto the few scans of the gallery that it may copy.

Laying images onto the template leaves small differences of pose, more so where a disguise misled
it. So for the best scans of every other member a candidate is registered to the scan itself, by an
affine map on the brain's mask, and the own forms are correlated there. The whole search costs as
much as there are pairs, which is why only the best few of each candidate are looked at.

Axes: P pairs, D H W, V voxels.
"""

from __future__ import annotations

from typing import Final

import torch

from vitrael.privacy.reid.similarity import own_form
from vitrael.privacy.reid.template import Template, plausible, slopes_of, warp

_STEPS: Final = 4
_RIDGE: Final = 1e-3
_CHUNK: Final = 16


@torch.no_grad()
def registered_pairs(
    moving_PDHW: torch.Tensor, fixed_PDHW: torch.Tensor, template: Template
) -> torch.Tensor:
    """Return ``[P]`` in [-1, 1]: the correlation of own forms after registration of each pair.

    Both are images that were laid onto the template. The larger of the correlations before and
    after is returned: registration can fail, and must not hide a copy. Inverse compositional steps
    (Baker and Matthews 2004, section 3.2) with gain and offset, over the mask.
    """
    found = [
        _register_chunk(moving_PDHW[at : at + _CHUNK], fixed_PDHW[at : at + _CHUNK], template)
        for at in range(0, len(moving_PDHW), _CHUNK)
    ]
    return torch.cat(found) if found else torch.empty(0)


def _register_chunk(moving: torch.Tensor, fixed: torch.Tensor, template: Template) -> torch.Tensor:
    near = template.near_DHW
    slopes = torch.stack([slopes_of(one, template.grid_DHWA)[near] for one in fixed])
    target = fixed[:, near]
    design = torch.cat([slopes, target[..., None], torch.ones_like(target)[..., None]], 2)
    normal = design.transpose(1, 2) @ design
    scale = normal.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    normal = normal + _RIDGE * scale * torch.eye(normal.shape[1], device=normal.device)
    factor = torch.linalg.cholesky(normal)
    start = torch.eye(4, device=moving.device).repeat(len(moving), 1, 1)
    maps = start.clone()
    for _ in range(_STEPS):
        difference = warp(moving, maps, template)[:, near] - target
        right = (difference[:, None] @ design).transpose(1, 2)
        step = start.clone()
        step[:, :3] += torch.cholesky_solve(right, factor)[:, :12, 0].reshape(-1, 3, 4)
        maps = maps @ torch.linalg.inv(step)
    maps = torch.where(plausible(maps)[:, None, None], maps, start)
    form = own_form(fixed[:, None], template)
    before, after = (
        (own_form(one[:, None], template) * form).sum(1)
        for one in (moving, warp(moving, maps, template))
    )
    return torch.maximum(before, after)
