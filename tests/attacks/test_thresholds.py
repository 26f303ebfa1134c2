"""The thresholds of both policies, justified by simulation.

Those of the rehearsal at its own sizes, which are those of ``deploy/studies/brain-demo.toml`` with
160 patients a site. Patients are random directions in a space of 40 dimensions, the released
samples either new draws (an ideal generator), or for a part of them training patients with little
noise (one that copies), or new draws pushed away from the training patients (one that leaves a
hole around each of them).

Those of ``public`` on closeness, membership and the placebo at the smallest sizes that its gates
admit, as one hospital and as five, without images: a sample's nearest patient is drawn by the
patients' popularity, whose square of variation (1) is above that of such directions (0.5 to 0.8),
and the attack's scores are normal.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from scipy import stats

from vitrael.core.digest import digest_json
from vitrael.core.metrics.intervals import Estimate, auc, stratified
from vitrael.core.records import PatientImages
from vitrael.core.rng import stream
from vitrael.privacy.audit.closeness import (
    Closeness,
    measure_closeness,
    patient_distances,
    pool_closeness,
    relative_distances,
)
from vitrael.privacy.audit.copies import count_copies, strict_point
from vitrael.privacy.audit.membership import (
    Membership,
    attack_scores,
    measure_membership,
    pool_membership,
)
from vitrael.privacy.audit.parts import write_audit
from vitrael.privacy.audit.pooling import audit_measurements
from vitrael.privacy.audit.power import Certificate, Tally
from vitrael.privacy.evidence import Evidence
from vitrael.privacy.gates import POLICIES, Gate, Verdict, judge

_SITES, _TRAINING, _HELD_OUT, _REFERENCE, _RELEASED, _DIMENSIONS = 3, 80, 32, 48, 96, 40
_POOLED = ("copies.excess_share", "closeness.training_share", "membership.auc")
_AUDITED = (*_POOLED, "copies.worst_site", "closeness.worst_site", "membership.worst_site")
_SIDES = {(name, "upper_at_most") for name in _POOLED} | {
    (name, "lower_at_least") for name in _POOLED[1:]
}
_PROOFS = {(name, "lower_at_most") for name in _AUDITED[3:]} | {
    (name, "upper_at_least") for name in _AUDITED[4:]
}
_PLACEBO = "membership.placebo_gap"
_TRIALS, _HOLE_TRIALS, _PLACEBO_TRIALS, _PUBLIC_TRIALS = 20, 10, 300, 100
_PUBLIC_SAMPLES, _PUBLIC_TRAINING, _PUBLIC_HELD_OUT = 2_995, 7_000, 1_000
_PUBLIC_AREAS = {"closeness.training_share", "closeness.worst_site"} | {
    f"membership.{name}" for name in ("auc", "worst_site", "placebo_gap")
}


def _patients(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.normal(size=(count, 1, 1, 1, _DIMENSIONS)).astype(np.float32)


def _images(image: np.ndarray) -> PatientImages:
    rows = np.arange(len(image))
    return PatientImages(image, np.zeros((len(image), 4), np.float32), rows, rows * 0)


def _correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    a, b = (x.reshape(len(x), -1) for x in (first, second))
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    return a @ b.T


def _noisy(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return (image + rng.normal(0, 0.2, image.shape)).astype(np.float32)


def _site_tally(
    released: np.ndarray, splits: tuple[np.ndarray, ...], rng: np.random.Generator
) -> dict[str, object]:
    training, held_out, reference = splits
    point = strict_point(_correlation(reference, training))
    assert point is not None
    planted = np.concatenate([released, _noisy(training[: _TRAINING // 2], rng)])
    members, others, *enlarged = [
        attack_scores(
            patient_distances(samples, _images(part), visits=1),
            patient_distances(reference, _images(part), visits=1),
        )
        for samples in (released, planted)
        for part in (training, held_out)
    ]
    return write_audit(
        certificate=Certificate(),
        fresh=Tally(0, 0),
        plants_absent=0,
        copies=count_copies(
            _correlation(released, training),
            _correlation(released, held_out),
            _correlation(_noisy(training[:20], rng), training),
            point,
        ),
        closeness=measure_closeness(
            *(
                relative_distances(
                    patient_distances(released, _images(part), visits=1),
                    patient_distances(reference, _images(part), visits=1),
                )
                for part in (training, held_out)
            ),
            rng=rng,
        ),
        membership=measure_membership(members, others, planted=(enlarged[0], enlarged[1]), rng=rng),
    )


def _repelled(image: np.ndarray, people: np.ndarray) -> np.ndarray:
    """Return samples that moved away from the people near them, at their own length."""
    moved, others = image.reshape(len(image), -1), people.reshape(len(people), -1)
    length = np.linalg.norm(moved, axis=1, keepdims=True)
    for _ in range(40):
        squares = ((moved[:, None] - others) ** 2).sum(-1)
        weight = np.exp((squares.min(1, keepdims=True) - squares) / 2)
        moved = moved + 0.1 * (moved - weight / weight.sum(1, keepdims=True) @ others)
        moved = moved * length / np.linalg.norm(moved, axis=1, keepdims=True)
    return moved.reshape(image.shape).astype(np.float32)


def _verdict(
    copied_frac: float, seed: int, *, hole: Literal["training", "strangers"] | None = None
) -> Verdict:
    rng = stream(seed, "thresholds")
    sizes = (_TRAINING, _HELD_OUT, _REFERENCE)
    sites = [tuple(_patients(rng, size) for size in sizes) for _ in range(_SITES)]
    released = _patients(rng, _RELEASED)
    copied = round(copied_frac * _RELEASED)
    everyone = np.concatenate([site[0] for site in sites])
    released[:copied] = _noisy(everyone[rng.permutation(len(everyone))[:copied]], rng)
    if hole:
        strangers = _patients(rng, len(everyone))
        released = _repelled(released, everyone if hole == "training" else strangers)
    tallies = [_site_tally(released, splits, rng) for splits in sites]
    evidence = Evidence(
        protocol=digest_json("simulation"), measurements=audit_measurements(tallies)
    )
    gates = [gate for gate in POLICIES["rehearsal"].gates if gate.measurement in _AUDITED]
    assert {(gate.measurement, gate.bound) for gate in gates} == _SIDES | _PROOFS
    return judge(evidence, gates)


def _refused_frac(verdicts: list[Verdict]) -> float:
    return float(np.mean([not verdict.passed for verdict in verdicts]))


def test_ideal_generator_passes_nine_times_of_ten() -> None:
    assert _refused_frac([_verdict(0.0, seed) for seed in range(_TRIALS)]) <= 0.1


@pytest.mark.parametrize("copied_frac", [0.1, 0.25])
def test_copying_generator_is_refused_nine_times_of_ten(copied_frac: float) -> None:
    assert _refused_frac([_verdict(copied_frac, seed) for seed in range(_TRIALS)]) >= 0.9


def test_leak_is_refused_by_bounds_beyond_the_threshold() -> None:
    """The samples can copy 96 of 240 patients, so the attack's area is near 0.7 at most."""
    verdict = _verdict(1.0, 0)
    proven = {f.gate.measurement for f in verdict.findings if f.proven}
    refused = {f.gate.measurement for f in verdict.findings if not f.passed}
    assert proven >= {"copies.excess_share"}
    assert refused >= {"copies.excess_share", "membership.auc"}
    assert "copies.worst_site" in proven
    assert not {f.gate.measurement for f in _verdict(0.0, 0).findings if f.proven}
    assert all(f.outcome != "not estimable" for f in verdict.findings)


