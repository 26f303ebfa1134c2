"""``vitrael pull`` and ``vitrael verify``: this file only translates."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from vitrael.privacy.release.manifest import Manifest
    from vitrael.privacy.release.verify import VerifiedRelease

_TRUST = click.option(
    "--trust",
    "trust_file",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    metavar="FILE",
    help="JSON with the sites' public keys that you trust; ask the coordinator for it.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")


@click.command(
    epilog="Examples: 'vitrael pull brain-demo@1 --from catalogue --trust trust.json', "
    "'vitrael pull brain-demo@1 --from https://example.org/catalogue --trust trust.json --to DIR'."
)
@click.argument("release", metavar="NAME@VERSION")
@click.option(
    "--from", "origin", required=True, metavar="URL_OR_FOLDER", help="The catalogue to pull from."
)
@_TRUST
@click.option(
    "--to",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The folder that the release becomes. [default: NAME-VERSION]",
)
@click.option("--dry-run", is_flag=True, help="Verify the offer and tell its size; write nothing.")
@_JSON
def pull(
    *, release: str, origin: str, trust_file: Path, to: Path | None, dry_run: bool, as_json: bool
) -> None:
    """Download a release and verify it.

    A pull that was interrupted goes on where it stopped when the same command is run again. The
    folder appears only when every signature and every file has been verified.
    """
    from vitrael.client.researcher.load import default_folder  # noqa: PLC0415 - help stays light
    from vitrael.client.researcher.pull import find_offer, pull_release  # noqa: PLC0415
    from vitrael.client.researcher.sources import open_source  # noqa: PLC0415
    from vitrael.privacy.release.manifest import parse_reference  # noqa: PLC0415
    from vitrael.privacy.release.trust import load_trust  # noqa: PLC0415

    reference = parse_reference(release)
    trust = load_trust(trust_file)
    target = to or default_folder(reference.name, reference.version)
    with open_source(origin) as source:
        offer = find_offer(reference, source, trust=trust)
        if dry_run:
            _tell_offer(offer.manifest, target, as_json=as_json)
            return
        verified = pull_release(offer, source, trust=trust, to=target, ticker=_show_progress)
    _tell_verified(verified, as_json=as_json)


@click.command(
    epilog="Examples: 'vitrael verify brain-demo-1 --trust trust.json', "
    "'vitrael verify brain-demo-1 --trust trust.json --from https://example.org/catalogue'. "
    "Exit code 0: everything holds; 4: something does not, and the message says what."
)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@_TRUST
@click.option(
    "--from", "origin", metavar="URL_OR_FOLDER", help="Also ask this catalogue for a recall."
)
@click.option("--expect", metavar="NAME@VERSION", help="Refuse any other release.")
@_JSON
def verify(
    *, folder: Path, trust_file: Path, origin: str | None, expect: str | None, as_json: bool
) -> None:
    """Verify a release against the keys you trust.

    Needs no network, unless a catalogue is to be asked whether the release was recalled.
    """
    from vitrael.client.researcher.pull import read_recall  # noqa: PLC0415 - help stays light
    from vitrael.client.researcher.sources import open_source  # noqa: PLC0415
    from vitrael.privacy.release.manifest import (  # noqa: PLC0415
        MANIFEST,
        Reference,
        parse_reference,
    )
    from vitrael.privacy.release.recall import refuse_recalled  # noqa: PLC0415
    from vitrael.privacy.release.trust import load_trust  # noqa: PLC0415
    from vitrael.privacy.release.verify import verify_release  # noqa: PLC0415

    expected = None if expect is None else parse_reference(expect)
    trust = load_trust(trust_file)
    verified = verify_release(folder, trust, expected=expected)
    if origin is not None:
        reference = Reference(verified.name, verified.version)
        with open_source(origin) as source:
            recall = read_recall(reference, source)
        if recall is not None:
            manifest = (folder / MANIFEST).read_bytes()
            refuse_recalled(recall, manifest=manifest, public=trust.recall)
    _tell_verified(verified, as_json=as_json)


def _show_progress(label: str, total: int) -> Callable[[int], None]:
    from vitrael.client.progress import Progress  # noqa: PLC0415 - as above

    return Progress(label, total=total, stream=sys.stderr).advance


def _tell_verified(verified: VerifiedRelease, *, as_json: bool) -> None:
    if as_json:
        document = {"verified": True, **asdict(verified), "folder": str(verified.folder)}
        click.echo(json.dumps(document, sort_keys=True))
        return
    click.echo(f"{verified.name}@{verified.version} verifies: {verified.folder}")
    click.echo(f"  signed by  {', '.join(verified.signed_by)} (at least {verified.threshold} must)")
    click.echo(f"  manifest   {verified.manifest}")
    click.echo(f"  files      {verified.files}, {verified.size_bytes / (1 << 20):.1f} MiB")
    click.echo(f"  policy     {verified.policy}{_mark(publishable=verified.publishable)}")


def _tell_offer(manifest: Manifest, target: Path, *, as_json: bool) -> None:
    facts = {"release": str(manifest.reference), "manifest": manifest.digest, "to": str(target)}
    if as_json:
        counts = {"files": len(manifest.files), "size_bytes": manifest.size_bytes}
        publishable = {"publishable": manifest.publishable}
        click.echo(json.dumps({"dry_run": True, **facts, **counts, **publishable}, sort_keys=True))
        return
    size = f"{len(manifest.files)} files, {manifest.size_bytes / (1 << 20):.1f} MiB"
    mark = _mark(publishable=manifest.publishable)
    click.echo(f"{manifest.reference} would be written to {target}: {size}{mark}")


def _mark(*, publishable: bool) -> str:
    return "" if publishable else " (REHEARSAL: NOT FOR PUBLICATION)"
