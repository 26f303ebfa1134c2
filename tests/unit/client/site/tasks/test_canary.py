"""The canary does a bounded piece of the real work, and tells seconds and nothing of a scan."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from vitrael.client.site.rules import RULES
from vitrael.client.site.tasks import SiteContext, canary
from vitrael.core.data.splits import Split
from vitrael.core.errors import CohortError, TaskStopped
from vitrael.core.records import PatientImages

if TYPE_CHECKING:
    from tests.unit.client.site.conftest import Home


@pytest.fixture
def context(home: Home) -> SiteContext:
    """Return what a task may use; those whom the filter learns from are as many as those of T."""
    context = home.context()
    cohort = context.cohort

    def images(split: Split) -> PatientImages:
        return cohort.images(Split.TRAINING if split == Split.FILTER else split)

    context._cohort = cast("Any", SimpleNamespace(images=images))
    return context


def run(home: Home, context: SiteContext, clock: Callable[[], float]) -> dict[str, Any]:
    result = canary.run(home.task({}, stage="canary"), {}, context, clock=clock)
    assert (result.tensors, result.num_examples) == ({}, 0)
    return dict(RULES["canary"].body.model_validate(result.body).model_dump())


def test_steps_after_the_first_are_counted_at_the_batch_size_of_the_study(
    home: Home, context: SiteContext
) -> None:
    ticks = itertools.count()
    told = run(home, context, lambda: float(next(ticks)))
    for stage, config in home.study.protocol.trained.items():
        steps = canary.STEPS - 1
        assert told[f"{stage}_images"] == steps * config.batch_images
        assert told[f"{stage}_s"] == steps  # a tick for each look at the clock


def test_slow_site_is_let_off_after_the_step_that_took_too_long(
    home: Home, context: SiteContext
) -> None:
    ticks = itertools.count(step=canary.LONGEST_S + 1)
    told = run(home, context, lambda: float(next(ticks)))
    generator = home.study.protocol.generator
    assert told["codec_images"] == generator.codec.training.batch_images
    assert told["codec_s"] == canary.LONGEST_S + 1


def test_steward_that_is_to_end_is_heard_after_every_step(home: Home, context: SiteContext) -> None:
    told: list[tuple[int, int]] = []
    context.report = lambda done, total: told.append((done, total))
    run(home, context, lambda: 0.0)
    steps = [[(part, 3)] * canary.STEPS for part in range(3)]
    assert told == [(0, 3), *steps[0], (1, 3), *steps[1], (2, 3), *steps[2], (3, 3)]

    def stop(done: int, total: int) -> None:
        told.append((done, total))
        if len(told) == 3:
            raise TaskStopped("the steward was told to end")

    told.clear()
    context.report = stop
    with pytest.raises(TaskStopped, match="told to end"):
        run(home, context, lambda: 0.0)
    assert len(told) == 3


def test_site_without_two_patients_of_the_filter_trains_no_encoder_in_no_time(
    home: Home, context: SiteContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = context.cohort

    def one(split: Split) -> PatientImages:
        images = cohort.images(split)
        return replace(images, patient_B=images.patient_B * (split != Split.FILTER))

    monkeypatch.setattr(context, "_cohort", SimpleNamespace(images=one))
    ticks = itertools.count()
    told = run(home, context, lambda: float(next(ticks)))
    assert (told["reid_images"], told["reid_s"]) == (1, 0)
    assert told["teacher_s"] > 0


def test_site_without_a_training_patient_says_so(
    home: Home, context: SiteContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = context.cohort

    def none(split: Split) -> PatientImages:
        images = cohort.images(split)
        return replace(images, image_BCDHW=images.image_BCDHW[:0])

    monkeypatch.setattr(context, "_cohort", SimpleNamespace(images=none))
    with pytest.raises(CohortError, match="no patient of this site"):
        run(home, context, lambda: 0.0)
