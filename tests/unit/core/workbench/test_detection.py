"""A report says what a scorer notices, beside what chance gives."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np
import pytest
import torch

from tests.factories import models
from vitrael.core.scoring.scorer import ReconstructionScorer, ScoreParts
from vitrael.core.workbench.detection import CHANGES, evaluate_scorer
from vitrael.core.workbench.evaluation import Line
from vitrael.core.workbench.intake import Rows, rows_of, take_in


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    place = tmp_path_factory.mktemp("detection")
    document = models.document()
    scans = models.write_scans(place / "scans", patients=9, visits=2)
    intake = take_in(scans, document.recipe, workshop=place / "workshop")
    return rows_of(intake.items, intake.shards, document.covariates)


class Sharpness:
    """A Scorer that takes rough images for foreign, and smooth ones for very familiar."""

    def __init__(self, sign: float = 1.0) -> None:
        self.sign = sign
        self.seen = 0

    def score_parts(self, x: torch.Tensor) -> ScoreParts:
        self.seen += len(x)
        rough = x.diff(dim=-1).abs().flatten(1).mean(1)
        return cast("ScoreParts", Parts({"two_sided": self.sign * rough}))


class Parts:
    def __init__(self, score_B: dict[str, torch.Tensor]) -> None:
        self.score_B = score_B


def judge(scorer: Sharpness, rows: Rows) -> dict[str, Line]:
    lines = evaluate_scorer(cast("ReconstructionScorer", scorer), rows, seed=1)
    return {line.measured.name: line for line in lines}


def test_each_change_has_its_number_beside_what_halves_give(rows: Rows) -> None:
    scorer = Sharpness()
    found = judge(scorer, rows)
    assert set(found) == {f"scorer_{name}_auroc" for name in CHANGES}
    assert found["scorer_noise_auroc"].measured.value == 1
    assert found["scorer_smooth_auroc"].measured.value < 0.2
    inverted = judge(Sharpness(-1), rows)  # the control: another scorer, other numbers
    assert inverted["scorer_noise_auroc"].measured.value == 0
    halves = {line.baseline for line in found.values()}
    assert len(halves) == 1
    assert scorer.seen == 9 * (1 + len(CHANGES))  # one scan of each patient


def test_grid_that_cannot_be_turned_is_not(rows: Rows) -> None:
    class Uneven:
        def batch(self, numbers: list[int]) -> np.ndarray:
            return rows.images.batch(numbers)[..., :12]

    uneven = replace(rows, images=Uneven())  # type: ignore[arg-type]
    assert set(judge(Sharpness(), uneven)) == {
        f"scorer_{name}_auroc" for name in CHANGES if name != "turned"
    }
