"""The canary does a bounded piece of the real work, and tells seconds and nothing of a scan."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from vitrael.client.site.rules import RULES
from vitrael.client.site.steward import open_cohort
from vitrael.client.site.tasks import SiteContext, canary
from vitrael.core.data.splits import Split
from vitrael.core.errors import CohortError, TaskStopped
from vitrael.core.records import PatientImages

if TYPE_CHECKING:
    from tests.unit.client.site.conftest import Home


@pytest.fixture
def context(home: Home) -> SiteContext:
    return SiteContext(
        settings=home.settings,
        study=home.study,
        members={},
        consent=b"",
        keys=home.keys,
        records=home.path,
        load_cohort=open_cohort,
        report=lambda *_: None,
    )


def run(home: Home, context: SiteContext, clock: Callable[[], float]) -> dict[str, Any]:
    result = canary.run(home.task({}, stage="canary"), {}, context, clock=clock)
    assert (result.tensors, result.num_examples) == ({}, 0)
    return dict(RULES["canary"].body.model_validate(result.body).model_dump())


def test_steps_after_the_first_are_counted_at_the_batch_size_of_the_study(
    home: Home, context: SiteContext
) -> None:
    ticks = itertools.count()
    told = run(home, context, lambda: float(next(ticks)))
    generator = home.study.protocol.generator
    for stage, config in (("codec", generator.codec), ("teacher", generator.teacher)):
        steps = canary.STEPS - 1
        assert told[f"{stage}_images"] == steps * config.training.batch_images
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
    steps = [(0, 2)] * canary.STEPS, [(1, 2)] * canary.STEPS
    assert told == [(0, 2), *steps[0], (1, 2), *steps[1], (2, 2)]

    def stop(done: int, total: int) -> None:
        told.append((done, total))
        if len(told) == 3:
            raise TaskStopped("the steward was told to end")

    told.clear()
    context.report = stop
    with pytest.raises(TaskStopped, match="told to end"):
        run(home, context, lambda: 0.0)
    assert len(told) == 3


def test_site_without_a_training_patient_says_so(
    home: Home, context: SiteContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = context.cohort

    def none(split: Split) -> PatientImages:
        images = type(cohort).images(cohort, split)
        return replace(images, image_BCDHW=images.image_BCDHW[:0])

    class Empty:
        images = staticmethod(none)

    monkeypatch.setattr(context, "_cohort", Empty())
    with pytest.raises(CohortError, match="no patient of this site"):
        run(home, context, lambda: 0.0)
