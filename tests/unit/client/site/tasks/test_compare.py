"""A site counts what experts and their fusion get right, on pictures that nobody learned from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from tests.factories.own_views import VIEWS
from tests.unit.client.site.tasks.conftest import KNOW, OWN
from vitrael.client.site.tasks import compare
from vitrael.client.site.tasks.views import build_common, read_views
from vitrael.core.data.splits import Split
from vitrael.core.errors import CohortError, WeightsError
from vitrael.core.metrics.comparison import METHODS, ViewCounts
from vitrael.core.models.score_fusion import build_fusion
from vitrael.core.models.view_panel import shape_of
from vitrael.core.weights import module_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.unit.client.site.tasks.conftest import MakeStation, Station
    from vitrael.client.site.tasks import TaskResult
    from vitrael.core.weights import Tensors


def fusions(station: Station, know: Mapping[int, tuple[str, ...]] = KNOW) -> dict[str, Tensors]:
    shapes = [shape_of(expert) for expert in station.experts(know)]
    return {
        name: module_tensors(build_fusion(shapes, seed=3, hidden=4, weighted=name == "fusion"))
        for name in ("fusion", "unweighted")
    }


def count(
    station: Station,
    know: Mapping[int, tuple[str, ...]] = KNOW,
    *,
    rivals: tuple[str, ...] = (),
) -> tuple[ViewCounts, TaskResult]:
    common = module_tensors(build_common(station.context()))
    inputs = {**station.bring(know), **fusions(station, know), **dict.fromkeys(rivals, common)}
    task = station.task("comparison", inputs)
    result = compare.run(task, inputs, station.context())
    sent = station.let_out(task, result, inputs).tensors["counts"]
    assert set(sent) == {"images", "right", "heaviest", "weight"}
    return ViewCounts(sent["images"], sent["right"], sent["heaviest"]), result


def test_counts_are_of_held_out_pictures_of_views_with_enough_patients(station: Station) -> None:
    counts, result = count(station, rivals=("averaged", "relay"))
    assert counts.images_V.tolist() == [12, 11, 0, 11]  # PLAX has ten
    assert result.num_examples == counts.images_V.sum() == 34
    assert (counts.right_MV >= 0).all()
    assert (counts.right_MV <= counts.images_V).all()
    assert (counts.heaviest_V <= counts.images_V).all()
    weight_N = result.tensors["counts"]["weight"]
    assert weight_N.shape == (2,)
    assert weight_N.sum() == pytest.approx(1)


def test_right_answers_are_those_that_experts_give(station: Station) -> None:
    know = {1: OWN, 2: ("PLAX", "PSAX")}
    counts, _ = count(station, know)
    own = read_views(station.context(), Split.UTILITY)
    first, second = station.experts(know)
    said_B = np.array([VIEWS.index(w) for w in first.labels])[first.predict(own.images).argmax(1)]
    right_V = np.bincount(own.view_B[said_B == own.view_B], minlength=4)
    assert counts.right_MV[METHODS.index("own expert")].tolist() == right_V.tolist()
    assert right_V[3] == 0  # of what the expert has never learned, nothing
    assert 0 < right_V.sum() < len(own)
    probabilities = [one.predict(own.images) for one in (first, second)]
    surest_B = torch.stack([each.amax(1) for each in probabilities], dim=1).argmax(1).tolist()
    right = 0
    for row, expert in enumerate(surest_B):
        word = (first, second)[expert].labels[int(probabilities[expert][row].argmax())]
        right += word == VIEWS[own.view_B[row]]
    assert len(set(surest_B)) == 2
    assert counts.right_MV[METHODS.index("largest probability")].sum() == right


def test_method_that_was_not_tried_has_a_row_of_minus_one(station: Station) -> None:
    counts, _ = count(station, rivals=("relay",))
    tried = {method for method, row in zip(METHODS, counts.right_MV, strict=True) if row[0] >= 0}
    assert set(METHODS) - tried == {"federated averaging"}
    assert (counts.right_MV[METHODS.index("federated averaging")] == -1).all()
    others, _ = count(station, {0: OWN, 2: KNOW[2]})  # a site without an expert of its own
    missing = {m for m, row in zip(METHODS, others.right_MV, strict=True) if row[0] < 0}
    assert missing == {"own expert", "federated averaging", "one network in turn"}
    assert not others.heaviest_V.any()


def test_fusion_of_other_experts_is_refused(station: Station) -> None:
    inputs, context = {**station.bring(), **fusions(station)}, station.context()
    task = station.task("comparison", inputs)
    compare.run(task, inputs, context)  # the control
    for part in ("fusion", "unweighted"):
        other = fusions(station, {1: OWN, 2: ("A4C", "PLAX")})[part]
        with pytest.raises(WeightsError):
            compare.run(task, {**inputs, part: other}, context)


@pytest.mark.parametrize("words", [{"A2C": 10, "apical 4": 10}, {}])
def test_site_with_too_few_held_out_patients_counts_nothing(
    make_station: MakeStation, words: dict[str, int]
) -> None:
    learned = {"A2C": 11, "apical 4": 11}
    station = make_station({Split.TRAINING: learned, Split.UTILITY: words})
    with pytest.raises(CohortError, match="held to anything") as caught:
        count(station)
    assert "11 patients" in caught.value.why
    enough = make_station({Split.TRAINING: learned, Split.UTILITY: {"A2C": 11}})  # the control
    assert count(enough)[0].images_V.tolist() == [11, 0, 0, 0]
