"""What a training run carries beside the weights, and all of it together at one step.

A State lies on disk as one safetensors file: the tensors by name, and its facts as JSON in the
file's header. Nothing is pickled.
"""

from __future__ import annotations

import errno
import json
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import nn

from vitrael.core.configs import Section
from vitrael.core.errors import WeightsError

_HEADER: Final = "state"
_LENGTH_BYTES: Final = 8
_SYSTEM_ERROR: Final = re.compile(r"os error ([0-9]+)")


class MovingAverage:
    """Exponential moving average of a module's parameters, its half-life counted in images."""

    def __init__(self, model: nn.Module, halflife_images: int) -> None:
        """Start the average at the module's present weights."""
        self.halflife_images = halflife_images
        self.images = 0
        self.shadow = [p.detach().clone() for p in model.parameters()]

    @torch.no_grad()
    def follow(self, model: nn.Module, images: int) -> None:
        """Move the average toward the module after a step on so many images.

        Early on the half-life is shortened to a tenth of the images seen, so that the start
        is forgotten (Karras et al. 2024, section 3.1, use the same ramp-up).
        """
        self.images += images
        halflife = min(self.halflife_images, max(self.images / 10, 1))
        keep = 0.5 ** (images / halflife)
        # One kernel for all of them on a GPU; on a CPU the same numbers, bit for bit, as one by one
        torch._foreach_lerp_(self.shadow, [p.detach() for p in model.parameters()], 1 - keep)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Put the averaged weights into the module."""
        for average, parameter in zip(self.shadow, model.parameters(), strict=True):
            parameter.copy_(average)


@dataclass(slots=True)
class Curve:
    """The course of the losses: each point is the mean since the one before."""

    images: list[int] = field(default_factory=list)
    losses: dict[str, list[float]] = field(default_factory=dict)


class Facts(Section):
    """The numbers of a State that are no tensors."""

    key: str
    """Names all that decides the training; a State with another key belongs to another one."""
    step: int
    """Steps that are done."""
    average_images: int
    """What the moving average has seen."""
    window_steps: int
    """Steps since the last point of the curve."""
    curve_images: list[int]
    curve_losses: dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class State:
    """A training after a whole step: weights, optimizer, average, generator, open window, curve.

    ``tensors`` may be the training's own memory: who keeps a State beyond the step writes it down.
    No two of them may share memory, as tied weights do: safetensors writes none that do.
    """

    tensors: Mapping[str, torch.Tensor]
    step: int
    average_images: int = 0
    window_steps: int = 0
    curve: Curve = field(default_factory=Curve)


class Checkpoints(Protocol):
    """Where a training finds what an earlier attempt at it has left, and leaves its own."""

    def load(self) -> State | None:
        """Return the newest whole State of this very training, or None."""

    def is_due(self) -> bool:
        """Say whether it is time to save; asked after every step."""

    def save(self, state: State) -> None:
        """Keep a State; a training goes on without when that is not possible."""


def write_state(state: State, path: Path, *, key: str) -> None:
    """Write a State into a file that exists or not; OSError when the disk refuses.

    Nothing is copied but what lies on another device, and nothing is synced.
    """
    facts = Facts(
        key=key,
        step=state.step,
        average_images=state.average_images,
        window_steps=state.window_steps,
        curve_images=state.curve.images,
        curve_losses=state.curve.losses,
    )
    tensors = {name: t.detach().cpu().contiguous() for name, t in state.tensors.items()}
    try:
        save_file(tensors, path, metadata={_HEADER: facts.model_dump_json()})
    except SafetensorError as error:  # in whose text is what the system said
        found = _SYSTEM_ERROR.search(str(error))
        code = int(found[1]) if found else errno.EIO
        raise OSError(code, os.strerror(code)) from error


def read_state(data: bytes) -> tuple[State, str]:
    """Return the State of a file's bytes and its key; WeightsError when they hold none."""
    try:
        facts = Facts.model_validate_json(_read_header(data)[_HEADER])
        tensors = load(data)
    except (SafetensorError, ValidationError, ValueError, KeyError, TypeError, struct.error):
        raise WeightsError(
            "a training's state cannot be read",
            why="the file was cut, changed, or written by another version",
            fix="leave it: the one before is used",
        ) from None
    curve = Curve(images=facts.curve_images, losses=facts.curve_losses)
    return State(tensors, facts.step, facts.average_images, facts.window_steps, curve), facts.key


def _read_header(data: bytes) -> dict[str, Any]:
    """Return the texts in the header of a safetensors file, which the library's reader drops."""
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[_LENGTH_BYTES : _LENGTH_BYTES + length])
    return dict(header["__metadata__"])
