"""Decoding of latents slab by slab: the image of a whole decode in a fraction of its memory.

A whole decode holds several activations of 32 to 128 channels on the full grid, hundreds of times
the image. Here one is held in float32, or two in bfloat16; all else exists for one slab of rows at
a time.

Two things make that exact, and not only near:

- Group normalization looks at the whole grid. So the moments of an activation are gathered while
  it is written, and the next layer normalizes what it reads, slab by slab.
- A convolution of three looks one row beyond its slab. It reads that halo; outside the grid, and
  nowhere else, the halo is zero.

What memory is short for is computed again rather than stored: on the grid of the image, in float32,
the upsampled activation (for its moments, for the convolution that reads it, for the shortcut
past it), and what stands between the two convolutions of a block. Upsampling is cheap enough for
that, with its weights summed: see ``upsampling``. In bfloat16 all of these are stored and none is
computed twice.

Legend: B batch, C channels, the first spatial axis is cut into rows; all else is the plane.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812 - the name that torch's own pages use
from monai.networks.blocks.upsample import UpSample
from monai.networks.nets.autoencoderkl import AEKLResBlock, AutoencoderKL, Decoder
from torch import nn

from vitrael.core.errors import ConfigError, DataError
from vitrael.core.models.nets.moments import GatheredNorm, Moments
from vitrael.core.models.nets.precision import arithmetic_dtype
from vitrael.core.models.nets.upsampling import is_upsampling, transposed_weights

STORAGE = (torch.float32, torch.bfloat16)
"""What activations may be kept in. Moments and the image never are."""

_VOLUME = 5
"""Axes of a batch of volumes; one of planes has 4."""

_LEAST_ROWS = 2
"""What a slab needs, so that the next reads no row that has been written over."""


def decode_in_slabs(
    net: AutoencoderKL,
    z: torch.Tensor,
    *,
    slab_vox: int,
    dtype: torch.dtype,
    arithmetic: torch.dtype | None = None,
) -> torch.Tensor:
    """Return ``net.decode(z)`` as float32, to rounding, with little memory and no gradient.

    ``z`` is ``[B, C, d, h, w]`` or ``[B, C, h, w]``, not scaled; samples are decoded one after
    the other. ``slab_vox`` is how many rows of the image are worked on at a time; rows of lower
    levels are fewer voxels, so more of them are taken. ``dtype`` is what activations are kept in:
    float32 differs from a whole decode by rounding alone, bfloat16 is faster or smaller.
    ``arithmetic`` is ``dtype`` where the device is fast at it, else float32, unless it is given.

    Raises ``ConfigError`` for attention or any other layer that is not known here, a dtype that
    is not in ``STORAGE``, and a slab below one row; ``DataError`` for latents of another shape.
    """
    check_decoder(net)
    _check(net, z, slab_vox=slab_vox, dtype=dtype)
    arithmetic = arithmetic or arithmetic_dtype(z.device, dtype)
    work = _plan(net, tuple(z.shape[1:]), slab_vox=slab_vox, storage=dtype, arithmetic=arithmetic)
    with torch.no_grad():
        return torch.cat([_decode_one(net, one, work) for one in z.split(1)])


def check_decoder(net: AutoencoderKL) -> None:
    """Raise ``ConfigError`` unless every layer of the decoder can be run in slabs."""
    blocks = _blocks(net)
    wrong = [
        type(block).__name__
        for block in blocks[1:-2]
        if not isinstance(block, AEKLResBlock) and not is_upsampling(block)
    ]
    if wrong:
        raise ConfigError(
            "a decoder cannot run in slabs",
            why=f"it holds {wrong[0]}, which looks at the whole grid",
            fix="build it without attention, or decode it whole",
        )


@dataclass(frozen=True, slots=True)
class _Work:
    """How the work is cut, and in what it is done."""

    storage: torch.dtype
    arithmetic: torch.dtype
    slab: int
    """Voxels of a slab."""
    top: torch.Size
    """The grid of the image, where memory is short."""

    def cut(self, grid: torch.Size) -> Iterator[tuple[int, int]]:
        """Yield the ends of slabs, as equal as they come; none is below ``_LEAST_ROWS``."""
        rows = max(_LEAST_ROWS, self.slab // max(1, math.prod(grid[1:])))
        pieces = max(1, grid[0] // rows)
        yield from pairwise(index * grid[0] // pieces for index in range(pieces + 1))

    def spares(self, grid: torch.Size) -> bool:
        """Return whether an activation is rather computed twice than stored.

        In bfloat16 the two that would have to be stored are no larger than one in float32.
        """
        return grid == self.top and self.storage == torch.float32


@dataclass(frozen=True, slots=True)
class _Stored:
    """An activation that is there as a whole, and its moments."""

    data: torch.Tensor
    moments: Moments

    @property
    def grid(self) -> torch.Size:
        return self.data.shape[2:]

    def rows(self, start: int, end: int) -> torch.Tensor:
        """Return rows that are a view."""
        return self.data[:, :, start:end]


@dataclass(frozen=True, slots=True)
class _Raised:
    """An activation at twice the resolution of a stored one, computed when rows are read."""

    data: torch.Tensor
    weight: torch.Tensor
    """``[C, C', k, ...]`` of a transposed convolution of stride 2, k = 2 + 2 overlap."""
    bias: torch.Tensor
    overlap: int
    moments: Moments = field(default_factory=Moments)

    @property
    def grid(self) -> torch.Size:
        return torch.Size(2 * size for size in self.data.shape[2:])

    def rows(self, start: int, end: int) -> torch.Tensor:
        """Return new rows: row j comes from the rows i with 0 <= j + overlap - 2 i < k."""
        first = max(0, (start - self.overlap) // 2)
        last = min(self.data.shape[2] - 1, (end - 1 + self.overlap) // 2)
        source = self.data[:, :, first : last + 1].to(self.weight.dtype)
        before = start + self.overlap - 2 * first
        behind = 2 * (last - first) + self.weight.shape[2] - before - (end - start)
        edge = min(before, behind)
        transpose = F.conv_transpose3d if source.ndim == _VOLUME else F.conv_transpose2d
        padding = (edge, *(self.overlap,) * (source.ndim - 3))
        raised = transpose(source, self.weight, self.bias, stride=2, padding=padding)
        return raised[:, :, before - edge : before - edge + end - start]


@dataclass(frozen=True, slots=True)
class _Convolved:
    """A normalized activation after its non-linearity and a convolution, computed when read."""

    source: _Stored | _Raised | _Convolved
    norm: GatheredNorm
    layer: _Layer
    silu: bool = True
    moments: Moments = field(default_factory=Moments)

    @property
    def grid(self) -> torch.Size:
        return self.source.grid

    def rows(self, start: int, end: int) -> torch.Tensor:
        """Return new rows, from the rows of the source and one more on either side.

        Outside of the grid that halo is zero, after the non-linearity.
        """
        depth = self.grid[0]
        rows = self.source.rows(max(0, start - 1), min(depth, end + 1))
        rows = self.norm.apply(rows, self.layer.weight.dtype)
        if self.silu:
            rows = F.silu(rows, inplace=True)
        edges = (int(start == 0), int(end == depth))
        if any(edges):
            rows = F.pad(rows, (0, 0) * (rows.ndim - 3) + edges)
        return self.layer.convolve(rows)


_Source = _Stored | _Raised


def _plan(
    net: AutoencoderKL,
    latent: tuple[int, ...],
    *,
    slab_vox: int,
    storage: torch.dtype,
    arithmetic: torch.dtype,
) -> _Work:
    scale = 2 ** sum(isinstance(block, UpSample) for block in _blocks(net))
    top = torch.Size(size * scale for size in latent[1:])
    return _Work(storage, arithmetic, slab_vox * math.prod(top[1:]), top)


def _decode_one(net: AutoencoderKL, z: torch.Tensor, work: _Work) -> torch.Tensor:
    blocks = _blocks(net)
    data = blocks[0](net.post_quant_conv(z.float()))  # at the resolution of the latents: small
    source: _Source = _Stored(_store_as(data, work), Moments())
    source.moments.add(source.rows(0, source.grid[0]))
    del data
    for block, following in pairwise(blocks[1:-1]):
        if isinstance(block, AEKLResBlock):
            source = _run_block(block, source, work)
        else:
            source = _raise(block, source, work, following)
    return _write_image(cast("nn.GroupNorm", blocks[-2]), blocks[-1], source, work)


def _run_block(block: AEKLResBlock, source: _Source, work: _Work) -> _Stored:
    """Return ``shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))))))``, written over x.

    Where x is not stored or has other channels, it is written over the result of ``conv1``. A
    slab is written once the next has been computed, which reads two rows above its own.
    """
    norm = GatheredNorm.of(block.norm1, source.moments)
    convolved = _Convolved(source, norm, _Layer.of(block.conv1, work.arithmetic))
    hidden: _Stored | _Convolved
    if not isinstance(block.nin_shortcut, nn.Identity) or not isinstance(source, _Stored):
        hidden = kept = _store(convolved, work)
    elif work.spares(source.grid):
        hidden, kept = convolved, source
        _gather(hidden, work)
    else:
        hidden, kept = _store(convolved, work), source
    norm = GatheredNorm.of(block.norm2, hidden.moments)
    result = _Convolved(hidden, norm, _Layer.of(block.conv2, work.arithmetic))
    mixed = not isinstance(block.nin_shortcut, nn.Identity)
    shortcut = _Layer.of(block.nin_shortcut, work.arithmetic) if mixed else None
    written = _Stored(kept.data, Moments())
    waiting: list[tuple[int, int, torch.Tensor]] = []
    for start, end in work.cut(source.grid):
        rows = result.rows(start, end)
        past = source.rows(start, end).to(rows.dtype)
        rows.add_(past if shortcut is None else shortcut.mix(past))
        if waiting:
            _write(written, *waiting.pop())
        waiting.append((start, end, rows))
        del rows, past
    _write(written, *waiting.pop())
    return written


def _raise(block: nn.Module, source: _Source, work: _Work, following: nn.Module) -> _Source:
    """Return an activation at twice the resolution, stored unless that can be spared.

    It is stored too where the next block would write over it.
    """
    stored = _store(source, work) if isinstance(source, _Raised) else source
    weight, bias, overlap = transposed_weights(block)
    raised = _Raised(stored.data, weight.to(work.arithmetic), bias.to(work.arithmetic), overlap)
    mixes = isinstance(following, AEKLResBlock) and following.in_channels != following.out_channels
    if mixes and work.spares(raised.grid):
        _gather(raised, work)
        return raised
    return _store(raised, work)


def _write_image(norm: nn.GroupNorm, conv: nn.Module, source: _Source, work: _Work) -> torch.Tensor:
    """Return the last layer's image; in float32, for bfloat16 would show as bands of gray."""
    layer = _Layer.of(conv, torch.float32)
    last = _Convolved(source, GatheredNorm.of(norm, source.moments), layer, silu=False)
    size = (1, layer.weight.shape[0], *source.grid)
    image = torch.empty(size, dtype=torch.float32, device=layer.weight.device)
    for start, end in work.cut(source.grid):
        image[:, :, start:end] = last.rows(start, end)
    return image


def _gather(source: _Raised | _Convolved, work: _Work) -> None:
    """Compute all rows for their moments alone."""
    for start, end in work.cut(source.grid):
        source.moments.add(source.rows(start, end))


def _store(source: _Raised | _Convolved, work: _Work) -> _Stored:
    """Return the same activation as a whole, channels last."""
    bias = source.bias if isinstance(source, _Raised) else source.layer.bias
    size = (1, len(bias), *source.grid)
    layout = _layout(len(source.grid))
    data = torch.empty(size, dtype=work.storage, device=bias.device, memory_format=layout)
    stored = _Stored(data, Moments())
    for start, end in work.cut(source.grid):
        _write(stored, start, end, source.rows(start, end))
    return stored


def _write(stored: _Stored, start: int, end: int, rows: torch.Tensor) -> None:
    """Write rows and take their moments, from before they are rounded."""
    stored.data[:, :, start:end] = rows
    stored.moments.add(rows)


def _store_as(data: torch.Tensor, work: _Work) -> torch.Tensor:
    return data.to(work.storage).contiguous(memory_format=_layout(data.ndim - 2))


@dataclass(frozen=True, slots=True)
class _Layer:
    """Weights of a convolution, as the arithmetic wants them."""

    weight: torch.Tensor
    bias: torch.Tensor

    @classmethod
    def of(cls, module: nn.Module, dtype: torch.dtype) -> _Layer:
        conv = _conv(module)
        weight = conv.weight.to(dtype).contiguous(memory_format=_layout(conv.weight.ndim - 2))
        return cls(weight, conv.get_parameter("bias").to(dtype))

    def convolve(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows of a convolution of three; the halo is there already."""
        if rows.ndim == _VOLUME:
            return F.conv3d(rows, self.weight, self.bias, padding=(0, 1, 1))
        return F.conv2d(rows, self.weight, self.bias, padding=(0, 1))

    def mix(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows of a convolution of one: a matrix for each voxel."""
        mixed = F.linear(
            rows.to(self.weight.dtype).movedim(1, -1), self.weight.flatten(1), self.bias
        )
        return mixed.movedim(-1, 1)


def _decoder(net: AutoencoderKL) -> Decoder:
    return cast("Decoder", net.decoder)


def _blocks(net: AutoencoderKL) -> list[nn.Module]:
    return list(_decoder(net).blocks)


def _conv(module: nn.Module) -> nn.Conv2d | nn.Conv3d:
    return cast("nn.Conv2d | nn.Conv3d", module.get_submodule("conv"))


def _layout(spatial: int) -> torch.memory_format:
    return torch.channels_last_3d if spatial == 3 else torch.channels_last  # noqa: PLR2004


def _check(net: AutoencoderKL, z: torch.Tensor, *, slab_vox: int, dtype: torch.dtype) -> None:
    axes = _decoder(net).spatial_dims + 2
    if z.ndim != axes or z.shape[1] != net.latent_channels:
        raise DataError(
            f"latents of shape {tuple(z.shape)} cannot be decoded",
            why=f"the decoder wants {axes} axes with {net.latent_channels} channels",
            fix="give the latents of this autoencoder",
        )
    if slab_vox < 1:
        raise ConfigError(
            f"a slab of {slab_vox} rows", why="it holds nothing", fix="take 1 or more"
        )
    if dtype not in STORAGE:
        raise ConfigError(
            f"activations cannot be kept in {dtype}",
            why="float16 overflows in a decoder, and other kinds are not known here",
            fix="take torch.float32 or torch.bfloat16",
        )
