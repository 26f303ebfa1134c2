"""The catalogue: a folder of published releases that any web server can serve as it is.

::

    catalogue.json                        what there is; rebuilt from the folders below
    <name>/<version>/...                  the bundle, immutable once published
    <name>/<version>/RECALLED.json        a recall, when there is one

The catalogue itself is not signed: a researcher trusts the signatures inside each release.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, ValidationError

from vitrael.core.configs import Section
from vitrael.core.digest import digest_bytes, write_atomically
from vitrael.core.errors import StorageError, VerificationError
from vitrael.core.messages import DigestField
from vitrael.core.protocols import Name
from vitrael.privacy.release.manifest import (
    MANIFEST,
    RECALLED,
    SIGNATURES,
    Manifest,
    Reference,
    parse_manifest,
)
from vitrael.privacy.release.recall import Recall, open_recall
from vitrael.privacy.release.trust import Trust
from vitrael.privacy.release.verify import VerifiedRelease, verify_release

CATALOGUE: Final = "catalogue.json"
MAX_CATALOGUE_BYTES: Final = 16 << 20

_LOCK_S = 60.0
_LOCK_POLL_S = 0.1


class Entry(Section):
    """One published version."""

    manifest: DigestField
    files: int = Field(ge=0)
    size_bytes: int = Field(ge=0)
    signatures: tuple[Name, ...]
    policy: Name
    publishable: bool
    recalled: bool


class Catalogue(Section):
    """Name -> version -> entry."""

    format: Literal["vitrael-catalogue/1"] = "vitrael-catalogue/1"
    releases: dict[Name, dict[int, Entry]]

    def find(self, reference: Reference) -> Entry | None:
        """Return the entry of a release, or None."""
        return self.releases.get(reference.name, {}).get(reference.version)


def publish(bundle: Path, catalogue_root: Path, *, trust: Trust) -> VerifiedRelease:
    """Copy a bundle into the catalogue once it verifies, and list it.

    Publishing the same bundle again does nothing. Raises VerificationError for a bundle that a
    researcher with this trust would refuse, StorageError when the version stands already with
    other content.
    """
    verified = verify_release(bundle, trust)
    target = catalogue_root / verified.name / str(verified.version)
    with _locked(catalogue_root):
        if not target.exists():
            _copy(bundle, target)
        elif digest_bytes((target / MANIFEST).read_bytes()) != verified.manifest:
            raise StorageError(
                f"{verified.name}@{verified.version} is published already with other content",
                why="a published version never changes",
                fix="publish it as a new version",
            )
        _rebuild(catalogue_root)
    return verified


def publish_recall(
    catalogue_root: Path, reference: Reference, *, recall: bytes, trust: Trust
) -> Recall:
    """Put a recall beside its release and list it; VerificationError unless it is truly its own.

    Raises StorageError for a release that is recalled already: its reason and date stand.
    """
    folder = catalogue_root / reference.name / str(reference.version)
    if not (folder / MANIFEST).is_file():
        raise StorageError(f"{reference} is not in the catalogue", fix="check name and version")
    opened = open_recall(recall, public=trust.recall)
    if opened.manifest != digest_bytes((folder / MANIFEST).read_bytes()):
        raise VerificationError(
            f"the recall is not of {reference}", why="it names the digest of another manifest"
        )
    with _locked(catalogue_root):
        if (folder / RECALLED).exists():
            raise StorageError(
                f"{reference} is recalled already",
                why="a recall stands with its reason and date",
                fix="publish a new version, if there is more to say",
            )
        write_atomically(folder / RECALLED, recall)
        (folder / RECALLED).chmod(0o644)
        _rebuild(catalogue_root)
    return opened


def parse_catalogue(data: bytes) -> Catalogue:
    """Return the catalogue of its bytes; raise ValueError when they hold none."""
    try:
        return Catalogue.model_validate_json(data)
    except ValidationError as error:
        msg = f"not a catalogue, {error.error_count()} faults"
        raise ValueError(msg) from error


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Hold the catalogue's lock; raise StorageError when another holds it for ``_LOCK_S``."""
    import fcntl  # noqa: PLC0415 - researchers read catalogues where there is no fcntl

    root.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + _LOCK_S
    with (root / ".lock").open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released with the file
                break
            except BlockingIOError as error:
                if time.monotonic() >= until:
                    raise StorageError(
                        f"the catalogue is in use, waited {_LOCK_S:.0f} s",
                        why="another process publishes or recalls, or hangs while it does",
                        fix="wait for it or end it, then try again",
                    ) from error
                time.sleep(_LOCK_POLL_S)
        yield


def _copy(bundle: Path, folder: Path) -> None:
    """Copy a verified bundle with its signatures; ``folder`` appears whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as name:
        workshop = Path(name) / "bundle"
        shutil.copytree(bundle, workshop, symlinks=True)
        workshop.rename(folder)


def _rebuild(root: Path) -> None:
    releases: dict[Name, dict[int, Entry]] = {}
    for path in sorted(root.glob(f"*/*/{MANIFEST}")):
        manifest = parse_manifest(path.read_bytes())
        releases.setdefault(manifest.name, {})[manifest.version] = _entry(path.parent, manifest)
    data = Catalogue(releases=releases).model_dump_json(indent=1).encode() + b"\n"
    write_atomically(root / CATALOGUE, data)
    (root / CATALOGUE).chmod(0o644)


def _entry(folder: Path, manifest: Manifest) -> Entry:
    signatures = sorted(path.name for path in (folder / SIGNATURES).glob("*.dsse.json"))
    return Entry(
        manifest=manifest.digest,
        files=len(manifest.files),
        size_bytes=manifest.size_bytes,
        signatures=tuple(name.removesuffix(".dsse.json") for name in signatures),
        policy=manifest.policy,
        publishable=manifest.publishable,
        recalled=(folder / RECALLED).exists(),
    )
