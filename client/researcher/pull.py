"""Pull a release: verify its manifest, download what is missing, verify all, then let it appear.

Nothing is downloaded on the word of the source: the files, their names and their sizes come from a
manifest whose signatures hold. They gather in ``.<folder>.partial`` beside the target, where a
second run finds those that are finished; the target appears by one rename, verified.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from vitrael.client.researcher.sources import Source
from vitrael.core.digest import digest_file
from vitrael.core.errors import NetworkError, StorageError, UsageError, VerificationError
from vitrael.privacy.release.catalogue import (
    CATALOGUE,
    MAX_CATALOGUE_BYTES,
    Catalogue,
    Entry,
    parse_catalogue,
)
from vitrael.privacy.release.manifest import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    MAX_STATEMENT_BYTES,
    RECALLED,
    FileEntry,
    Manifest,
    Reference,
    signature_path,
)
from vitrael.privacy.release.trust import Trust
from vitrael.privacy.release.verify import VerifiedRelease, verify_manifest, verify_release

SPARE_BYTES: Final = 16 << 20
"""Disk space that a pull leaves free."""
_TRIES_A_FILE: Final = 2

Ticker = Callable[[str, int], Callable[[int], None]]
"""(label, total bytes) -> a function that is told each count of bytes done."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A release at a source whose manifest and signatures hold; no file of it is here yet."""

    manifest: Manifest
    signatures: dict[str, bytes]


def find_offer(reference: Reference, source: Source, *, trust: Trust) -> Offer:
    """Return what the source offers under this name.

    Raises UsageError for a release that is not listed, NetworkError, and VerificationError for one
    that is recalled, not signed by enough trusted sites, or another one than was asked for.
    """
    entry = _find_entry(reference, source)
    data = source.read(f"{_place(reference)}/{MANIFEST}", limit_bytes=MAX_MANIFEST_BYTES)
    if data is None:
        raise NetworkError(
            f"{reference} has no {MANIFEST} at the source", fix="tell the coordinator"
        )
    signatures = {}
    for site in sorted({*entry.signatures, *trust.keys}):
        path = f"{_place(reference)}/{signature_path(site)}"
        signature = source.read(path, limit_bytes=MAX_STATEMENT_BYTES)
        if signature is not None:
            signatures[site] = signature
    recall = _read_recall(reference, source, entry=entry)
    manifest = verify_manifest(data, signatures, trust, expected=reference, recall=recall)
    return Offer(manifest, signatures)


def read_recall(reference: Reference, source: Source) -> bytes | None:
    """Return the recall that the source holds of a release, or None.

    Raises UsageError when the source does not list the release: it cannot tell, then.
    """
    return _read_recall(reference, source, entry=_find_entry(reference, source))


def pull_release(
    offer: Offer,
    source: Source,
    *,
    trust: Trust,
    to: Path,
    ticker: Ticker = lambda _label, _total: lambda _count: None,
    free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
) -> VerifiedRelease:
    """Bring an offered release to the folder ``to`` and return it, verified.

    A folder that holds this release already is verified and left as it is. Raises StorageError when
    it holds something else or the disk has no room, NetworkError when the source fails (what is
    finished is kept), VerificationError when a file is not the one that was signed.
    """
    manifest = offer.manifest
    if to.exists():
        return _verify_present(to, manifest, trust=trust, ticker=ticker)
    partial = to.parent / f".{to.name}.partial"
    partial.mkdir(parents=True, exist_ok=True)
    _remove_strangers(partial, manifest)
    missing = _list_missing(partial, manifest, ticker=ticker)
    needed = sum(entry.size_bytes for entry in missing.values())
    if (free := free_bytes(partial)) < needed + SPARE_BYTES:
        raise StorageError(
            f"the disk has no room for {manifest.reference}",
            why=f"{_mib(needed + SPARE_BYTES)} are needed at {to.parent}, {_mib(free)} are free",
            fix="free space, or choose another disk with --to",
        )
    advance = ticker("downloading", needed)
    for path, entry in missing.items():
        _fetch(source, f"{_place(manifest.reference)}/{path}", partial / path, entry=entry)
        advance(entry.size_bytes)
    statements = {signature_path(site): data for site, data in offer.signatures.items()}
    for path, data in {**statements, MANIFEST: manifest.to_bytes()}.items():
        # Plainly, with the mode that the umask gives: a release is for everybody to verify.
        (partial / path).parent.mkdir(exist_ok=True)
        (partial / path).write_bytes(data)
    verified = verify_release(
        partial,
        trust,
        expected=manifest.reference,
        progress=ticker("verifying", manifest.size_bytes),
    )
    partial.rename(to)
    return replace(verified, folder=to)


