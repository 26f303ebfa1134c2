"""MLflow records each stage once, moves one alias, and calls nobody. One real store for all."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from vitrael.core.digest import digest_bytes
from vitrael.server.registry import Registry, ReleaseRecord, RunRecord, ui_command, ui_page
from vitrael.server.settings import MLFLOW_ENVIRONMENT

pytestmark = pytest.mark.filterwarnings(
    # MLflow's own query on SQLAlchemy 2.1
    "ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning"
)

START = datetime(2025, 1, 17, 12, tzinfo=UTC)
STUDY = digest_bytes(b"study")
RECORD = RunRecord(
    key=digest_bytes(b"codec"),
    name="codec, round 1",
    started_utc=START,
    finished_utc=START + timedelta(seconds=90),
    params={f"p{i}": i for i in range(101)},
    curves={"loss": [(i, 1 / (i + 1)) for i in range(1_001)]},
    artifacts={"notes/card.md": b"# card"},
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("coordinator")


@pytest.fixture(scope="module")
def registry(home: Path) -> Iterator[Registry]:
    before = dict(os.environ)
    yield Registry.open(home)
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def experiment(registry: Registry) -> str:
    return registry.experiment("brain-demo", STUDY)


def test_study_has_one_experiment(registry: Registry, experiment: str) -> None:
    assert registry.experiment("brain-demo", STUDY) == experiment
    assert registry.experiment("brain-demo", digest_bytes(b"amended")) != experiment


def test_recording_twice_makes_one_run(registry: Registry, experiment: str) -> None:
    run_id = registry.record(experiment, RECORD)
    assert registry.record(experiment, RECORD) == run_id
    other = registry.record(experiment, replace(RECORD, key=digest_bytes(b"2"), curves={}))
    assert other != run_id

    client = registry._client
    run = client.get_run(run_id)
    assert len(run.data.params) == 101
    assert run.info.status == "FINISHED"
    assert run.info.end_time - run.info.start_time == 90_000
    curve = client.get_metric_history(run_id, "loss")
    assert [(m.step, m.value) for m in curve] == list(RECORD.curves["loss"])
    assert Path(client.download_artifacts(run_id, "notes/card.md")).read_bytes() == b"# card"


def test_run_left_half_written_is_written_anew(registry: Registry, experiment: str) -> None:
    record = replace(RECORD, key=digest_bytes(b"killed"), curves={})
    half = registry._write(experiment, replace(record, params={}))
    whole = registry.record(experiment, record)
    assert whole != half
    assert registry.record(experiment, record) == whole
    assert registry._client.get_run(half).info.lifecycle_stage == "deleted"


def test_alias_moves_from_candidate_to_released_to_recalled(
    registry: Registry, experiment: str, tmp_path: Path
) -> None:
    def register(key: bytes) -> int:
        record = replace(RECORD, key=digest_bytes(key), curves={})
        return registry.register_student(
            experiment, record, model="brain-demo", weights=key, config=b"{}"
        )

    first = register(b"student 1")
    assert registry.aliases("brain-demo") == {"candidate": first}
    registry.move_alias("brain-demo", first, to="released")
    assert register(b"student 1") == first
    assert registry.aliases("brain-demo") == {"released": first}
    second = register(b"student 2")
    assert registry.aliases("brain-demo") == {"released": first, "candidate": second}
    registry.move_alias("brain-demo", first, to="recalled")
    assert registry.aliases("brain-demo") == {"recalled": first, "candidate": second}

    version = registry._client.get_model_version_by_alias("brain-demo", "recalled")
    assert version.run_id is not None
    run = registry._client.download_artifacts(version.run_id, "student", str(tmp_path))
    assert sorted(path.name for path in Path(run).iterdir()) == [
        "config.json",
        "weights.safetensors",
    ]
    assert (Path(run) / "weights.safetensors").read_bytes() == b"student 1"


def test_release_is_a_dataset_with_its_digest(registry: Registry, experiment: str) -> None:
    digest = digest_bytes(b"bundle")
    release = ReleaseRecord("brain-demo", 1, digest, "catalogue/brain-demo/1", {"volumes": 96})
    record = replace(RECORD, key=digest_bytes(b"release"), name="release", curves={})
    run_id = registry.record_release(experiment, record, release)
    assert registry.record_release(experiment, record, release) == run_id

    run = registry._client.get_run(run_id)
    assert run.inputs is not None
    (logged,) = run.inputs.dataset_inputs
    assert logged.dataset.name == "brain-demo@1"
    assert digest.removeprefix("sha256:").startswith(logged.dataset.digest)
    assert {tag.key: tag.value for tag in logged.tags}["vitrael.digest"] == digest
    assert run.data.tags["vitrael.release.digest"] == digest
    assert run.info.status == "FINISHED"


def test_opening_again_finds_what_was_recorded(
    registry: Registry, home: Path, experiment: str
) -> None:
    run_id = registry.record(experiment, RECORD)
    again = Registry.open(home)
    assert again.experiment("brain-demo", STUDY) == experiment
    assert again.record(experiment, RECORD) == run_id


@pytest.mark.usefixtures("registry")
def test_mlflow_is_quiet_before_it_is_imported(home: Path) -> None:
    """In a process of its own: telemetry is off, no thread runs, nobody is called, no torch."""
    script = """
import os, sys, threading
called = []
outward = ("socket.connect", "socket.getaddrinfo", "socket.sendto")
sys.addaudithook(lambda event, _: called.append(event) if event in outward else None)
from pathlib import Path
from vitrael.server.registry import Registry
assert "mlflow" not in sys.modules, "imported before the environment is set"
Registry.open(Path(sys.argv[1]))
from mlflow.telemetry.utils import is_telemetry_disabled
from mlflow.telemetry import get_telemetry_client
from mlflow.environment_variables import (
    MLFLOW_HTTP_REQUEST_MAX_RETRIES, MLFLOW_SERVER_ENABLE_JOB_EXECUTION)
assert is_telemetry_disabled() and get_telemetry_client() is None
assert MLFLOW_SERVER_ENABLE_JOB_EXECUTION.get() is False
assert MLFLOW_HTTP_REQUEST_MAX_RETRIES.get() == 1
assert threading.active_count() == 1, threading.enumerate()
assert not called, called
assert "torch" not in sys.modules
del os.environ["MLFLOW_DISABLE_TELEMETRY"], os.environ["DO_NOT_TRACK"]
assert not is_telemetry_disabled(), "the control: it is on by default"
"""
    # Bare, because MLflow also falls silent when it finds a CI system.
    environment = {k: os.environ[k] for k in ("PATH", "HOME", "PYTHONPATH") if k in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", script, str(home)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_ui_command_is_on_loopback_without_workers(home: Path) -> None:
    words = shlex.split(ui_command(home, port=5001))
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert words[words.index("--port") + 1] == "5001"
    assert ui_page("1", port=5001).startswith("http://127.0.0.1:5001/#/experiments/1/runs")
    assert "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false" in words
    assert "MLFLOW_DISABLE_TELEMETRY=true" in words
    assert f"sqlite:///{home.resolve()}/mlflow/mlflow.sqlite" in words
    assert MLFLOW_ENVIRONMENT["MLFLOW_DISABLE_TELEMETRY"] == "true"
