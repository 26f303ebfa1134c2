"""What a person types becomes one condition for each sample, or a sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.factories import models
from vitrael.core.errors import UsageError
from vitrael.core.workbench.request import known_covariates, make_request


def write_table(folder: Path, *rows: str) -> Path:
    path = folder / "wanted.tsv"
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return path


def test_settings_hold_for_all_samples() -> None:
    request = make_request(models.document(), settings=models.ASKED, count=3, seed=4)
    assert request.condition_BK.shape == (3, 4)
    assert (request.condition_BK == request.condition_BK[0]).all()
    assert request.asked[2]["age_years"] == 70
    assert len({request.key(index) for index in range(3)}) == 3


def test_table_and_settings_complete_each_other(tmp_path: Path) -> None:
    table = write_table(tmp_path, "age\tventricle_ml", "30\t10", "80\t60")
    common = ("sex=M", "brain_ml=1300")
    request = make_request(models.document(), settings=common, table=table)
    low, high = models.RANGES["age_years"]
    wanted = [(30 - low) / (high - low), (80 - low) / (high - low)]
    np.testing.assert_allclose(request.condition_BK[:, 0], wanted, rtol=1e-5)
    np.testing.assert_allclose(request.condition_BK[:, 1], 1)


def test_covariate_in_table_and_settings_is_refused(tmp_path: Path) -> None:
    table = write_table(tmp_path, "age\tsex", "30\tF")
    with pytest.raises(UsageError, match="sex is set and stands in the table"):
        make_request(models.document(), settings=("sex=M",), table=table)


def test_count_beside_a_table_is_refused(tmp_path: Path) -> None:
    table = write_table(tmp_path, "age\tsex", "30\tF")
    with pytest.raises(UsageError, match="do not go together"):
        make_request(models.document(), table=table, count=4)


def test_row_outside_the_range_is_refused_unless_asked(tmp_path: Path) -> None:
    table = write_table(tmp_path, "age", "30", "12")
    rest = models.ASKED[1:]
    with pytest.raises(UsageError, match="outside the trained range"):
        make_request(models.document(), settings=rest, table=table)
    request = make_request(models.document(), settings=rest, table=table, extrapolate=True)
    assert request.condition_BK[1, 0] < 0


def test_nothing_is_asked_by_the_null_condition() -> None:
    request = make_request(models.document(dropout=0.1), unconditional=True, count=2)
    assert request.condition_BK.tolist() == [[-1.0] * 4] * 2
    assert request.asked == ()
    with pytest.raises(UsageError, match="cannot be sampled without a condition"):
        make_request(models.document(), unconditional=True)


def test_everything_that_decides_a_sample_is_in_its_name() -> None:
    document = models.document(dropout=0.1)

    def key(**wish: object) -> str:
        return make_request(document, settings=models.ASKED, **wish).key(0)  # type: ignore[arg-type]

    wishes = ({"seed": 1}, {"steps": 9}, {"sampler": "heun"}, {"guidance": 2.0})
    assert len({key(), *(key(**wish) for wish in wishes)}) == 5
    assert key(count=7) == key()


def test_request_carries_what_the_model_says_of_itself() -> None:
    document = models.document()
    origin = document.provenance.model_copy(update={"origin": "imported", "notes": ("look out",)})
    noted = document.model_copy(update={"provenance": origin})
    request = make_request(noted, settings=models.ASKED)
    assert (request.origin, request.notes) == ("imported", ("look out",))
    assert make_request(document, settings=models.ASKED).notes == ()  # the control


def test_set_says_that_its_model_was_asked_beyond_what_it_knows() -> None:
    asked = ("age_years=70", "sex=F", "ventricle_ml=900", "brain_ml=1200")
    beyond = make_request(models.document(), settings=asked, extrapolate=True)
    assert len(beyond.notes) == 1
    assert "ventricle_ml outside the trained range" in beyond.notes[0]
    assert "900" not in beyond.notes[0]
    assert make_request(models.document(), settings=models.ASKED).notes == ()  # the control


def test_what_is_known_may_leave_covariates_out() -> None:
    assert known_covariates(models.document(), ("sex=F",)) == {"sex": 0.0}
    with pytest.raises(UsageError, match="outside the trained range"):
        known_covariates(models.document(), ("age_years=3",))


def test_command_without_extrapolation_advises_none() -> None:
    with pytest.raises(UsageError) as refused:
        known_covariates(models.document(), ("age_years=99",), fix="leave --set out")
    assert refused.value.fix == "leave --set out"
    with pytest.raises(UsageError) as asked:
        make_request(models.document(), settings=("age_years=99", *models.ASKED[1:]))
    assert "--extrapolate" in asked.value.fix  # the control
