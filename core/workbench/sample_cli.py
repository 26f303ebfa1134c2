"""``vitrael model sample``: a folder of synthetic scans from a model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vitrael.core.errors import EXIT_PARTIAL, UsageError
from vitrael.core.workbench.options import (
    AS_JSON,
    DEVICE,
    DRY_RUN,
    FOLDER,
    MODEL,
    SEED,
    THREADS,
    Device,
    open_compute,
)

if TYPE_CHECKING:
    from vitrael.core.configs import SamplerName
    from vitrael.core.training.compute import Compute
    from vitrael.core.workbench.folder import ModelDocument
    from vitrael.core.workbench.sampling import Drawn, SetRequest

_SHARD = re.compile(r"(\d{1,6})/(\d{1,6})")


@click.command(
    epilog="Examples: 'vitrael model sample brain-model --to set --count 8 --set age_years=70 "
    "--set sex=F --set ventricle_ml=40 --set brain_ml=1100', "
    "'vitrael model sample brain-model --to set --conditions wanted.tsv --shard 2/8'."
)
@MODEL
@click.option("--to", type=FOLDER, required=True, help="Folder of the set; shards share it.")
@click.option("--count", type=click.IntRange(min=1), help="How many samples. [default: 1]")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A covariate of all.")
@click.option(
    "--conditions",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Table with one row for each sample, a column for each covariate.",
)
@click.option("--unconditional", is_flag=True, help="Ask for nothing.")
@click.option("--extrapolate", is_flag=True, help="Allow what the model was not trained on.")
@click.option(
    "--sampler",
    type=click.Choice(["ddpm", "ddim", "plms", "heun", "dpm_solver", "unipc"]),
    help="[default: the model's own]",
)
@click.option("--steps", type=click.IntRange(min=1), help="[default: the model's own]")
@click.option(
    "--guidance",
    type=click.FloatRange(min=0, max=50),
    default=1.0,
    show_default=True,
    help="Above 1 the condition counts for more than was learned.",
)
@SEED
@click.option("--shard", metavar="I/N", help="Draw the I-th of N parts, I from 1 to N.")
@click.option(
    "--batch", type=click.IntRange(min=1), default=8, show_default=True, help="Drawn at a time."
)
@DEVICE
@THREADS
@DRY_RUN
@AS_JSON
def sample(
    model: Path,
    *,
    to: Path,
    count: int | None,
    settings: tuple[str, ...],
    conditions: Path | None,
    unconditional: bool,
    extrapolate: bool,
    sampler: SamplerName | None,
    steps: int | None,
    guidance: float,
    seed: int,
    shard: str | None,
    batch: int,
    device: Device,
    threads: int | None,
    dry_run: bool,
    as_json: bool,
) -> int | None:
    """Draw synthetic T1-weighted volumes of MODEL into a BIDS-like folder.

    Each sample has a seed of its own: shards that write into one folder make what one command
    makes. What is there already and whole is kept, so a command that was killed goes on when it is
    given again. The tables are written when all samples are there. Exit code 7: some samples could
    not be written.
    """
    from vitrael.core.workbench.folder import read_document  # noqa: PLC0415
    from vitrael.core.workbench.request import make_request  # noqa: PLC0415
    from vitrael.core.workbench.sampling import demand_same_set, shard_of  # noqa: PLC0415

    document = read_document(model)
    request = make_request(
        document,
        settings=settings,
        table=conditions,
        count=count,
        unconditional=unconditional,
        extrapolate=extrapolate,
        sampler=sampler,
        steps=steps,
        guidance=guidance,
        seed=seed,
    )
    indices = shard_of(len(request), _read_shard(shard))
    demand_same_set(request, to)
    if dry_run:
        _tell_plan(request, document, to, indices, as_json=as_json)
        return None
    drawn = _draw(model, request, to, indices, compute=open_compute(device, threads), batch=batch)
    _tell_drawn(drawn, to, as_json=as_json)
    return EXIT_PARTIAL if drawn.skipped else None


def _draw(
    folder: Path, request: SetRequest, to: Path, indices: range, *, compute: Compute, batch: int
) -> Drawn:
    from vitrael.core.workbench.folder import load_model  # noqa: PLC0415
    from vitrael.core.workbench.generation import (  # noqa: PLC0415
        FrugalGenerator,
        build_generator,
        choose_part,
    )
    from vitrael.core.workbench.progress import Progress  # noqa: PLC0415
    from vitrael.core.workbench.sampling import draw_set  # noqa: PLC0415

    model = load_model(folder, device=compute.device)
    generator = build_generator(
        model,
        choose_part(model.document, sampler=request.sampler, steps=request.steps),
        guidance=request.guidance,
        batch_images=batch,
        bf16=compute.bf16,
    )
    frugal = FrugalGenerator(generator, batch_images=batch)
    return draw_set(request, frugal, to, indices=indices, tell=Progress())


def _read_shard(text: str | None) -> tuple[int, int]:
    if text is None:
        return 1, 1
    found = _SHARD.fullmatch(text.strip())
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise UsageError(
            f"the shard {text} cannot be understood", fix="write --shard 2/8 for the second of 8"
        )
    return int(found[1]), int(found[2])


def _tell_plan(
    request: SetRequest, document: ModelDocument, to: Path, indices: range, *, as_json: bool
) -> None:
    grid = " x ".join(map(str, document.grid_vox))
    if as_json:
        facts = {"folder": str(to), "count": len(request), "shard": len(indices)}
        click.echo(json.dumps({**facts, **request.describe(), "written": False}))
    else:
        click.echo(
            f"{len(indices)} of {len(request)} samples of {grid} voxels would be drawn by "
            f"{request.sampler} in {request.steps} steps, seed {request.seed}"
        )


def _tell_drawn(drawn: Drawn, to: Path, *, as_json: bool) -> None:
    if as_json:
        skipped = [{"index": index, "reason": why} for index, why in drawn.skipped.items()]
        facts = {"folder": str(to), "drawn": drawn.drawn, "kept": drawn.kept, "skipped": skipped}
        click.echo(json.dumps({**facts, "whole": drawn.is_whole, "written": True}))
    else:
        state = "whole" if drawn.is_whole else "not whole yet"
        click.echo(f"{to}: {drawn.drawn} drawn, {drawn.kept} kept, the set is {state}")
    for index, why in drawn.skipped.items():
        click.echo(f"sample {index + 1} was not written: {why}", err=True)
