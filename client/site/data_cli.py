"""``vitrael site ingest``, ``withdraw`` and ``cache``: what a site does with its own files."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import click

from vitrael.client.progress import Progress
from vitrael.client.site.options import (
    AS_JSON,
    HOME,
    SCANS,
    demand_owner,
    ended_in_order,
    private_files,
    refuse_nan,
    utc_now,
)
from vitrael.core.errors import EXIT_OK, EXIT_PARTIAL, CohortError, UsageError

if TYPE_CHECKING:
    from vitrael.core.data.recipes import RecipeName, RecipeSettings
    from vitrael.core.protocols import Splits, ViewSplits

RECIPE_NAMES = ("brain-t1", "brain-lesion", "echo-apical", "xray-2d", "image-2d")
"""The keys of ``core.data.recipes.RECIPES``, which would take half a second to load here."""

_FORGOTTEN = (
    "earlier versions are not known any more: "
    "ask the coordinator for all that this site took part in"
)
_TELL_COORDINATOR = (
    "Give the digests of the versions to the coordinator: "
    "vitrael study affected --site SITE --cohort-version DIGEST tells what was made with them."
)


@click.command()
@SCANS
@click.option("--cohort", "name", default="main", show_default=True, help="Name of the cohort.")
@click.option("--recipe", type=click.Choice(RECIPE_NAMES), help="What the images are brought to.")
@click.option(
    "--study",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Take recipe, grid and spacing from a study instead.",
)
@click.option(
    "--grid",
    help="Another grid than the recipe's, such as 80x112x80 for brains at 2 mm; a plane is 64x64.",
)
@click.option("--spacing-mm", type=float, help="Another spacing than the recipe's.")
@HOME
@click.option("--workers", type=click.IntRange(1, 256), help="Processes; one a core by default.")
@click.option(
    "--pixel-mask",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A PNG of the size of the frames: what is black in it is blacked out in every image.",
)
@click.option(
    "--converter",
    type=click.Choice(["own", "dcm2niix"]),
    default="own",
    show_default=True,
    help="What turns DICOM series into volumes.",
)
@click.option(
    "--replace",
    is_flag=True,
    help="Let a cohort be replaced by another folder, or lose what cannot be read now.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be taken in; write nothing.")
@click.option(
    "--paths",
    is_flag=True,
    help="Name the files that are left out or that a finding is about, on this terminal.",
)
@AS_JSON
@ended_in_order()
@private_files()
def ingest(
    path: Path,
    *,
    name: str,
    recipe: str | None,
    study: Path | None,
    grid: str | None,
    spacing_mm: float | None,
    home: Path,
    workers: int | None,
    pixel_mask: Path | None,
    converter: Literal["own", "dcm2niix"],
    replace: bool,
    dry_run: bool,
    paths: bool,
    as_json: bool,
) -> int:
    """Take the images below PATH into a cohort of this site.

    DICOM (any names), NIfTI, BIDS, videos and pictures with their tables are found. Nothing in
    PATH is changed. Run it again at any time: only what is new or changed is read. Exits with 7
    when some files could not be used, each with its reason, and with 1 when nothing could be.

    Example: vitrael site ingest /data/mri --cohort mri --recipe brain-t1 --dry-run
    """
    from vitrael.client.site.ingest.pool import begin_early  # noqa: PLC0415 - help stays light

    begin_early()
    from vitrael.client.site.ingest.outcome import tell  # noqa: PLC0415
    from vitrael.client.site.ingest.pipeline import (  # noqa: PLC0415
        Choices,
        foresee_folder,
        ingest_folder,
    )
    from vitrael.client.site.ingest.places import Home, demand_name  # noqa: PLC0415

    demand_name(name)
    demand_owner(home)
    settings, splits = _choose_recipe(recipe, study, grid=grid, spacing_mm=spacing_mm)
    choices = Choices(
        settings=settings,
        splits=splits,
        workers=workers or len(os.sched_getaffinity(0)),
        pixel_mask=pixel_mask,
        converter=converter,
    )
    show = _Shown().show
    site = Home(home)
    if dry_run:
        report = foresee_folder(path, site, name, choices=choices, tell=show, may_replace=replace)
    else:
        report = ingest_folder(
            path, site, name, choices=choices, tell=show, now=utc_now(), may_replace=replace
        )
    click.echo(json.dumps(report.document(paths=paths)) if as_json else tell(report, paths=paths))
    if report.is_vain:
        return _tell_vain("taken in")
    return EXIT_PARTIAL if report.is_partial else EXIT_OK


@click.command()
@click.argument("subject")
@HOME
@click.option("--dry-run", is_flag=True, help="Say what would be removed; remove nothing.")
@click.option("--yes", is_flag=True, help="Remove without asking.")
@AS_JSON
@private_files()
def withdraw(subject: str, home: Path, *, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Take the patient SUBJECT out of every cohort of this site, for good.

    SUBJECT is the name that the site's own files give the patient: the Patient ID of DICOM, the
    subject of a table, sub-01 of BIDS. With - it is read from standard input, so that it stands in
    no history of commands. The files that the patient came from are yours: they are not touched.

    The versions of the cohort that held the patient are named by their digests: with them the
    coordinator finds what was made, and recalls it.

    Example: vitrael site withdraw - --home /srv/vitrael/north
    """
    from vitrael.client.site.ingest.findings import number_of  # noqa: PLC0415
    from vitrael.client.site.ingest.places import Home  # noqa: PLC0415
    from vitrael.client.site.ingest.withdraw import find_patient, remove_patient  # noqa: PLC0415

    if subject == "-":
        subject = os.fsdecode(sys.stdin.buffer.readline()).rstrip("\r\n")
    if not subject.strip():
        raise UsageError("no patient is named", fix="give the name that the site's files use")
    demand_owner(home)
    site = Home(home)
    site.demand()
    found = find_patient(site, subject)
    words = _describe_patient(found.items, found.cohorts, known=found.known)
    if not as_json or not (dry_run or yes):  # nobody is asked about what was not told
        click.echo(words, err=as_json)
        for held in found.versions:
            click.echo(f"cohort {held.cohort}, version {held.version}: {held.digest}", err=as_json)
        for name in found.forgotten:
            click.echo(f"cohort {name}: {_FORGOTTEN}", err=as_json)
    files = size_bytes = 0
    if not dry_run:
        if not yes:
            click.confirm("Withdraw this patient?", abort=True, err=True)
        removed = remove_patient(site, found)
        files, size_bytes = removed.files, removed.size_bytes
        said = "What was sent before cannot be called back"
        click.echo(f"withdrawn: {number_of(files, 'file')} removed. {said}", err=True)
        if found.versions:
            click.echo(_TELL_COORDINATOR, err=True)
    if as_json:
        document = {"items": found.items, "cohorts": list(found.cohorts), "known": found.known}
        versions = [asdict(held) for held in found.versions]
        known = {"versions": versions, "versions_forgotten": list(found.forgotten)}
        click.echo(json.dumps({**document, **known, "files": files, "bytes": size_bytes}))


