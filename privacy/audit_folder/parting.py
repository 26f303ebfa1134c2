"""Three parts of the patients, so that no encoder judges whom it learned from, and all are judged.

A folder has too few patients to give some away for training, others for the null and others for
the gallery. So they are dealt into three parts and an encoder is trained on each. A candidate is
dealt a part as well, by a keyed digest of its content, and is compared with a scan by the encoder
of a part that holds neither of them. A patient who is left out of the gallery for the null is
compared in the very same way: whoever is nobody's copy is as likely to exceed the threshold as one
of them, and every patient counts in one null. Two halves would do with an encoder fewer, and need
four times as many patients: either half would have to hold half of the rate alone.

Axes: B images.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from vitrael.core.digest import digest_bytes
from vitrael.privacy.audit.planting import on_levels

PARTS: Final = 3


def part_patients(patient_B: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
    """Return the part of each image, ``[B]``: all images of a patient stand in one.

    Parts differ by one patient at most, and so do those who have several scans.
    """
    patients, count = np.unique(patient_B, return_counts=True)
    order = rng.permutation(len(patients))
    order = order[np.argsort(count[order] > 1, kind="stable")]
    part_P = np.empty(len(patients), np.int64)
    part_P[order] = np.arange(len(patients)) % PARTS
    return np.asarray(part_P[np.searchsorted(patients, patient_B)])


def part_candidates(image_BCDHW: np.ndarray, *, key: bytes) -> np.ndarray:
    """Return the part that each candidate is dealt, by a keyed digest of its content in 8 bits.

    It is the same whatever stands beside the candidate.
    """
    levels = np.round(on_levels(image_BCDHW) * 255).astype(np.uint8)
    digests = [digest_bytes(key + np.ascontiguousarray(one).tobytes()) for one in levels]
    return np.array([int(one[-8:], 16) % PARTS for one in digests], np.int64)


def encoder_for(own: int, other: int) -> int:
    """Return whose encoder compares a candidate of one part with a scan of another, or the same."""
    return (own + 1) % PARTS if own == other else PARTS - own - other
