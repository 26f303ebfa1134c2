"""Which patient serves which purpose: five splits by a keyed hash, decided in this one place.

A subject's split depends on the subject, the key and the fractions, on nothing else: not on who
else is in the cohort, nor on the order of files. So every scan of a patient falls in one split,
and a patient who is added later moves nobody. The key stays at the site; without it nobody can
tell from a pseudonym where a patient went.

Source of the five purposes: training, development of the filter, calibration of its threshold,
sealed audit, and utility test must not share patients, or each would flatter the other.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from enum import StrEnum

from vitrael.core.errors import CohortError
from vitrael.core.protocols import Splits, ViewSplits

_DOMAIN = b"vitrael/split/1\0"
_KEY_BYTES = 16


class Split(StrEnum):
    """What the scans of a patient are used for."""

    TRAINING = "T"
    """Codec, teacher, and nothing that judges them."""
    FILTER = "F"
    """Training of the re-identification encoder."""
    CALIBRATION = "C"
    """Operating points, frozen before any candidate is seen."""
    AUDIT = "A"
    """Sealed: the non-members of every attack."""
    UTILITY = "U"
    """Test of what the synthetic set is good for."""


def split_of(subject: str, splits: Splits | ViewSplits, *, key: bytes) -> Split:
    """Return the split of a subject: HMAC-SHA256, as a number in [0, 1), against the fractions.

    Raises CohortError when the key is shorter than 16 bytes.
    """
    if len(key) < _KEY_BYTES:
        raise CohortError("the split key is too short", why=f"{_KEY_BYTES} bytes are the least")
    code = hmac.new(key, _DOMAIN + subject.encode(), hashlib.sha256).digest()
    place = (int.from_bytes(code[:8], "big") >> 11) / 2**53
    upper = 0.0
    for split, share in _shares(splits):
        upper += share
        if place < upper:
            return split
    return Split.UTILITY


def split_subjects(
    subjects: Iterable[str], splits: Splits | ViewSplits, *, key: bytes
) -> dict[Split, tuple[str, ...]]:
    """Return the subjects of every split, sorted; a subject given twice counts once."""
    parted: dict[Split, list[str]] = {split: [] for split in Split}
    for subject in sorted(set(subjects)):
        parted[split_of(subject, splits, key=key)].append(subject)
    return {split: tuple(members) for split, members in parted.items()}


def _shares(splits: Splits | ViewSplits) -> tuple[tuple[Split, float], ...]:
    """Return the fractions of all splits but the last, which takes what is left of 1."""
    named = splits.model_dump()  # experts need neither a filter nor an audit
    return (
        (Split.TRAINING, splits.training_frac),
        (Split.FILTER, named.get("filter_frac", 0.0)),
        (Split.CALIBRATION, splits.calibration_frac),
        (Split.AUDIT, named.get("audit_frac", 0.0)),
    )