@click.command()
@SCANS
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@HOME
@click.option(
    "--pixel-mask",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A PNG of the size of the frames: what is black in it is blacked out in every image.",
)
@click.option("--workers", type=click.IntRange(1, 256), help="Processes; one a core by default.")
@click.option("--paths", is_flag=True, help="Name the files that are left out, on this terminal.")
@AS_JSON
@ended_in_order()
@private_files()
def deidentify(
    path: Path,
    out: Path,
    *,
    home: Path,
    pixel_mask: Path | None,
    workers: int | None,
    paths: bool,
    as_json: bool,
) -> int:
    """Write de-identified copies of the DICOM files below PATH into the new folder OUT.

    The copies are pseudonymous, with the site's own key, and for the site's own use: they lie
    outside its home, and what becomes of them is for the site to decide. Exits with 7 when some
    files could not be copied, each with its reason, and with 1 when none could be.

    Example: vitrael site deidentify /data/echo /data/echo-copies --pixel-mask cone.png
    """
    from vitrael.client.site.ingest.dicom_copies import copy_folder  # noqa: PLC0415
    from vitrael.client.site.ingest.findings import number_of  # noqa: PLC0415
    from vitrael.client.site.ingest.outcome import left_out_document, tell_left_out  # noqa: PLC0415
    from vitrael.client.site.ingest.places import (  # noqa: PLC0415
        Home,
        demand_apart,
        demand_outside,
    )

    demand_apart(path, home, "the site's home")
    demand_apart(path, out, "the folder of the copies")
    demand_outside(home, out)
    report = copy_folder(
        path,
        out,
        key=Home(home).key(),
        mask=pixel_mask,
        workers=workers or len(os.sched_getaffinity(0)),
        tell=_Shown().show,
    )
    left_out, removed = tuple(report.left_out), sum(report.removed.values())
    if as_json:
        counts = {"files": report.files, "copies": report.copies, "removed": dict(report.removed)}
        groups = left_out_document(left_out, {}, paths=paths)
        click.echo(json.dumps({**counts, "left_out": groups}))
    else:
        files = number_of(report.files, "file")
        click.echo(f"copied: {report.copies:,} of {files}; {removed:,} elements left out")
        click.echo("\n".join(tell_left_out(left_out, {}, paths=paths, others="not copied")))
    if not report.copies:
        return _tell_vain("copied")
    return EXIT_PARTIAL if any(not left.expected for left in left_out) else EXIT_OK


