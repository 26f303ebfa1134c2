"""Network weights as named tensors: safetensors only, matched by name, shapes checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import safetensors.numpy

from vitrael.core.errors import WeightsError

if TYPE_CHECKING:
    from torch import nn

Tensors = Mapping[str, np.ndarray]
"""Named arrays; the only form in which numbers pass between two parties."""


def pack_tensors(tensors: Tensors) -> bytes:
    """Return named arrays as one safetensors byte string."""
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    return safetensors.numpy.save(arrays)


def unpack_tensors(data: bytes) -> dict[str, np.ndarray]:
    """Return the named arrays of a safetensors byte string.

    Raises WeightsError when the bytes are no whole safetensors file.
    """
    try:
        return safetensors.numpy.load(data)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise WeightsError(
            "tensors cannot be read",
            why="the bytes are not a whole safetensors file",
            fix="send the file again",
        ) from error


def check_like(tensors: Tensors, expected: Tensors) -> None:
    """Raise WeightsError unless names, shapes and dtypes agree and every value is finite.

    The message names the first tensor that differs.
    """
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors:
            raise WeightsError(f"tensor {name} is missing")
        if name not in expected:
            raise WeightsError(f"tensor {name} is not expected")
        got, want = tensors[name], expected[name]
        if got.shape != want.shape or got.dtype != want.dtype:
            raise WeightsError(
                f"tensor {name} is {got.dtype}{list(got.shape)}",
                why=f"{want.dtype}{list(want.shape)} is expected",
            )
        if np.issubdtype(got.dtype, np.floating) and not np.isfinite(got).all():
            raise WeightsError(f"tensor {name} holds values that are not finite")


def check_finite(tensors: Tensors) -> None:
    """Raise WeightsError, which names the first tensor, unless every value is finite."""
    for name, array in sorted(tensors.items()):
        if np.issubdtype(array.dtype, np.inexact) and not np.isfinite(array).all():
            raise WeightsError(f"tensor {name} holds values that are not finite")


def module_tensors(module: nn.Module) -> dict[str, np.ndarray]:
    """Return a copy of a module's parameters and buffers by name, on the CPU."""
    return {name: t.detach().cpu().numpy().copy() for name, t in module.state_dict().items()}


def load_weights(module: nn.Module, tensors: Tensors) -> None:
    """Load named tensors into a module; names, shapes and dtypes must agree exactly."""
    import torch  # noqa: PLC0415 - the researcher's install has no torch

    check_like(tensors, module_tensors(module))
    module.load_state_dict({name: torch.from_numpy(np.array(a)) for name, a in tensors.items()})
