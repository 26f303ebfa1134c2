"""MLflow holds one run for each finished stage, however often it is written."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.factories.federation import federation
from tests.unit.server.studies.conftest import Ended, lenient
from vitrael.server.studies.pipeline import run_study
from vitrael.server.studies.recording import Recorder

pytestmark = [
    pytest.mark.filterwarnings(
        # MLflow's own query on SQLAlchemy 2.1
        "ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning"
    ),
]

Documents = Callable[[Path], dict[str, Any]]


@pytest.fixture(scope="module")
def recorded(finished: Ended, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorder]:
    from tests.factories.federation import copy_homes

    before = dict(os.environ)
    home = copy_homes(finished.home, tmp_path_factory.mktemp("recorded"))
    recorder = Recorder(home)
    recorder.catch_up()
    yield recorder
    os.environ.clear()
    os.environ.update(before)


def runs(recorder: Recorder) -> dict[str, Any]:
    found = recorder.registry._client.search_runs([recorder.experiment], max_results=200)
    names = [run.info.run_name for run in found]
    assert len(names) == len(set(names))
    return {run.info.run_name: run for run in found}


def test_one_run_for_each_finished_stage(recorded: Recorder, documents: Documents) -> None:
    found = runs(recorded)
    assert set(found) == set(documents(recorded.home))
    assert all(run.info.status == "FINISHED" for run in found.values())
    params = found["codec 2"].data.params
    assert (params["stage"], params["round"]) == ("codec", "2")
    assert params["sites"] == "north,harbour,valley"
    curve = recorded.registry._client.get_metric_history(
        found["codec 2"].info.run_id, "loss.valley"
    )
    assert [metric.step for metric in curve] == sorted(metric.step for metric in curve)
    assert curve


def test_gates_are_recorded_with_what_was_measured_and_its_bounds(
    recorded: Recorder, documents: Documents
) -> None:
    gates = runs(recorded)["gates 1"].data
    evidence = documents(recorded.home)["gates 1"]["evidence"]["measurements"]
    told = {m["name"]: m for m in evidence if m["value"] is not None}
    ends = {"": "value", ".low": "low", ".high": "high", ".n": "n"}
    assert told
    missing = [m["name"] for m in evidence if m["value"] is None]
    assert "membership.auc" in missing
    assert gates.params["not_estimable"] == ", ".join(missing)
    assert gates.metrics == pytest.approx(
        {name + end: m[key] for name, m in told.items() for end, key in ends.items()}
    )


def test_recording_again_writes_nothing_more(recorded: Recorder) -> None:
    before = {name: run.info.run_id for name, run in runs(recorded).items()}
    recorded.catch_up()
    Recorder(recorded.home).catch_up()  # another process
    assert {name: run.info.run_id for name, run in runs(recorded).items()} == before
    assert recorded.registry.aliases(recorded.model) == {"released": 1}


def test_resumed_study_adds_no_run(recorded: Recorder) -> None:
    before = set(runs(recorded))
    with lenient(), federation(recorded.home) as told:
        assert run_study(recorded.home, told.exchange) == 0
    recorded.catch_up()
    assert set(runs(recorded)) == before


def test_released_student_is_the_one_of_the_study(recorded: Recorder, documents: Documents) -> None:
    run = runs(recorded)["student 1"]
    path = recorded.registry._client.download_artifacts(
        run.info.run_id, "student/weights.safetensors"
    )
    digest = documents(recorded.home)["student 1"]["denoiser"]
    assert Path(path).read_bytes() == recorded.objects.get_bytes(digest)


def test_release_is_logged_with_its_digest(recorded: Recorder, documents: Documents) -> None:
    run = runs(recorded)["publication 1"]
    manifest = documents(recorded.home)["publication 1"]["manifest"]
    assert run.data.tags["vitrael.release"] == "tiny@1"
    assert run.data.tags["vitrael.release.digest"] == manifest
