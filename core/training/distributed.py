"""Several processes that share one training, as ``torchrun`` starts them.

Each draws and learns its own part of every batch; gradients and losses are averaged before the
step, so that all hold the same weights after it, up to the rounding of a sum in another order.
Averaging by hand instead of wrapping the module keeps its names and its methods, serves a companion
and accumulated batches alike, and costs one exchange a step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import torch
from torch import distributed

from vitrael.core.errors import ConfigError, ProcessError
from vitrael.core.rng import torch_stream

_PATIENCE_S: Final = 600.0
_LARGEST_SEED: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class Ranks:
    """The place of this process among those that train together; alone it does nothing at all."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes and reports."""
        return self.rank == 0

    def part_of(self, batch_images: int) -> int:
        """Return this process's number of images of a batch; ConfigError unless it is whole."""
        if batch_images % self.count:
            raise ConfigError(
                f"a batch of {batch_images} images cannot be shared by {self.count} processes",
                why="each must have as many as the others",
                fix="set batch_images to a multiple of the processes",
            )
        return batch_images // self.count

    def stream(self, rng: torch.Generator) -> torch.Generator:
        """Return the generator of this process for one step.

        Alone it is ``rng`` itself. Otherwise all processes draw one seed from their equal ``rng``,
        and the stream is named by it and the rank: what is kept of a training is then the same for
        all of them, whatever each has drawn.
        """
        if self.count == 1:
            return rng
        seed = int(torch.randint(_LARGEST_SEED, (1,), generator=rng, device=rng.device))
        return torch_stream(seed, "rank", self.rank, device=str(rng.device))

    @torch.no_grad()
    def average(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace tensors of one dtype by their mean over the processes, in one exchange."""
        if self.count == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(flat)
        flat /= self.count
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    @torch.no_grad()
    def spread(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace tensors by those of the first process."""
        if self.count == 1:
            return
        for tensor in tensors:
            whole = tensor.contiguous()
            distributed.broadcast(whole, src=0)
            tensor.copy_(whole)

    def agree(self, number: int, what: str, *, device: torch.device) -> None:
        """Raise ProcessError unless all processes name the same number."""
        if self.count == 1:
            return
        pair = torch.tensor([number, -number], device=device)
        distributed.all_reduce(pair, op=distributed.ReduceOp.MAX)
        highest, lowest = int(pair[0]), -int(pair[1])
        if highest != lowest:
            raise ProcessError(
                f"the processes of a training do not agree on {what}",
                why=f"one has {lowest}, another {highest}",
                fix="give all of them the same checkpoints, on a disk that they share",
            )


ALONE: Final = Ranks()
"""A process that trains by itself."""


@contextmanager
def join_ranks(*, device: str, timeout_s: float = _PATIENCE_S) -> Iterator[Ranks]:
    """Yield this process's place among those of ``torchrun``; without it, ``ALONE``.

    On CUDA each process takes the device of its local rank. Who waits for a process that has ended
    fails at once, or after ``timeout_s`` where its machine is lost. torch itself reads from the
    environment where the others are.
    """
    if not distributed.is_torchelastic_launched():
        yield ALONE
        return
    if device == "cuda":
        torch.cuda.set_device(distributed.get_node_local_rank())
    distributed.init_process_group(
        "nccl" if device == "cuda" else "gloo", timeout=timedelta(seconds=timeout_s)
    )
    try:
        yield Ranks(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()
