"""The recall of a release by the coordinator: signed, beside what is published, and in MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from vitrael.core.digest import digest_bytes
from vitrael.core.errors import UsageError
from vitrael.privacy.keys import KeyPair
from vitrael.privacy.release.catalogue import publish_recall
from vitrael.privacy.release.manifest import MANIFEST, RECALLED, Reference
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


def recall_releases(
    home: Path, references: Sequence[Reference], *, reason: str, now: datetime
) -> None:
    """Recall releases: from now on nobody gets them, and who has one is told when verifying.

    All are recalled before MLflow is told, which is told of every recall that stands: what an
    interrupted call has left, the next one does.

    Raises StorageError for one that is recalled already: its reason and date stand.
    """
    try:
        for reference in references:
            notice = draft_recall(home, reference, reason=reason, now=now)
            trust = load_trust(home / "trust.json")
            publish_recall(home / "catalogue", reference, recall=notice, trust=trust)
    finally:
        if (home / "mlflow").is_dir():
            _record(home)


def _record(home: Path) -> None:
    """Give the student of each recalled release the alias ``recalled``; others keep theirs."""
    from vitrael.server.registry import Registry  # noqa: PLC0415 - MLflow takes seconds

    registry = Registry.open(home)
    for recall in sorted((home / "catalogue").glob(f"*/*/{RECALLED}")):
        manifest = recall.with_name(MANIFEST).read_bytes()
        for record in stages_of_release(home, digest_bytes(manifest)):
            if record.key.stage == "student":
                found = registry.find_student(record.key.digest)
                if found is not None:
                    registry.move_alias(*found, to="recalled")
