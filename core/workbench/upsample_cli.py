"""``vitrael model upsample``: local scans of thick slices on the grid of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import click

from vitrael.core.errors import UsageError
from vitrael.core.workbench.options import (
    AS_JSON,
    DEVICE,
    DRY_RUN,
    FILES,
    FOLDER,
    MODEL,
    SEED,
    THREADS,
    Device,
    open_compute,
)
from vitrael.core.workbench.telling import Account, tell_origin, tell_plan

if TYPE_CHECKING:
    from vitrael.core.workbench.folder import Model, ModelDocument
    from vitrael.core.workbench.masked import HiddenVoxels
    from vitrael.core.workbench.thick import AxisName, ProfileName
    from vitrael.core.workbench.upsampling import Upsampled, UpsamplingOrder

_TOLD_DEG: Final = 0.5
"""From here on a tilt is told to a person; the JSON output and the record always have it."""


@click.command(
    epilog="Examples: 'vitrael model upsample brain-model thick.nii.gz --to fine', "
    "'vitrael model upsample brain-model thick.nii.gz --to fine --strategy noise --factor 8', "
    "'vitrael model upsample brain-model scan.nii.gz --to whole --mask not-measured.nii.gz'."
)
@MODEL
@FILES
@click.option("--to", type=FOLDER, required=True, help="Folder of the results.")
@click.option(
    "--strategy",
    type=click.Choice(["latent", "noise"]),
    default="latent",
    show_default=True,
    help="Search the codec's latents, or the sampler's noise and the covariates: for thick slices.",
)
@click.option(
    "--thickness-mm",
    type=click.FloatRange(min=0.1, max=50),
    help="From slice to slice. [default: as found]",
)
@click.option(
    "--factor", type=click.IntRange(2, 64), help="Voxels of the model from slice to slice."
)
@click.option(
    "--profile",
    type=click.Choice(["thick", "thin"]),
    default="thick",
    show_default=True,
    help="Slices that touch, or thin ones with gaps.",
)
@click.option(
    "--mask",
    type=click.Path(path_type=Path, dir_okay=False),
    help="NIfTI file on the model's grid, where the FILES lie too: not 0 where nothing was "
    "measured.",
)
@click.option(
    "--axis",
    type=click.Choice(["left-right", "front-back", "up-down"]),
    help="Direction from slice to slice. [default: that of the longest edge of a voxel]",
)
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="What is known.")
@click.option("--iterations", type=click.IntRange(1, 100_000), default=200, show_default=True)
@click.option("--restarts", type=click.IntRange(1, 64), default=1, show_default=True)
@click.option("--consistent", is_flag=True, help="Make the result agree with every slice.")
@click.option(
    "--prepared", is_flag=True, help="The files show a brain alone, with intensities in [0, 1]."
)
@SEED
@DEVICE
@THREADS
@DRY_RUN
@AS_JSON
def upsample(
    model: Path,
    *,
    files: tuple[Path, ...],
    to: Path,
    strategy: Literal["latent", "noise"],
    thickness_mm: float | None,
    factor: int | None,
    axis: AxisName | None,
    profile: ProfileName,
    mask: Path | None,
    settings: tuple[str, ...],
    iterations: int,
    restarts: int,
    consistent: bool,
    prepared: bool,
    seed: int,
    device: Device,
    threads: int | None,
    dry_run: bool,
    as_json: bool,
) -> int | None:
    """Make T1-weighted FILES of thick slices, or with gaps, into volumes on the grid of MODEL.

    The direction and the thickness of the slices are found in the file. A result lies where its
    scan lies. What it shows between the slices, or under --mask, is the model's guess: it is no
    measurement. A result that is there is kept when the same is asked for again; nothing else is
    written over. A file that cannot be used stops none of the others; then the exit code is 7.
    """
    from vitrael.core.workbench.folder import load_model, read_document  # noqa: PLC0415

    document = read_document(model)
    known = _known(document, settings)
    if factor is not None and thickness_mm is not None:
        raise UsageError("--factor and --thickness-mm say the same", fix="give one of the two")
    if mask is not None and (factor, thickness_mm, axis, profile) != (None, None, None, "thick"):
        raise UsageError(
            "--mask is for scans on the model's grid, which have no slices to tell of",
            fix="leave --factor, --thickness-mm, --axis and --profile out",
        )
    hidden = None if mask is None else _read_hidden(mask, document)
    if dry_run:
        tell_plan(files, to, as_json=as_json)
        return None
    from vitrael.core.sampling.inverse import InversionSettings  # noqa: PLC0415
    from vitrael.core.workbench.upsampling import UpsamplingOrder  # noqa: PLC0415

    compute = open_compute(device, threads)
    search = InversionSettings(
        iterations=iterations, restarts=restarts, consistent=consistent, bf16=compute.bf16
    )
    order = UpsamplingOrder(
        strategy=strategy,
        thickness_mm=thickness_mm,
        factor=factor,
        axis=axis,
        profile=profile,
        hidden=hidden,
        prepared=prepared,
        known=known,
        settings=search,
        seed=seed,
    )
    loaded = load_model(model, device=compute.device)
    tell_origin(document)
    return _upsample(loaded, files, to, order, as_json=as_json)


def _upsample(
    model: Model, files: Sequence[Path], to: Path, order: UpsamplingOrder, *, as_json: bool
) -> int | None:
    from vitrael.core.workbench.generation import within_memory  # noqa: PLC0415
    from vitrael.core.workbench.progress import Progress  # noqa: PLC0415
    from vitrael.core.workbench.upsampling import upsample_files  # noqa: PLC0415

    account: Account[Upsampled] = Account(_show, _describe)
    with (
        account.tell(as_json=as_json, facts={"written": True}),
        within_memory("the search for an image", fix="give --device cpu, or a larger GPU"),
    ):
        upsample_files(
            model,
            files,
            to,
            order,
            tell=Progress(),
            written=account.done.append,
            refused=account.refused.append,
        )
    return account.exit_code


def _known(document: ModelDocument, settings: Sequence[str]) -> Mapping[str, float]:
    """Return the covariates that are given; raise UsageError with what this command offers."""
    from vitrael.core.workbench.request import known_covariates  # noqa: PLC0415

    try:
        return known_covariates(document, settings)
    except UsageError as error:  # what would be asked of a sample is not offered here
        beyond = "--extrapolate" in error.fix
        fix = "give a value within, or leave it out: it is searched then" if beyond else error.fix
        raise UsageError(error.what, why=error.why, fix=fix) from None


def _read_hidden(mask: Path, document: ModelDocument) -> HiddenVoxels:
    from vitrael.core.workbench.masked import read_hidden  # noqa: PLC0415

    return read_hidden(mask, document)


def _show(done: Sequence[Upsampled]) -> None:
    for result in done:
        stretched = ", slices taken as of that thickness" if result.is_stretched else ""
        what = f"every {result.factor} voxels a thin slice"
        if result.measured == "masked":
            what = "what the mask leaves"
        elif result.measured == "thick":
            what = f"slices of {result.factor} voxels"
        tilt = f", tilted by {result.tilt_deg:.0f} degrees" if result.tilt_deg >= _TOLD_DEG else ""
        kept = ", kept" if result.kept else ""
        click.echo(f"{result.path}: {what}{stretched}{tilt}{kept}")


def _describe(done: Sequence[Upsampled]) -> list[dict[str, Any]]:
    from vitrael.core.workbench.thick import AXES  # noqa: PLC0415

    return [
        {
            "source": str(result.source),
            "path": str(result.path),
            "digest": result.digest,
            "measured": result.measured,
            "axis": None if result.axis is None else AXES[result.axis],
            "factor": result.factor,
            "stretched": result.is_stretched,
            "tilt_deg": result.tilt_deg,
            "loss": result.loss,
            "found": dict(result.condition),
            "cut_frac": result.cut_frac,
            "kept": result.kept,
        }
        for result in done
    ]
