"""A study that leaks is refused for what was measured; its twin passes the same gates.

The two differ in training length and in screening, and in nothing else. Every stage
is the real one, in one process; only Flower is left out.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.factories.federation import open_sites, prepare_homes
from vitrael.core.errors import EXIT_OK, EXIT_REFUSED
from vitrael.privacy.gates import Finding, Verdict
from vitrael.server.studies.pipeline import run_study
from vitrael.server.studies.run import open_run

pytestmark = [pytest.mark.slow]

PATIENTS = 300
SITE = "north"
TWIN = (
    ("length_images = 160_000", "length_images = 3_000"),
    ("length_images = 128_000", "length_images = 8_000"),
    ("enabled = false", "enabled = true"),
)
LEAKS = {"copies", "membership"}


def _verdict(folder: Path, document: str) -> Verdict:
    home = prepare_homes(folder, document, patients=PATIENTS)
    with open_sites(home, [SITE]) as exchange:
        code = run_study(home, exchange)
        run = open_run(home, exchange)
    stages = run.ledger.history(run.study.protocol.digest)
    output = next(s.output for s in stages if s.key.stage == "gates" and s.status == "finished")
    assert output is not None
    verdict = Verdict.model_validate(run.objects.get_json(output)["verdict"])
    assert code == (EXIT_OK if verdict.passed else EXIT_REFUSED)
    return verdict


def _about_leaks(verdict: Verdict) -> list[Finding]:
    return [f for f in verdict.findings if f.gate.measurement.split(".")[0] in LEAKS]


def test_leaky_study_is_refused_beyond_doubt_and_its_twin_passes_those_gates(
    tmp_path: Path, root: Path
) -> None:
    document = (root / "deploy/studies/brain-leaky.toml").read_text(encoding="utf-8")
    leaky = _verdict(tmp_path / "leaky", document)
    proven = {finding.gate.name for finding in _about_leaks(leaky) if finding.proven}
    assert not leaky.passed
    assert proven, leaky.reason

    for old, new in TWIN:
        assert document.count(old) == 1
        document = document.replace(old, new)
    twin = _verdict(tmp_path / "twin", document)
    outcomes = {finding.gate.name: finding.outcome for finding in _about_leaks(twin)}
    assert outcomes == dict.fromkeys(outcomes, "passed"), twin.reason
    assert proven <= outcomes.keys()
