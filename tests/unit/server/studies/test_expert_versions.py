"""Experts are versions of registered models: kept where they are kept, current while in a panel."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.factories.experts_study import write_study
from vitrael.core.digest import Digest, digest_bytes
from vitrael.core.metrics.comparison import METHODS
from vitrael.core.study import Study, parse_study
from vitrael.server.objects import ObjectStore
from vitrael.server.registry import ModelVersion, Registry, RunRecord
from vitrael.server.studies.expert_versions import (
    model_of,
    record_experts,
    record_panel,
    table_metrics,
)

pytestmark = pytest.mark.filterwarnings(
    # MLflow's own query on SQLAlchemy 2.1
    "ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning"
)

START = datetime(2031, 5, 1, 12, tzinfo=UTC)
COHORT = digest_bytes(b"scans of north")


@dataclass
class Kept:
    """A home with objects and a real MLflow store, and a study that is the test's own."""

    home: Path
    study: Study
    objects: ObjectStore
    registry: Registry
    experiment: str

    def expert(self, site: str, *, trained: int = 0, **changes: object) -> dict[str, Any]:
        """Return what stage ``expert`` tells of a site whose weights lie in the store."""
        tensors = {
            "net.stem": np.full((2, 2), trained + len(site), dtype=np.float32),
            "score.mean": np.array([0.5, -1.5], dtype=np.float32),
            "score.std": np.array([1.25, 2.0], dtype=np.float32),
            "score.largest": np.array([3.0, 0.75], dtype=np.float32),
        }
        return {
            "weights": self.objects.put_tensors(tensors),
            "labels": ["A2C", "A4C"],
            "words": {"apical 4": "A4C"},
            "calibrated": True,
            "cohort": COHORT,
            **changes,
        }

    def experts(self, told: Mapping[str, Mapping[str, Any]], *, name: str) -> RunRecord:
        run = stage(name)
        record_experts(self, run, {"experts": told})
        return run

    def panel(self, told: Mapping[str, Mapping[str, Any]], *, name: str) -> Digest:
        """Record a panel of some experts as stage ``panel`` leaves it; return its digest."""
        experts = [{"site": site, "weights": one["weights"]} for site, one in told.items()]
        digest = digest_bytes(name.encode())
        folder = self.home / "panels" / name
        folder.mkdir(parents=True)
        (folder / "panel.json").write_text(json.dumps({"experts": experts}))
        (folder / "fusion.safetensors").write_bytes(f"fusion of {name}".encode())
        record_panel(self, stage(name), {"folder": name, "panel": digest})
        return digest

    def version(self, model: str, number: int = 1) -> Any:
        return self.registry._client.get_model_version(model, str(number))

    def versions(self, model: str) -> list[int]:
        found = self.registry._client.search_model_versions(f"name = '{model}'")
        return sorted(int(version.version) for version in found)

    def current(self) -> dict[str, int]:
        """Return every model that has the alias ``current``, and of which version."""
        models = self.registry._client.search_registered_models()
        return {m.name: int(m.aliases["current"]) for m in models if "current" in m.aliases}

    def artifact(self, model: str, name: str) -> bytes:
        version = self.version(model)
        folder = version.source.removeprefix(f"runs:/{version.run_id}/")
        path = self.registry._client.download_artifacts(version.run_id, f"{folder}/{name}")
        return Path(path).read_bytes()


