"""The real steward with a codec task that is known beforehand and can be held in the middle.

``gated_steward.py GATES --home HOME``: in the folder GATES a file ``hold-SITE`` keeps the task from
its end, ``begun-SITE`` says which round the site is at, and ``computed-SITE`` has a line for each
round that it has computed to the end: two lines are a second training.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vitrael.client.site.options import private_files
from vitrael.client.site.service import run_steward
from vitrael.client.site.settings import load_settings
from vitrael.client.site.tasks import SiteContext, TaskResult
from vitrael.core.digest import write_atomically
from vitrael.core.messages import Task
from vitrael.core.weights import Tensors

LONGEST_HOLD_S = 600.0
EXAMPLES = 10


def step(site: str, number: int, size: int) -> np.ndarray:
    """Return what a site adds in a round: even numbers, so that a mean of two is exact."""
    draw = np.random.default_rng([int.from_bytes(site.encode()), number])
    return (2 * draw.integers(-4, 5, size)).astype(np.float32)


def main(gates: Path, home: Path) -> None:
    """Serve until SIGTERM."""
    settings = load_settings(home)
    hold, begun = gates / f"hold-{settings.name}", gates / f"begun-{settings.name}"
    computed = gates / f"computed-{settings.name}"

    def codec(task: Task, inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:
        write_atomically(begun, str(task.round).encode())
        until = time.monotonic() + LONGEST_HOLD_S
        while hold.exists() and time.monotonic() < until:
            context.report(1, 2)
            time.sleep(0.05)
        context.report(2, 2)
        weights = inputs["codec"]["w"]
        moved = {"w": weights + step(settings.name, task.round, weights.size)}
        with computed.open("a", encoding="ascii") as file:
            file.write(f"{task.round}\n")
        body = {"curve_images": [1], "curve_loss": [1.0]}
        return TaskResult(body=body, tensors={"codec": moved}, num_examples=EXAMPLES)

    with private_files():
        run_steward(settings, ready=lambda _: None, tasks={"codec": codec}, layouts=None)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("gates", type=Path)
    parser.add_argument("--home", type=Path, required=True)
    asked = parser.parse_args()
    main(asked.gates, asked.home)
