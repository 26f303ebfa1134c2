"""What may be asked of a model: by name, in units, within the trained ranges."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.factories.models import covariates
from vitrael.core.errors import CohortError, DataError, UsageError
from vitrael.core.workbench.covariates import (
    ask_for,
    parse_settings,
    read_conditions,
    scale_values,
    unscale_values,
)

WHOLE = {"age_years": 56.5, "sex": 1.0, "ventricle_ml": 55.0, "brain_ml": 1300.0}


def test_condition_follows_the_order_and_the_ranges() -> None:
    asked = dict(reversed(WHOLE.items()))
    np.testing.assert_allclose(ask_for(asked, covariates()), [0.5, 1, 0.5, 0.5], atol=1e-6)


def test_missing_covariate_is_refused_by_its_name() -> None:
    asked = {name: value for name, value in WHOLE.items() if name != "brain_ml"}
    with pytest.raises(UsageError, match="brain_ml is missing"):
        ask_for(asked, covariates())


def test_unknown_covariate_is_refused_by_its_name() -> None:
    with pytest.raises(UsageError, match="no covariate height_cm"):
        ask_for({**WHOLE, "height_cm": 180.0}, covariates())


@pytest.mark.parametrize("age", [17.9, 95.1])
def test_value_outside_the_trained_range_is_refused_unless_asked(age: float) -> None:
    asked = {**WHOLE, "age_years": age}
    with pytest.raises(UsageError, match="outside the trained range"):
        ask_for(asked, covariates())
    beyond = ask_for(asked, covariates(), extrapolate=True)[0]
    assert beyond == pytest.approx((age - 18) / 77)


@pytest.mark.parametrize(
    ("settings", "secret"),
    [
        (["age_years=107.25"], "107.25"),
        (["sex=107.25x"], "107.25"),
        (["107.25"], "107.25"),
        (["age_years=61.5", "age_years=107.25"], "107.25"),
    ],
)
def test_refusal_names_the_covariate_and_never_its_value(settings: list[str], secret: str) -> None:
    with pytest.raises(UsageError) as refused:
        ask_for({**WHOLE, **parse_settings(settings)}, covariates())
    told = f"{refused.value.what} {refused.value.why} {refused.value.fix}"
    assert secret not in told
    assert secret in " ".join(settings)  # the control
    if len(settings) == 1 and settings[0].startswith("age_years"):
        assert "age_years lies outside" in told
        assert "18 to 95" in told


def test_value_that_is_not_finite_is_refused_even_when_extrapolating() -> None:
    with pytest.raises(UsageError, match="sex is not finite"):
        ask_for({**WHOLE, "sex": float("nan")}, covariates(), extrapolate=True)


def test_unscaling_undoes_scaling() -> None:
    value_BK = np.array([[20.0, 0, 3, 900], [130.0, 1, -5, 2000]])
    back = unscale_values(scale_values(value_BK, covariates()), covariates())
    np.testing.assert_allclose(back, value_BK, rtol=1e-5, atol=1e-4)


def test_settings_understand_words_for_sex() -> None:
    assert parse_settings(["sex=F", "age_years = 70"]) == {"sex": 0.0, "age_years": 70.0}
    assert parse_settings(["sex=male"]) == {"sex": 1.0}
    assert parse_settings(["sex=0.5"]) == {"sex": 0.5}


@pytest.mark.parametrize("texts", [["sex"], ["sex=tall"], ["=3"], ["age_years=1", "age_years=2"]])
def test_setting_that_cannot_be_understood_is_refused(texts: list[str]) -> None:
    with pytest.raises(UsageError):
        parse_settings(texts)


def write(path: Path, *rows: str) -> Path:
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return path


def test_table_asks_row_by_row(tmp_path: Path) -> None:
    table = write(
        tmp_path / "t.tsv", "age\tsex\tventricle_ml\tnote", "70\tF\t40\tx", "61\tM\t20\ty"
    )
    assert read_conditions(table, covariates()) == [
        {"age_years": 70.0, "sex": 0.0, "ventricle_ml": 40.0},
        {"age_years": 61.0, "sex": 1.0, "ventricle_ml": 20.0},
    ]


def test_table_of_a_set_can_be_asked_for_again(tmp_path: Path) -> None:
    table = write(tmp_path / "t.tsv", "asked_age_years\tasked_sex", "70\t0")
    assert read_conditions(table, covariates()) == [{"age_years": 70.0, "sex": 0.0}]


def test_cell_that_cannot_be_understood_is_named(tmp_path: Path) -> None:
    table = write(tmp_path / "t.tsv", "age_years\tsex", "70\tF", "old\tM")
    with pytest.raises(DataError, match=r"row 2 .* age_years"):
        read_conditions(table, covariates())


@pytest.mark.parametrize(
    ("columns", "named"), [("age\tsex", "age_years"), ("asked_age\tsex", "age_years")]
)
def test_cell_of_a_column_by_another_name_is_named(
    columns: str, named: str, tmp_path: Path
) -> None:
    table = write(tmp_path / "t.tsv", columns, "70\tF", "old\tM")
    with pytest.raises(DataError, match=rf"row 2 .* {named}"):
        read_conditions(table, covariates())
    gender = write(tmp_path / "g.tsv", "age\tgender", "70\ttall")
    with pytest.raises(DataError, match=r"row 1 .* sex"):
        read_conditions(gender, covariates())


def test_setting_may_have_the_name_that_tables_use() -> None:
    assert parse_settings(["age=70", "gender=F"]) == {"age_years": 70.0, "sex": 0.0}
    with pytest.raises(UsageError, match="set twice"):
        parse_settings(["age=70", "age_years=71"])
    with pytest.raises(UsageError, match="no covariate height_cm"):  # the control
        ask_for({**WHOLE, **parse_settings(["height_cm=3"])}, covariates())


def test_table_without_a_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises((DataError, CohortError)):
        read_conditions(write(tmp_path / "t.tsv", "age_years\tsex"), covariates())
