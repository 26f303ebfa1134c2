"""From what the sites counted to Evidence: sums, exact bounds, and "not estimable" where it is due.

A *tally* is what a site's reply holds: ``{"estimable": bool, "metrics": {...}, "counts": {...}}``.
Labels are written and read in this module alone. A site whose tally lacks a part makes the
measurement of that part not estimable: what one site could not look at, nobody has looked at.
The same holds of a site that showed the filter no plant of a class or no fresh patient, or had no
pair of visits to verify its encoder with. A filter that is off was shown them, and dropped none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from vitrael.core.digest import Digest
from vitrael.core.metrics.intervals import (
    CONFIDENCE,
    Estimate,
    clopper_pearson,
    pearson_interval,
    pearson_r,
    permuted_r,
)
from vitrael.privacy.audit.closeness import Closeness, pool_closeness
from vitrael.privacy.audit.copies import Copies, pool_copies
from vitrael.privacy.audit.membership import Membership, pool_membership
from vitrael.privacy.audit.power import Tally, share_dropped
from vitrael.privacy.evidence import PLANT_CLASSES, Measurement, counted, not_estimable

SiteTally = Mapping[str, Any]  # a reply's body: JSON
_PERMUTATIONS: Final = 200
_VERIFICATION = (
    "one visit against the other, and against strangers; patients as trials, bounds approximate"
)


def write_audit(
    *,
    plants: Mapping[str, Tally],
    fresh: Tally,
    copies: Copies | None,
    closeness: Closeness | None,
    membership: Membership | None,
) -> dict[str, Any]:
    """Return a site's audit as a tally; a part that is None is left out."""
    counts: dict[str, int] = {"fresh.shown": fresh.shown, "fresh.dropped": fresh.dropped}
    metrics: dict[str, float] = {}
    for kind, tally in plants.items():
        counts |= {f"plants.{kind}.shown": tally.shown, f"plants.{kind}.dropped": tally.dropped}
    if copies is not None:
        counts["copies.samples"] = copies.samples
        counts["copies.hits"] = copies.hits
        counts["copies.control_hits"] = copies.control_hits
        counts["copies.planted"] = copies.planted
        counts["copies.planted_hits"] = copies.planted_hits
        metrics["copies.scale"] = copies.scale
    if closeness is not None:
        counts["closeness.patients"] = closeness.patients
        counts["closeness.samples"] = closeness.samples
        metrics |= {"closeness.share": closeness.share, "closeness.error": closeness.error}
    if membership is not None:
        counts["membership.members"] = membership.members
        counts["membership.others"] = membership.others
        for name in ("attack", "placebo", "control"):
            estimate: Estimate = getattr(membership, name)
            metrics[f"membership.{name}"] = estimate.value
            metrics[f"membership.{name}_error"] = estimate.error
    missing = [
        name
        for name, part in (("copies", copies), ("closeness", closeness), ("membership", membership))
        if part is None
    ]
    return {
        "estimable": not missing,
        "reason": f"too few patients for {', '.join(missing)}" if missing else "",
        "metrics": {name: round(float(value), 6) for name, value in metrics.items()},
        "counts": counts,
    }


def audit_measurements(
    tallies: Sequence[SiteTally],
    *,
    confidence: float = CONFIDENCE,
    inputs: tuple[Digest, ...] = (),
) -> tuple[Measurement, ...]:
    """Return power, false positives, copies, closeness and membership, pooled over the sites."""
    power = tuple(
        _pool_shown(
            f"filter.power.{kind}",
            [_tally(tally, f"plants.{kind}") for tally in tallies],
            unit="plants",
            method="planted copies through the screening as configured; Clopper-Pearson",
            confidence=confidence,
            inputs=inputs,
        )
        for kind in PLANT_CLASSES
    )
    false_positives = _pool_shown(
        "filter.false_positive_rate",
        [_tally(tally, "fresh") for tally in tallies],
        unit="fresh patients",
        method="scans of sealed patients through the screening as configured; Clopper-Pearson",
        confidence=confidence,
        inputs=inputs,
    )
    copies = pool_copies([_copies(t) for t in tallies], confidence=confidence, inputs=inputs)
    closeness = pool_closeness(
        [_closeness(t) for t in tallies], confidence=confidence, inputs=inputs
    )
    membership = pool_membership(
        [_membership(t) for t in tallies], confidence=confidence, inputs=inputs
    )
    return (*power, false_positives, *copies, closeness, *membership)


