"""``vitrael audit-folder``: what synthetic images give away of a folder of real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vitrael.core.errors import EXIT_OK

if TYPE_CHECKING:
    from vitrael.privacy.audit_folder.prepare import Kind

_FOLDER = click.Path(path_type=Path)


@click.command(
    name="audit-folder",
    epilog="Exit codes: 6 when copies were found (files that are equal, or more conspicuous images "
    "than chance explains); else 7 when the audit is incomplete: images were refused, or nothing "
    "could be estimated since the real patients are too few or there is no filter for the kind, or "
    "the filter is not shown to catch any class of plants that must be caught; else 0, which means "
    "that nothing was found beyond the nominal rate, and no more than that. 1 when a folder, the "
    "table or the place of the report cannot be used, 2 for a wrong call, such as a folder that is "
    "not there. "
    "Example: 'vitrael audit-folder scans generated --patients patients.csv'.",
)
@click.argument("real", type=_FOLDER)
@click.argument("synthetic", type=_FOLDER)
@click.option(
    "--patients",
    type=click.Path(path_type=Path),
    help="Table with the columns file and patient; also visit, sex, scanner and contrast.",
)
@click.option(
    "--kind",
    type=click.Choice(["picture", "clip", "volume"]),
    help="Which images of a folder that mixes kinds.",
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0, max=0.5, min_open=True),
    default=0.05,
    show_default=True,
    help="Share of strangers' images that may be conspicuous: 0.1 takes 19 patients, 0.05 takes "
    "39, 0.01 takes 199; exit code 0 takes 59.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--images",
    type=click.IntRange(min=32),
    default=4096,
    show_default=True,
    help="Drawn to train each of the filter's encoders: three, or six where patients have several "
    "scans.",
)
@click.option(
    "--plants",
    type=click.IntRange(min=1),
    default=60,
    show_default=True,
    help="Patients to copy in each class of planted copies, at most; each is copied once. When all "
    "are caught, 60 show 0.95 at most: a demand of 0.98 takes 149, and 0.99 takes 299.",
)
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True)
@click.option(
    "--out",
    type=_FOLDER,
    default=Path("audit-report"),
    show_default=True,
    help="Folder of the report, new or empty; nothing is written over.",
)
@click.option("--json", "as_json", is_flag=True, help="Write JSON on standard output.")
@click.pass_context
def audit_folder(
    ctx: click.Context,
    real: Path,
    synthetic: Path,
    *,
    patients: Path | None,
    kind: Kind | None,
    rate: float,
    seed: int,
    images: int,
    plants: int,
    workers: int,
    out: Path,
    as_json: bool,
) -> None:
    """Look in SYNTHETIC for copies of the images in REAL, and say how well such copies are found.

    Folders hold NIfTI, PNG, JPEG, MP4, AVI or DICOM files, of one kind. Equal files are found by
    their bytes and by their decoded values; disguised copies by a filter that is trained here, of
    the real folder alone, and whose power is measured by copies that the audit plants itself. The
    report names your files. Nothing leaves this machine, and nothing of it makes a dataset
    anonymous.

    Whose each real image is decides the result: it is told by --patients, else by BIDS names, else
    by DICOM, else by one folder for each patient.
    """
    from vitrael.core.workbench.progress import Progress  # noqa: PLC0415
    from vitrael.privacy.audit_folder.auditing import Order, audit_folders  # noqa: PLC0415
    from vitrael.privacy.audit_folder.encoders import Budget  # noqa: PLC0415
    from vitrael.privacy.audit_folder.pair import read_pair  # noqa: PLC0415
    from vitrael.privacy.audit_folder.report import (  # noqa: PLC0415
        demand_report_folder,
        document_of,
        summarize,
        write_report,
    )

    demand_report_folder(out)
    tell = Progress()
    folders = read_pair(real, synthetic, kind=kind, patients=patients, workers=workers, tell=tell)
    order = Order(rate=rate, seed=seed, budget=Budget(length_images=images), most_plants=plants)
    findings = audit_folders(*folders, order, tell=tell)
    paths = write_report(findings, out)
    if as_json:
        click.echo(json.dumps(document_of(findings)))
    else:
        click.echo("\n".join(summarize(findings)))
        click.echo(f"\nwritten: {' and '.join(map(str, paths))}", err=True)
    if findings.exit_code != EXIT_OK:
        ctx.exit(findings.exit_code)
