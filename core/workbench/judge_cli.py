"""``vitrael model score`` and ``evaluate``: what a model says of scans, and they of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vitrael.core.errors import EXIT_PARTIAL
from vitrael.core.workbench.options import (
    AS_JSON,
    DEVICE,
    DRY_RUN,
    FILES,
    FOLDER,
    MODEL,
    SCANS,
    SEED,
    THREADS,
    Device,
    open_compute,
    tell_shortcomings,
)
from vitrael.core.workbench.telling import Account, tell_origin, tell_plan

if TYPE_CHECKING:
    from vitrael.core.workbench.scoring import Scored


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
    from vitrael.core.workbench.progress import Progress  # noqa: PLC0415
    from vitrael.core.workbench.scoring import score_files  # noqa: PLC0415

    if dry_run:
        read_document(model)
        tell_plan(files, maps, as_json=as_json)
        return None
    compute = open_compute(device, threads)
    loaded = load_model(model, device=compute.device)
    tell_origin(loaded.document)
    account: Account[Scored] = Account(partial(_show, kind=kind), partial(_describe, kind=kind))
    with account.tell(as_json=as_json, facts={"kind": kind}):
        score_files(
            loaded,
            files,
            maps=maps,
            prepared=prepared,
            tell=Progress(),
            scored=account.done.append,
            refused=account.refused.append,
        )
    return account.exit_code


def _show(done: Sequence[Scored], *, kind: str) -> None:
    click.echo(f"{kind:>10}  p-value  file")
    for one in done:
        click.echo(f"{one.scores[kind]:>10.3f}  {one.p_values[kind]:>7.4f}  {one.path}")


def _describe(done: Sequence[Scored], *, kind: str) -> list[dict[str, Any]]:
    return [
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


@click.command(epilog="Example: 'vitrael model evaluate brain-model --against scans --json'.")
@MODEL
@click.option("--against", type=SCANS, required=True, help="BIDS-like folder of real scans.")
@click.option(
    "--medicalnet",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Weights as safetensors, for FID and KID by its features too.",
)
@click.option("--no-scorer", is_flag=True, help="Do not ask what the model's scorer notices.")
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
    no_scorer: bool,
    batch: int,
    seed: int,
    device: Device,
    threads: int | None,
    as_json: bool,
) -> int | None:
    """Say how good samples of MODEL are beside the scans of a folder that it has not learned from.

    That it has not must be known to you: the command cannot notice, and flatters a model that has.
    One sample is drawn for each scan, with the scan's covariates. Each number names what stands
    beside it: halves of the scans, a predictor's ceiling, or shuffled questions. A model that has a
    scorer is asked first what it notices of changed scans: 210 scores at most. The prepared scans
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
        scorer=not no_scorer,
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
