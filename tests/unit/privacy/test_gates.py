from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import pytest
from pydantic import ValidationError

from vitrael.core.digest import digest_json
from vitrael.privacy.evidence import (
    NAMES,
    SUBGROUPS,
    Evidence,
    Measurement,
    counted,
    not_estimable,
)
from vitrael.privacy.gates import LEAKS, POLICIES, Bound, Gate, Policy, decide, judge, power_gates
from vitrael.privacy.suite import CLIP_SUITE, VOLUME_SUITE, must_classes

_PROTOCOL = digest_json("protocol")
_PROOF = ("lower_at_most", "upper_at_least")


def _evidence(*measurements: Measurement) -> Evidence:
    return Evidence(protocol=_PROTOCOL, measurements=measurements)


def _measured(name: str = "x", **changes: object) -> Measurement:
    facts = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 100, "confidence": 0.95, "method": "m"}
    return Measurement.model_validate({"name": name, **facts, **changes})


def _gate(bound: Bound = "upper_at_most", threshold: float = 0.7, **changes: object) -> Gate:
    facts = {"name": "g", "measurement": "x", "bound": bound, "threshold": threshold}
    return Gate.model_validate({**facts, **changes})


def _ideal(name: str, policy: Policy) -> Measurement:
    """Return numbers that pass every gate of the policy on one measurement with room."""
    ups = {g.bound.endswith("at_least") for g in policy.gates if g.measurement == name}
    value = 0.5 if len(ups) > 1 else float(ups.pop())
    return _measured(name, value=value, low=value, high=value, n=10_000)


def _ideal_evidence(policy: Policy) -> Evidence:
    return _evidence(*(_ideal(name, policy) for name in {g.measurement for g in policy.gates}))


def _spoiled(ideal: Measurement, gate: Gate) -> Measurement:
    """Return the measurement with no more changed than what the gate looks at."""
    side = {"upper": "high", "lower": "low", "value": "value"}[gate.bound.split("_")[0]]
    wrong = gate.threshold + (-1e-6 if gate.bound.endswith("at_least") else 1e-6)
    everything = {"low": wrong, "high": wrong, "value": wrong}
    changes = everything if side == "value" or gate.bound in _PROOF else {side: wrong}
    return Measurement.model_validate(ideal.model_dump() | changes)


def test_empty_list_of_gates_refuses() -> None:
    verdict = judge(_evidence(_measured()), [])
    assert verdict.outcome == "refuse"
    assert "no gate" in verdict.reason


def test_missing_measurement_refuses() -> None:
    verdict = judge(_evidence(), [_gate()])
    assert verdict.findings[0].outcome == "not estimable"
    assert not verdict.passed


def test_not_estimable_refuses_and_says_why() -> None:
    verdict = judge(_evidence(not_estimable("x", "too few patients", method="m")), [_gate()])
    assert not verdict.passed
    assert "too few patients" in verdict.reason


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["value", "low", "high"])
def test_not_finite_refuses(bad: float, field: str) -> None:
    measurement = _measured(**{field: bad})
    assert not measurement.estimable
    assert not judge(_evidence(measurement), [_gate()]).passed


def test_missing_bound_refuses() -> None:
    assert not judge(_evidence(_measured(high=None)), [_gate()]).passed


@pytest.mark.parametrize(
    ("bound", "passing", "failing"),
    [
        ("upper_at_most", 0.6, 0.59),
        ("lower_at_least", 0.4, 0.41),
        ("lower_at_most", 0.4, 0.39),
        ("upper_at_least", 0.6, 0.61),
        ("value_at_most", 0.5, 0.49),
        ("value_at_least", 0.5, 0.51),
    ],
)
def test_each_bound_is_judged_by_its_own_side(bound: Bound, passing: float, failing: float) -> None:
    assert judge(_evidence(_measured()), [_gate(bound, passing)]).passed
    assert not judge(_evidence(_measured()), [_gate(bound, failing)]).passed


def test_too_few_patients_are_not_estimable() -> None:
    verdict = judge(_evidence(_measured(n=99)), [_gate(least_n=100)])
    assert verdict.findings[0].outcome == "not estimable"


def test_weak_confidence_is_not_estimable() -> None:
    verdict = judge(_evidence(_measured(confidence=0.6)), [_gate()])
    assert verdict.findings[0].outcome == "not estimable"


