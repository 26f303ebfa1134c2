"""The study of experts that the tutorial runs, at six sites, held to what pooling would give."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.factories.federation import open_sites, prepare_in_process
from vitrael.core.errors import EXIT_OK
from vitrael.core.models.panel_folder import load_panel
from vitrael.core.study import load_study
from vitrael.core.workbench.predicting import read_view
from vitrael.server import demo
from vitrael.server.demo_pooled import compare_pooled
from vitrael.server.studies.pipeline import run_study
from vitrael.server.studies.tables import read_comparison, show_whole

pytestmark = pytest.mark.slow

FOREIGN = Path(__file__).resolve().parents[3] / "shared" / "data" / "mednist"
"""Pictures of hands, heads and chests: no expert has seen the like."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("experts")
    asked = root / "deploy" / "studies" / "echo-views.toml"
    with pytest.MonkeyPatch.context() as patch:
        prepare_in_process(patch)
        plan = demo.DemoPlan(home=folder / "home", study=asked)
        study = demo.prepare_demo(plan, tell=lambda _: None)
    with open_sites(folder / "home", study.roster.sites) as exchange:
        assert run_study(folder / "home", exchange) == EXIT_OK
    return folder / "home"


@pytest.fixture(scope="module")
def comparison(home: Path) -> Mapping[str, Any]:
    study = load_study(home / "study.toml")
    folders = {site: home / demo.HOSPITALS / site for site in study.roster.sites}
    told = read_comparison(home)
    told["table"] = [*told["table"], compare_pooled(folders, study)]
    print("\n" + "\n".join(show_whole(told)))
    return told


def test_fusion_is_close_to_pooling_and_far_above_its_rivals(
    comparison: Mapping[str, Any],
) -> None:
    right = {row["method"]: row["accuracy"] for row in comparison["table"]}
    assert right["fusion"] >= 0.95 * right["pooled, phantoms only"]
    assert right["fusion"] >= right["one network in turn"] + 0.10
    assert right["fusion"] >= right["largest logit"] + 0.03
    assert right["fusion"] > right["federated averaging"]


def test_own_expert_decides_at_its_site(comparison: Mapping[str, Any]) -> None:
    for site, told in comparison["sites"].items():
        assert max(told["weights"], key=told["weights"].get) == site
        assert sum(told["weights"].values()) == pytest.approx(1, abs=1e-4)


def test_pictures_of_other_parts_of_the_body_are_foreign_to_most_experts(home: Path) -> None:
    if not FOREIGN.is_dir():
        pytest.skip("the open scans are not here")
    (folder,) = (home / "panels").iterdir()
    panel = load_panel(folder)
    recipe = panel.document.recipe
    own = sorted((home / demo.HOSPITALS / "trial").glob("*.png"))[::5]
    told = [
        panel.predict(torch.from_numpy(np.stack([read_view(path, recipe) for path in paths])))
        for paths in (sorted(FOREIGN.glob("*/*.jpeg"))[::20], own)
    ]
    known = [sum(len(one.known_to) for one in each) / len(each) for each in told]
    print(f"\nknown to {known[0]:.2f} of {len(panel.experts)} experts; own pictures {known[1]:.2f}")
    assert known[0] < 1
    assert sum("trial" in one.known_to for one in told[1]) > 0.85 * len(own)  # the control
