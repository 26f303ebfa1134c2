"""``vitrael phantoms``: folders that look like a hospital's; this file only translates."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from vitrael.core.errors import UsageError

if TYPE_CHECKING:
    from vitrael.core.data.phantoms.orders import Hospital

_FOLDER = click.Path(path_type=Path, file_okay=False)
_GRID = re.compile(r"(\d{1,4})[x,](\d{1,4})[x,](\d{1,4})")
_TENTHS = 10


@click.group()
def phantoms() -> None:
    """Make folders of made-up patients that look like a hospital's."""


@phantoms.command(
    epilog="Examples: 'vitrael phantoms write north --kind brain --patients 40 --visits 2', "
    "'vitrael phantoms write pacs --kind brain --format dicom --site noisy --messy "
    "--truth pacs-truth', 'vitrael phantoms write echo --kind echo --site bedside --seed 7'."
)
@click.argument("out", type=_FOLDER)
@click.option("--kind", type=click.Choice(["brain", "echo", "muscle"]), required=True)
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["nifti", "dicom", "mp4", "png"]),
    help="Brain: nifti (BIDS), dicom, png (slices). Echo and muscle: mp4, dicom. "
    "[default: the first of the kind]",
)
@click.option("--patients", type=click.IntRange(min=1), default=10, show_default=True)
@click.option("--visits", type=click.IntRange(min=1), default=1, show_default=True)
@click.option(
    "--site",
    metavar="STYLE",
    help="Brain: plain, sharp, noisy, thick, whole-head. Echo: clinic, bedside, tertiary, legacy. "
    "Muscle: plain. Sites have different people. [default: the first of the kind]",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--edge", type=click.IntRange(16, 1024), help="Pixels along each side. [default: by kind]"
)
@click.option("--grid", metavar="DxHxW", help="Voxels of a volume, instead of --edge.")
@click.option(
    "--spacing",
    "spacing_mm",
    type=click.FloatRange(min=0.2, max=20),
    help="Of a brain, mm. [default: so that it fits the grid]",
)
@click.option("--frames", type=click.IntRange(2, 2000), help="Of a clip. [default: 48]")
@click.option(
    "--contrasts",
    metavar="LIST",
    help="Of a brain: T1w,T2w,FLAIR. With more than T1w there are lesions, and their masks as "
    "nifti. [default: T1w]",
)
@click.option("--messy", is_flag=True, help="Plant what hospitals have beside good scans.")
@click.option("--truth", type=_FOLDER, help="Write truth.csv into this folder, outside of OUT.")
@click.option("--dry-run", is_flag=True, help="Say what would be written; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def write(
    out: Path,
    *,
    kind: Literal["brain", "echo", "muscle"],
    file_format: Literal["nifti", "dicom", "mp4", "png"] | None,
    patients: int,
    visits: int,
    site: str | None,
    seed: int,
    edge: int | None,
    grid: str | None,
    spacing_mm: float | None,
    frames: int | None,
    contrasts: str | None,
    messy: bool,
    truth: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Fill the empty or new folder OUT with the scans and tables of made-up patients.

    Nobody was scanned; every name is invented. Equal options give equal bytes on one machine.
    What is known of each image beside what hospitals know is written with --truth alone.
    """
    from vitrael.core.data.phantoms.hospital import (  # noqa: PLC0415
        check_places,
        write_hospital,
    )
    from vitrael.core.data.phantoms.orders import order_hospital  # noqa: PLC0415

    hospital = order_hospital(
        kind,
        file_format,
        site=site,
        seed=seed,
        patients=patients,
        visits=visits,
        edge=edge,
        grid_vox=None if grid is None else _read_grid(grid),
        spacing_mm=spacing_mm,
        frames=frames,
        contrasts=None if contrasts is None else tuple(map(str.strip, contrasts.split(","))),
    )
    check_places(out, truth=truth)
    planted: Mapping[str, int] = {}
    if not dry_run:
        with _shown(hospital.images) as tell:
            written = write_hospital(out, hospital, is_messy=messy, truth=truth, tell=tell)
        planted = written.planted
    if as_json:
        facts = _describe(hospital) | {"folder": str(out), "messy": messy}
        known = {"truth": None if truth is None else str(truth), "planted": dict(planted)}
        click.echo(json.dumps({**facts, **known, "written": not dry_run}))
    else:
        _tell(hospital, planted, is_written=not dry_run)


def _tell(hospital: Hospital, planted: Mapping[str, int], *, is_written: bool) -> None:
    verb = "written" if is_written else "would be written"
    click.echo(
        f"{hospital.images} images of {hospital.patients} patients {verb}: {hospital.kind} as "
        f"{hospital.file_format}, site {hospital.site}, seed {hospital.seed}"
    )
    for name, count in planted.items():
        click.echo(f"  planted {count:>3}  {name}")


def _describe(hospital: Hospital) -> dict[str, object]:
    return {
        "kind": hospital.kind,
        "format": hospital.file_format,
        "site": hospital.site,
        "seed": hospital.seed,
        "patients": hospital.patients,
        "visits": hospital.visits,
        "images": hospital.images,
        "grid": list(hospital.grid),
    }


def _read_grid(text: str) -> tuple[int, int, int]:
    found = _GRID.fullmatch(text.strip().lower())
    if found is None:
        raise UsageError("the grid is no grid of a volume", fix="write --grid 96x112x96")
    return int(found[1]), int(found[2]), int(found[3])


@contextlib.contextmanager
def _shown(images: int) -> Iterator[Callable[[int, int], None]]:
    """Give what shows progress on stderr: a bar on a terminal, a line for each tenth elsewhere."""
    if sys.stderr.isatty():
        with click.progressbar(length=images, label="images", file=sys.stderr) as bar:
            yield lambda _done, _total: bar.update(1)
        return

    def tell(done: int, total: int) -> None:
        if done * _TENTHS // total > (done - 1) * _TENTHS // total:
            click.echo(f"images: {done} of {total}", err=True)

    yield tell