def test_one_closed_gate_refuses() -> None:
    verdict = judge(_evidence(_measured()), [_gate(), _gate(threshold=0.1)])
    assert [finding.passed for finding in verdict.findings] == [True, False]
    assert not verdict.passed


def test_refusal_beyond_doubt_is_told_from_uncertainty() -> None:
    verdict = judge(_evidence(_measured()), [_gate(threshold=0.3), _gate(threshold=0.5)])
    assert [finding.proven for finding in verdict.findings] == [True, False]
    assert "whole interval" in verdict.findings[0].sentence


def test_measuring_twice_is_refused() -> None:
    with pytest.raises(ValidationError):
        _evidence(_measured(), _measured())


@pytest.mark.parametrize("wrong", [{"low": 0.55}, {"high": 0.45}, {"value": None}])
def test_incoherent_measurement_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        _measured(**wrong)


def test_nothing_counted_is_not_estimable() -> None:
    assert not counted("x", part=0, whole=0, unit="votes", method="m").estimable


@pytest.mark.parametrize("name", POLICIES)
def test_ideal_evidence_passes_every_policy(name: str) -> None:
    verdict = decide(_ideal_evidence(POLICIES[name]), POLICIES[name])
    assert verdict.passed
    assert verdict.publishable is POLICIES[name].publishable


@pytest.mark.parametrize(
    ("name", "gate"), [(name, gate) for name, policy in POLICIES.items() for gate in policy.gates]
)
def test_missing_or_spoiled_measurement_refuses(name: str, gate: Gate) -> None:
    ideal = _ideal_evidence(POLICIES[name]).measurements
    rest = tuple(m for m in ideal if m.name != gate.measurement)
    spoiled = _spoiled(_ideal(gate.measurement, POLICIES[name]), gate)
    for evidence in (_evidence(*rest), _evidence(*rest, spoiled)):
        verdict = decide(evidence, POLICIES[name])
        assert gate in [finding.gate for finding in verdict.findings if not finding.passed]
        closed = {finding.gate.measurement for finding in verdict.findings if not finding.passed}
        assert closed == {gate.measurement}
        assert not verdict.publishable


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize(
    ("measurement", "below", "above"),
    [
        ("membership.auc", "lower_at_least", "upper_at_most"),
        ("closeness.training_share", "lower_at_least", "upper_at_most"),
        ("membership.worst_site", "upper_at_least", "lower_at_most"),
        ("closeness.worst_site", "upper_at_least", "lower_at_most"),
    ],
)
@pytest.mark.parametrize("value", [0.0, 0.05, 0.95, 1.0])
def test_area_far_from_one_half_refuses_on_either_side(
    name: str, measurement: str, below: Bound, above: Bound, value: float
) -> None:
    ideal = _ideal_evidence(POLICIES[name]).measurements
    rest = tuple(m for m in ideal if m.name != measurement)
    far = _measured(measurement, value=value, low=value, high=value, n=10_000)
    closed = [f.gate for f in decide(_evidence(*rest, far), POLICIES[name]).findings if f.proven]
    side = below if value < 0.5 else above
    assert [(gate.measurement, gate.bound) for gate in closed] == [(measurement, side)]


def test_worst_site_is_refused_by_proof_alone() -> None:
    unsure, sure = _measured(low=0.2, high=0.9), _measured(value=0.8, low=0.75, high=0.9)
    gate = _gate("lower_at_most", 0.7)
    assert judge(_evidence(unsure), [gate]).passed
    assert judge(_evidence(sure), [gate]).findings[0].proven
    assert not judge(_evidence(not_estimable("x", "no site", method="m")), [gate]).passed


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize(
    "leak", ["copies.excess_share", "closeness.training_share", "membership.auc"]
)
def test_every_leak_is_judged_at_its_worst_site_by_the_pooled_thresholds(
    name: str, leak: str
) -> None:
    worst = f"{leak.split('.', maxsplit=1)[0]}.worst_site"
    opposite = {"upper_at_most": "lower_at_most", "lower_at_least": "upper_at_least"}
    gates = POLICIES[name].gates
    pooled = {(opposite[g.bound], g.threshold) for g in gates if g.measurement == leak}
    assert {(g.bound, g.threshold) for g in gates if g.measurement == worst} == pooled
    assert {leak, worst} <= LEAKS
    # Of the two sides of an area the worse is measured: both must be as near to one half.
    assert len(pooled) == 1 or sum(threshold for _, threshold in pooled) == pytest.approx(1)


