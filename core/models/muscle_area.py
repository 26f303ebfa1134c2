"""The area step of view retrieval: outline the muscle in the frame that was found, and measure.

A small U-Net (MONAI) is learned from frames whose muscle somebody outlined. Frames are standardized
one by one. Axes: B frames, H rows, W columns.
"""

from __future__ import annotations

import numpy as np
import torch
from monai.networks.nets.unet import UNet
from torch import nn
from torch.nn import functional

from vitrael.core.errors import DataError
from vitrael.core.metrics.muscle import cross_section_mm2
from vitrael.core.records import Loss
from vitrael.core.rng import seeded_initialization
from vitrael.core.training.clip_contrast import DISTORTION, ClipDistortion, change_tone

Outlined = tuple[torch.Tensor, torch.Tensor]
"""Frames ``[B, 1, H, W]`` in [0, 1] and their masks, of the same shape, 0 or 1."""

_LEAST_SPREAD = 1e-3
_CHUNK = 64


class MuscleOutliner(nn.Module):
    """Predicts where the muscle is: frames ``[B, 1, H, W]`` in [0, 1] to logits of that shape."""

    def __init__(self, channels: tuple[int, ...] = (8, 16, 32, 64)) -> None:
        """Build the network with fresh weights; each level after the first halves the axes."""
        super().__init__()
        self.multiple_px = 1 << (len(channels) - 1)
        self.net = UNet(
            spatial_dims=2,
            in_channels=1,
            out_channels=1,
            channels=channels,
            strides=(2,) * (len(channels) - 1),
            norm=("GROUP", {"num_groups": 4}),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits; DataError for edges that the levels do not halve evenly."""
        if any(edge % self.multiple_px for edge in x.shape[2:]):
            raise DataError(
                "the frames cannot be outlined",
                why=f"rows and columns must be multiples of {self.multiple_px}",
                fix="resize the frames",
            )
        spread, mean = torch.std_mean(x, dim=(1, 2, 3), keepdim=True)
        logits: torch.Tensor = self.net((x - mean) / spread.clamp_min(_LEAST_SPREAD))
        return logits

    @torch.inference_mode()
    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """Return the masks, bool ``[B, H, W]``."""
        return self.forward(x)[:, 0] > 0


def build_muscle_outliner(*, seed: int) -> MuscleOutliner:
    """Return a network with weights drawn from the stream ``(seed, "muscle_area")``."""
    with seeded_initialization(seed, "muscle_area"):
        return MuscleOutliner().eval()


class OutlinedFrames:
    """Draws batches of outlined frames, mirrored and in another tone."""

    def __init__(
        self,
        frames_BHW: np.ndarray,
        mask_BHW: np.ndarray,
        *,
        distortion: ClipDistortion = DISTORTION,
        device: str = "cpu",
    ) -> None:
        """Keep uint8 frames and bool masks; DataError unless each frame has its mask."""
        if frames_BHW.shape != mask_BHW.shape or not len(frames_BHW):
            raise DataError("frames and outlines do not belong together", fix="give one for each")
        self.frames = torch.from_numpy(frames_BHW.copy()).to(device)
        self.mask = torch.from_numpy(mask_BHW.copy()).to(device)
        self.distortion = distortion

    def __call__(self, batch_images: int, rng: torch.Generator) -> Outlined:
        """Return ``batch_images`` frames with their masks."""
        rows = torch.randint(len(self.frames), (batch_images,), generator=rng, device=rng.device)
        frames = self.frames[rows][:, None].float() / 255
        mask = self.mask[rows][:, None].float()
        coins = torch.rand((batch_images, 1, 1, 1), generator=rng, device=rng.device)
        mirrored = coins < self.distortion.flip_share
        frames, mask = (torch.where(mirrored, x.flip(3), x) for x in (frames, mask))
        return change_tone(frames, self.distortion, rng), mask


class OutlineObjective:
    """Cross-entropy over pixels plus one minus the soft Dice overlap (Milletari et al. 2016)."""

    def __call__(self, model: nn.Module, batch: Outlined, rng: torch.Generator) -> Loss:
        """Return the loss of a batch; ``rng`` is not used."""
        del rng
        frames, mask = batch
        logits = model(frames)
        shown = logits.sigmoid()
        both = (shown * mask).sum(dim=(1, 2, 3))
        dice = 2 * both / (shown.sum(dim=(1, 2, 3)) + mask.sum(dim=(1, 2, 3))).clamp_min(1)
        entropy = functional.binary_cross_entropy_with_logits(logits, mask)
        return Loss(total=entropy + 1 - dice.mean(), parts={"dice": dice.mean()})


def measure_areas(
    model: MuscleOutliner, frames_BHW: np.ndarray, *, spacing_mm: tuple[float, float]
) -> np.ndarray:
    """Return the muscle's cross-section in each uint8 frame, mm², ``[B]``; NaN where none is seen.

    ``spacing_mm`` is that of rows and columns. Raises DataError for pixels without a size.
    """
    if not all(np.isfinite(size) and size > 0 for size in spacing_mm):
        raise DataError("the pixels to measure have no size", fix="give their height and width, mm")
    device = next(model.parameters()).device
    x = torch.from_numpy(frames_BHW.copy())[:, None]
    masks = torch.cat([model.predict(part.to(device).float() / 255) for part in x.split(_CHUNK)])
    return np.array([_area(mask, spacing_mm) for mask in masks.cpu().numpy()])


def _area(mask_HW: np.ndarray, spacing_mm: tuple[float, float]) -> float:
    try:
        return cross_section_mm2(mask_HW, spacing_mm=spacing_mm)
    except DataError:
        return float("nan")  # what is not seen has no area
