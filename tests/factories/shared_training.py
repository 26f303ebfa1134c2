"""A small training that several processes share; run as a program by the tests of sharing.

``whole FOLDER`` trains through, then again with a stop and a second beginning, and at last from
checkpoints that differ; ``die FOLDER`` lets the second process end without a word. It knows neither
MONAI nor the systems, so that it starts in the time that torch takes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from vitrael.core.configs import CriticConfig, TrainingConfig
from vitrael.core.errors import ProcessError, TaskStopped
from vitrael.core.records import Loss
from vitrael.core.rng import seeded_initialization
from vitrael.core.training.checkpoints import FileCheckpoints
from vitrael.core.training.critic import Critic
from vitrael.core.training.distributed import ALONE, Ranks, join_ranks
from vitrael.core.training.loop import Draw, fit
from vitrael.core.training.state import State

DEAD = 9
STEPS, STOPPED = 6, 3
CONFIG = TrainingConfig(
    length_images=STEPS * 8, batch_images=4, accumulated_batches=2, ema_halflife_images=16
)
CRITIC = CriticConfig(channels=4, layers=1, start_images=16)


class Blur(torch.nn.Module):
    """A codec in name only: one convolution that is to leave images as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Conv2d(1, 1, 3, padding=1)


def judge() -> Critic:
    """Return a critic of two convolutions."""
    with seeded_initialization(1, "critic"):
        layers = (torch.nn.Conv2d(1, 4, 4, 2), torch.nn.SiLU(), torch.nn.Conv2d(4, 1, 3))
        return Critic(torch.nn.Sequential(*layers), CRITIC)


class Restoring:
    """L1 to the image, with a critic."""

    def __init__(self, critic: Critic) -> None:
        self.critic = critic

    def __call__(self, model: Blur, batch: torch.Tensor, rng: torch.Generator) -> Loss:
        del rng
        image = model.net(batch)
        parts = {
            "l1": (image - batch).abs().mean(),
            "adversarial": self.critic.fooling(image),
            "critic": self.critic.judging(batch, image),
        }
        return Loss(total=torch.stack([*parts.values()]).sum(), parts=parts)


SHOWN = torch.rand((8, 1, 12, 12), generator=torch.Generator().manual_seed(7))


def draw(count: int, rng: torch.Generator) -> torch.Tensor:
    return SHOWN[torch.randint(len(SHOWN), (count,), generator=rng)]


def train(ranks: Ranks, drawing: Draw[torch.Tensor] = draw, **more: Any) -> dict[str, torch.Tensor]:
    """Return the weights of the module and of its critic, and the last point of the curve."""
    torch.set_num_threads(1)
    with seeded_initialization(1, "blur"):
        model = Blur()
    if ranks.rank:
        torch.nn.init.zeros_(model.net.weight)  # all begin with the weights of the first
    critic = judge()
    curve = fit(
        model,
        Restoring(critic),
        drawing,
        CONFIG,
        length_images=STEPS * 8,
        rng=torch.Generator().manual_seed(3),
        companion=critic,
        ranks=ranks,
        **more,
    )
    losses = {f"loss/{name}": torch.tensor(values) for name, values in curve.losses.items()}
    critic_state = {f"critic/{name}": t for name, t in critic.state_dict().items()}
    return {**model.state_dict(), **critic_state, **losses}


def train_alone(*, count: int) -> dict[str, torch.Tensor]:
    """Train in one process on the batches that ``count`` processes would draw together."""
    parts: list[torch.Generator] = []
    drawn = 0

    def gather(images: int, rng: torch.Generator) -> torch.Tensor:
        nonlocal drawn
        if drawn % CONFIG.accumulated_batches == 0:
            before = rng.get_state()
            parts.clear()
            for rank in range(count):
                rng.set_state(before)
                parts.append(Ranks(rank, count).stream(rng))
        drawn += 1
        return torch.cat([draw(images // count, part) for part in parts])

    return train(ALONE, gather)


class Counted(FileCheckpoints):
    """Checkpoints that count how often they are asked to save."""

    saves = 0

    def save(self, state: State) -> None:
        self.saves += 1
        super().save(state)


def main(task: str, folder: Path) -> None:
    """Do what the docstring of this module says."""
    with join_ranks(device="cpu", timeout_s=60) as ranks:
        place = ranks.rank

        def poll(done: int, total: int) -> None:
            if task == "die" and ranks.rank == 1 and done >= STOPPED * 8:
                os._exit(DEAD)
            if task != "die" and done == STOPPED * 8 < total:
                raise TaskStopped("the task was told to stop")

        if task == "die":
            train(ranks, poll=poll)
            return
        if task == "whole":
            save_file(train(ranks), folder / f"whole-{place}.safetensors")
        kept = Counted(folder / "kept", key="shared", every_s=1e9)
        try:
            train(ranks, checkpoints=kept, poll=poll)
        except TaskStopped:
            (folder / f"saves-{place}").write_text(str(kept.saves), encoding="ascii")
        ranks.agree(0, "that all have stopped", device=torch.device("cpu"))
        save_file(train(ranks, checkpoints=kept), folder / f"resumed-{place}.safetensors")
        elsewhere = Counted(folder / "elsewhere", key="shared")
        try:
            train(ranks, checkpoints=elsewhere if place else kept)
        except ProcessError as error:
            (folder / f"refused-{place}").write_text(str(error), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
