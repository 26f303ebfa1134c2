"""``vitrael model``: one model on one machine with local files; this file only translates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vitrael.core.workbench.judge_cli import evaluate, score
from vitrael.core.workbench.options import (
    AS_JSON,
    DEVICE,
    DRY_RUN,
    FOLDER,
    MODEL,
    SCANS,
    SEED,
    THREADS,
    Device,
    count_threads,
    end_code,
    open_compute,
    tell_shortcomings,
)
from vitrael.core.workbench.predict_cli import predict
from vitrael.core.workbench.sample_cli import sample
from vitrael.core.workbench.upsample_cli import upsample

if TYPE_CHECKING:
    from vitrael.core.workbench.folder import ModelDocument
    from vitrael.core.workbench.recipe import ModelRecipe
    from vitrael.core.workbench.training import Trained


@click.group()
def model() -> None:
    """Use models on local files: train one of brain volumes, draw, score, upsample; tell views.

    A model of brain volumes is a folder: model.json and its weights as safetensors. A panel, which
    tells views of pictures and clips, is one with panel.json. Nothing here takes part in a study,
    and nothing leaves this machine. Samples of such a model come without a proof.
    """


@model.command(
    epilog="Examples: 'vitrael model train recipe.toml --from scans --to brain-model', "
    "'torchrun --nproc-per-node 4 --no-python vitrael model train recipe.toml --from scans "
    "--to brain-model'."
)
@click.argument("recipe", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--from", "scans", type=SCANS, required=True, help="BIDS-like folder of NIfTI.")
@click.option("--to", type=FOLDER, required=True, help="New or empty folder of the model.")
@click.option(
    "--perceptual-weights",
    type=click.Path(path_type=Path, dir_okay=False),
    help="MedicalNet as safetensors, for a recipe that asks for it. [default: edges stand in]",
)
@click.option(
    "--no-scorer",
    is_flag=True,
    help="Calibrate none: it would keep a score of each held-out scan and two mean images of them.",
)
@SEED
@DEVICE
@THREADS
@DRY_RUN
@AS_JSON
def train(
    recipe: Path,
    *,
    scans: Path,
    to: Path,
    perceptual_weights: Path | None,
    no_scorer: bool,
    seed: int,
    device: Device,
    threads: int | None,
    dry_run: bool,
    as_json: bool,
) -> int | None:
    """Train the model of RECIPE, a TOML file, on T1-weighted scans, and say how good it became.

    Some patients are held out. What is finished lies in TO.training until the model is written: a
    command that was killed goes on from there when it is given again. It holds prepared brains and
    latents, and is as private as the scans: remove it when you do not go on. Ends with exit code 7
    when some scans could not be used, under torchrun with 0; each reason is told.
    """
    from vitrael.core.workbench.recipe import read_recipe  # noqa: PLC0415

    document = read_recipe(recipe)
    to = to.resolve()
    if dry_run:
        return _plan(document, scans, to, as_json=as_json)
    from vitrael.core.workbench.progress import Progress  # noqa: PLC0415
    from vitrael.core.workbench.training import TrainingOrder, train_model  # noqa: PLC0415

    compute = open_compute(device, threads)
    order = TrainingOrder(
        document,
        scans,
        to,
        seed,
        compute,
        threads or count_threads(),
        perceptual_weights=perceptual_weights,
        scorer=not no_scorer,
    )
    trained = train_model(order, tell=Progress())
    if trained is None:  # another process of torchrun tells
        return None
    return _tell_trained(trained, to, as_json=as_json)


def _plan(recipe: ModelRecipe, scans: Path, to: Path, *, as_json: bool) -> int | None:
    from vitrael.core.data.files import demand_free  # noqa: PLC0415
    from vitrael.core.workbench.intake import look_into  # noqa: PLC0415

    demand_free(to)
    found = look_into(scans, recipe.data.settings)
    patients = len({source.subject for source in found.sources})
    left_out = {left.reason: len(left.paths) for left in found.left_out if not left.expected}
    facts = {"scans": len(found.sources), "patients": patients, "left_out": left_out}
    if as_json:
        click.echo(json.dumps({**facts, "folder": str(to), "written": False}))
    else:
        click.echo(
            f"{len(found.sources)} scans of {patients} patients would be learned from, or held out "
            "to judge by"
        )
        for reason, count in sorted(left_out.items()):
            click.echo(f"left out: {count} {reason}")
    return None


def _tell_trained(trained: Trained, to: Path, *, as_json: bool) -> int | None:
    document = trained.document
    if as_json:
        facts = {
            "scans": trained.scans,
            "patients": trained.patients,
            "left_out": dict(trained.left_out),
            "clipped": dict(trained.clipped),
            "cut": trained.cut,
            "leftover": None if trained.leftover is None else str(trained.leftover),
        }
        told = {"folder": str(to), "digest": document.digest, "measured": document.measured}
        click.echo(json.dumps({**facts, **told, "written": True}))
    else:
        learned = document.provenance.training_images
        click.echo(
            f"{to}: learned from {learned} of {trained.scans} scans of {trained.patients} "
            "patients; the others were held out"
        )
        _tell_measured(document.measured)
    tell_shortcomings(trained.left_out, trained.clipped, trained.cut)
    if trained.leftover is not None:
        click.echo(
            f"{trained.leftover} could not be removed whole: it may hold prepared brains and what "
            "was learned from them; remove it by hand",
            err=True,
        )
    return end_code(is_partial=bool(trained.left_out))


def _tell_measured(measured: dict[str, Any]) -> None:
    words = {
        "ceiling": "ventricle volume after the codec, held-out scans",
        "conditioning": "ventricle volume asked and drawn",
    }
    for name, text in words.items():
        found = measured.get(name)
        if not found:
            continue
        if found["r"] is None:
            click.echo(f"{text}: r not estimable (n = {found['n']})")
            continue
        interval = f"{found['r_low']:.3f} to {found['r_high']:.3f}"
        control = f", shuffled {found['shuffled_r']:.3f}" if "shuffled_r" in found else ""
        off = f", mean error {found['mae_ml']:.1f} ml" if found.get("mae_ml") is not None else ""
        click.echo(f"{text}: r = {found['r']:.3f} ({interval}, n = {found['n']}{control}){off}")


@model.command(epilog="Example: 'vitrael model show brain-model'.")
@MODEL
@AS_JSON
def show(model: Path, *, as_json: bool) -> None:
    """Say what a MODEL is, what it can be asked, and how good it is; its weights stay closed."""
    from vitrael.core.workbench.folder import read_document  # noqa: PLC0415

    document = read_document(model)
    if as_json:
        click.echo(json.dumps({"digest": document.digest, **document.model_dump(mode="json")}))
        return
    _tell_model(document)


def _tell_model(document: ModelDocument) -> None:
    grid = " x ".join(map(str, document.grid_vox))
    origin = document.provenance
    click.echo(f"{document.digest}")
    click.echo(f"brain volumes of {grid} voxels, {document.spacing_mm:g} mm")
    learned = f" on {origin.training_images} scans" if origin.training_images is not None else ""
    click.echo(f"{origin.origin}{learned} by vitrael {origin.package_version}")
    for covariate in document.covariates:
        click.echo(
            f"  {covariate.name}: {covariate.low:g} to {covariate.high:g} ({covariate.unit})"
        )
    part = document.system.teacher
    click.echo(f"sampler {part.sampler}, {part.sampling_steps} steps")
    click.echo(f"without a condition: {'yes' if document.takes_nothing else 'no'}")
    click.echo(f"scorer: {'calibrated' if document.scorer else 'none'}")
    click.echo(f"codec's perceptual term: {origin.perceptual}; critic: {origin.critic}")
    for note in origin.notes:
        click.echo(note)
    _tell_measured(document.measured)


@model.command(
    "import",
    epilog="Example: 'vitrael model import brain_image_synthesis_latent_diffusion_model "
    "--to pinaya'.",
)
@click.argument("bundle", type=FOLDER)
@click.option("--to", type=FOLDER, required=True, help="New or empty folder of the model.")
@DRY_RUN
@AS_JSON
def import_bundle(bundle: Path, *, to: Path, dry_run: bool, as_json: bool) -> None:
    """Make a model of a local copy of MONAI's brain BUNDLE, the weights of Pinaya et al. 2022.

    Its ranges are those that the authors name for age and sex; volumes were told to it in [0, 1].
    """
    from vitrael.core.workbench.foreign import import_pinaya  # noqa: PLC0415

    to = to.resolve()
    document = import_pinaya(bundle, to, dry_run=dry_run)
    if as_json:
        click.echo(
            json.dumps({"folder": str(to), "digest": document.digest, "written": not dry_run})
        )
        return
    _tell_model(document)


for command in (sample, score, upsample, evaluate, predict):
    model.add_command(command)
