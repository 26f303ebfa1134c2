"""The summary of a cohort on disk: it lies there until a consent takes it along.

Whoever has two summaries of one cohort could subtract them. So a new one takes the place of the
old only when no patient changed, or as many as may be told; until then the old one goes on
leaving, under the name of the version that it counts.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from vitrael.client.site.ingest.summary import CohortSummary, digest_patients
from vitrael.core.data.cache import write_private
from vitrael.core.data.manifest import Manifest
from vitrael.core.digest import Digest, canonical_json
from vitrael.core.errors import CohortError
from vitrael.privacy.leakage import told_count

SUMMARY_NAME = "summary.json"


class _Told(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    summary: CohortSummary
    patients: dict[str, Digest]
    """Pseudonyms with the digest of their items, as they are counted in the summary."""


def save_summary(summary: CohortSummary, manifest: Manifest, folder: Path) -> bool:
    """Write a summary into a cohort's folder unless it would tell of few; return whether it did."""
    patients = digest_patients(manifest)
    if (folder / SUMMARY_NAME).exists():
        before = _read(folder).patients
        changed = sum(before.get(name) != patients.get(name) for name in {*before, *patients})
        if told_count(changed) is None:
            return False
    told = _Told(summary=summary, patients=patients)
    write_private(folder / SUMMARY_NAME, canonical_json(told.model_dump(mode="json")))
    return True


def read_summary(folder: Path) -> CohortSummary:
    """Return the summary of a cohort; raise CohortError unless it is whole and says no more."""
    return _read(folder).summary


def _read(folder: Path) -> _Told:
    try:
        return _Told.model_validate_json((folder / SUMMARY_NAME).read_bytes())
    except (OSError, ValidationError):
        raise CohortError(
            "the summary of the cohort cannot be used",
            why="it is missing, damaged or changed by hand",
            fix=f"restore {SUMMARY_NAME} from a backup",
        ) from None
