"""MLflow as the study's record: stages as runs, the student as a model version, the release.

Embedded: SQLite and a folder below the coordinator's home; no server and no process.
MLflow is a view for people. The ledger and the release bundle are what a study stands on, so
everything here can be written again: recording twice makes one run.
"""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from vitrael.core.digest import Digest
from vitrael.core.errors import StorageError
from vitrael.server.settings import MLFLOW_ENVIRONMENT, quiet_mlflow

if TYPE_CHECKING:
    from mlflow import MlflowClient

Alias = Literal["candidate", "released", "recalled", "current"]

_KEY = "vitrael.key"
_BATCH_METRICS, _BATCH_PARAMS = 1_000, 100
"""MLflow's limits for one call."""
_DATASET_DIGEST_LENGTH = 36
"""MLflow's limit; the whole digest stands in a tag of the run and of the input."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What is recorded of one finished stage."""

    key: Digest
    """Digest of the stage's key; a second record with the same key is the same run."""
    name: str
    started_utc: datetime
    finished_utc: datetime
    params: Mapping[str, Any] = field(default_factory=dict)
    curves: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    """Metric name to (step, value); steps count images, rounds or whatever the name says."""
    artifacts: Mapping[str, bytes] = field(default_factory=dict)
    """Name, with ``/`` between folders, to content."""


@dataclass(frozen=True, slots=True)
class ReleaseRecord:
    """A release as a dataset: where it lies, what it holds, and its digest."""

    name: str
    version: int
    digest: Digest
    location: str
    """Folder or URL of the bundle; its bytes are not copied into MLflow."""
    profile: Mapping[str, Any]
    """Public counts to show beside it, such as the number of volumes."""


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A version of a registered model as it is to be."""

    model: str
    key: Digest
    """By which it is found again: a second one with the same key is the same version."""
    source: str
    """``runs:/RUN/FOLDER``: where its files lie among the run's artifacts."""
    run_id: str
    tags: Mapping[str, str] = field(default_factory=dict)


