"""What the networks of the workbench learn from: images turned a little, latents of both sides.

Axes: B batch, C channels, D H W of an image, d h w of a latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from vitrael.core.data.augment import Draw, draw_moved
from vitrael.core.data.latent_cache import LatentCache, View, encode_cached
from vitrael.core.digest import Digest
from vitrael.core.workbench.intake import WHOLE, Rows, Share
from vitrael.core.workbench.progress import Tell, silent

if TYPE_CHECKING:
    from vitrael.core.models.nets.autoencoder import KLCodec

_VIEWS: tuple[View, ...] = ("plain", "mirrored")


def draw_images(rows: Rows, *, device: str) -> Draw:
    """Return a function that draws images ``[B, 1, D, H, W]`` with replacement, none alike."""
    return draw_moved(
        len(rows),
        lambda chosen: torch.from_numpy(rows.images.batch(chosen.tolist())),
        device=device,
    )


@torch.no_grad()
def encode_rows(
    codec: KLCodec,
    rows: Rows,
    *,
    cache: LatentCache,
    name: Digest,
    share: Share = WHOLE,
    tell: Tell = silent,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return posterior means ``[2 B, C, d, h, w]``, not scaled, and conditions ``[2 B, K]``.

    Each scan comes plain and, behind all of those, mirrored left to right. What the cache holds of
    the codec that is called ``name`` is not computed again. Several processes encode a part each
    and return all.
    """
    device = next(codec.parameters()).device
    digests = [item.digest for item in rows.items]

    def encode(image_BCDHW: np.ndarray) -> np.ndarray:
        mean, _ = codec.posterior(torch.from_numpy(image_BCDHW).to(device))
        return np.asarray(mean.float().cpu().numpy())

    def fetch(numbers: Sequence[int], view: View) -> np.ndarray:
        return encode_cached(
            cache,
            [digests[number] for number in numbers],
            codec=name,
            read=lambda some: rows.images.batch([numbers[row] for row in some]),
            encode=encode,
            view=view,
        )

    def is_kept(number: int) -> bool:
        return all(cache.get(name, digests[number], view=view) is not None for view in _VIEWS)

    def do(number: int) -> None:
        for view in _VIEWS:
            fetch([number], view)

    work = {str(digests[number]): number for number in range(len(rows)) if not is_kept(number)}
    for done in share.share_out(work, do):
        tell("encode scans", done, len(work))
    latents = np.concatenate([fetch(range(len(rows)), view) for view in _VIEWS])
    return torch.from_numpy(latents), torch.from_numpy(rows.condition_BK).repeat(len(_VIEWS), 1)


@torch.no_grad()
def set_latent_scale(codec: KLCodec, mean_BCDHW: torch.Tensor) -> None:
    """Set the codec's scale, so that these latents have zero mean and unit variance by channel."""
    values = mean_BCDHW.movedim(1, 0).flatten(1).double()
    codec.latent_mean.copy_(values.mean(1))
    codec.latent_std.copy_(values.std(1).clamp_min(1e-6))


@torch.no_grad()
def reconstruct_rows(
    codec: KLCodec, rows: Rows, numbers: Sequence[int], *, bf16: bool = False
) -> np.ndarray:
    """Return images of some rows after the codec's round trip, float32 in [0, 1].

    Large ones are decoded slab by slab, and ``bf16`` is for these and for the encoder, as in a
    generator.
    """
    device = next(codec.parameters()).device
    image = torch.from_numpy(rows.images.batch(numbers)).to(device)
    dtype = torch.bfloat16 if bf16 else torch.float32
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
        z = codec.encode(image)
    decoded = codec.decode_in_parts(z.float(), dtype=dtype)
    return np.asarray(decoded.float().cpu().numpy())
