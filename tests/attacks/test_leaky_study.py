"""A study that leaks is refused for what was measured; its twin passes the same gates.

The two differ in the teacher's training length and in screening, and in nothing else. Every stage
is the real one, in one process; only Flower is left out.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from tests.factories.federation import prepare_homes, utc_now
from tests.fakes.federation import HandlerExchange
from vitrael.client.site.settings import load_settings
from vitrael.client.site.steward import Steward
from vitrael.privacy.gates import LEAKS, Verdict
from vitrael.server.demo import site_home
from vitrael.server.studies.pipeline import run_study
from vitrael.server.studies.run import open_run

pytestmark = [pytest.mark.slow]

PATIENTS = 192
SITE = "north"
TWIN = (("length_images = 28_000", "length_images = 1_200"), ("enabled = false", "enabled = true"))


def _verdict(folder: Path, document: str) -> Verdict:
    home = prepare_homes(folder, document, patients=PATIENTS)
    with closing(Steward(load_settings(site_home(home, SITE)), clock=utc_now)) as steward:
        exchange = HandlerExchange({SITE: steward.answer})
        run_study(home, exchange)
        run = open_run(home, exchange)
    stages = run.ledger.history(run.study.protocol.digest)
    output = next(s.output for s in stages if s.key.stage == "gates" and s.status == "finished")
    assert output is not None
    return Verdict.model_validate(run.objects.get_json(output)["verdict"])


def test_leaky_study_is_refused_for_what_was_measured(tmp_path: Path, root: Path) -> None:
    document = (root / "deploy/studies/brain-leaky.toml").read_text(encoding="utf-8")
    verdict = _verdict(tmp_path, document)
    assert not verdict.passed
    proven = {f.gate.measurement for f in verdict.findings if f.proven}
    assert proven & {"copies.excess_share", "membership.auc"}


def test_its_twin_passes_the_same_gates(tmp_path: Path, root: Path) -> None:
    document = (root / "deploy/studies/brain-leaky.toml").read_text(encoding="utf-8")
    for old, new in TWIN:
        assert document.count(old) == 1
        document = document.replace(old, new)
    findings = [f for f in _verdict(tmp_path, document).findings if f.gate.measurement in LEAKS]
    assert {finding.gate.measurement for finding in findings} == LEAKS
    assert {finding.gate.name: finding.outcome for finding in findings} == {
        finding.gate.name: "passed" for finding in findings
    }
