"""A site's tally of an audit, made up, and what becomes of it."""

from __future__ import annotations

from tests.factories.certificates import make_certificate
from vitrael.core.digest import digest_json
from vitrael.core.metrics.intervals import Estimate
from vitrael.privacy.audit.closeness import Closeness
from vitrael.privacy.audit.copies import Copies
from vitrael.privacy.audit.membership import Membership
from vitrael.privacy.audit.parts import write_audit
from vitrael.privacy.audit.pooling import audit_measurements
from vitrael.privacy.audit.power import Tally
from vitrael.privacy.evidence import Evidence, Measurement
from vitrael.privacy.gates import POLICIES, judge


def make_tally(dropped: int = 20, **parts: object) -> dict[str, object]:
    facts: dict[str, object] = {
        "certificate": make_certificate(20, dropped),
        "plants_absent": 400,
        "fresh": Tally(22, 1),
        "copies": Copies(96, 1, 0, 2.5, 20, 20),
        "closeness": Closeness(0.52, 0.06, 22),
        "membership": Membership(
            Estimate(0.5, 0.06), Estimate(0.5, 0.06), Estimate(0.8, 0.04), 55, 22
        ),
    }
    return write_audit(**{**facts, **parts})  # type: ignore[arg-type]


def named(*tallies: dict[str, object]) -> dict[str, Measurement]:
    return {m.name: m for m in audit_measurements(tallies)}


def closed_gates(measurements: dict[str, Measurement], prefix: str) -> list[str]:
    gates = [g for g in POLICIES["rehearsal"].gates if g.measurement.startswith(prefix)]
    evidence = Evidence(protocol=digest_json("p"), measurements=tuple(measurements.values()))
    return [f.gate.measurement for f in judge(evidence, gates).findings if not f.passed]
