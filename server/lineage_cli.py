"""``vitrael study affected`` and ``vitrael release recall``: this file only translates."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vitrael.core.errors import UsageError

if TYPE_CHECKING:
    from vitrael.core.digest import Digest
    from vitrael.privacy.release.manifest import Reference
    from vitrael.server.studies.lineage import Lineage, Made

_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
_HOME = click.option(
    "--home", type=click.Path(path_type=Path), required=True, help="Coordinator's home."
)
_VERSION = click.option(
    "--cohort-version",
    metavar="DIGEST",
    help="Only what used this version of the site's scans; 'vitrael site withdraw' names them.",
)


@click.command(
    epilog="Examples: 'vitrael study affected --home DIR --site north', 'vitrael study affected "
    "--home DIR --site north --cohort-version sha256:...'."
)
@_HOME
@click.option("--site", required=True, help="The site that withdraws, or whose patient does.")
@_VERSION
@_JSON
def affected(home: Path, site: str, cohort_version: str | None, *, as_json: bool) -> None:
    """List every teacher, expert, student and release that was made with a site's scans.

    'vitrael release recall --affected-by SITE' recalls the releases among them.
    """
    lineage = _trace(home, site, cohort_version)
    releases = [str(reference) for reference in lineage.to_recall]
    if as_json:
        document = {
            "site": site,
            "cohort_version": cohort_version,
            "known_versions": list(lineage.versions),
            "affected": [asdict(made) for made in lineage.made],
            "to_recall": releases,
        }
        click.echo(json.dumps(document))
        return
    _show(lineage)
    if cohort_version and cohort_version not in lineage.versions:
        known = ", ".join(lineage.versions) or "none"
        click.echo(f"No stage is known to have used that version; known are: {known}", err=True)
    elif not lineage.made:
        click.echo(f"Nothing was made with scans of {site}.", err=True)
    if releases:
        click.echo(f"To recall: {', '.join(releases)}", err=True)


@click.command(
    epilog="Examples: 'vitrael release recall brain-demo@1 --home DIR --reason TEXT', "
    "'vitrael release recall --affected-by north --home DIR --reason TEXT --yes'."
)
@click.argument("name", metavar="[NAME@VERSION]", required=False)
@_HOME
@click.option("--affected-by", "site", metavar="SITE", help="All that used this site's scans.")
@_VERSION
@click.option("--reason", required=True, help="One sentence that everybody will read.")
@click.option("--dry-run", is_flag=True, help="Show what would be recalled; publish nothing.")
@click.option("--yes", is_flag=True, help="Recall without asking.")
@_JSON
def recall(
    *,
    name: str | None,
    home: Path,
    site: str | None,
    cohort_version: str | None,
    reason: str,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Recall a published release: from now on pull and verify refuse it.

    With --affected-by the releases are listed, and recalled only with --yes.
    """
    from vitrael.privacy.release.manifest import parse_reference  # noqa: PLC0415
    from vitrael.server.settings import utc_now  # noqa: PLC0415
    from vitrael.server.studies.recalling import draft_recall, recall_releases  # noqa: PLC0415

    if (name is None) == (site is None) or (cohort_version is not None and site is None):
        raise UsageError(
            "it is not clear what to recall",
            why="either one release is named, or the site whose scans were used",
            fix="give NAME@VERSION, or --affected-by SITE and on demand --cohort-version",
        )
    if site is not None:
        references = _trace(home, site, cohort_version).to_recall
        dry_run = dry_run or not yes
    else:
        references = (parse_reference(str(name)),)
    for reference in references:
        draft_recall(home, reference, reason=reason, now=utc_now())
    if not dry_run:
        if not yes:
            click.confirm(f"Recall {name} for good?", abort=True, err=True)
        recall_releases(home, references, reason=reason, now=utc_now())
    _tell(references, site=site, reason=reason, published=not dry_run, as_json=as_json)


def _tell(
    references: tuple[Reference, ...],
    *,
    site: str | None,
    reason: str,
    published: bool,
    as_json: bool,
) -> None:
    names = [str(reference) for reference in references]
    if as_json:
        which = {"release": names[0]} if site is None else {"affected_by": site, "releases": names}
        click.echo(json.dumps({**which, "reason": reason, "published": published}))
        return
    for each in names:
        click.echo(f"{each} {'is' if published else 'would be'} recalled: {reason}")
    if not names:
        click.echo(f"no published release was made with scans of {site}")
    elif site is not None and not published:
        click.echo("Nothing was recalled yet: add --yes.", err=True)


def _trace(home: Path, site: str, cohort_version: str | None) -> Lineage:
    from vitrael.server.studies.lineage import parse_version, trace_site  # noqa: PLC0415

    version: Digest | None = None if cohort_version is None else parse_version(cohort_version)
    return trace_site(home, site, cohort_version=version)


def _show(lineage: Lineage) -> None:
    """Print a block for each study with each roster."""
    blocks: dict[tuple[str, str, str], list[Made]] = {}
    for made in lineage.made:
        blocks.setdefault((made.study, made.protocol, made.roster), []).append(made)
    for (study, protocol, roster), block in blocks.items():
        click.echo(f"{study or 'a study'}, protocol {protocol}, roster {roster or 'not known'}")
        for made in block:
            place = f"{made.stage} {made.round + 1}"
            how = "of its scans" if made.directly else "of what came of them"
            click.echo(f"  {made.kind:<10}  {place:<14}  {made.digest}  {made.state}, {how}")
