"""``vitrael model score``, ``upsample`` and ``evaluate``: what a model makes of local scans."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from vitrael.core.errors import EXIT_PARTIAL, UsageError, VitraelError
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

if TYPE_CHECKING:
    from vitrael.core.workbench.folder import ModelDocument
    from vitrael.core.workbench.inputs import Refused
    from vitrael.core.workbench.masked import HiddenVoxels
    from vitrael.core.workbench.thick import AxisName, ProfileName
    from vitrael.core.workbench.upsampling import Upsampled


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
    measurement. A file that cannot be used stops none of the others; then the exit code is 7.
    """
    from vitrael.core.workbench.folder import load_model, read_document  # noqa: PLC0415
    from vitrael.core.workbench.request import known_covariates  # noqa: PLC0415

    document = read_document(model)
    known = known_covariates(document, settings)
    if factor is not None and thickness_mm is not None:
        raise UsageError("--factor and --thickness-mm say the same", fix="give one of the two")
    if mask is not None and (factor, thickness_mm, axis, profile) != (None, None, None, "thick"):
        raise UsageError(
            "--mask is for scans on the model's grid, which have no slices to tell of",
            fix="leave --factor, --thickness-mm, --axis and --profile out",
        )
    hidden = None if mask is None else _read_hidden(mask, document)
    if dry_run:
        _tell_plan(files, to, as_json=as_json)
        return None
    from vitrael.core.sampling.inverse import InversionSettings  # noqa: PLC0415
    from vitrael.core.workbench.progress import Progress  # noqa: PLC0415
    from vitrael.core.workbench.upsampling import UpsamplingOrder, upsample_files  # noqa: PLC0415

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
    done, refused = upsample_files(loaded, files, to, order, tell=Progress())
    _tell_upsampled(done, refused, as_json=as_json)
    return _tell_refused(refused, done=len(done))


def _read_hidden(mask: Path, document: ModelDocument) -> HiddenVoxels:
    from vitrael.core.workbench.masked import read_hidden  # noqa: PLC0415

    return read_hidden(mask, document)


def _tell_upsampled(
    done: Sequence[Upsampled], refused: Sequence[Refused], *, as_json: bool
) -> None:
    if as_json:
        told = [_describe(result) for result in done]
        click.echo(json.dumps({"files": told, "skipped": _skipped(refused), "written": True}))
        return
    for result in done:
        stretched = ", slices taken as of that thickness" if result.is_stretched else ""
        what = f"every {result.factor} voxels a thin slice"
        if result.measured == "masked":
            what = "what the mask leaves"
        elif result.measured == "thick":
            what = f"slices of {result.factor} voxels"
        click.echo(f"{result.path}: {what}{stretched}")


def _describe(result: Upsampled) -> dict[str, Any]:
    from vitrael.core.workbench.thick import AXES  # noqa: PLC0415

    return {
        "source": str(result.source),
        "path": str(result.path),
        "digest": result.digest,
        "measured": result.measured,
        "axis": None if result.axis is None else AXES[result.axis],
        "factor": result.factor,
        "stretched": result.is_stretched,
        "loss": result.loss,
        "found": dict(result.condition),
    }


def _tell_plan(files: Sequence[Path], to: Path | None, *, as_json: bool) -> None:
    if as_json:
        folder = None if to is None else str(to)
        told = [str(path) for path in files]
        click.echo(json.dumps({"files": told, "folder": folder, "written": False}))
    else:
        where = "nothing would be written" if to is None else f"results would be written into {to}"
        click.echo(f"{len(files)} files would be read; {where}")


def _skipped(refused: Sequence[Refused]) -> list[dict[str, Any]]:
    return [{"file": str(one.path), "reason": one.reason} for one in refused]


def _tell_refused(refused: Sequence[Refused], *, done: int) -> int | None:
    """Say on stderr which files could not be used and why; return the exit code."""
    for one in refused:
        click.echo(f"file {one.number} was skipped: {one.reason}", err=True)
    if refused and not done:
        return VitraelError.exit_code
    return EXIT_PARTIAL if refused else None


