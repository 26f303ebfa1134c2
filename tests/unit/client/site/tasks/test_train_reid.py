"""A round of the patient encoder, and what of it the calibration takes over."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

from vitrael.client.site.rules import RULES
from vitrael.client.site.tasks import SiteContext, TaskResult, calibrate, filtering, train_reid
from vitrael.core.data.splits import Split
from vitrael.core.models.reid import build_reid_encoder
from vitrael.core.records import PatientImages
from vitrael.core.weights import Tensors, module_tensors

if TYPE_CHECKING:
    from tests.unit.client.site.conftest import Home


def context_of(home: Home, *, patients: int | None = None) -> SiteContext:
    """Return a context in which F has the scans of T, of so many patients if they are given."""
    context = home.context()
    cohort = context.cohort

    def images(split: Split) -> PatientImages:
        if split != Split.FILTER:
            return cohort.images(split)
        found = cohort.images(Split.TRAINING)
        most = len(found) if patients is None else patients
        return replace(found, patient_B=np.minimum(found.patient_B, most - 1))

    wrapped = SimpleNamespace(images=images, items=cohort.items, version=cohort.version)
    context._cohort = cast("Any", wrapped)
    return context


def weights(home: Home, *, seed: int = 5) -> Tensors:
    return module_tensors(build_reid_encoder(home.study.protocol.reid, seed=seed))


def ask(home: Home, context: SiteContext, brought: Tensors) -> TaskResult:
    task = home.task({"encoder": brought}, stage="reid")
    result = train_reid.run(task, {"encoder": brought}, context)
    RULES["reid"].body.model_validate(result.body)
    return result


def is_same(one: Tensors, other: Tensors) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one)


def test_round_counts_the_patients_of_the_filters_split(home: Home) -> None:
    context, brought = context_of(home), weights(home)
    result = ask(home, context, brought)
    assert result.num_examples == len(np.unique(context.cohort.images(Split.TRAINING).patient_B))
    assert not is_same(result.tensors["encoder"], brought)
    assert len(result.body["curve_loss"]) == len(result.body["curve_images"]) > 0


def test_site_without_two_patients_gives_the_weights_back_and_counts_nothing(home: Home) -> None:
    brought = weights(home)
    result = ask(home, context_of(home, patients=1), brought)
    assert (result.num_examples, dict(result.body)) == (0, {})
    assert is_same(result.tensors["encoder"], brought)
    two = ask(home, context_of(home, patients=2), brought)  # the control
    assert two.num_examples == 2
    assert not is_same(two.tensors["encoder"], brought)


def test_round_is_the_same_when_it_is_done_again(home: Home) -> None:
    brought = weights(home)
    one, again = (ask(home, context_of(home), brought).tensors["encoder"] for _ in range(2))
    assert is_same(one, again)
    assert not is_same(one, ask(home, context_of(home), weights(home, seed=6)).tensors["encoder"])


def test_split_is_laid_once_for_all_rounds_and_let_go_by_the_calibration(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    laid: list[int] = []
    lay = filtering.lay_images

    def count(images: PatientImages, template: Any) -> PatientImages:
        laid.append(len(images))
        return lay(images, template)

    monkeypatch.setattr(filtering, "lay_images", count)
    context, brought = context_of(home), weights(home)
    for _ in range(2):
        ask(home, context, brought)
    assert len(laid) == 1
    task = home.task({"encoder": brought}, stage="calibration")
    told = calibrate.run(task, {"encoder": brought}, context)
    assert len(laid) == 1
    assert filtering._LEARNING not in context.warm
    assert told.tensors == {}


def test_learning_shows_nothing_of_a_patient(home: Home) -> None:
    task = home.task({}, stage="reid")
    assert repr(filtering.see_learning(task, {}, context_of(home))) == "Learning(private)"
