"""A report says what a scorer notices, beside what it makes of the same scans unchanged."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
import pytest
import torch

from tests.factories import models
from vitrael.core.scoring.scorer import ScoreParts
from vitrael.core.workbench import detection
from vitrael.core.workbench.detection import CHANGES, evaluate_scorer
from vitrael.core.workbench.evaluation import Line
from vitrael.core.workbench.intake import Rows, rows_of, take_in
from vitrael.core.workbench.scoring import FrugalScorer

PATIENTS = 14


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    place = tmp_path_factory.mktemp("detection")
    document = models.document()
    scans = models.write_scans(place / "scans", patients=PATIENTS, visits=2)
    intake = take_in(scans, document.recipe, workshop=place / "workshop")
    return rows_of(intake.items, intake.shards, document.covariates)


@dataclass
class Parts:
    score_B: dict[str, torch.Tensor]


@dataclass
class Roughness:
    """A Scorer that takes rough images for foreign, and smooth ones for very familiar."""

    sign: float = 1.0
    seen: list[torch.Tensor] = field(default_factory=list)

    def judge(self, x: torch.Tensor, *, maps: bool) -> tuple[ScoreParts, None]:
        assert not maps
        self.seen += list(x)
        rough = x.diff(dim=-1).abs().flatten(1).mean(1)
        return cast("ScoreParts", Parts({"two_sided": self.sign * rough})), None


def judge(scorer: Roughness, rows: Rows) -> dict[str, Line]:
    lines = evaluate_scorer(cast("FrugalScorer", scorer), rows, seed=1)
    return {line.measured.name: line for line in lines}


def test_each_change_has_its_number_beside_that_of_the_same_scans(rows: Rows) -> None:
    scorer = Roughness()
    found = judge(scorer, rows)
    assert set(found) == {f"scorer_{name}_auroc" for name in CHANGES}
    assert found["scorer_noise_auroc"].measured.value == 1
    assert found["scorer_smooth_auroc"].measured.value < 0.2
    inverted = judge(Roughness(-1), rows)
    assert inverted["scorer_noise_auroc"].measured.value == 0
    for line in found.values():
        assert line.measured.n == PATIENTS // 2
        assert line.baseline is not None
        assert 0.1 < line.baseline.value < 0.9
        mirrored = inverted[line.measured.name].baseline
        assert mirrored is not None
        assert mirrored.value == pytest.approx(1 - line.baseline.value)


def test_no_patient_stands_on_both_sides(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detection, "CHANGES", {"nothing": lambda x, _: x})
    scorer = Roughness()
    judge(scorer, rows)
    half = PATIENTS // 2
    others, own, changed = (scorer.seen[at : at + half] for at in (0, half, 2 * half))
    assert all(torch.equal(a, b) for a, b in zip(own, changed, strict=True))
    assert not any(torch.equal(a, b) for a in others for b in own)
    named = [
        rows.items[number].subject
        for image in (*others, *own)
        for number in range(len(rows))
        if np.array_equal(rows.images.batch([number])[0], image.numpy())
    ]
    assert len(set(named)) == 2 * half


def test_number_does_not_depend_on_batches(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = judge(Roughness(), rows)
    monkeypatch.setattr(detection, "_BATCH_IMAGES", 1)
    assert judge(Roughness(), rows) == whole


def test_too_few_patients_have_no_number(rows: Rows) -> None:
    few = {item.subject for item in rows.items[:20]}
    assert 2 < len(few) < 12
    kept = [number for number, item in enumerate(rows.items) if item.subject in few]
    part = replace(rows, items=tuple(rows.items[number] for number in kept))
    scorer = Roughness()
    assert judge(scorer, part) == {}
    assert scorer.seen == []


@pytest.mark.parametrize(("shape", "turns"), [((16, 14, 16), True), ((16, 14, 12), False)])
def test_grid_without_two_equal_axes_is_not_turned(
    rows: Rows, *, shape: tuple[int, int, int], turns: bool
) -> None:
    class Cut:
        def batch(self, numbers: list[int]) -> np.ndarray:
            x, y, z = shape
            return rows.images.batch(numbers)[..., :x, :y, :z]

    found = judge(Roughness(), replace(rows, images=Cut()))  # type: ignore[arg-type]
    assert ("scorer_turned_auroc" in found) == turns
    assert len(found) == len(CHANGES) - (not turns)