def _read_recall(reference: Reference, source: Source, *, entry: Entry) -> bytes | None:
    data = source.read(f"{_place(reference)}/{RECALLED}", limit_bytes=MAX_STATEMENT_BYTES)
    if data is None and entry.recalled:
        raise VerificationError(
            f"the catalogue lists {reference} as recalled",
            why=f"its {RECALLED} cannot be had, so the reason is not known",
            fix="do not use it; ask the coordinator",
        )
    return data


def _place(reference: Reference) -> str:
    return f"{reference.name}/{reference.version}"


def _find_entry(reference: Reference, source: Source) -> Entry:
    data = source.read(CATALOGUE, limit_bytes=MAX_CATALOGUE_BYTES)
    fix = "check --from: it is the folder or URL that holds catalogue.json"
    if data is None:
        raise NetworkError(f"the source has no {CATALOGUE}", fix=fix)
    try:
        catalogue = parse_catalogue(data)
    except ValueError as error:
        raise NetworkError(f"the source's {CATALOGUE} is not a catalogue", fix=fix) from error
    entry = catalogue.find(reference)
    if entry is None:
        raise UsageError(
            f"{reference} is not in the catalogue",
            why=f"it holds {_list_offers(catalogue)}",
            fix="check name and version",
        )
    return entry


def _list_offers(catalogue: Catalogue, *, most: int = 10) -> str:
    names = [
        str(Reference(name, version))
        for name, versions in sorted(catalogue.releases.items())
        for version in sorted(versions)
    ]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "nothing") + more


def _verify_present(
    to: Path, manifest: Manifest, *, trust: Trust, ticker: Ticker
) -> VerifiedRelease:
    held = to / MANIFEST
    if not held.is_file() or held.read_bytes() != manifest.to_bytes():
        raise StorageError(
            f"{to} holds something else already",
            why="a pull writes over nothing",
            fix="choose another folder with --to",
        )
    progress = ticker("verifying what is here", manifest.size_bytes)
    return verify_release(to, trust, expected=manifest.reference, progress=progress)


def _remove_strangers(partial: Path, manifest: Manifest) -> None:
    """Leave nothing in the partial folder but plain files that the manifest lists."""
    for path in sorted(partial.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.is_symlink() or path.relative_to(partial).as_posix() not in manifest.files:
            path.unlink()


def _list_missing(partial: Path, manifest: Manifest, *, ticker: Ticker) -> dict[str, FileEntry]:
    held = {path: entry for path, entry in manifest.files.items() if (partial / path).is_file()}
    advance = ticker("checking finished files", sum(entry.size_bytes for entry in held.values()))
    finished = set()
    for path, entry in held.items():
        if digest_file(partial / path) == entry.digest:
            finished.add(path)
        advance(entry.size_bytes)
    return {path: entry for path, entry in sorted(manifest.files.items()) if path not in finished}


def _fetch(source: Source, path: str, target: Path, *, entry: FileEntry) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(_TRIES_A_FILE):
        source.fetch(path, target, size_bytes=entry.size_bytes)
        if digest_file(target) == entry.digest:
            return
    target.unlink()
    raise VerificationError(
        f"{path} was changed",
        why=f"the source gives other bytes than the signed {MANIFEST} names",
        fix="tell the coordinator; the source may have been tampered with",
    )


def _mib(count_bytes: int) -> str:
    return f"{count_bytes / (1 << 20):.0f} MiB"
