"""A made-up report: no number in it was ever measured."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from vitrael.core.digest import digest_bytes
from vitrael.privacy.evidence import NEGATIVE_KINDS, Evidence, Measurement, not_estimable
from vitrael.privacy.gates import POLICIES, decide
from vitrael.privacy.suite import VOLUME_SUITE, must_classes
from vitrael.server.report.data import (
    Conditioning,
    Curve,
    Event,
    ReportData,
    Screening,
    SiteVote,
    StageSummary,
    StudySummary,
    summarize_site,
)
from vitrael.server.report.html import ReportImages

START = datetime(2025, 1, 17, 12, tzinfo=UTC)


def measure(name: str, value: float, low: float, high: float, n: int, unit: str) -> Measurement:
    return Measurement(
        name=name,
        value=value,
        low=low,
        high=high,
        n=n,
        unit=unit,
        confidence=0.95,
        method="made up for a test",
    )


PLANTED = tuple(name for name in must_classes(VOLUME_SUITE) if name != "group_20")
GOOD = (
    measure("participation.complete", 1, 1, 1, 3, "sites"),
    measure("screening.done", 1, 1, 1, 192, "candidates"),
    *(measure(f"filter.power.{kind}", 0.983, 0.911, 0.999, 60, "plants") for kind in PLANTED),
    measure("filter.power.group_20", 1.0, 0.951, 1.0, 60, "plants"),
    measure("filter.worst_site_power", 0.95, 0.78, 0.99, 20, "patients"),
    measure("filter.votes_changed", 0.0, 0.0, 0.02, 130, "images"),
    measure("filter.plants_absent", 1.0, 1.0, 1.0, 3, "sites"),
    *(
        measure(f"filter.negatives.{kind}", 0.05, 0.01, 0.12, 60, "images")
        for kind in NEGATIVE_KINDS
    ),
    measure("filter.verification_auc", 0.957, 0.912, 0.988, 45, "patients"),
    measure("filter.false_positive_rate", 0.0333, 0.004, 0.115, 60, "patients"),
    measure("copies.excess_share", 0.0104, 0.0003, 0.0567, 96, "samples"),
    measure("copies.worst_site", 0.0104, 0.0, 0.0671, 96, "samples"),
    measure("copies.control_power", 0.983, 0.911, 0.999, 60, "planted copies"),
    measure("closeness.training_share", 0.521, 0.437, 0.604, 96, "samples"),
    measure("closeness.worst_site", 0.552, 0.397, 0.707, 32, "patients"),
    measure("membership.auc", 0.537, 0.441, 0.632, 120, "patients"),
    measure("membership.worst_site", 0.574, 0.412, 0.736, 32, "patients"),
    measure("membership.placebo_gap", 0.031, 0.0, 0.082, 120, "patients"),
    measure("membership.control_auc", 0.874, 0.792, 0.941, 120, "patients"),
    measure("conditioning.ventricle_r", 0.862, 0.798, 0.907, 96, "samples"),
    measure("conditioning.permuted_r", 0.047, 0.0, 0.198, 96, "samples"),
)


def _verdict_of(measurements: tuple[Measurement, ...], policy: str) -> dict[str, object]:
    evidence = Evidence(protocol=digest_bytes(b"protocol"), measurements=measurements)
    return {"evidence": evidence, "verdict": decide(evidence, POLICIES[policy])}


SECONDS = (
    ("consent", 1, 2.1),
    ("codec", 1, 48.2),
    ("codec", 2, 47.9),
    ("teacher", 1, 91.4),
    ("teacher", 2, 88.8),
    ("screening", 1, 17.3),
    ("student", 1, 74.6),
    ("audit", 1, 21.9),
)
"""What ran, which round of it, and for how long."""


def _study(policy: str) -> StudySummary:
    return StudySummary(
        name="brain-demo",
        version=1,
        purpose="Made up for a test; nothing in it was measured.",
        study=digest_bytes(b"study"),
        protocol=digest_bytes(b"protocol"),
        path="empirical",
        policy=policy,
        policy_title=POLICIES[policy].title,
        recipe="brain-t1",
        grid_vox=(24, 24, 24),
        spacing_mm=8.0,
        rounds={"codec": 2, "teacher": 2},
        target=192,
        released=96,
        seed=20_250_117,
    )


def _stages() -> tuple[StageSummary, ...]:
    ends = np.cumsum([seconds for _, _, seconds in SECONDS])
    return tuple(
        StageSummary(
            stage=stage,
            round=round_number,
            status="finished",
            started_utc=START + timedelta(seconds=float(end) - seconds),
            seconds=seconds,
            participants=() if stage == "student" else ("north", "harbour", "valley"),
            output=digest_bytes(f"{stage}{round_number}".encode()),
        )
        for (stage, round_number, seconds), end in zip(SECONDS, ends, strict=True)
    )


def _curves() -> tuple[Curve, ...]:
    def fall(rate: float, floor: float = 0.012) -> tuple[tuple[float, float], ...]:
        at = np.arange(0.0, 6_001.0, 250.0)
        return tuple(zip(at.tolist(), (0.08 * np.exp(-at / rate) + floor).tolist(), strict=True))

    sites = {"north": fall(1_500), "harbour": fall(1_900), "valley": fall(2_400)}
    axes = {"x_label": "images seen", "y_label": "loss"}
    return (
        Curve(title="Codec", **axes, series=sites),
        Curve(title="Student", **axes, series={"student": fall(1_500, floor=0.036)}),
    )


def _conditioning(measurements: tuple[Measurement, ...]) -> Conditioning:
    rng = np.random.default_rng(7)
    asked = rng.uniform(5, 120, 96)
    measured = np.clip(asked * 0.86 + 8 + rng.normal(0, 12, 96), 1, 140)
    by_name = {m.name: m for m in measurements}
    return Conditioning(
        ceiling=measure("conditioning.ceiling_r", 0.931, 0.889, 0.958, 60, "phantoms"),
        asked_measured=by_name["conditioning.ventricle_r"],
        permuted=by_name["conditioning.permuted_r"],
        difference=measure("conditioning.difference_ml", -12.4, -14.1, -10.7, 96, "samples"),
        asked_ml=tuple(asked.tolist()),
        measured_ml=tuple(measured.tolist()),
    )


def make_data(
    measurements: tuple[Measurement, ...] = GOOD, policy: str = "rehearsal"
) -> ReportData:
    stages = _stages()
    votes = (("north", 163, True), ("harbour", 180, True), ("valley", 192, False))
    return ReportData(
        title="Brain demo <made up>",
        created_utc=stages[-1].started_utc + timedelta(seconds=SECONDS[-1][2]),
        release="brain-demo@1",
        volumes=96,
        screening=Screening(
            asked=192,
            kept=151,
            share=151 / 192,
            rounds=3,
            votes=tuple(
                SiteVote(site=s, asked=192, kept=kept, judged=judged) for s, kept, judged in votes
            ),
            subgroups=(
                measure("distill.candidates.acceptance.subgroup.female", 0.25, 0.125, 0.5, 71, ""),
                not_estimable("distill.candidates.acceptance.subgroup.male", "few", method="m"),
            ),
        ),
        study=_study(policy),
        sites=(
            summarize_site("north", training_patients=137, status="took part", consented_utc=START),
            summarize_site("harbour", training_patients=7, status="took part", consented_utc=START),
            summarize_site("valley", training_patients=0, status="did not consent"),
        ),
        conditioning=_conditioning(measurements),
        curves=_curves(),
        stages=stages,
        events=(
            Event(utc=START, site="north", event="consented"),
            Event(utc=START, site="valley", event="did not consent"),
        ),
        **_verdict_of(measurements, policy),
    )


def draw_heads(count: int, *, seed: int) -> np.ndarray:
    """Return heads of 24³ voxels: an ellipsoid of brain with two dark ventricles."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, 24)] * 3, indexing="ij")
    images = []
    for _ in range(count):
        a, b, c = rng.uniform(0.68, 0.8), rng.uniform(0.8, 0.92), rng.uniform(0.7, 0.8)
        brain = 1 / (1 + np.exp(14 * ((x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2 - 1)))
        folds = 0.12 * np.sin(9 * x + rng.uniform(0, 6)) * np.sin(8 * y) * np.sin(7 * z)
        size = rng.uniform(0.08, 0.2)
        ventricles = sum(
            np.exp(-(((x - s * 0.2) / size) ** 2 + ((y - 0.1) / 0.36) ** 2 + (z / 0.24) ** 2) * 1.6)
            for s in (-1, 1)
        )
        images.append(np.clip(brain * (0.72 + folds) - 0.7 * ventricles * brain, 0, 1))
    return np.stack(images)[:, None].astype(np.float32)


@pytest.fixture(scope="session")
def good() -> ReportData:
    return make_data()


@pytest.fixture(scope="session")
def bad() -> ReportData:
    """Copies are found beyond doubt, and one class of plants could not be judged."""
    replaced = {
        "copies.excess_share": measure("copies.excess_share", 0.42, 0.319, 0.525, 96, "samples"),
        "filter.power.blend_80": not_estimable(
            "filter.power.blend_80", "no patient had a second visit", method="made up for a test"
        ),
    }
    return make_data(tuple(replaced.get(m.name, m) for m in GOOD))


@pytest.fixture(scope="session")
def images() -> ReportImages:
    return ReportImages(draw_heads(16, seed=1), draw_heads(6, seed=2))