def verification_measurement(
    tallies: Sequence[SiteTally],
    *,
    confidence: float = CONFIDENCE,
    inputs: tuple[Digest, ...] = (),
) -> Measurement:
    """Return the encoder's verification AUC over the calibration patients of all sites.

    Its bounds are those of Clopper and Pearson with patients as trials, and approximate: the
    patients of a site are the strangers of each other, so their wins are not independent.
    """
    name, unit = "filter.verification_auc", "patients with two visits"
    trials = [int(tally["counts"].get("verification.patients", 0)) for tally in tallies]
    if not trials or min(trials) < 1:
        why = "a site has fewer than two calibration patients with two visits each"
        return not_estimable(name, why, method=_VERIFICATION, unit=unit, confidence=confidence)
    patients = sum(trials)
    wins = sum(float(tally["metrics"].get("verification.wins", 0.0)) for tally in tallies)
    wins = min(wins, float(patients))
    low, high = clopper_pearson(wins, patients, confidence=confidence)
    return Measurement(
        name=name,
        value=wins / patients,
        low=low,
        high=high,
        n=patients,
        unit=unit,
        confidence=confidence,
        method=_VERIFICATION,
        inputs=inputs,
    )


def screening_measurement(
    tallies: Sequence[SiteTally], *, inputs: tuple[Digest, ...] = ()
) -> Measurement:
    """Return the share of votes that were cast by a calibrated filter."""
    judged = sum(t["counts"].get("candidates", 0) for t in tallies if t["estimable"])
    return counted(
        "screening.done",
        part=judged,
        whole=sum(t["counts"].get("candidates", 0) for t in tallies),
        unit="votes",
        method="votes cast by a filter with a frozen operating point",
        inputs=inputs,
    )


def participation_measurement(*, took_part: int, roster: int) -> Measurement:
    """Return the share of the roster's sites that answered in every stage."""
    return counted(
        "participation.complete",
        part=took_part,
        whole=roster,
        unit="sites",
        method="sites that answered in every stage",
    )


def conditioning_measurements(
    asked_B: np.ndarray,
    measured_B: np.ndarray,
    *,
    rng: np.random.Generator,
    confidence: float = CONFIDENCE,
    inputs: tuple[Digest, ...] = (),
) -> tuple[Measurement, Measurement]:
    """Return the correlation of asked and measured volume, and that after shuffling the asked.

    The bounds of the latter are quantiles over the shufflings.
    """
    n = len(asked_B)
    r = pearson_r(asked_B, measured_B)
    shuffled = permuted_r(asked_B, measured_B, rng=rng, draws=_PERMUTATIONS, confidence=confidence)
    low, high = pearson_interval(r, n, confidence=confidence)
    return (
        Measurement(
            name="conditioning.ventricle_r",
            value=r,
            low=low,
            high=high,
            n=n,
            unit="released samples",
            confidence=confidence,
            method="Pearson, Fisher's interval",
            inputs=inputs,
        ),
        Measurement(
            name="conditioning.permuted_r",
            value=shuffled.mean,
            low=shuffled.low,
            high=shuffled.high,
            n=n,
            unit="released samples",
            confidence=confidence,
            method=f"absolute Pearson over {_PERMUTATIONS} shufflings: mean and quantiles",
            inputs=inputs,
        ),
    )


def _pool_shown(
    name: str,
    tallies: Sequence[Tally],
    *,
    unit: str,
    method: str,
    confidence: float,
    inputs: tuple[Digest, ...],
) -> Measurement:
    """Return the pooled share of dropped images, unless a site showed its filter none."""
    if any(tally.shown == 0 for tally in tallies):
        why = f"a site could show no {unit} to a calibrated filter"
        return not_estimable(name, why, method=method, unit=unit, confidence=confidence)
    return share_dropped(
        name, tallies, unit=unit, method=method, confidence=confidence, inputs=inputs
    )


def _tally(tally: SiteTally, label: str) -> Tally:
    counts = tally["counts"]
    return Tally(int(counts.get(f"{label}.shown", 0)), int(counts.get(f"{label}.dropped", 0)))


def _copies(tally: SiteTally) -> Copies | None:
    counts = tally["counts"]
    if "copies.samples" not in counts:
        return None
    return Copies(
        samples=int(counts["copies.samples"]),
        hits=int(counts["copies.hits"]),
        control_hits=int(counts["copies.control_hits"]),
        scale=float(tally["metrics"]["copies.scale"]),
        planted=int(counts["copies.planted"]),
        planted_hits=int(counts["copies.planted_hits"]),
    )


def _closeness(tally: SiteTally) -> Closeness | None:
    counts, metrics = tally["counts"], tally["metrics"]
    if "closeness.patients" not in counts:
        return None
    return Closeness(
        share=float(metrics["closeness.share"]),
        error=float(metrics["closeness.error"]),
        patients=int(counts["closeness.patients"]),
        samples=int(counts["closeness.samples"]),
    )


def _membership(tally: SiteTally) -> Membership | None:
    counts, metrics = tally["counts"], tally["metrics"]
    if "membership.members" not in counts:
        return None
    attack, placebo, control = (
        Estimate(float(metrics[f"membership.{name}"]), float(metrics[f"membership.{name}_error"]))
        for name in ("attack", "placebo", "control")
    )
    return Membership(
        attack=attack,
        placebo=placebo,
        control=control,
        members=int(counts["membership.members"]),
        others=int(counts["membership.others"]),
    )