def test_hole_around_training_patients_is_refused_from_below_alone() -> None:
    verdicts = [_verdict(0.0, seed, hole="training") for seed in range(_HOLE_TRIALS)]
    closed = {f.gate.bound for v in verdicts for f in v.findings if not f.passed}
    assert _refused_frac(verdicts) >= 0.9
    assert "lower_at_least" in closed
    assert closed <= {"lower_at_least", "upper_at_least"}


def test_hole_around_strangers_is_none_of_the_patients() -> None:
    verdicts = [_verdict(0.0, seed, hole="strangers") for seed in range(_HOLE_TRIALS)]
    assert _refused_frac(verdicts) <= 0.1


@pytest.mark.parametrize(("shift", "least", "most"), [(0.0, 0.9, 1.0), (2.0, 0.0, 0.1)])
def test_placebo_of_thirty_patients_a_side_passes_nine_times_of_ten(
    shift: float, least: float, most: float
) -> None:
    """Halves that differ, as a placebo must never find, are the control."""
    gates = [gate for gate in POLICIES["rehearsal"].gates if gate.measurement == _PLACEBO]
    passed = [_placebo_passes(gates, seed, shift) for seed in range(_PLACEBO_TRIALS)]
    assert len(gates) == 2
    assert least <= np.mean(passed) <= most


