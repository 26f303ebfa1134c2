"""Copies of a network for inference: in bfloat16, channels last, with what must stay float32.

When which of them is used:

- **bfloat16** where a processor multiplies in it faster than in float32: CUDA from compute
  capability 8, and CPUs with AMX. A CPU with avx512_bf16 alone is no such: its instruction takes
  two cycles, so a convolution ran at half the rate of float32. There the copy stays in float32.
- **Channels last** together with bfloat16, whose convolutions want it; in float32 small grids were
  slower so, and large ones hardly faster. Upsampling and decoding in slabs are channels last
  always: a transposed convolution took half the time.
- **CUDA graphs or compilation** are left to the caller: worth it on a GPU where the calls to come
  (samples over batch size, times sampling steps) save more than capture or compilation costs, once
  for each shape of batch. Never on a CPU, where compiling took minutes and gave slower code.

What stays float32 in every copy: the statistics and parameters of normalizations, the softmax of
attentions (the fused kernel's), the embedding of timesteps, the last layer, and the output. On a
CPU so does the mean over neighboring voxels, for which it has no kernel in bfloat16. The state of
a sampler is the caller's, and float32 too.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from monai.networks.blocks.crossattention import CrossAttentionBlock
from monai.networks.blocks.selfattention import SABlock
from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet
from torch import nn

from vitrael.core.errors import ConfigError
from vitrael.core.models.nets.upsampling import TransposedUpsampling, is_upsampling
from vitrael.core.training.compute import computes_in_bfloat16

_M = TypeVar("_M", bound=nn.Module)

_VOLUME, _PLANE = 5, 4
_WEIGHTED = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
_NORMS = (nn.GroupNorm, nn.LayerNorm)
_POOLS = (nn.AvgPool2d, nn.AvgPool3d)


def arithmetic_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Return what to multiply in: ``dtype``, or float32 where bfloat16 would be slower."""
    slower = dtype == torch.bfloat16 and not computes_in_bfloat16(device)
    return torch.float32 if slower else dtype


def inference_copy(module: _M, *, dtype: torch.dtype) -> _M:
    """Return a copy that computes in ``dtype`` and is called as the original is.

    It takes float32 and answers float32, to rounding what the original answers; it has no
    gradient and no dropout. The original is not touched. Weights are rounded once, here; where
    the copy upsamples, its weights are summed in float32 first (``upsampling``).

    Raises ``ConfigError`` for a dtype other than float32 and bfloat16: float16 overflows.
    """
    if dtype not in (torch.float32, torch.bfloat16):
        raise ConfigError(
            f"no copy for inference in {dtype}",
            why="float16 overflows in a diffusion network, and other kinds are not known here",
            fix="take torch.float32 or torch.bfloat16",
        )
    made = copy.deepcopy(module).eval().requires_grad_(requires_grad=False)
    _sum_upsampling(made)
    kept = _kept_in_float32(made)
    for part in made.modules():
        _prepare(part, dtype=torch.float32 if part in kept else dtype)
    if dtype == torch.bfloat16:
        for weight in (*made.parameters(), *made.buffers()):
            weight.data = _channels_last(weight.data)
        made.register_forward_pre_hook(_channels_last_inputs)
    made.register_forward_hook(_to_float32)
    return made


def _prepare(part: nn.Module, *, dtype: torch.dtype) -> None:
    """Let one layer compute in a dtype, and hand it on to the next."""
    if isinstance(part, _WEIGHTED):
        part.to(dtype)
        part.register_forward_pre_hook(_to_weight)
    elif isinstance(part, TransposedUpsampling):
        part.to(dtype)
    elif isinstance(part, _NORMS):
        part.float()
        part.register_forward_pre_hook(_to_weight)
        if dtype != torch.float32:
            part.register_forward_hook(_to_bfloat16)
    elif isinstance(part, _POOLS) and dtype != torch.float32:
        part.register_forward_pre_hook(_pool_in_float32)
        part.register_forward_hook(_to_bfloat16)
    elif isinstance(part, SABlock | CrossAttentionBlock):
        _fuse(part)


def _sum_upsampling(module: nn.Module) -> None:
    for name, part in list(module.named_modules()):
        if is_upsampling(part):
            parent = module.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], TransposedUpsampling(part))


def _kept_in_float32(module: nn.Module) -> set[nn.Module]:
    """Return the layers that are cheap and whose rounding would reach the output as it is."""
    kept: set[nn.Module] = set()
    for part in module.modules():
        if isinstance(part, DiffusionModelUNet):
            kept.update(part.time_embed.modules())
            kept.update(part.out.modules())
    return kept


def _fuse(attention: SABlock | CrossAttentionBlock) -> None:
    """Let an attention run through torch's fused kernel, whose scores and softmax are float32.

    It knows no relative positions; those stay with the attention that has them. It wants queries,
    keys and values of one dtype, of which MONAI's own widening leaves the values out.
    """
    if attention.rel_positional_embedding is not None:
        return
    attention.use_flash_attention = True
    attention.attention_dtype = None
    attention.dropout_rate = 0.0  # the kernel would drop out in evaluation too


def _to_weight(part: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    weight = part.get_parameter("weight")
    return tuple(arg.to(weight.dtype) for arg in args)


def _pool_in_float32(_: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Widen what a CPU would pool: for volumes it knows no bfloat16."""
    return tuple(arg.float() if arg.device.type == "cpu" else arg for arg in args)


def _channels_last_inputs(_: nn.Module, args: tuple[object, ...]) -> tuple[object, ...]:
    return tuple(_channels_last(arg) if isinstance(arg, torch.Tensor) else arg for arg in args)


def _to_bfloat16(_: nn.Module, __: object, answer: torch.Tensor) -> torch.Tensor:
    return answer.bfloat16()


def _to_float32(_: nn.Module, __: object, answer: torch.Tensor) -> torch.Tensor:
    return answer.float().contiguous()


def _channels_last(data: torch.Tensor) -> torch.Tensor:
    if data.ndim == _VOLUME:
        return data.contiguous(memory_format=torch.channels_last_3d)
    if data.ndim == _PLANE:
        return data.contiguous(memory_format=torch.channels_last)
    return data
