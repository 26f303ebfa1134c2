"""Where a classifier looks: the share of its attention that lies inside the sector.

A network that tells views by what is burned in beside the sector is right for a wrong reason; its
accuracy does not show it where the marks agree with the views. Axes: B images, H W pixels, M maps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn
from torch.nn import functional

from vitrael.core.errors import DataError
from vitrael.core.metrics.intervals import (
    UNIT,
    Estimate,
    Interval,
    clopper_pearson,
    normal_interval,
)
from vitrael.core.metrics.measured import Measured

_FEWEST: Final = 2


@dataclass(frozen=True, slots=True)
class Focus:
    """How much of the attention lies inside the sector, over pictures of one patient each."""

    energy: Measured
    """Mean share of the attribution: %E."""
    peak: Measured
    """Share of pictures whose largest attribution lies inside: %F."""
    area_frac: float
    """Mean share of the picture that the sector takes: what attention without an aim would give."""


def attribute_gradient(model: nn.Module, image_BCHW: torch.Tensor) -> torch.Tensor:
    """Return ``[B, H, W]``: gray value times slope of the predicted class's logit, absolute.

    Black pixels get nothing, whatever the network makes of them. The model is asked as it is when
    it is evaluated, and left as it was. Gradient times input: Shrikumar et al. 2016.
    """
    with _Asked(model), torch.enable_grad():
        image = image_BCHW.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(_winning_logits(model(image)), image)
    return (image.detach() * slope).abs().sum(1)


def attribute_grad_cam(model: nn.Module, image_BCHW: torch.Tensor, *, layer: str) -> torch.Tensor:
    """Return ``[B, H, W]``: the maps of ``layer``, weighted by their mean slopes, where positive.

    Selvaraju et al. 2017, equations 1 and 2, for the predicted class, interpolated to the picture.
    MONAI's own takes one class for a whole batch, and leaves its hooks in the network. Raises
    DataError for a layer that the network does not have.
    """
    layers = dict(model.named_modules())
    if not layer or layer not in layers:
        raise DataError("the network has no such layer", why=f"{layer!r} is not in it")
    maps: list[torch.Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        maps.append(output)

    handle = layers[layer].register_forward_hook(keep)
    try:
        with _Asked(model), torch.enable_grad():
            # An image that wants a gradient gives its maps one, in frozen networks too.
            image = image_BCHW.detach().clone().requires_grad_()
            score = _winning_logits(model(image))
            (slope_BMHW,) = torch.autograd.grad(score, maps[0])
    finally:
        handle.remove()
    weight_BM11 = slope_BMHW.mean((2, 3), keepdim=True)
    cam = (weight_BM11 * maps[0].detach()).sum(1, keepdim=True).relu()
    size = (image_BCHW.shape[2], image_BCHW.shape[3])
    return functional.interpolate(cam, size=size, mode="bilinear", align_corners=False)[:, 0]


def measure_focus(attribution_BHW: torch.Tensor, sector_BHW: torch.Tensor, *, method: str) -> Focus:
    """Return %E and %F of attributions that are nowhere negative, with bounds over pictures.

    %E is the energy-based pointing game of Wang et al. 2020 (Score-CAM, section 4.3) and %F the
    pointing game of Zhang et al. 2018, with the sector for the object. A picture without any
    attribution says nothing and is not counted; when none is left both are NaN. Raises DataError
    for other sizes, for attributions that are negative or not finite, and for a sector that covers
    its whole picture or nothing of it.
    """
    if attribution_BHW.shape != sector_BHW.shape or attribution_BHW.ndim != 3:  # noqa: PLR2004 - B, H, W
        raise DataError("attributions and sectors have different sizes", fix="give one for each")
    if not bool(torch.isfinite(attribution_BHW).all()) or bool((attribution_BHW < 0).any()):
        raise DataError("an attribution is negative or not finite", fix="give absolute values")
    inside = sector_BHW.flatten(1).bool().cpu()
    if bool(inside.all(1).any()) or not bool(inside.any(1).all()):
        raise DataError(
            "a sector covers its whole picture or nothing of it",
            fix="leave pictures without a mask out",
        )
    energy = attribution_BHW.flatten(1).double().cpu()
    total = energy.sum(1)
    counted = total > 0
    energy, seen = energy[counted], inside[counted]
    share_B = (energy * seen).sum(1) / total[counted]
    hits = int(seen.gather(1, energy.argmax(1, keepdim=True)).sum()) if len(seen) else 0
    return Focus(
        energy=_measured("attention_energy_inside", _mean(share_B), len(seen), method),
        peak=_measured("attention_peak_inside", _share(hits, len(seen)), len(seen), method),
        area_frac=float(inside.double().mean()),
    )


class _Asked:
    """Sets a module to evaluation, and back to what it was."""

    def __init__(self, model: nn.Module) -> None:
        self._modes = [(module, module.training) for module in model.modules()]
        self._model = model

    def __enter__(self) -> None:
        self._model.eval()

    def __exit__(self, *_: object) -> None:
        for module, training in self._modes:
            module.training = training


def _winning_logits(logit_BK: torch.Tensor) -> torch.Tensor:
    """Return the sum over images of the predicted class's logit: images do not meet in it."""
    return logit_BK.amax(1).sum()


def _mean(share_B: torch.Tensor) -> tuple[float, Interval]:
    n = len(share_B)
    if n < _FEWEST:
        return (float(share_B.mean()) if n else math.nan), Interval(*UNIT)
    # The mean of shares can leave [0, 1] by a rounding.
    value = min(1.0, max(0.0, float(share_B.mean())))
    error = float(share_B.std()) / math.sqrt(n)
    return value, normal_interval(Estimate(value, error), within=UNIT)


def _share(hits: int, n: int) -> tuple[float, Interval]:
    return (hits / n if n else math.nan), clopper_pearson(hits, n)


def _measured(name: str, found: tuple[float, Interval], n: int, method: str) -> Measured:
    value, (low, high) = found
    return Measured(name, value, low, high, n=n, unit="patients", method=method)
