"""What a BIDS sidecar says of codes and units stands; without it a table is read as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.factories.folders import find, only, plant


def covariates(root: Path, age: str, sex: str, about: Any) -> dict[str, float]:
    plant(root, "sub-01_T1w.nii")
    (root / "participants.tsv").write_text(f"participant_id\tage\tsex\nsub-01\t{age}\t{sex}\n")
    text = about if isinstance(about, str) else json.dumps(about)
    (root / "participants.json").write_text(text)
    return dict(only(find(root)).covariates)


LEVELS = {"1": "Female", "2": {"Description": "male participants"}, "3": "not told"}


@pytest.mark.parametrize(
    ("code", "expected"),
    [("1", 0.0), ("2", 1.0), ("3", None), ("4", None), ("F", 0.0), ("m", 1.0), ("n/a", None)],
)
def test_code_of_sex_means_what_the_sidecar_says(
    tmp_path: Path, code: str, expected: float | None
) -> None:
    about = {"Sex": {"Levels": LEVELS}}
    assert covariates(tmp_path, "40", code, about).get("sex") == expected
    if code == "1":  # control: without it 1 is male
        assert covariates(tmp_path, "40", code, {})["sex"] == 1.0


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("months", 1.5),
        ("weeks", 18 * 7 / 365.25),
        ("year(s)", 18),
        ("Years of age", 18),
        ("h", None),
    ],
)
def test_age_has_the_unit_that_the_sidecar_says(
    tmp_path: Path, unit: str, expected: float | None
) -> None:
    told = covariates(tmp_path, "18", "F", {"age": {"Units": unit}})
    assert told.get("age_years") == (expected if expected is None else pytest.approx(expected))
    assert told["sex"] == 0.0


def test_unit_of_the_cell_goes_before_that_of_the_column(tmp_path: Path) -> None:
    assert covariates(tmp_path, "018M", "F", {"age": {"Units": "years"}})["age_years"] == 1.5


def test_sidecar_of_sessions_counts_too(tmp_path: Path) -> None:
    about = {"age": {"Units": "months"}}
    plant(tmp_path, "sub-01_ses-1_T1w.nii")
    (tmp_path / "sessions.tsv").write_text("participant_id\tsession_id\tage\nsub-01\tses-1\t18\n")
    (tmp_path / "sessions.json").write_text(json.dumps(about))
    assert dict(only(find(tmp_path)).covariates) == {"age_years": 1.5}


@pytest.mark.parametrize(
    "about",
    [
        *("", "{", "[]", "null", "[" * 100_000, "\ud800".encode("utf-8", "replace").decode()),
        *({"age": 3, "sex": []}, {"age": {"Units": 7}, "sex": {"Levels": [1]}}),
        {"age": {}, "sex": {"Levels": {}}},
    ],
)
def test_sidecar_that_is_none_changes_nothing(tmp_path: Path, about: Any) -> None:
    assert covariates(tmp_path, "18", "1", about) == {"age_years": 18.0, "sex": 1.0}
