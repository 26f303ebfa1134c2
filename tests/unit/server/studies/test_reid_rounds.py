"""The patient encoder is that of all sites, and a site that cannot learn holds nobody up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.factories.federation import SITES, federation
from tests.unit.server.studies.conftest import Ended
from vitrael.client.site.settings import load_settings
from vitrael.client.site.tasks import TaskResult, TaskRunner
from vitrael.core.digest import Digest
from vitrael.core.errors import WeightsError
from vitrael.core.weights import Tensors, pack_tensors
from vitrael.server.demo import site_home
from vitrael.server.studies.federated import train_codec, train_patient_encoder

Documents = Callable[[Path], dict[str, Any]]
CODEC = {"w": np.ones(2, np.float32)}


def step(amount: float, *, examples: int, part: str = "encoder") -> TaskRunner:
    """Return a task that adds a number to every weight and learns nothing."""

    def run(_task: object, inputs: Mapping[str, Tensors], _context: object) -> TaskResult:
        moved = {name: (array + amount).astype(array.dtype) for name, array in inputs[part].items()}
        return TaskResult(tensors={part: moved}, num_examples=examples)

    return run


def moved_by(home: Path, steps: Mapping[str, tuple[float, int]]) -> float:
    """Return how far the weights go in a round when the sites go so far, with such counts."""
    tasks: Any = {site: {"reid": step(by, examples=n)} for site, (by, n) in steps.items()}
    with federation(home, tasks=tasks) as told:
        run = told.run()
        codec = run.objects.put_tensors(CODEC)
        train_patient_encoder(run, codec)
        records = [r for r in run.finished() if r.key.stage == "reid"]
        ends = [run.objects.get_json(r.output)["encoder"] for r in records if r.output]
        weights = [run.objects.get_tensors(Digest(end)) for end in ends]
    before, after = (float(each["head.bias"].mean()) for each in weights)
    return after - before


def test_round_is_the_mean_weighted_by_patients(home: Path) -> None:
    steps = {"north": (1.0, 1), "harbour": (2.0, 2), "valley": (1.5, 4)}
    assert moved_by(home, steps) == pytest.approx(11 / 7, rel=1e-4)


def test_site_that_cannot_learn_is_in_no_mean_and_draws_nobody_back(home: Path) -> None:
    # Two that stay where they are would be the median, which the third would be drawn back to.
    steps = {"north": (0.0, 0), "harbour": (2.0, 6), "valley": (0.0, 0)}
    assert moved_by(home, steps) == pytest.approx(2.0, rel=1e-4)


def test_site_that_counts_nothing_moves_nothing(home: Path) -> None:
    steps = {"north": (50.0, 0), "harbour": (2.0, 3), "valley": (2.0, 3)}
    assert moved_by(home, steps) == pytest.approx(2.0, rel=1e-4)


def test_where_nobody_can_learn_the_weights_stay_and_a_codec_would_not(home: Path) -> None:
    assert moved_by(home, dict.fromkeys(SITES, (0.0, 0))) == 0
    tasks: Any = {site: {"codec": step(0.0, examples=0, part="codec")} for site in SITES}
    nothing = pytest.raises(WeightsError, match="nothing to aggregate")
    with federation(home, tasks=tasks) as told, nothing:
        train_codec(told.run())


def test_every_filter_has_the_patient_encoder_of_all_and_a_copy_encoder_of_its_own(
    finished: Ended, documents: Documents
) -> None:
    last = documents(finished.home)["reid 2"]["encoder"]
    asked = [task for task in finished.seen if task.stage == "calibration"]
    assert [task.inputs["encoder"] for task in asked] == [last] * len(SITES)
    with federation(finished.home) as told:
        common = pack_tensors(told.run().objects.get_tensors(Digest(last)))
    folders = [load_settings(site_home(finished.home, site)).records for site in SITES]
    kept = {
        name: [next(folder.glob(f"*/reid/{name}.safetensors")).read_bytes() for folder in folders]
        for name in ("visits", "copies")
    }
    assert kept["visits"] == [common] * len(SITES)
    assert len(set(kept["copies"])) == len(SITES)


def test_rounds_of_the_encoder_are_told_by_curve_and_by_site(finished: Ended) -> None:
    with federation(finished.home) as told:
        rounds = [r for r in told.run().finished() if r.key.stage == "reid"]
    assert [r.key.round for r in rounds] == [0, 1]
    for record in rounds:
        assert set(record.participants) == set(SITES)
        assert all(curve["loss"] for curve in record.details["curves"].values())
        assert sum(record.details["weights"].values()) == pytest.approx(1, abs=1e-3)
