"""Upsampling to the nearest neighbor and a convolution of three, as one transposed convolution.

The nearest neighbor of stride 2 is a transposed convolution by a kernel of ones of two. A
convolution of three after it makes that a kernel of four with its weights summed: the same map,
its zero border included, at 8/27 of the arithmetic in three dimensions and 4/9 in two.
"""

from __future__ import annotations

from itertools import product

import torch
import torch.nn.functional as F  # noqa: N812 - the name that torch's own pages use
from monai.networks.blocks.upsample import UpSample
from torch import nn

from vitrael.core.errors import ConfigError


class TransposedUpsampling(nn.Module):
    """Doubles the grid as an ``UpSample`` of MONAI does, with fewer multiplications."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, block: UpSample) -> None:
        """Sum the weights of a block."""
        super().__init__()
        weight, bias, self.overlap = transposed_weights(block)
        layout = torch.channels_last_3d if weight.ndim == 5 else torch.channels_last  # noqa: PLR2004
        self.register_buffer("weight", weight.detach().clone(memory_format=layout))
        self.register_buffer("bias", bias.detach().clone())

    def forward(self, x: torch.Tensor, emb: torch.Tensor | None = None) -> torch.Tensor:
        """Return ``[B, C, 2 d, 2 h, 2 w]``; the embedding of MONAI's signature says nothing."""
        del emb
        volume = x.ndim == 5  # noqa: PLR2004
        layout = torch.channels_last_3d if volume else torch.channels_last
        x = x.to(self.weight.dtype).contiguous(memory_format=layout)
        transpose = F.conv_transpose3d if volume else F.conv_transpose2d
        return transpose(x, self.weight, self.bias, stride=2, padding=self.overlap)


def is_upsampling(block: nn.Module) -> bool:
    """Return whether ``transposed_weights`` knows this block."""
    return isinstance(block, UpSample) and (
        set(dict(block.named_children())) in ({"deconv"}, {"upsample_non_trainable", "postconv"})
    )


def transposed_weights(block: nn.Module) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return weight ``[C, C', k, ...]``, bias ``[C']`` and padding of stride 2, k = 2 + 2 padding.

    Raises ``ConfigError`` for upsampling of another kind.
    """
    if not is_upsampling(block):
        raise ConfigError(
            f"{type(block).__name__} is no upsampling that is known here",
            why="it is neither a transposed convolution nor nearest neighbors and a convolution",
            fix="build the network with one of these",
        )
    if hasattr(block, "deconv"):
        deconv = block.get_submodule("deconv")
        return deconv.get_parameter("weight"), deconv.get_parameter("bias"), 0
    conv = block.get_submodule("postconv.conv")
    turned = conv.get_parameter("weight").float().transpose(0, 1)
    spatial = turned.ndim - 2
    turned = turned.flip(tuple(range(2, turned.ndim)))
    weight = turned.new_zeros((*turned.shape[:2], *(4,) * spatial))
    for corner in product((0, 1), repeat=spatial):
        part = weight
        for axis, at in enumerate(corner, 2):
            part = part.narrow(axis, at, 3)
        part += turned
    return weight, conv.get_parameter("bias"), 1
