"""Own forms: what an image is beyond what all have in common, whatever its pose.

Every image is laid onto one template (``reid.template``); then what all brains have in common (the
template itself, at whatever gain) is taken away, and the rest, an image's *own form*, is compared
by normalized cross-correlation inside the template's mask. Strangers correlate near 0.5, copies
near 1. Registration and plain image similarity link brain scans of one person almost without error
(Sharma et al. 2026, arXiv 2602.10043), so an intruder needs no more.

Of a clip the still has an own form, and so has every frame, as a picture.

Axes: B images, D H W, V voxels within the mask.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch.nn import functional

from vitrael.privacy.reid.template import (
    LAID_SMOOTH_VOX,
    Template,
    chunk_of,
    smoothed,
    volumes_of,
)

_REWEIGHTINGS: Final = 3
_OUTLIER: Final = 2.0
"""Spreads from which on a voxel counts for less in the fit of the common part."""
_MOST: Final = 4.0
"""Spreads at which an own form is cut: a lesion or a cut-out must not be all that is compared."""
_DETAIL_VOX: Final = 2.0
"""What is smoother than this is no detail."""
_DARK: Final = 1e-3
"""Least spread, of the intensity range: a blank image has no form of its own."""


@torch.no_grad()
def own_form(laid_BCDHW: np.ndarray | torch.Tensor, template: Template) -> torch.Tensor:
    """Return ``[B, V]``: laid images without the common part, unit length; a blank gives zeros.

    Gain and offset of the common part are fitted by reweighted least squares (Cauchy weights), so
    that what is cut out of an image, or pasted into it, does not spoil the rest.
    """
    inside = template.mask_DHW
    parts = [
        _own_form(part[:, 0].to(template.device)[:, inside], template.common_V)
        for part in torch.as_tensor(laid_BCDHW).split(chunk_of(tuple(inside.shape)))
    ]
    return torch.cat(parts)


@torch.no_grad()
def own_detail(upright_BCDHW: np.ndarray, template: Template) -> torch.Tensor:
    """Return ``[B, V]``: the own forms of images that were not registered, without what is smooth.

    Where a part of a scan was pasted, its fine detail is there to the voxel; its level may not be,
    because the rest of the image takes part in the fit of what is common.
    """
    form = own_form(smoothed(volumes_of(upright_BCDHW), LAID_SMOOTH_VOX)[:, None], template)
    inside = template.mask_DHW
    whole = torch.zeros((len(form), *inside.shape), device=form.device)
    whole[:, inside] = form
    share = smoothed(inside.float()[None], _DETAIL_VOX).to(form.device)[0][inside]
    level = smoothed(whole, _DETAIL_VOX).to(form.device)[:, inside] / share.clamp_min(1e-3)
    return functional.normalize(form - level, dim=1, eps=1e-6)


def mirror(laid_BCDHW: np.ndarray, template: Template) -> np.ndarray:
    """Return the left-right mirror images of laid images; the template is its own."""
    return np.ascontiguousarray(np.flip(laid_BCDHW, axis=1 + template.mirror))


def _own_form(values: torch.Tensor, common_V: torch.Tensor) -> torch.Tensor:
    weight = torch.ones_like(values)
    rest, spread = values, torch.ones_like(values[:, :1])
    for _ in range(_REWEIGHTINGS):
        total = weight.sum(1, keepdim=True)
        level = (weight * values).sum(1, keepdim=True) / total
        common = common_V - (weight * common_V).sum(1, keepdim=True) / total
        gain = (weight * (values - level) * common).sum(1, keepdim=True)
        gain = gain / (weight * common**2).sum(1, keepdim=True).clamp_min(1e-12)
        rest = values - level - gain * common
        spread = (1.4826 * rest.abs().median(1, keepdim=True).values).clamp_min(_DARK)
        weight = 1 / (1 + (rest / (_OUTLIER * spread)) ** 2)
    rest = torch.minimum(torch.maximum(rest, -_MOST * spread), _MOST * spread)
    return functional.normalize(rest, dim=1, eps=1e-6)
