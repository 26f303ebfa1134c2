"""The recall of a release by the coordinator: signed, beside what is published, and in MLflow."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from vitrael.core.digest import digest_bytes
from vitrael.core.errors import UsageError
from vitrael.privacy.keys import KeyPair
from vitrael.privacy.release.catalogue import publish_recall
from vitrael.privacy.release.manifest import MANIFEST, Reference
from vitrael.privacy.release.recall import sign_recall
from vitrael.privacy.release.trust import load_trust
from vitrael.server.studies.lineage import stages_of_release


def draft_recall(home: Path, reference: Reference, *, reason: str, now: datetime) -> bytes:
    """Return the signed recall of a release that this home published; nothing is published.

    Raises UsageError for a release that is not in the catalogue, and for an unusable reason.
    """
    catalogue = home / "catalogue"
    manifest = catalogue / reference.name / str(reference.version) / MANIFEST
    if not manifest.is_file():
        raise UsageError(
            f"{reference} is not in {catalogue}",
            fix="name a release that this coordinator published",
        )
    key = KeyPair.load(home / "keys").signing
    return sign_recall(manifest.read_bytes(), key, reason=reason, now=now)


def recall_release(home: Path, reference: Reference, *, reason: str, now: datetime) -> None:
    """Recall a release: from now on nobody gets it, and who has it is told when verifying.

    Raises StorageError for one that is recalled already: its reason and date stand.
    """
    notice = draft_recall(home, reference, reason=reason, now=now)
    catalogue = home / "catalogue"
    trust = load_trust(home / "trust.json")
    publish_recall(catalogue, reference, recall=notice, trust=trust)
    if (home / "mlflow").is_dir():
        _record(home, catalogue / reference.name / str(reference.version) / MANIFEST)


def _record(home: Path, manifest: Path) -> None:
    """Give the student of a recalled release the alias ``recalled``; others keep theirs."""
    from vitrael.server.registry import Registry  # noqa: PLC0415 - MLflow takes seconds

    registry = Registry.open(home)
    for record in stages_of_release(home, digest_bytes(manifest.read_bytes())):
        if record.key.stage == "student":
            found = registry.find_student(record.key.digest)
            if found is not None:
                registry.move_alias(*found, to="recalled")
