"""Carries the ledger over to MLflow: one run a finished stage, the student, the release.

It reads what the stages left and may run beside them or after them: a stage that is recorded
already is not recorded twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitrael.core.digest import Digest, canonical_json
from vitrael.core.study import Study, load_study
from vitrael.privacy.evidence import Evidence
from vitrael.privacy.keys import roster_digest
from vitrael.server.db.engine import open_database
from vitrael.server.objects import ObjectStore
from vitrael.server.registry import Registry, ReleaseRecord, RunRecord
from vitrael.server.studies.expert_versions import record_experts, record_panel, table_metrics
from vitrael.server.studies.ledger import Ledger, StageRecord
from vitrael.server.studies.rosters import find_members

_LARGEST_ARTIFACT_BYTES = 4 << 20


class Recorder:
    """Writes finished stages of one home's study into its MLflow store."""

    def __init__(self, home: Path) -> None:
        """Open ledger, objects and MLflow of a coordinator's home."""
        self.home = home
        self.study: Study = load_study(home / "study.toml")
        self.roster = roster_digest(find_members(home, self.study), labels=self.study.roster.labels)
        self.ledger = Ledger(open_database(home / "server.sqlite"))
        self.objects = ObjectStore(home / "objects")
        self.registry = Registry.open(home)
        self.experiment = self.registry.experiment(self.study.protocol.name, self.study.digest)
        self._recorded: set[int] = set()

    @property
    def model(self) -> str:
        """Name under which the student is registered."""
        return f"{self.study.protocol.name}-student"

    def catch_up(self) -> None:
        """Record every stage that finished since the last call."""
        for record in self.ledger.history(self.study.protocol.digest):
            own = record.details.get("roster") == self.roster
            if own and record.status == "finished" and record.id not in self._recorded:
                self._record(record)
                self._recorded.add(record.id)

    def _record(self, record: StageRecord) -> None:
        document = self._document(record)
        run = self._run(record, document)
        if record.key.stage == "student":
            weights = self.objects.get_bytes(Digest(document["denoiser"]))
            config = canonical_json(self.study.synthesis.generator.model_dump(mode="json"))
            self.registry.register_student(
                self.experiment, run, model=self.model, weights=weights, config=config
            )
        elif record.key.stage == "publication":
            self.registry.record_release(
                self.experiment,
                run,
                ReleaseRecord(
                    name=self.study.protocol.name,
                    version=self.study.protocol.version,
                    digest=Digest(document["manifest"]),
                    location=str(self.home / "catalogue"),
                    profile={"volumes": self.study.synthesis.distillation.released},
                ),
            )
            version = self.registry.aliases(self.model).get("candidate")
            if version is not None:
                self.registry.move_alias(self.model, version, to="released")
        elif record.key.stage == "expert":
            record_experts(self, run, document)
        elif record.key.stage == "panel":
            record_panel(self, run, document)
        else:
            self.registry.record(self.experiment, run)

    def _document(self, record: StageRecord) -> dict[str, Any]:
        return dict(self.objects.get_json(record.output)) if record.output else {}

    def _run(self, record: StageRecord, document: Mapping[str, Any]) -> RunRecord:
        body = json.dumps(document, indent=1).encode()
        told = document.get("evidence")
        evidence = None if told is None else Evidence.model_validate(told)
        return RunRecord(
            key=record.key.digest,
            name=f"{record.key.stage} {record.key.round + 1}",
            started_utc=record.started_utc,
            finished_utc=record.finished_utc or record.started_utc,
            params={
                "stage": record.key.stage,
                "round": record.key.round + 1,
                "sites": ",".join(record.participants),
                "output": record.output,
                **_scalars(record.details),
                **_not_estimable(evidence),
            },
            curves={
                f"loss.{who}": list(zip(curve["images"], curve["loss"], strict=True))
                for who, curve in record.details.get("curves", {}).items()
            }
            | _as_metrics(evidence)
            | table_metrics(document),
            artifacts={"document.json": body} if len(body) < _LARGEST_ARTIFACT_BYTES else {},
        )


def _scalars(details: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in details.items() if isinstance(value, int | float | str)}


def _as_metrics(evidence: Evidence | None) -> dict[str, list[tuple[int, float]]]:
    """Return what could be estimated, each with its bounds, as metrics of one step."""
    if evidence is None:
        return {}
    return {
        f"{measurement.name}{suffix}": [(0, value)]
        for measurement in evidence.measurements
        for suffix, value in (
            ("", measurement.value),
            (".low", measurement.low),
            (".high", measurement.high),
            (".n", measurement.n),
        )
        if measurement.value is not None and value is not None
    }


def _not_estimable(evidence: Evidence | None) -> dict[str, str]:
    """Return the names of what could not be estimated, as one parameter, if there are any."""
    measured = () if evidence is None else evidence.measurements
    names = [measurement.name for measurement in measured if measurement.value is None]
    return {"not_estimable": ", ".join(names)} if names else {}
