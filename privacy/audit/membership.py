"""Membership inference from the released samples alone, with its placebo and its control.

The attack scores every patient by how near a released sample comes, relative to how near other
real patients come: a density ratio in the manner of DOMIAS (van Breugel et al. 2023,
arXiv 2302.12580) with nearest-neighbour densities. Scored are training patients against sealed
held-out ones. An area far below one half is a finding too: samples that keep clear of the
training patients tell who they are. The control plants copies of half the training patients among
the samples, and both groups meet the enlarged set: it must find something, or the attack is too
weak to acquit anybody; copies of strangers, as near to the one group as to the other, must not do.

The placebo scores random halves of one group against each other. Halves are exchangeable however
leaky the samples are, so what it finds depends on the number of patients and on the seed alone: it
checks that the attack's machinery and errors find nothing where nothing is. It says nothing of the
release.

Axes: R released samples, P patients, Q reference patients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vitrael.core.digest import Digest
from vitrael.core.errors import DataError
from vitrael.core.metrics.intervals import (
    CONFIDENCE,
    UNIT,
    Estimate,
    auc,
    normal_interval,
    stratified,
)
from vitrael.privacy.audit.worst import worst_area
from vitrael.privacy.evidence import Measurement, not_estimable
from vitrael.privacy.leakage import SMALLEST_COUNT

_NEIGHBORS = 5
_WORST = "membership.worst_site"
_METHOD = "nearest-neighbour density ratio on the released samples; areas by site, DeLong errors"


@dataclass(frozen=True, slots=True)
class Membership:
    """One site's areas under the curve: the attack, its placebo, its control."""

    attack: Estimate
    placebo: Estimate
    control: Estimate
    members: int
    others: int


def attack_scores(released_RP: np.ndarray, reference_QP: np.ndarray) -> np.ndarray:
    """Return ``[P]``, higher for more likely members.

    Both arguments hold distances of each patient to samples and to other real patients; infinity
    stands for a patient's own scans. Raises DataError when there is nothing to compare with.
    """
    if not len(released_RP) or not len(reference_QP):
        raise DataError("the membership attack needs samples and reference patients")
    near = np.sort(reference_QP, axis=0)[:_NEIGHBORS]
    near = np.where(np.isfinite(near), near, np.nan)
    return np.asarray(np.log(np.nanmean(near, axis=0)) - np.log(released_RP.min(0) + 1e-9))


def measure_membership(
    members_P: np.ndarray,
    others_P: np.ndarray,
    *,
    planted: tuple[np.ndarray, np.ndarray],
    rng: np.random.Generator,
) -> Membership | None:
    """Return a site's areas from attack scores, or None with too few patients on a side.

    ``planted`` holds the scores of members and others when copies stand among the samples.
    """
    if min(len(members_P), len(others_P)) < SMALLEST_COUNT:
        return None
    halves = [_halves(scores, rng) for scores in (members_P, others_P)]
    return Membership(
        attack=auc(members_P, others_P),
        placebo=stratified([auc(*half) for half in halves], [len(members_P), len(others_P)]),
        control=auc(*planted),
        members=len(members_P),
        others=len(others_P),
    )


def pool_membership(
    parts: Sequence[Membership | None],
    *,
    confidence: float = CONFIDENCE,
    inputs: tuple[Digest, ...] = (),
) -> tuple[Measurement, ...]:
    """Return attack, placebo and control, each a mean over sites by their patients, and the worst.

    The worst is the site with the worst attack. A site that could not measure (None) makes all
    four not estimable.
    """
    names = ("membership.auc", "membership.placebo_gap", "membership.control_auc")
    told = [part for part in parts if part is not None]
    if not parts or len(told) < len(parts):
        why = f"a site is absent or has under {SMALLEST_COUNT} training or held-out patients"
        return tuple(
            not_estimable(name, why, method=_METHOD, unit="patients", confidence=confidence)
            for name in (*names, _WORST)
        )
    weights = [part.members * part.others / (part.members + part.others) for part in told]
    attack = stratified([part.attack for part in told], weights)
    placebo = stratified([part.placebo for part in told], weights)
    control = stratified([part.control for part in told], weights)
    gap = Estimate(abs(placebo.value - 0.5), placebo.error)
    others = sum(part.others for part in told)
    pooled = (
        _measurement(name, estimate, n=others, confidence=confidence, inputs=inputs)
        for name, estimate in zip(names, (attack, gap, control), strict=True)
    )
    worst = worst_area(
        _WORST,
        [part.attack for part in told],
        patients=[min(part.members, part.others) for part in told],
        method=_METHOD,
        confidence=confidence,
        inputs=inputs,
    )
    return (*pooled, worst)


def _measurement(
    name: str, estimate: Estimate, *, n: int, confidence: float, inputs: tuple[Digest, ...]
) -> Measurement:
    low, high = normal_interval(estimate, confidence=confidence, within=UNIT)
    return Measurement(
        name=name,
        value=estimate.value,
        low=low,
        high=high,
        n=n,
        unit="held-out patients",
        confidence=confidence,
        method=_METHOD,
        inputs=inputs,
    )


def _halves(scores: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    mixed = rng.permutation(scores)
    return mixed[: len(mixed) // 2], mixed[len(mixed) // 2 :]