class Registry:
    """The MLflow store of one coordinator."""

    def __init__(self, client: MlflowClient, artifacts: Path) -> None:
        """Keep the client; use ``Registry.open`` to get one."""
        self._client = client
        self._artifacts = artifacts

    @classmethod
    def open(cls, home: Path) -> Self:
        """Return the registry below a coordinator's home; the first time makes its tables.

        Opening connects to no network and leaves no process behind.

        Raises StorageError when MLflow cannot use its database.
        """
        quiet_mlflow()
        from mlflow import MlflowClient  # noqa: PLC0415 - reads the environment when imported
        from mlflow.exceptions import MlflowException  # noqa: PLC0415

        folder = _folder(home)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            client = MlflowClient(tracking_uri=_uri(home), registry_uri=_uri(home))
        except MlflowException as error:
            raise StorageError(
                "the MLflow store cannot be opened",
                why=error.message.splitlines()[0],
                fix=f"move {folder} away; a resumed study writes it again",
            ) from error
        return cls(client, folder / "artifacts")

    def experiment(self, study: str, digest: Digest) -> str:
        """Return the id of the study's experiment, made when it does not exist."""
        name = f"{study} {_short(digest)}"
        if found := self._client.get_experiment_by_name(name):
            return str(found.experiment_id)
        folder = self._artifacts / f"{study}-{_short(digest)}"
        tags = {"vitrael.study": digest}
        return self._client.create_experiment(name, artifact_location=folder.as_uri(), tags=tags)

    def record(self, experiment: str, record: RunRecord) -> str:
        """Return the id of the one run with this key; a run left half-written is written anew."""
        run_id, is_finished = self._begin(experiment, record)
        if not is_finished:
            self._client.set_terminated(run_id, "FINISHED", _ms(record.finished_utc))
        return run_id

    def register_student(
        self, experiment: str, record: RunRecord, *, model: str, weights: bytes, config: bytes
    ) -> int:
        """Return the model version made of a student's run, with the alias ``candidate``.

        The version holds ``student/weights.safetensors`` and ``student/config.json`` as artifacts
        of the stage's run. Registering the same key again returns the same version and moves no
        alias, so that a released student does not become a candidate again.
        """
        files = {"student/weights.safetensors": weights, "student/config.json": config}
        whole = replace(record, artifacts={**record.artifacts, **files})
        run_id = self.record(experiment, whole)
        version = self.register_version(
            ModelVersion(model, record.key, f"runs:/{run_id}/student", run_id)
        )
        if version not in self.aliases(model).values():
            self._client.set_registered_model_alias(model, "candidate", str(version))
        return version

    def register_version(self, wanted: ModelVersion) -> int:
        """Return the version of a registered model that has this key, made where there is none."""
        model = wanted.model
        if not self._client.search_registered_models(f"name = '{model}'"):
            self._client.create_registered_model(model)
        known = self.find_version(model, wanted.key)
        if known is not None:
            return known
        tags = {_KEY: wanted.key, **wanted.tags}
        made = self._client.create_model_version(
            model, source=wanted.source, run_id=wanted.run_id, tags=tags
        )
        return int(made.version)

    def find_version(self, model: str, key: Digest) -> int | None:
        """Return the version of a registered model that has this key, or None."""
        for version in self._client.search_model_versions(f"name = '{model}'"):
            if version.tags.get(_KEY) == key:
                return int(version.version)
        return None

    def show_current(self, models: Mapping[str, int], *, among: str) -> None:
        """Give these versions the alias ``current``, and take it from other models of a study.

        ``among`` is how the names of that study's models begin.
        """
        for found in self._client.search_registered_models(f"name LIKE '{among}%'"):
            if "current" in found.aliases and found.name not in models:
                self._client.delete_registered_model_alias(found.name, "current")
        for model, version in models.items():
            self._client.set_registered_model_alias(model, "current", str(version))

    def move_alias(self, model: str, version: int, *, to: Alias) -> None:
        """Give the version this alias and take its others: it is in one state at a time."""
        version_text = str(version)
        aliases = self._client.get_registered_model(model).aliases
        for alias, of in aliases.items():
            if str(of) == version_text and alias != to:
                self._client.delete_registered_model_alias(model, alias)
        self._client.set_registered_model_alias(model, to, version_text)

    def aliases(self, model: str) -> dict[str, int]:
        """Return alias to version of a registered model."""
        found = self._client.get_registered_model(model).aliases
        return {alias: int(version) for alias, version in found.items()}

    def find_student(self, key: Digest) -> tuple[str, int] | None:
        """Return the registered model and its version that a student's stage became, or None."""
        for found in self._client.search_model_versions():
            if found.tags.get(_KEY) == key:
                return str(found.name), int(found.version)
        return None

    def record_release(self, experiment: str, record: RunRecord, release: ReleaseRecord) -> str:
        """Return the id of the one run that logs the release as a dataset with its digest."""
        from mlflow.entities import Dataset, DatasetInput, InputTag  # noqa: PLC0415

        run_id, is_finished = self._begin(experiment, record)
        if is_finished:
            return run_id
        name = f"{release.name}@{release.version}"
        entry = Dataset(
            name=name,
            digest=release.digest.removeprefix("sha256:")[:_DATASET_DIGEST_LENGTH],
            source_type="local",
            source=json.dumps({"uri": release.location}),
            profile=json.dumps({"digest": release.digest, **release.profile}),
        )
        context = InputTag("mlflow.data.context", "release")
        digest = InputTag("vitrael.digest", release.digest)
        self._client.log_inputs(run_id, [DatasetInput(entry, tags=[context, digest])])
        self._client.set_tag(run_id, "vitrael.release", name)
        self._client.set_tag(run_id, "vitrael.release.digest", release.digest)
        self._client.set_terminated(run_id, "FINISHED", _ms(record.finished_utc))
        return run_id

    def _begin(self, experiment: str, record: RunRecord) -> tuple[str, bool]:
        """Return a run with all that the record holds, and whether it was finished before."""
        query = f"tags.\"{_KEY}\" = '{record.key}'"
        for run in self._client.search_runs([experiment], query):
            if run.info.status == "FINISHED":
                return str(run.info.run_id), True
            self._client.delete_run(run.info.run_id)
        return self._write(experiment, record), False

    def _write(self, experiment: str, record: RunRecord) -> str:
        from mlflow.entities import Metric, Param  # noqa: PLC0415

        run = self._client.create_run(
            experiment,
            start_time=_ms(record.started_utc),
            tags={_KEY: record.key},
            run_name=record.name,
        )
        run_id = str(run.info.run_id)
        params = [Param(name, str(value)) for name, value in record.params.items()]
        at = _ms(record.finished_utc)
        metrics = [
            Metric(name, value, at, step)
            for name, curve in record.curves.items()
            for step, value in curve
        ]
        for first in range(0, len(params), _BATCH_PARAMS):
            self._client.log_batch(run_id, params=params[first : first + _BATCH_PARAMS])
        for first in range(0, len(metrics), _BATCH_METRICS):
            self._client.log_batch(run_id, metrics=metrics[first : first + _BATCH_METRICS])
        self._write_artifacts(run_id, record.artifacts)
        return run_id

    def _write_artifacts(self, run_id: str, artifacts: Mapping[str, bytes]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for name, content in artifacts.items():
                path = Path(folder) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            if artifacts:
                self._client.log_artifacts(run_id, folder)


def ui_command(home: Path, *, port: int = 5000) -> str:
    """Return a shell command that opens MLflow's UI on this home, on loopback, without workers."""
    quiet = ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION")
    words = ["env", *(f"{name}={MLFLOW_ENVIRONMENT[name]}" for name in quiet)]
    words += [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", _uri(home)]
    words += ["--default-artifact-root", (_folder(home) / "artifacts").as_uri()]
    words += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return shlex.join(words)


def ui_page(experiment: str, *, port: int = 5000) -> str:
    """Return the address of a study's runs in that UI.

    Without the query, MLflow opens an experiment on its pages for language models.
    """
    return f"http://127.0.0.1:{port}/#/experiments/{experiment}/runs?workflowType=machine_learning"


def _folder(home: Path) -> Path:
    return home.resolve() / "mlflow"


def _uri(home: Path) -> str:
    return f"sqlite:///{_folder(home) / 'mlflow.sqlite'}"


def _short(digest: Digest) -> str:
    return digest.removeprefix("sha256:")[:12]


def _ms(time: datetime) -> int:
    return round(time.timestamp() * 1_000)