def _tell_vain(what: str) -> int:
    """Say that a command ends with nothing done, and return its code."""
    click.echo(f"Error: nothing in the folder could be {what}; see the reasons.", err=True)
    return CohortError.exit_code


def _describe_patient(items: int, cohorts: tuple[str, ...], *, known: bool) -> str:
    if items:
        from vitrael.client.site.ingest.findings import number_of  # noqa: PLC0415 - help stays light

        return f"{number_of(items, 'item')} in {', '.join(cohorts)}"
    if known:
        return "the patient was withdrawn before; no cohort holds an item"
    return "no cohort holds this patient; a withdrawal keeps the patient out of later intakes"


@click.group()
def cache() -> None:
    """See and clear what the site keeps of its cohorts: prepared images and latents.

    Both count as patient data: they are for the site's user alone.
    """


@cache.command("ls")
@HOME
@AS_JSON
def list_(home: Path, *, as_json: bool) -> None:
    """List the cohorts with what they hold on this disk.

    Example: vitrael site cache ls --home /srv/vitrael/north
    """
    from vitrael.client.site.ingest.keeping import describe_caches  # noqa: PLC0415
    from vitrael.client.site.ingest.places import Home  # noqa: PLC0415

    site = Home(home)
    site.demand()
    cohorts = describe_caches(site, now=utc_now())
    if as_json:
        click.echo(json.dumps({"cohorts": [cohort.document() for cohort in cohorts]}))
        return
    for cohort in cohorts:
        click.echo(cohort.line())
    if not cohorts:
        click.echo("no cohort yet: vitrael site ingest PATH makes one")


@cache.command("gc")
@HOME
@click.option(
    "--older-than",
    "days",
    type=click.FloatRange(min=0),
    callback=refuse_nan,
    default=0.0,
    show_default=True,
    help="Keep what is younger than so many days.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be removed; remove nothing.")
@AS_JSON
@private_files()
def gc(home: Path, days: float, *, dry_run: bool, as_json: bool) -> None:
    """Remove latents, and images that belong to no cohort any more.

    Latents are made again when a study needs them. Images of a cohort's present version stay.

    Example: vitrael site cache gc --older-than 30 --home /srv/vitrael/north
    """
    from vitrael.client.site.ingest.findings import number_of  # noqa: PLC0415
    from vitrael.client.site.ingest.keeping import sweep_caches  # noqa: PLC0415
    from vitrael.client.site.ingest.places import Home  # noqa: PLC0415

    demand_owner(home)
    site = Home(home)
    site.demand()
    removed = sweep_caches(site, now=utc_now(), older_than_days=days, dry_run=dry_run)
    if as_json:
        click.echo(json.dumps({"files": removed.files, "bytes": removed.size_bytes}))
        return
    verb = "would be removed" if dry_run else "removed"
    files = number_of(removed.files, "file")
    click.echo(f"{files}, {removed.size_bytes / (1 << 20):.1f} MiB {verb}")


def _choose_recipe(
    recipe: str | None, study: Path | None, *, grid: str | None, spacing_mm: float | None
) -> tuple[RecipeSettings, Splits | ViewSplits | None]:
    """Return the settings of a recipe, or those of a study with its splits."""
    from vitrael.core.data.recipes import recipe_of_study, settings_for  # noqa: PLC0415
    from vitrael.core.study import load_study  # noqa: PLC0415

    if (study is None) == (recipe is None) or (study is not None and (grid or spacing_mm)):
        raise UsageError(
            "it is not clear what the images are to be brought to",
            why="either a study says so, or --recipe with --grid and --spacing-mm",
            fix=f"give --study FILE alone, or --recipe {RECIPE_NAMES[0]}",
        )
    if study is not None:
        data = load_study(study).protocol.data
        return recipe_of_study(data), data.splits
    grid_vox = None if grid is None else _read_grid(grid)
    name = cast("RecipeName", recipe)
    return settings_for(name, grid_vox=grid_vox, spacing_mm=spacing_mm), None


def _read_grid(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.lower().split("x"))
    except ValueError:
        raise UsageError(
            "the grid cannot be read", why="it is not written like 80x112x80", fix="correct --grid"
        ) from None


class _Shown:
    """Shows one piece of work after the other on standard error."""

    def __init__(self) -> None:
        self._what = ""
        self._done = 0
        self._progress: Progress | None = None

    def show(self, what: str, done: int, total: int) -> None:
        """Show how much of ``what`` is done."""
        if self._progress is None or what != self._what:
            self._what, self._done = what, 0
            self._progress = Progress(what, total=total, unit="files", stream=sys.stderr)
        self._progress.advance(done - self._done)
        self._done = done