def test_names_of_gates_are_unique() -> None:
    for policy in POLICIES.values():
        names = [gate.name for gate in policy.gates]
        assert len(set(names)) == len(names)


def test_fifty_nine_plants_are_too_few_for_a_rehearsal() -> None:
    gates = [g for g in POLICIES["rehearsal"].gates if g.measurement == "filter.power.exact"]
    plants = {"value": 1.0, "low": 0.95, "high": 1.0}
    enough = _evidence(_measured("filter.power.exact", n=60, **plants))
    few = _evidence(_measured("filter.power.exact", n=59, **plants))
    assert judge(enough, gates).passed
    assert judge(few, gates).findings[0].outcome == "not estimable"


def test_rehearsal_is_never_publishable() -> None:
    policy = POLICIES["rehearsal"]
    assert not decide(_ideal_evidence(policy), policy).publishable
    assert "NOT FOR PUBLICATION" in policy.title


def test_gates_name_measurements_that_exist() -> None:
    named = {gate.measurement for policy in POLICIES.values() for gate in policy.gates}
    reported = {f"filter.power.{name}" for name, asked in VOLUME_SUITE.items() if not asked.must}
    reported |= {f"filter.subgroup_power.{name}" for name in SUBGROUPS}
    assert named == set(NAMES) - reported
    assert reported < set(NAMES)


def _caught(names: Iterable[str]) -> Evidence:
    """Return the Evidence of a filter that caught all that was planted of some classes."""
    return _evidence(
        *(
            _measured(f"filter.power.{name}", value=1.0, low=0.995, high=1.0, n=300)
            for name in names
        )
    )


def test_release_of_video_is_refused_while_nobody_can_animate_a_still() -> None:
    gates, must = power_gates(CLIP_SUITE, least_n=300), set(must_classes(CLIP_SUITE))
    all_but_one = judge(_caught(must - {"animated_still"}), gates)
    assert [f.gate.measurement for f in all_but_one.findings if not f.passed] == [
        "filter.power.animated_still"
    ]
    assert judge(_caught(must), gates).passed


@pytest.mark.parametrize("missed", must_classes(VOLUME_SUITE))
def test_each_class_that_must_be_caught_refuses_alone(missed: str) -> None:
    gates, must = power_gates(VOLUME_SUITE, least_n=300), set(must_classes(VOLUME_SUITE))
    evidence = _evidence(
        *_caught(must - {missed}).measurements,
        _measured(f"filter.power.{missed}", value=0.93, low=0.9, high=0.95, n=300),
    )
    closed = [f.gate.measurement for f in judge(evidence, gates).findings if not f.passed]
    assert closed == [f"filter.power.{missed}"]


NOT_REHEARSED = {"memorized", "resample_half", "sdedit_10", "sdedit_20"}
"""What must be caught, and a study that takes minutes cannot show."""


def test_rehearsal_asks_for_all_but_what_it_says(root: Path) -> None:
    asked = {gate.measurement for gate in POLICIES["rehearsal"].gates}
    must = set(must_classes(VOLUME_SUITE))
    assert {name for name in must if f"filter.power.{name}" not in asked} == NOT_REHEARSED
    public = {gate.measurement for gate in POLICIES["public"].gates}
    assert {f"filter.power.{name}" for name in must} <= public
    page = (root / "docs/privacy/sharp-edges.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in NOT_REHEARSED)


def test_public_is_never_laxer_than_rehearsal() -> None:
    rehearsal = {(g.measurement, g.bound): g for g in POLICIES["rehearsal"].gates}
    for gate in POLICIES["public"].gates:
        if gate.measurement.rpartition(".")[2] in NOT_REHEARSED:
            continue
        other = rehearsal[gate.measurement, gate.bound]
        strict = gate.threshold - other.threshold
        assert strict >= 0 if gate.bound.endswith("at_least") else strict <= 0
        assert gate.least_n >= other.least_n


def test_verdict_survives_json() -> None:
    verdict = judge(_evidence(_measured()), [_gate()])
    assert type(verdict).model_validate_json(verdict.model_dump_json()) == verdict
