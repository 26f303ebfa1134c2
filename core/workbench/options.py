"""What the commands of the workbench share: options, and where the arithmetic happens."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import click

from vitrael.core.errors import EXIT_PARTIAL

if TYPE_CHECKING:
    from vitrael.core.training.compute import Compute

_LAUNCHED: Final = "TORCHELASTIC_RUN_ID"
"""torchrun sets it for each of its processes, and torch itself knows them by it."""

Device = Literal["auto", "cpu", "cuda"]

MODEL = click.argument("model", type=click.Path(path_type=Path, file_okay=False))
FILES = click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
FOLDER = click.Path(path_type=Path, file_okay=False)
SCANS = click.Path(path_type=Path, file_okay=False, exists=True)
DEVICE = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="auto takes a GPU where there is one.",
)
THREADS = click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="Of the processor. [default: all it may use, under torchrun its share]",
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
    """Return how many processors this process may use: those of torchrun share a machine's."""
    told = os.environ.get("LOCAL_WORLD_SIZE", "")  # noqa: TID251 - where the arithmetic happens
    processes = int(told) if told.isdecimal() else 1
    return max(1, len(os.sched_getaffinity(0)) // max(1, processes))


def tell_shortcomings(left_out: Mapping[str, int], clipped: Mapping[str, int], cut: int) -> None:
    """Say on standard error which scans of a folder were not used, or not as they are."""
    for reason, count in sorted(left_out.items()):
        click.echo(f"left out: {count} {reason}", err=True)
    for name, count in clipped.items():
        click.echo(f"{count} scans lie outside the range of {name} and count as its end", err=True)
    if cut:
        click.echo(
            f"{cut} brains reach beyond the grid, so their volumes are too small: choose a larger "
            "grid or spacing",
            err=True,
        )


def end_code(*, is_partial: bool) -> int | None:
    """Return the exit code of work that is done; None for 0.

    A launcher of several processes takes every other code for a crash, and ends or repeats what
    is finished: under torchrun what was left out is told and does not show in the code.
    """
    return EXIT_PARTIAL if is_partial and _LAUNCHED not in os.environ else None  # noqa: TID251
