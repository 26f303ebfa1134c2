"""A report holds what is asked for beside real scans, and tells a bad generator from a good one."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from tests.factories import models
from vitrael.core.data.manifest import Item
from vitrael.core.errors import CohortError, ConfigError
from vitrael.core.geometry import centered_affine
from vitrael.core.records import SampleRequest, Samples
from vitrael.core.rng import stream
from vitrael.core.training.compute import Compute
from vitrael.core.workbench.evaluating import evaluate_against
from vitrael.core.workbench.evaluation import Line, evaluate_samples
from vitrael.core.workbench.folder import read_document
from vitrael.core.workbench.generation import FrugalGenerator
from vitrael.core.workbench.intake import Rows, rows_of, take_in

COUNT = 14


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    place = tmp_path_factory.mktemp("evaluation")
    document = models.document()
    scans = models.write_scans(place / "scans", patients=COUNT)
    intake = take_in(scans, document.recipe, workshop=place / "workshop")
    return rows_of(intake.items, intake.shards, document.covariates)


@dataclass
class Echo:
    """A Generator that gives back the very scans that it is asked for, or noise."""

    rows: Rows
    is_noise: bool = False

    def sample(self, request: SampleRequest) -> Samples:
        wanted = list(range(request.first, request.first + len(request.condition_BK)))
        image = self.rows.images.batch(wanted)
        if self.is_noise:
            image = stream(1, "noise", request.first).random(image.shape, dtype=np.float32)
        affine = centered_affine((16, 16, 16), spacing=models.SPACING_MM)
        return Samples(image, request.condition_BK, affine)


def report(rows: Rows, *, is_noise: bool = False) -> dict[str, Line]:
    frugal = FrugalGenerator(Echo(rows, is_noise), batch_images=5)
    lines = evaluate_samples(frugal, rows, models.covariates(), seed=1)
    return {f"{line.measured.name} {line.measured.extractor}".strip(): line for line in lines}


@pytest.fixture(scope="module")
def perfect(rows: Rows) -> dict[str, Line]:
    return report(rows)


def test_scans_themselves_score_perfectly(perfect: dict[str, Line]) -> None:
    assert perfect["ventricle_ml_r"].measured.value > 0.999
    assert perfect["ventricle_ml_mae"].measured.value < 0.1
    audited = perfect["ventricle_ml_r"].baseline
    assert audited is not None
    assert audited.value < 0.6


@pytest.fixture(scope="module")
def noise(rows: Rows) -> dict[str, Line]:
    return report(rows, is_noise=True)


def test_noise_is_told_from_scans(perfect: dict[str, Line], noise: dict[str, Line]) -> None:
    apart = [name for name in perfect if "frechet" in name or "fid" in name.lower()]
    assert apart
    for name in apart:
        assert noise[name].measured.value > 10 * max(perfect[name].measured.value, 1e-6)


def test_distances_stand_beside_those_of_as_many_scans(
    perfect: dict[str, Line], noise: dict[str, Line]
) -> None:
    found = [name for name in perfect if name.split()[0] in {"fid", "kid", "density", "coverage"}]
    assert len(found) == 8  # of two extractors
    for name in found:
        beside = perfect[name].baseline
        assert beside is not None
        assert beside.n == perfect[name].measured.n == COUNT // 2
        assert beside == perfect[name].measured  # for what is drawn are the scans of a half
        assert noise[name].measured != noise[name].baseline == beside
    assert "lost modes" in perfect["density anatomy-v1"].target


def test_age_stands_beside_what_the_predictor_says_of_scans(
    perfect: dict[str, Line], noise: dict[str, Line]
) -> None:
    for extractor in ("random-conv-0", "anatomy-v1"):
        line = perfect[f"age_years_r {extractor}"]
        assert "ridge regression" in line.measured.method
        assert line.measured == line.baseline  # what is drawn are the scans: no more than theirs
        assert noise[f"age_years_r {extractor}"].baseline == line.baseline
        assert noise[f"age_years_r {extractor}"].measured != line.measured
        assert perfect[f"age_years_permuted_r {extractor}"].measured.n == 1000


def test_scans_that_tell_no_age_are_not_asked_for_one(rows: Rows) -> None:
    def without_age(item: Item) -> Item:
        told = {name: value for name, value in item.covariates.items() if name != "age_years"}
        return item.model_copy(update={"covariates": told})

    silent = replace(rows, items=tuple(without_age(item) for item in rows.items))
    assert not any(name.startswith("age") for name in report(silent))


def test_every_number_has_interval_count_and_method(perfect: dict[str, Line]) -> None:
    assert {line.measured.extractor for line in perfect.values()} >= {"random-conv-0", "anatomy-v1"}
    for line in perfect.values():
        told = json.loads(json.dumps(line.describe(), allow_nan=False))
        assert told["low"] <= told["value"] <= told["high"]
        assert told["n"] >= 1
        assert told["method"]
        assert str(told["n"]) in line.row()


def test_model_that_knows_no_milliliters_is_not_held_against_scans(
    model_folder: Path, scans: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    document = read_document(folder)
    foreign = [
        covariate.model_copy(update={"unit": "a share"}) for covariate in document.covariates
    ]
    changed = document.model_copy(update={"covariates": tuple(foreign)})
    (folder / "model.json").write_text(changed.model_dump_json(), encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot be held against scans"):
        evaluate_against(folder, scans, Compute("cpu", bf16=False))


def test_too_few_scans_are_refused(model_folder: Path, scans: Path) -> None:
    with pytest.raises(CohortError, match="5 scans are too few"):
        evaluate_against(model_folder, scans, Compute("cpu", bf16=False))


def test_each_number_says_what_stands_beside_it(perfect: dict[str, Line]) -> None:
    assert "beside halves of the scans" in perfect["fid random-conv-0"].row()
    assert "beside shuffled" in perfect["ventricle_ml_r"].row()
    assert "beside the predictor's ceiling" in perfect["age_years_r anatomy-v1"].row()
    assert perfect["ventricle_ml_mae"].baseline is None
    assert "beside" not in perfect["ventricle_ml_mae"].row()
    for line in perfect.values():
        assert bool(line.beside) == (line.baseline is not None)
        assert line.describe()["beside"] == line.beside


def test_report_tells_scans_that_lie_outside_a_range(model_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    document = read_document(folder)
    narrow = [
        covariate.model_copy(update={"low": 0.0, "high": 1.0})
        if covariate.name == "brain_ml"
        else covariate
        for covariate in document.covariates
    ]
    changed = document.model_copy(update={"covariates": tuple(narrow)})
    (folder / "model.json").write_text(changed.model_dump_json(), encoding="utf-8")
    scans = models.write_scans(tmp_path / "scans", patients=12)
    compute = Compute("cpu", bf16=False)
    assert evaluate_against(folder, scans, compute).clipped["brain_ml"] == 12
    assert "brain_ml" not in evaluate_against(model_folder, scans, compute).clipped  # the control
