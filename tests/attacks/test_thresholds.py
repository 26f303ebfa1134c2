"""The thresholds of the rehearsal policy, justified by simulation at the rehearsal's sizes.

Patients are random directions in a space of 40 dimensions, the released samples either new draws
(an ideal generator) or, for a part of them, training patients with little noise (one that copies).
"""

from __future__ import annotations

import numpy as np

from vitrael.core.digest import digest_json
from vitrael.core.records import PatientImages
from vitrael.core.rng import stream
from vitrael.privacy.audit.closeness import (
    measure_closeness,
    patient_distances,
    relative_distances,
)
from vitrael.privacy.audit.copies import count_copies, strict_point
from vitrael.privacy.audit.membership import attack_scores, measure_membership
from vitrael.privacy.audit.pooling import audit_measurements, write_audit
from vitrael.privacy.audit.power import Tally
from vitrael.privacy.evidence import Evidence
from vitrael.privacy.gates import POLICIES, Verdict, judge

_SITES, _TRAINING, _HELD_OUT, _REFERENCE, _RELEASED, _DIMENSIONS = 3, 55, 22, 33, 96, 40
_AUDITED = ("copies.excess_share", "closeness.training_share", "membership.auc")
_TRIALS = 15


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
    scores = [
        attack_scores(
            patient_distances(samples, _images(part), visits=1),
            patient_distances(reference, _images(part), visits=1),
        )
        for samples, part in ((released, training), (released, held_out), (planted, training))
    ]
    return write_audit(
        plants={},
        fresh=Tally(0, 0),
        copies=count_copies(
            _correlation(released, training), _correlation(released, held_out), point
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
        membership=measure_membership(*scores, rng=rng),
    )


def _verdict(copied_frac: float, seed: int) -> Verdict:
    rng = stream(seed, "thresholds")
    sizes = (_TRAINING, _HELD_OUT, _REFERENCE)
    sites = [tuple(_patients(rng, size) for size in sizes) for _ in range(_SITES)]
    released = _patients(rng, _RELEASED)
    copied = round(copied_frac * _RELEASED)
    everyone = np.concatenate([site[0] for site in sites])
    released[:copied] = _noisy(everyone[rng.permutation(len(everyone))[:copied]], rng)
    tallies = [_site_tally(released, splits, rng) for splits in sites]
    evidence = Evidence(
        protocol=digest_json("simulation"), measurements=audit_measurements(tallies)
    )
    gates = [gate for gate in POLICIES["rehearsal"].gates if gate.measurement in _AUDITED]
    assert len(gates) == len(_AUDITED)
    return judge(evidence, gates)


def test_ideal_generator_passes_nine_times_of_ten() -> None:
    passed = [_verdict(0.0, seed).passed for seed in range(_TRIALS)]
    assert np.mean(passed) >= 0.9


def test_copying_generator_is_refused_nine_times_of_ten() -> None:
    verdicts = [_verdict(0.25, seed) for seed in range(_TRIALS)]
    assert np.mean([not verdict.passed for verdict in verdicts]) >= 0.9


def test_leak_is_refused_by_bounds_beyond_the_threshold() -> None:
    verdict = _verdict(1.0, 0)
    proven = {f.gate.measurement for f in verdict.findings if f.proven}
    assert {"copies.excess_share", "membership.auc"} <= proven
    assert all(f.outcome != "not estimable" for f in verdict.findings)
