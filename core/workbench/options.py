"""What the commands of the workbench share: options, and where the arithmetic happens."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

if TYPE_CHECKING:
    from vitrael.core.training.compute import Compute

Device = Literal["auto", "cpu", "cuda"]

MODEL = click.argument("model", type=click.Path(path_type=Path, file_okay=False))
FILES = click.argument(
    "files", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False)
)
FOLDER = click.Path(path_type=Path, file_okay=False)
DEVICE = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="auto takes a GPU where there is one.",
)
THREADS = click.option(
    "--threads", type=click.IntRange(min=1), help="Of the processor. [default: all it may use]"
)
SEED = click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
DRY_RUN = click.option("--dry-run", is_flag=True, help="Say what would be done; write nothing.")
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")


def open_compute(device: Device, threads: int | None) -> Compute:
    """Set torch's threads and return the device; ConfigError for a GPU that is not there."""
    import torch  # noqa: PLC0415

    from vitrael.core.training.compute import prepare_compute  # noqa: PLC0415

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return prepare_compute(device=device, threads=threads or count_threads(), bf16="auto")


def count_threads() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0))
