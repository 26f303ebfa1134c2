"""A task that was stopped goes on with its training; nothing of it stays when it is finished."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from vitrael.client.site.checkpoints import (
    forget_all_checkpoints,
    forget_checkpoints,
    open_checkpoints,
)
from vitrael.client.site.ingest.places import Home as Place
from vitrael.client.site.ingest.withdraw import Found, remove_patient
from vitrael.client.site.tasks import TASKS, SiteContext, TaskResult
from vitrael.client.site.tasks.networks import site_compute
from vitrael.core.data.manifest import write_manifest
from vitrael.core.errors import TaskStopped
from vitrael.core.models.brain_ldm import build_codec, build_denoiser
from vitrael.core.models.reid import build_reid_encoder
from vitrael.core.study import Study
from vitrael.core.weights import module_tensors

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.client.site.conftest import Home
    from vitrael.core.messages import StageName, Task
    from vitrael.core.weights import Tensors


def started(home: Home, *, stop_after: int | None = None) -> tuple[SiteContext, list[int]]:
    """Return the context of a steward that has just been started, and what it is told."""
    told: list[int] = []

    def report(done: int, total: int) -> None:
        told.append(done)
        if len(told) == stop_after:
            raise TaskStopped("the steward was told to end")

    context = home.context(records=home.path / "records" / "one", report=report)
    return context, told


def inputs_of(home: Home, stage: StageName) -> dict[str, Tensors]:
    protocol = home.study.protocol
    system = protocol.generator
    codec = module_tensors(build_codec(system, seed=1))
    denoiser = module_tensors(build_denoiser(system, system.teacher, seed=1))
    encoder = module_tensors(build_reid_encoder(protocol.reid, seed=1))
    brought: dict[str, dict[str, Tensors]] = {
        "codec": {"codec": codec},
        "reid": {"codec": codec, "encoder": encoder},
        "calibration": {"codec": codec, "encoder": encoder},
        "teacher": {"codec": codec, "denoiser": denoiser},
    }
    return brought[stage]


def left(home: Home) -> list[str]:
    folder = home.path / "records" / "one" / "training"
    return sorted(path.relative_to(folder).parts[0] for path in folder.rglob("*.safetensors"))


@pytest.fixture
def training(home: Home) -> Home:
    """A site whose study trains for some steps, and has patients in the splits for it."""
    document = home.study.model_dump(mode="json")
    document["protocol"]["data"]["splits"] |= {"training_frac": 0.3, "filter_frac": 0.35}
    for system in document["protocol"]["systems"]:
        for part in (system, *(system.get(name) for name in ("codec", "teacher"))):
            if part is not None and "training" in part:
                part["training"] |= {"length_images": 8, "batch_images": 2}
    home.study = Study.model_validate(document)
    return home


def outcome(result: TaskResult) -> tuple[object, ...]:
    tensors = {
        f"{name}/{key}": array.tobytes()
        for name, group in result.tensors.items()
        for key, array in group.items()
    }
    body = {key: value for key, value in result.body.items() if key != "commitment"}
    return body, tensors, result.num_examples


@pytest.mark.parametrize("stage", ["codec", "reid", "teacher", "calibration"])
def test_task_that_was_stopped_is_answered_as_one_that_was_not(
    stage: StageName, training: Home
) -> None:
    inputs = inputs_of(training, stage)
    task = training.task(inputs, stage=stage)
    context, told = started(training)
    whole = TASKS[stage](task, inputs, context)
    assert len(told) >= 2
    context, _ = started(training, stop_after=2)
    with pytest.raises(TaskStopped):
        TASKS[stage](task, inputs, context)
    assert len(left(training)) == 1
    context, again = started(training)
    resumed = TASKS[stage](task, inputs, context)
    assert again == told[2:], "what was learned is not learned twice"
    assert outcome(resumed) == outcome(whole)


def test_two_tasks_that_differ_do_not_share_a_training(training: Home) -> None:
    inputs = inputs_of(training, "codec")
    context, _ = started(training, stop_after=1)
    first = training.task(inputs, stage="codec")
    with pytest.raises(TaskStopped):
        TASKS["codec"](first, inputs, context)
    (folder,) = left(training)
    other = training.task(inputs, stage="codec", round=1)
    context, _ = started(training, stop_after=1)
    with pytest.raises(TaskStopped):
        TASKS["codec"](other, inputs, context)
    assert len(left(training)) == 1
    assert left(training) != [folder], "the older one is gone: a site does one task at a time"


def test_training_with_an_earlier_roster_does_not_stay(training: Home) -> None:
    inputs = inputs_of(training, "codec")
    task = training.task(inputs, stage="codec")
    other = task.model_copy(update={"protocol": task.roster})
    kept = [
        training.settings.records_of(protocol=protocol, roster=task.protocol) / "training" / "old"
        for protocol in (task.protocol, other.protocol)
    ]
    for folder in kept:
        folder.mkdir(parents=True)
    context, _ = started(training)
    open_checkpoints(task, context, site_compute(context))
    assert [folder.exists() for folder in kept] == [False, True], "that of another study"


def saved(home: Home) -> tuple[Task, SiteContext]:
    """Return a task that was stopped after two steps, and a fresh context."""
    inputs = inputs_of(home, "codec")
    task = home.task(inputs, stage="codec")
    context, _ = started(home, stop_after=2)
    with pytest.raises(TaskStopped):
        TASKS["codec"](task, inputs, context)
    context, _ = started(home)
    return task, context


def test_training_on_another_version_of_the_cohort_begins_anew(training: Home) -> None:
    task, context = saved(training)
    assert open_checkpoints(task, context, site_compute(context)).load() is not None
    place = Place(training.path).cohort("main")
    manifest = place.read()
    assert manifest is not None
    write_manifest(manifest.model_copy(update={"items": manifest.items[1:]}), place.manifest)
    context, _ = started(training)
    assert open_checkpoints(task, context, site_compute(context)).load() is None


def test_patient_who_withdraws_is_in_no_training_that_goes_on(training: Home) -> None:
    _, context = saved(training)
    assert left(training) != []
    (subject, *_) = sorted(context.cohort.subjects)
    found = Found(subjects=frozenset({subject}), items=1, cohorts=("main",), known=False)
    remove_patient(Place(training.path), found)
    assert left(training) == []


@pytest.mark.parametrize("what", ["device", "bf16"])
def test_training_in_another_place_or_precision_begins_anew(what: str, training: Home) -> None:
    task, context = saved(training)
    compute = site_compute(context)
    assert open_checkpoints(task, context, compute).load() is not None
    other = {"device": "cuda"} if what == "device" else {"bf16": not compute.bf16}
    changed = dataclasses.replace(compute, **other)
    assert open_checkpoints(task, context, changed).load() is None


@pytest.mark.parametrize(
    "forget",
    [forget_checkpoints, lambda records: forget_all_checkpoints(records.parent)],
    ids=["one", "all"],
)
def test_what_is_forgotten_is_gone(forget: Callable[[Path], None], training: Home) -> None:
    saved(training)
    records = training.path / "records" / "one"
    (records / "reid").mkdir()
    forget(records)
    assert [path.name for path in records.iterdir()] == ["reid"]
    forget(records)
