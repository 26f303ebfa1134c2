"""Experts and their fusion as versions of registered models: whose, of which scans, on which scale.

An expert that is kept when a roster is amended stays the version that it was.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vitrael.core.digest import Digest, canonical_json
from vitrael.core.study import Study
from vitrael.core.weights import unpack_tensors
from vitrael.server.objects import ObjectStore
from vitrael.server.registry import ModelVersion, Registry, RunRecord
from vitrael.server.studies.experts import ExpertRecord


class Record(Protocol):
    """What is needed of the recorder of a study."""

    home: Path
    study: Study
    objects: ObjectStore
    registry: Registry
    experiment: str


def record_experts(recorder: Record, run: RunRecord, document: Mapping[str, Any]) -> None:
    """Record stage ``expert``: each site's expert is a version of ``STUDY-expert-SITE``.

    Artifacts ``experts/SITE/weights.safetensors`` and ``expert.json``: labels, the site's words for
    them, the version of its scans, and the scale of its scores.
    """
    records = [ExpertRecord.of(site, told) for site, told in document["experts"].items()]
    files: dict[str, bytes] = {}
    for record in records:
        weights = recorder.objects.get_bytes(record.weights)
        facts = {**record.document, "site": record.site, "calibration": _scale(weights)}
        files[f"experts/{record.site}/weights.safetensors"] = weights
        files[f"experts/{record.site}/expert.json"] = canonical_json(facts)
    whole = replace(run, artifacts={**run.artifacts, **files})
    run_id = recorder.registry.record(recorder.experiment, whole)
    for record in records:
        wanted = ModelVersion(
            model_of(recorder.study, record.site),
            record.weights,
            f"runs:/{run_id}/experts/{record.site}",
            run_id,
            {
                "vitrael.site": record.site,
                "vitrael.cohort": str(record.cohort or ""),
                "vitrael.labels": json.dumps(list(record.labels)),
                "vitrael.calibrated": str(record.calibrated).lower(),
            },
        )
        recorder.registry.register_version(wanted)


def record_panel(recorder: Record, run: RunRecord, document: Mapping[str, Any]) -> None:
    """Record stage ``panel``: the fusion is a version of ``STUDY-fusion``.

    It and the experts that it is for get the alias ``current``; an expert that it leaves out loses
    that. Artifacts ``fusion/weights.safetensors`` and ``panel.json``, which names the experts.
    """
    folder = recorder.home / "panels" / str(document["folder"])
    told = (folder / "panel.json").read_bytes()
    files = {
        "fusion/weights.safetensors": (folder / "fusion.safetensors").read_bytes(),
        "fusion/panel.json": told,
    }
    whole = replace(run, artifacts={**run.artifacts, **files})
    run_id = recorder.registry.record(recorder.experiment, whole)
    experts = json.loads(told)["experts"]
    name = recorder.study.protocol.name
    sites = {
        model_of(recorder.study, expert["site"]): Digest(expert["weights"]) for expert in experts
    }
    current = {
        model: version
        for model, key in sites.items()
        if (version := recorder.registry.find_version(model, key)) is not None
    }
    wanted = ModelVersion(
        f"{name}-fusion",
        Digest(document["panel"]),
        f"runs:/{run_id}/fusion",
        run_id,
        {
            "vitrael.panel": str(document["panel"]),
            "vitrael.sites": ",".join(expert["site"] for expert in experts),
            "vitrael.versions": json.dumps(current),
        },
    )
    current[wanted.model] = recorder.registry.register_version(wanted)
    # Not all that begins with the study's name is of it: another may be called "NAME-two".
    recorder.registry.show_current(current, among=model_of(recorder.study, ""))


def model_of(study: Study, site: str) -> str:
    """Return the name under which a site's expert is registered."""
    return f"{study.protocol.name}-expert-{site}"


def table_metrics(document: Mapping[str, Any]) -> dict[str, list[tuple[int, float]]]:
    """Return the accuracies of a comparison as metrics of one step, with their bounds."""
    metrics: dict[str, list[tuple[int, float]]] = {}
    for row in document.get("table", ()):
        name = re.sub(r"[^a-z]+", "_", row["method"])
        low, high = row["interval"]
        for suffix, value in (("", row["accuracy"]), (".low", low), (".high", high)):
            metrics[f"accuracy.{name}{suffix}"] = [(0, float(value))]
    return metrics


def _scale(weights: bytes) -> dict[str, Any]:
    """Return by what an expert's scores are put on their scale."""
    tensors = unpack_tensors(weights)
    own = {name: tensors[f"score.{name}"] for name in ("mean", "std", "largest")}
    return {name: np.asarray(array, dtype=np.float64).tolist() for name, array in own.items()}