def _placebo_passes(gates: list[Gate], seed: int, shift: float) -> bool:
    rng = stream(seed, "placebo")
    halves = [auc(rng.normal(shift, 1, 15), rng.normal(0, 1, 15)) for _ in range(2)]
    attack, control = Estimate(0.5, 0.1), Estimate(0.9, 0.1)
    part = Membership(attack, stratified(halves, [30, 30]), control, members=30, others=30)
    measurements = pool_membership([part])
    return judge(Evidence(protocol=digest_json("placebo"), measurements=measurements), gates).passed


def _public_closeness(area: float, hospitals: int, rng: np.random.Generator) -> Closeness:
    """Return a hospital's share of samples when those nearer to T have the odds of ``area``."""
    training, held_out = _PUBLIC_TRAINING // hospitals, _PUBLIC_HELD_OUT // hospitals
    popularity = rng.exponential(size=training + held_out)
    popularity[:training] *= area / (1 - area)
    weight = rng.multinomial(_PUBLIC_SAMPLES, popularity / popularity.sum()) / _PUBLIC_SAMPLES
    nearer, ratio = weight[:training].sum(), training / held_out
    spread = np.sqrt(ratio * ((weight**2).sum() - 1 / len(weight))) / (1 + ratio)
    return Closeness(
        share=float(nearer / (nearer + ratio * (1 - nearer))),
        error=float(spread * (1 + ratio) ** 2 / (4 * ratio)),  # the odds' own slope at chance
        patients=held_out,
    )


def _public_membership(area: float, hospitals: int, rng: np.random.Generator) -> Membership:
    shift = np.sqrt(2) * stats.norm.ppf(area)
    members = rng.normal(shift, 1, _PUBLIC_TRAINING // hospitals)
    others = rng.normal(0, 1, _PUBLIC_HELD_OUT // hospitals)
    found = measure_membership(members, others, planted=(members, others), rng=rng)
    assert found is not None
    return found


def _public_verdict(seed: int, *, closeness: list[float], membership: list[float]) -> Verdict:
    """Return the verdict on these areas, one for each hospital."""
    rng = stream(seed, "public")
    hospitals = len(membership)
    measurements = (
        *pool_closeness([_public_closeness(area, hospitals, rng) for area in closeness]),
        *pool_membership([_public_membership(area, hospitals, rng) for area in membership]),
    )
    evidence = Evidence(protocol=digest_json("public"), measurements=measurements)
    gates = [gate for gate in POLICIES["public"].gates if gate.measurement in _PUBLIC_AREAS]
    assert {gate.measurement for gate in gates} == _PUBLIC_AREAS
    return judge(evidence, gates)


def _public_verdicts(hospitals: int, *, closeness: float, membership: float) -> list[Verdict]:
    areas = {"closeness": [closeness] * hospitals, "membership": [membership] * hospitals}
    return [_public_verdict(seed, **areas) for seed in range(_PUBLIC_TRIALS)]


@pytest.mark.parametrize("hospitals", [1, 5])
def test_ideal_generator_passes_public_nine_times_of_ten(hospitals: int) -> None:
    verdicts = _public_verdicts(hospitals, closeness=0.5, membership=0.5)
    assert _refused_frac(verdicts) <= 0.1
    assert all(f.outcome != "not estimable" for v in verdicts for f in v.findings)


@pytest.mark.parametrize("hospitals", [1, 5])
@pytest.mark.parametrize("area", [0.4, 0.6])
def test_area_of_six_tenths_is_refused_by_public_nine_times_of_ten(
    hospitals: int, area: float
) -> None:
    for one in ({"closeness": area, "membership": 0.5}, {"closeness": 0.5, "membership": area}):
        assert _refused_frac(_public_verdicts(hospitals, **one)) >= 0.9


def test_one_leaking_hospital_of_five_is_refused_by_public_for_itself_alone() -> None:
    areas = {"closeness": [0.5] * 5, "membership": [0.65, *[0.5] * 4]}
    verdicts = [_public_verdict(seed, **areas) for seed in range(_PUBLIC_TRIALS)]
    assert _refused_frac(verdicts) >= 0.9
    pooled = [f for v in verdicts for f in v.findings if f.gate.measurement == "membership.auc"]
    assert np.mean([finding.passed for finding in pooled]) > 0.5
