"""From what the sites counted to Evidence: sums, exact bounds, and "not estimable" where it is due.

A *tally* is what a site's reply holds: ``{"estimable": bool, "metrics": {...}, "counts": {...}}``,
and empty for a site that gave none. One that is out of range raises DataError, which names the
part. A site whose tally lacks a part makes the measurement of that part not estimable: what one
site could not look at, nobody has looked at. The same holds of a site that showed the filter no
plant of a class or no fresh patient, or had too few pairs of visits to verify its encoder with. A
filter that is off was shown them, and dropped none.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

import numpy as np

from vitrael.core.digest import Digest
from vitrael.core.metrics.intervals import (
    CONFIDENCE,
    pearson_interval,
    pearson_r,
    permuted_r,
)
from vitrael.privacy.audit.closeness import pool_closeness
from vitrael.privacy.audit.copies import pool_copies
from vitrael.privacy.audit.membership import pool_membership
from vitrael.privacy.audit.parts import (
    SiteTally,
    read_absent,
    read_caught,
    read_closeness,
    read_copies,
    read_membership,
    read_shown,
    read_verification,
    read_votes,
)
from vitrael.privacy.audit.power import Caught, Tally, mean_caught, share_dropped
from vitrael.privacy.audit.worst import confidence_of_each, corrected
from vitrael.privacy.evidence import (
    NEGATIVE_KINDS,
    SUBGROUPS,
    Measurement,
    counted,
    measure_share,
    not_estimable,
)
from vitrael.privacy.leakage import SMALLEST_COUNT
from vitrael.privacy.suite import VOLUME_SUITE

_PERMUTATIONS: Final = 200
_PATIENTS: Final = "all classes that must be caught, mean over patients; Clopper-Pearson"
_VERIFICATION = (
    "one visit against the other, and against strangers; patients as trials, bounds approximate"
)


def audit_measurements(
    tallies: Sequence[SiteTally],
    *,
    confidence: float = CONFIDENCE,
    inputs: tuple[Digest, ...] = (),
) -> tuple[Measurement, ...]:
    """Return power, false positives, copies, closeness and membership, pooled over the sites.

    Each leak stands there twice: pooled, and as it is at the worst site.
    """
    power = tuple(
        _pool_shown(
            f"filter.power.{kind}",
            [read_shown(tally, f"plants.{kind}") for tally in tallies],
            unit="plants",
            method="planted copies through the screening as configured; Clopper-Pearson",
            confidence=confidence,
            inputs=inputs,
        )
        for kind in VOLUME_SUITE
    )
    false_positives = _pool_shown(
        "filter.false_positive_rate",
        [read_shown(tally, "fresh") for tally in tallies],
        unit="fresh patients",
        method="scans of sealed patients through the screening as configured; Clopper-Pearson",
        confidence=confidence,
        inputs=inputs,
    )
    copies = pool_copies([read_copies(t) for t in tallies], confidence=confidence, inputs=inputs)
    closeness = pool_closeness(
        [read_closeness(t) for t in tallies], confidence=confidence, inputs=inputs
    )
    membership = pool_membership(
        [read_membership(t) for t in tallies], confidence=confidence, inputs=inputs
    )
    certified = _certificate_measurements(tallies, confidence=confidence, inputs=inputs)
    return (*power, *certified, false_positives, *copies, *closeness, *membership)


def _certificate_measurements(
    tallies: Sequence[SiteTally], *, confidence: float, inputs: tuple[Digest, ...]
) -> tuple[Measurement, ...]:
    """Return what else the power certificate says: worst site, subgroups, votes, negatives."""
    must = [read_caught(tally, "must") for tally in tallies]
    subgroups = (
        mean_caught(
            f"filter.subgroup_power.{name}",
            [read_caught(tally, f"subgroups.{name}") for tally in tallies],
            method=f"{_PATIENTS}, at the sites that may tell of them",
            confidence=confidence,
            inputs=inputs,
        )
        for name in SUBGROUPS
    )
    negatives = (
        _pool_shown(
            f"filter.negatives.{kind}",
            [read_shown(tally, f"negatives.{kind}") for tally in tallies],
            unit="images that are no copies",
            method="through the screening as configured; Clopper-Pearson",
            confidence=confidence,
            inputs=inputs,
        )
        for kind in NEGATIVE_KINDS
    )
    changed = _pool_shown(
        "filter.votes_changed",
        [read_shown(tally, "mixing") for tally in tallies],
        unit="images in both mixtures",
        method="the same images among 1 % and among 40 % of planted copies; Clopper-Pearson",
        confidence=confidence,
        inputs=inputs,
    )
    absent = _absence([read_absent(tally) for tally in tallies], inputs=inputs)
    worst = _worst_power(must, confidence=confidence, inputs=inputs)
    return (worst, *subgroups, changed, absent, *negatives)


def _absence(plants: Sequence[int], *, inputs: tuple[Digest, ...]) -> Measurement:
    """Return the share of the sites that found none of their plants in the release.

    A site that finds one tells nothing else; one that planted nothing proves nothing.
    """
    name = "filter.plants_absent"
    method = "sites that compared every planted copy with every released image"
    if not plants or min(plants) < 1:
        why = "a site has no planted copies that it could compare with the release"
        return not_estimable(name, why, method=method, unit="sites")
    whole = len(plants)
    return counted(name, part=whole, whole=whole, unit="sites", method=method, inputs=inputs)


def _worst_power(
    must: Sequence[Caught], *, confidence: float, inputs: tuple[Digest, ...]
) -> Measurement:
    """Return the power of the site whose filter is nearest to being proven to miss copies."""
    name = "filter.worst_site_power"
    if not must or min(one.patients for one in must) < SMALLEST_COUNT:
        why = "a site showed its filter no copies that must be caught"
        return not_estimable(name, why, method=_PATIENTS, unit="patients", confidence=confidence)
    each = confidence_of_each(len(must), confidence=confidence)
    method = corrected(_PATIENTS, len(must))
    sites = [
        mean_caught(name, [one], method=method, confidence=each, inputs=inputs) for one in must
    ]
    worst = min(sites, key=lambda site: (site.high or 0.0, site.value or 0.0))
    return worst.model_copy(
        update={"n": min(one.patients for one in must), "confidence": confidence}
    )


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
    told = [read_verification(tally) for tally in tallies]
    if not told or min(one.patients for one in told) < 1:
        why = f"a site has not {SMALLEST_COUNT} calibration patients with two visits to tell of"
        return not_estimable(name, why, method=_VERIFICATION, unit=unit, confidence=confidence)
    patients = sum(one.patients for one in told)
    wins = sum(one.wins for one in told)
    return measure_share(
        name,
        wins,
        patients,
        unit=unit,
        method=_VERIFICATION,
        confidence=confidence,
        inputs=inputs,
    )


def screening_measurement(
    rounds: Sequence[Sequence[SiteTally]], *, inputs: tuple[Digest, ...] = ()
) -> Measurement:
    """Return the share of what was screened that every site judged by a calibrated filter.

    ``rounds`` are those of all screenings, of candidates and of samples, each with the tally of
    every site. A site that told nothing (an empty tally) has judged none.
    """
    part = whole = 0
    for tallies in rounds:
        votes = [read_votes(tally) if tally else (0, False) for tally in tallies]
        part += min((shown if calibrated else 0 for shown, calibrated in votes), default=0)
        whole += max((shown for shown, _ in votes), default=0)
    return counted(
        "screening.done",
        part=part,
        whole=whole,
        unit="candidates and samples",
        method="candidates, and samples as they would be released, on which every site voted by a "
        "filter with a frozen operating point",
        inputs=inputs,
    )


def participation_measurement(
    *, contributed: Collection[str], judged: Collection[str]
) -> Measurement:
    """Return the share of the sites in the model that judged what came of it.

    A site ``contributed`` when its answer went into the weights, and ``judged`` when it calibrated,
    screened and audited. Not estimable when no site contributed.
    """
    return counted(
        "participation.complete",
        part=len(set(contributed) & set(judged)),
        whole=len(set(contributed)),
        unit="sites",
        method="of the sites whose updates are in the model, those that calibrated, screened and "
        "audited",
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

    The bounds of the latter are quantiles over the shufflings. What is shuffled is exchangeable,
    so it depends on the number of samples and the seed alone: it checks the machinery.
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
        why = f"a site showed no {unit} to a calibrated filter"
        return not_estimable(name, why, method=method, unit=unit, confidence=confidence)
    return share_dropped(
        name, tallies, unit=unit, method=method, confidence=confidence, inputs=inputs
    )
