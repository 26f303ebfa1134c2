"""Copies: released samples that match a training scan as no two people match each other.

A match is registered similarity above a strict operating point, taken from held-out patients who
met the whole training gallery, as they are and after the study's own autoencoder (which makes
images smoother and so more alike). The same count against the sealed audit patients is the
control, scaled at each site to the size of its gallery. A positive control goes with it: training
scans, turned, stretched and moved and then passed through the autoencoder, shown to the same
detector. One that misses them acquits nobody.

Axes: R released samples, H held-out patients, N scans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import stats

from vitrael.core.digest import Digest
from vitrael.core.metrics.intervals import CONFIDENCE, share_excess
from vitrael.privacy.audit.power import Tally, share_dropped
from vitrael.privacy.evidence import Measurement, not_estimable

LEAST_PATIENTS: Final = 10
"""Held-out patients that the operating point needs at a site."""
FALSE_COPY_RATE: Final = 1e-4
"""Of the strict operating point: the share of strangers that would be called a copy."""
_NAME = "copies.excess_share"
_METHOD = "registered similarity above a strict operating point, minus the size-matched control"
_CONTROL = "copies.control_power"
_CONTROL_METHOD = (
    "training scans, bent affinely and passed through the autoencoder, above the same point; "
    "Clopper-Pearson"
)


@dataclass(frozen=True, slots=True)
class Copies:
    """One site's counts."""

    samples: int
    hits: int
    """Samples that match a training scan."""
    control_hits: int
    """Samples that match a scan of a sealed audit patient."""
    scale: float
    """Training scans for one scan of the control."""
    planted: int
    """Disguised training scans that were shown to the same detector."""
    planted_hits: int


def strict_point(null_HN: np.ndarray) -> float | None:
    """Return the operating point from similarities of strangers to the gallery, or None.

    The largest similarity of each stranger, through Fisher's z, is taken as normal, and its
    quantile at ``FALSE_COPY_RATE`` extrapolated; the point is never below the largest that was
    seen. Fewer than ``LEAST_PATIENTS`` strangers give no point.
    """
    if len(null_HN) < LEAST_PATIENTS or null_HN.shape[1] == 0:
        return None
    largest = null_HN.max(1)
    z = np.arctanh(np.clip(largest, -0.999999, 0.999999))
    reach = float(stats.t.ppf(1 - FALSE_COPY_RATE, len(z) - 1)) * float(np.sqrt(1 + 1 / len(z)))
    return float(max(largest.max(), np.tanh(z.mean() + reach * z.std(ddof=1))))


def count_copies(
    training_RN: np.ndarray, control_RN: np.ndarray, planted_RN: np.ndarray, point: float
) -> Copies:
    """Return a site's counts from similarities of the samples to both sets of scans.

    ``planted_RN`` holds those of disguised training scans to the training scans.
    """
    planted = {"planted": len(planted_RN), "planted_hits": _hits(planted_RN, point)}
    if control_RN.shape[1] == 0 or training_RN.shape[1] == 0:
        return Copies(len(training_RN), 0, 0, 0.0, **planted)
    return Copies(
        samples=len(training_RN),
        hits=_hits(training_RN, point),
        control_hits=_hits(control_RN, point),
        scale=training_RN.shape[1] / control_RN.shape[1],
        **planted,
    )


def _hits(similarity_RN: np.ndarray, point: float) -> int:
    return int((similarity_RN.max(1) > point).sum()) if similarity_RN.size else 0


def pool_copies(
    parts: Sequence[Copies | None],
    *,
    confidence: float = CONFIDENCE,
    inputs: tuple[Digest, ...] = (),
) -> tuple[Measurement, Measurement]:
    """Return the excess share of copies among the released samples, and the detector's power.

    The excess of every site, its hits less its own scale times its control hits, is added up, as
    if no sample copied patients of two. A site that could not count (None) makes both not
    estimable: copies of its patients would go unseen.
    """
    counted = [part for part in parts if part is not None and part.samples and part.scale > 0]
    if not parts or len(counted) < len(parts):
        why = f"a site has fewer than {LEAST_PATIENTS} held-out patients to set the point with"
        excess, power = (
            not_estimable(name, why, method=method, unit="samples", confidence=confidence)
            for name, method in ((_NAME, _METHOD), (_CONTROL, _CONTROL_METHOD))
        )
        return excess, power
    samples = min(part.samples for part in counted)
    value, (low, high) = share_excess(
        [part.hits for part in counted],
        [part.control_hits for part in counted],
        samples,
        scales=[part.scale for part in counted],
        confidence=confidence,
    )
    excess = Measurement(
        name=_NAME,
        value=value,
        low=low,
        high=high,
        n=samples,
        unit="released samples",
        confidence=confidence,
        method=_METHOD,
        inputs=inputs,
    )
    power = share_dropped(
        _CONTROL,
        [Tally(part.planted, part.planted_hits) for part in counted],
        unit="planted copies",
        method=_CONTROL_METHOD,
        confidence=confidence,
        inputs=inputs,
    )
    return excess, power
