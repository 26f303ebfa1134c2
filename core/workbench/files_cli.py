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
    tell_shortcomings,
)

if TYPE_CHECKING:
    from vitrael.core.workbench.folder import ModelDocument
    from vitrael.core.workbench.inputs import Refused
    from vitrael.core.workbench.masked import HiddenVoxels
    from vitrael.core.workbench.scoring import Scored
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
    measurement. A result that is there is kept when the same is asked for again; nothing else is
    written over. A file that cannot be used stops none of the others; then the exit code is 7.
    """
    from vitrael.core.workbench.folder import load_model, read_document  # noqa: PLC0415
    from vitrael.core.workbench.generation import within_memory  # noqa: PLC0415
    from vitrael.core.workbench.request import known_covariates  # noqa: PLC0415

    document = read_document(model)
    try:
        known = known_covariates(document, settings)
    except UsageError as error:  # what would be asked of a sample is not offered here
        beyond = "--extrapolate" in error.fix
        fix = "give a value within, or leave it out: it is searched then" if beyond else error.fix
        raise UsageError(error.what, why=error.why, fix=fix) from None
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
    _tell_origin(document)
    with within_memory("the search for an image", fix="give --device cpu, or a larger GPU"):
        done, refused = upsample_files(loaded, files, to, order, tell=Progress())
    _tell_upsampled(done, refused, as_json=as_json)
    _tell_cut(done)
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
        kept = ", kept" if result.kept else ""
        click.echo(f"{result.path}: {what}{stretched}{kept}")


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
        "cut_frac": result.cut_frac,
        "kept": result.kept,
    }


def _tell_plan(files: Sequence[Path], to: Path | None, *, as_json: bool) -> None:
    if as_json:
        folder = None if to is None else str(to)
        told = [str(path) for path in files]
        click.echo(json.dumps({"files": told, "folder": folder, "written": False}))
    else:
        where = "nothing would be written" if to is None else f"results would be written into {to}"
        click.echo(f"{len(files)} files would be read; {where}")


def _tell_origin(document: ModelDocument) -> None:
    """Say on stderr what the networks of an imported model have seen in other scans than these."""
    if document.provenance.origin != "imported":
        return
    for line in ("the model was imported; it is known of it:", *document.provenance.notes):
        click.echo(line, err=True)


def _tell_cut(done: Sequence[Upsampled | Scored]) -> None:
    """Say on stderr whose brain the model's grid cuts."""
    from vitrael.core.workbench.inputs import CUT_FRAC  # noqa: PLC0415

    for one in done:
        if one.cut_frac > CUT_FRAC:
            share = f"{100 * one.cut_frac:.1f} % of its brain lies outside the model's grid"
            click.echo(f"file {one.number}: {share}", err=True)


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

    The p-value is how often a scan of the model's own kind scores as high. Maps that are there are
    kept when they are of the same scan and model; nothing else is written over. A file that cannot
    be used stops none of the others; then the exit code is 7.
    """
    from vitrael.core.workbench.folder import load_model, read_document  # noqa: PLC0415
    from vitrael.core.workbench.generation import within_memory  # noqa: PLC0415
    from vitrael.core.workbench.progress import Progress  # noqa: PLC0415
    from vitrael.core.workbench.scoring import score_files  # noqa: PLC0415

    if dry_run:
        read_document(model)
        _tell_plan(files, maps, as_json=as_json)
        return None
    compute = open_compute(device, threads)
    loaded = load_model(model, device=compute.device)
    _tell_origin(loaded.document)
    with within_memory("the restorations of an image", fix="give --device cpu, or a larger GPU"):
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
                "cut_frac": one.cut_frac,
                "kept": one.kept,
            }
            for one in done
        ]
        click.echo(json.dumps({"kind": kind, "files": told, "skipped": _skipped(refused)}))
    else:
        click.echo(f"{kind:>10}  p-value  file")
        for one in done:
            click.echo(f"{one.scores[kind]:>10.3f}  {one.p_values[kind]:>7.4f}  {one.path}")
    _tell_cut(done)
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

    That it has not must be known to you: the command cannot notice, and flatters a model that has.
    One sample is drawn for each scan, with the scan's covariates. Each number names what stands
    beside it: halves of the scans, a predictor's ceiling, or shuffled questions. The prepared scans
    lie in a folder of yours alone under the system's temporary one (TMPDIR) until the command ends;
    one that is killed leaves them there. Scans and samples are held in memory. Exit code 7: some
    scans could not be used.
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
        facts = {
            "scans": report.scans,
            "left_out": dict(report.left_out),
            "clipped": dict(report.clipped),
            "cut": report.cut,
        }
        click.echo(json.dumps({"model": report.model, **facts, "lines": lines}))
    else:
        for line in report.lines:
            click.echo(line.row())
    tell_shortcomings(report.left_out, report.clipped, report.cut)
    return EXIT_PARTIAL if report.left_out else None
