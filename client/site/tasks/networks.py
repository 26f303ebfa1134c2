"""What the training tasks share: the site's compute, networks from tensors, private batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from vitrael.core.data.augment import Draw, draw_moved
from vitrael.core.data.splits import Split
from vitrael.core.models.brain_ldm import build_codec
from vitrael.core.training.compute import Compute, prepare_compute
from vitrael.core.weights import Tensors, load_weights

if TYPE_CHECKING:
    from vitrael.client.site.tasks import SiteContext
    from vitrael.core.models.nets.autoencoder import KLCodec

_ENCODE_BATCH = 32
_AT_ONCE_VOX = 1 << 19
"""Voxels of the images that are encoded at once: 37 of 24 cubed, two of 64 cubed."""


def site_compute(context: SiteContext) -> Compute:
    """Return the device that the site's settings, or else the study, ask for."""
    return prepare_compute(
        device=context.device,
        threads=context.threads,
        bf16=context.bf16,
        vram_frac=context.vram_frac,
    )


def load_codec(context: SiteContext, tensors: Tensors, device: str) -> KLCodec:
    """Return the study's codec with these weights."""
    protocol = context.study.synthesis
    codec = build_codec(protocol.generator, seed=protocol.seed)
    load_weights(codec, tensors)
    return codec.to(device)


def split_images(context: SiteContext, split: Split) -> torch.Tensor:
    """Return a split's images ``[B, 1, D, H, W]`` as a tensor over the cohort's own memory."""
    return torch.from_numpy(context.cohort.images(split).image_BCDHW)


def draw_images(images: torch.Tensor, device: str) -> Draw:
    """Return a function that draws images with replacement, none of them twice alike."""
    return draw_moved(len(images), lambda rows: images[rows], device=device)


@torch.no_grad()
def encode_images(codec: KLCodec, images: torch.Tensor, device: str) -> torch.Tensor:
    """Return the posterior means ``[B, C, d, h, w]``, not scaled, on the CPU."""
    parts = [codec.posterior(part.to(device))[0].float().cpu() for part in _parts(images)]
    return torch.cat(parts)


@torch.no_grad()
def reconstruct_images(codec: KLCodec, image_BCDHW: np.ndarray, device: str) -> np.ndarray:
    """Return images after the codec's round trip, float32 in [0, 1]; large ones slab by slab."""
    parts = [
        codec.decode_in_parts(codec.encode(part.to(device))).float().cpu()
        for part in _parts(torch.from_numpy(image_BCDHW))
    ]
    return torch.cat(parts).numpy()


def _parts(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return images few at a time, the fewer the larger they are."""
    most = max(1, min(_ENCODE_BATCH, _AT_ONCE_VOX // images[0].numel()))
    parts: tuple[torch.Tensor, ...] = images.split(most)
    return parts
