"""The worst site: what one hospital's patients are told by, where the others average it away.

A pooled number is the mean over sites. Beside it stands the one site that is nearest to being
proven to leak, with its own interval. Among k sites the worst of k errors is looked at, so each
site's bounds are made at 1 - (1 - confidence) / k (Bonferroni): whichever site it is, its bounds
hold at the confidence that is asked for. The gates refuse what is proven beyond the pooled
threshold and no more, so that an ideal generator is rarely refused for its worst site.
"""

from __future__ import annotations

from collections.abc import Sequence

from vitrael.core.digest import Digest
from vitrael.core.metrics.intervals import UNIT, Estimate, normal_interval
from vitrael.privacy.evidence import Measurement


def confidence_of_each(sites: int, *, confidence: float) -> float:
    """Return the confidence of one site's bounds for which those of all hold together."""
    return 1 - (1 - confidence) / sites


def corrected(method: str, sites: int) -> str:
    """Return how the worst site's number was made."""
    return f"{method}; worst site, bounds corrected for {sites} (Bonferroni)"


def worst_area(
    name: str,
    sites: Sequence[Estimate],
    *,
    patients: Sequence[int],
    method: str,
    confidence: float,
    inputs: tuple[Digest, ...],
) -> Measurement:
    """Return the site whose interval lies farthest from one half, or reaches least beyond it.

    Either side is as bad. ``n`` is that of the site with the fewest patients: what none of its
    bounds could prove is not acquitted.
    """
    each = confidence_of_each(len(sites), confidence=confidence)
    bounds = [normal_interval(site, confidence=each, within=UNIT) for site in sites]
    beyond = [max(low - 0.5, 0.5 - high) for low, high in bounds]
    worst = max(range(len(sites)), key=lambda i: (beyond[i], sites[i].value))
    return Measurement(
        name=name,
        value=sites[worst].value,
        low=bounds[worst].low,
        high=bounds[worst].high,
        n=min(patients),
        unit="held-out patients at the smallest site",
        confidence=confidence,
        method=corrected(method, len(sites)),
        inputs=inputs,
    )
