"""Real scans of too few patients run through every stage, and nothing becomes publishable."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.factories.federation import SITES, STUDY, open_sites, prepare_in_process
from vitrael.core.errors import EXIT_OK, EXIT_REFUSED
from vitrael.server import demo
from vitrael.server.studies.pipeline import run_study

pytestmark = pytest.mark.federation

SUBJECTS = 37
AS_PLANNED = STUDY.replace("false_match_rate = 0.4", "false_match_rate = 0.05")


@pytest.fixture
def scans(root: Path) -> Path:
    folder = root.parent / "shared" / "data" / "brain_t1"
    if not folder.is_dir():
        pytest.skip("the real scans of ../shared/data are not on this machine")
    return folder


def _run(folder: Path, scans: Path, monkeypatch: pytest.MonkeyPatch, *, policy: str) -> Path:
    study = folder / "asked.toml"
    study.write_text(AS_PLANNED)
    prepare_in_process(monkeypatch)
    plan = demo.DemoPlan(home=folder / "home", study=study, scans=scans, policy=policy)
    demo.prepare_demo(plan, tell=lambda _: None)
    return plan.home


@pytest.mark.parametrize(("policy", "code"), [("rehearsal", EXIT_OK), ("public", EXIT_REFUSED)])
def test_few_real_subjects_end_with_a_verdict_and_nothing_published(
    tmp_path: Path, scans: Path, monkeypatch: pytest.MonkeyPatch, policy: str, code: int
) -> None:
    home = _run(tmp_path, scans, monkeypatch, policy=policy)
    taken = json.loads((home / "prepared.json").read_text())["scans"]
    assert sum(site["patients"] for site in taken.values()) == SUBJECTS

    with open_sites(home, SITES) as exchange:
        ended = run_study(home, exchange)

    outcome = json.loads((home / "outcome.json").read_text())
    assert outcome["outcome"] == "refuse"
    assert outcome["unscreened"] == 16 + 8  # candidates and samples
    assert not outcome["publishable"]
    unknown = {sentence for kind, sentence in outcome["findings"] if kind == "not estimable"}
    assert any("filter.power.exact" in sentence for sentence in unknown)
    assert any("copies.excess_share" in sentence for sentence in unknown)
    assert (home / "report" / "report.html").is_file()
    assert not (home / "catalogue").exists()
    assert ended == code
