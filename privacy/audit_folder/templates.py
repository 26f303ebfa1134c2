"""A template for each part of the patients, all with one mask.

A scan that helped to make a template is less like the others; a newcomer's is not. So the encoder
of a part comes with a template of that part's patients alone: whom it compares has helped neither.
One mask gives all of them the same regions, whose scores can then be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional

from vitrael.core.errors import DataError
from vitrael.privacy.reid.template import Template, fit_template, mirror_axis, register


def fit_templates(parts: Sequence[np.ndarray]) -> tuple[Template, ...]:
    """Return one template for the images ``[B, 1, D, H, W]`` of each part.

    Raises DataError when they have nothing in common to look at.
    """
    templates = [fit_template(image_BCDHW) for image_BCDHW in parts]
    mask_DHW = torch.stack([one.mask_DHW for one in templates]).all(0)
    if not mask_DHW.any():
        raise DataError(
            "the images have no place in common",
            why="what is bright in some of them is dark in all others",
            fix="give images of one part of the body",
        )
    return tuple(
        replace(one, mask_DHW=mask_DHW, common_V=_common(image_BCDHW, one, mask_DHW))
        for image_BCDHW, one in zip(parts, templates, strict=True)
    )


def _common(image_BCDHW: np.ndarray, template: Template, mask_DHW: torch.Tensor) -> torch.Tensor:
    mean_DHW = register(image_BCDHW, template).mean(0)
    mean_DHW = (mean_DHW + mean_DHW.flip(mirror_axis(tuple(mean_DHW.shape)) - 1)) / 2
    inside_V = mean_DHW[mask_DHW]
    return functional.normalize(inside_V - inside_V.mean(), dim=0)
