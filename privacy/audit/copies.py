"""Copies: released samples that match a training scan as no two people match each other.

A match is registered similarity above a strict operating point, taken from held-out patients who
met the whole training gallery, as they are and after the study's own autoencoder (which makes
images smoother and so more alike). The same count against the sealed audit patients is the
control, scaled at each site to the size of its gallery; it explains hits at its own site alone, so
that no site pays for the copies of another. A positive control goes with it: training
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
from vitrael.core.metrics.intervals import CONFIDENCE, Interval, share_excess
from vitrael.privacy.audit.power import Tally, share_dropped
from vitrael.privacy.audit.worst import confidence_of_each, corrected
from vitrael.privacy.evidence import Measurement, not_estimable
from vitrael.privacy.leakage import SMALLEST_COUNT

FALSE_COPY_RATE: Final = 1e-4
"""Of the strict operating point: the share of strangers that would be called a copy."""
_NAME = "copies.excess_share"
_WORST = "copies.worst_site"
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
    seen. Fewer than ``SMALLEST_COUNT`` strangers give no point.
    """
    if len(null_HN) < SMALLEST_COUNT or null_HN.shape[1] == 0:
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
) -> tuple[Measurement, Measurement, Measurement]:
    """Return the excess share of copies, that of the worst site, and the detector's power.

    The excess of every site, its hits less its own scale times its control hits and never below
    none, is added up, as if no sample copied patients of two. A site that could not count (None)
    makes all three not estimable: copies of its patients would go unseen.
    """
    counted = [part for part in parts if part is not None and part.samples and part.scale > 0]
    if not parts or len(counted) < len(parts):
        why = f"a site is absent or has under {SMALLEST_COUNT} training, sealed or other patients"
        excess, worst, power = (
            not_estimable(name, why, method=method, unit="samples", confidence=confidence)
            for name, method in ((_NAME, _METHOD), (_WORST, _METHOD), (_CONTROL, _CONTROL_METHOD))
        )
        return excess, worst, power
    samples = min(part.samples for part in counted)
    excess = _measurement(
        _NAME,
        share_excess(
            [part.hits for part in counted],
            [part.control_hits for part in counted],
            samples,
            scales=[part.scale for part in counted],
            confidence=confidence,
        ),
        samples=samples,
        confidence=confidence,
        inputs=inputs,
    )
    worst = _worst_site(counted, confidence=confidence, inputs=inputs)
    power = share_dropped(
        _CONTROL,
        [Tally(part.planted, part.planted_hits) for part in counted],
        unit="planted copies",
        method=_CONTROL_METHOD,
        confidence=confidence,
        inputs=inputs,
    )
    return excess, worst, power


def _worst_site(
    sites: Sequence[Copies], *, confidence: float, inputs: tuple[Digest, ...]
) -> Measurement:
    """Return the excess of the site whose lower bound is largest."""
    each = confidence_of_each(len(sites), confidence=confidence)
    found = [
        share_excess(
            [site.hits], [site.control_hits], site.samples, scales=[site.scale], confidence=each
        )
        for site in sites
    ]
    return _measurement(
        _WORST,
        max(found, key=lambda one: (one[1].low, one[0], one[1].high)),
        samples=min(site.samples for site in sites),
        confidence=confidence,
        inputs=inputs,
        method=corrected(_METHOD, len(sites)),
    )


def _measurement(
    name: str,
    found: tuple[float, Interval],
    *,
    samples: int,
    confidence: float,
    inputs: tuple[Digest, ...],
    method: str = _METHOD,
) -> Measurement:
    value, (low, high) = found
    return Measurement(
        name=name,
        value=value,
        low=low,
        high=high,
        n=samples,
        unit="released samples",
        confidence=confidence,
        method=method,
        inputs=inputs,
    )