@click.command(
    epilog="Examples: 'vitrael model score brain-model a.nii.gz b.nii.gz', "
    "'vitrael model score brain-model *.nii.gz --maps maps --json'."
)
@MODEL
@FILES
@click.option("--maps", type=FOLDER, help="Write where each scan is foreign into this folder.")
@click.option(
    "--kind",
    type=click.Choice(["two_sided", "one_sided", "folded", "magnitude", "distance"]),
    default="two_sided",
    show_default=True,
    help="Which score the table shows; JSON has all.",
)
@click.option(
    "--prepared",
    is_flag=True,
    help="The files lie on the model's grid already, as 'sample' writes.",
)
@DEVICE
@THREADS
@DRY_RUN
@AS_JSON
def score(
    model: Path,
    *,
    files: tuple[Path, ...],
    maps: Path | None,
    kind: str,
    prepared: bool,
    device: Device,
    threads: int | None,
    dry_run: bool,
    as_json: bool,
) -> int | None:
    """Say how foreign T1-weighted FILES are to MODEL; higher is more foreign.

    The p-value is how often a scan of the model's own kind scores as high. A file that cannot be
    used stops none of the others; then the exit code is 7.
    """
    from vitrael.core.workbench.folder import load_model, read_document  # noqa: PLC0415
    from vitrael.core.workbench.progress import Progress  # noqa: PLC0415
    from vitrael.core.workbench.scoring import score_files  # noqa: PLC0415

    if dry_run:
        read_document(model)
        _tell_plan(files, maps, as_json=as_json)
        return None
    compute = open_compute(device, threads)
    loaded = load_model(model, device=compute.device)
    done, refused = score_files(loaded, files, maps=maps, prepared=prepared, tell=Progress())
    if as_json:
        told = [
            {
                "file": str(one.path),
                "score": one.scores[kind],
                "p_value": one.p_values[kind],
                "scores": dict(one.scores),
                "p_values": dict(one.p_values),
                "z": dict(one.z),
                "maps": [str(path) for path in one.maps],
            }
            for one in done
        ]
        click.echo(json.dumps({"kind": kind, "files": told, "skipped": _skipped(refused)}))
    else:
        click.echo(f"{kind:>10}  p-value  file")
        for one in done:
            click.echo(f"{one.scores[kind]:>10.3f}  {one.p_values[kind]:>7.4f}  {one.path}")
    return _tell_refused(refused, done=len(done))


@click.command(epilog="Example: 'vitrael model evaluate brain-model --against scans --json'.")
@MODEL
@click.option("--against", type=FOLDER, required=True, help="BIDS-like folder of real scans.")
@click.option(
    "--medicalnet",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Weights as safetensors, for FID and KID by its features too.",
)
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True)
@SEED
@DEVICE
@THREADS
@AS_JSON
def evaluate(
    model: Path,
    *,
    against: Path,
    medicalnet: Path | None,
    batch: int,
    seed: int,
    device: Device,
    threads: int | None,
    as_json: bool,
) -> int | None:
    """Say how good samples of MODEL are beside the scans of a folder that it has not learned from.

    One sample is drawn for each scan, with the scan's covariates. Beside each number stands what
    two halves of the scans give. Exit code 7: some scans could not be used.
    """
    from vitrael.core.workbench.evaluating import evaluate_against  # noqa: PLC0415
    from vitrael.core.workbench.progress import Progress  # noqa: PLC0415

    compute = open_compute(device, threads)
    report = evaluate_against(
        model,
        against,
        compute,
        batch_images=batch,
        seed=seed,
        medicalnet=medicalnet,
        tell=Progress(),
    )
    if as_json:
        lines = [line.describe() for line in report.lines]
        facts = {"scans": report.scans, "left_out": dict(report.left_out)}
        click.echo(json.dumps({"model": report.model, **facts, "lines": lines}))
    else:
        for line in report.lines:
            click.echo(line.row())
    for reason, count in sorted(report.left_out.items()):
        click.echo(f"left out: {count} {reason}", err=True)
    return EXIT_PARTIAL if report.left_out else None