def stage(name: str) -> RunRecord:
    return RunRecord(
        key=digest_bytes(f"stage {name}".encode()),
        name=name,
        started_utc=START,
        finished_utc=START + timedelta(seconds=9),
        artifacts={"document.json": b"{}"},
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    """One store for all: each test has a study of another name."""
    before, home = dict(os.environ), tmp_path_factory.mktemp("coordinator")
    study = parse_study(write_study().encode(), label="tiny")
    yield Kept(home, study, ObjectStore(home / "objects"), Registry.open(home), "")
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def kept(store: Kept, request: pytest.FixtureRequest) -> Kept:
    own = digest_bytes(request.node.name.encode()).removeprefix("sha256:")[:8]
    return named(store, f"views-{own}")


def named(store: Kept, name: str) -> Kept:
    """Return the store with a study of another name, and a home of its own for panels."""
    document = store.study.model_dump(mode="json")
    document["protocol"]["name"] = name
    study = Study.model_validate(document)
    experiment = store.registry.experiment(name, study.digest)
    return replace(store, home=store.home / name, study=study, experiment=experiment)


def test_each_site_s_expert_is_a_version_that_says_whose_and_of_what(kept: Kept) -> None:
    told = {
        "north": kept.expert("north"),
        "harbour": kept.expert("harbour", calibrated=False, cohort=None, labels=["PSAX"]),
    }
    kept.experts(told, name="expert 1")
    north, harbour = (kept.version(model_of(kept.study, site)) for site in told)
    own = {
        "vitrael.site": "north",
        "vitrael.cohort": COHORT,
        "vitrael.labels": '["A2C", "A4C"]',
        "vitrael.calibrated": "true",
        "vitrael.key": told["north"]["weights"],
    }
    assert dict(north.tags) == own
    assert harbour.tags["vitrael.site"] == "harbour"
    assert harbour.tags["vitrael.cohort"] == ""
    assert harbour.tags["vitrael.calibrated"] == "false"
    assert json.loads(harbour.tags["vitrael.labels"]) == ["PSAX"]
    assert north.run_id == harbour.run_id


def test_version_holds_the_weights_and_the_scale_of_the_scores(kept: Kept) -> None:
    told = {"north": kept.expert("north")}
    kept.experts(told, name="expert 1")
    model = model_of(kept.study, "north")
    weights = kept.objects.get_bytes(told["north"]["weights"])
    assert kept.artifact(model, "weights.safetensors") == weights
    facts = json.loads(kept.artifact(model, "expert.json"))
    assert facts == {
        **told["north"],
        "site": "north",
        "calibration": {"mean": [0.5, -1.5], "std": [1.25, 2.0], "largest": [3.0, 0.75]},
    }
    path = kept.registry._client.download_artifacts(kept.version(model).run_id, "document.json")
    assert Path(path).read_bytes() == b"{}"  # what the stage left stays beside it


def test_expert_that_is_kept_stays_the_version_that_it_was(kept: Kept) -> None:
    first = {site: kept.expert(site) for site in ("north", "harbour")}
    kept.experts(first, name="expert 1")
    kept.experts(first, name="expert 1")  # recorded twice
    later = {**first, "harbour": kept.expert("harbour", trained=1), "coast": kept.expert("coast")}
    kept.experts(later, name="expert of the amended roster")
    found = {site: kept.versions(model_of(kept.study, site)) for site in later}
    assert found == {"north": [1], "harbour": [1, 2], "coast": [1]}


def test_version_is_found_by_its_key_and_by_no_other(kept: Kept) -> None:
    model = model_of(kept.study, "north")
    keys = [digest_bytes(name) for name in (b"one", b"two", b"three")]
    run_id = kept.registry.record(kept.experiment, stage("made by hand"))

    def register(key: Digest) -> int:
        wanted = ModelVersion(model, key, f"runs:/{run_id}/experts/north", run_id, {"of": "test"})
        return kept.registry.register_version(wanted)

    assert kept.registry.find_version(model, keys[0]) is None  # there is no such model
    assert [register(key) for key in (keys[0], keys[1], keys[0])] == [1, 2, 1]
    assert [kept.registry.find_version(model, key) for key in keys] == [1, 2, None]
    assert kept.registry.find_version(f"{model}-two", keys[0]) is None
    assert kept.version(model).tags["of"] == "test"


def test_panel_is_a_version_that_names_the_experts_of_it(kept: Kept) -> None:
    told = {site: kept.expert(site) for site in ("north", "harbour")}
    kept.experts(told, name="expert 1")
    panel = kept.panel(told, name="panel-1")
    model = f"{kept.study.protocol.name}-fusion"
    version = kept.version(model)
    assert version.tags["vitrael.panel"] == panel == version.tags["vitrael.key"]
    assert version.tags["vitrael.sites"] == "north,harbour"
    experts = {model_of(kept.study, site): 1 for site in told}
    assert json.loads(version.tags["vitrael.versions"]) == experts
    assert kept.artifact(model, "weights.safetensors") == b"fusion of panel-1"
    named_there = json.loads(kept.artifact(model, "panel.json"))["experts"]
    assert [expert["site"] for expert in named_there] == list(told)


def test_current_is_what_is_in_the_panel_and_nothing_else(kept: Kept) -> None:
    name, first = kept.study.protocol.name, {s: kept.expert(s) for s in ("north", "harbour")}

    def current() -> dict[str, int]:
        return {m.removeprefix(f"{name}-"): v for m, v in kept.current().items() if name in m}

    kept.experts(first, name="expert 1")
    assert current() == {}
    kept.panel(first, name="panel-1")
    assert current() == {"expert-north": 1, "expert-harbour": 1, "fusion": 1}
    later = {"harbour": kept.expert("harbour", trained=1), "coast": kept.expert("coast")}
    kept.experts(later, name="expert 2")
    kept.panel(later, name="panel-2")
    assert current() == {"expert-harbour": 2, "expert-coast": 1, "fusion": 2}
    assert kept.versions(model_of(kept.study, "north")) == [1]  # it is left, and was kept
    kept.panel({"north": first["north"], **later}, name="panel-3")
    assert current() == {"expert-north": 1, "expert-harbour": 2, "expert-coast": 1, "fusion": 3}


def test_panel_takes_nothing_from_a_study_whose_name_begins_alike(store: Kept, kept: Kept) -> None:
    name = kept.study.protocol.name
    other = named(store, f"{name}-two")
    for each in (other, kept):
        told = {"north": each.expert("north")}
        each.experts(told, name=f"expert of {each.study.protocol.name}")
        each.panel(told, name=f"panel-of-{each.study.protocol.name}")
    ours = {m: v for m, v in kept.current().items() if m.startswith(name)}
    assert ours == {
        f"{study}-{model}": 1
        for study in (name, f"{name}-two")
        for model in ("expert-north", "fusion")
    }


def test_expert_that_was_never_recorded_is_in_no_version_of_the_panel(kept: Kept) -> None:
    told = {site: kept.expert(site) for site in ("north", "harbour")}
    kept.experts({"north": told["north"]}, name="expert 1")
    kept.panel(told, name="panel-1")
    version = kept.version(f"{kept.study.protocol.name}-fusion")
    assert json.loads(version.tags["vitrael.versions"]) == {model_of(kept.study, "north"): 1}
    assert version.tags["vitrael.sites"] == "north,harbour"


def test_accuracies_are_metrics_with_their_bounds() -> None:
    rows = [
        {"method": method, "accuracy": 0.5 + place / 100, "interval": (0.25, 0.75)}
        for place, method in enumerate(METHODS)
    ]
    metrics = table_metrics({"table": rows})
    assert len(metrics) == 3 * len(METHODS)  # no two methods are one metric
    assert metrics["accuracy.own_expert"] == [(0, 0.5)]
    assert metrics["accuracy.fusion_unweighted.low"] == [(0, 0.25)]
    assert metrics["accuracy.fusion.high"] == [(0, 0.75)]
    assert metrics["accuracy.federated_averaging"] == [(0, 0.56)]
    assert table_metrics({"table": []}) == table_metrics({"experts": {}}) == {}


def test_metrics_of_a_comparison_are_kept_by_mlflow(kept: Kept) -> None:
    row = {"method": "fusion, unweighted", "accuracy": 0.5, "interval": (0.25, 0.75)}
    run = replace(stage("comparison 1"), curves=table_metrics({"table": [row]}))
    run_id = kept.registry.record(kept.experiment, run)
    assert kept.registry._client.get_run(run_id).data.metrics == {
        "accuracy.fusion_unweighted": 0.5,
        "accuracy.fusion_unweighted.low": 0.25,
        "accuracy.fusion_unweighted.high": 0.75,
    }
