"""What a study may ask of its rounds, and what is refused when it is read."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from tests.factories.federation import STUDY
from vitrael.core.errors import StudyError
from vitrael.core.rounds import Federation
from vitrael.core.study import parse_study


def test_defaults_take_the_weighted_mean_of_everybody() -> None:
    section = Federation(quorum=2)
    assert (section.aggregation, section.most_weight, section.software) == ("weighted_mean", 1, "")
    assert (section.norm_bound, section.outliers) == (10, "bound")


@pytest.mark.parametrize(
    ("software", "version", "admitted"),
    [
        ("", "0.1.0", True),
        ("", "anything", True),
        ("==0.1.*", "0.1.7", True),
        ("==0.1.*", "0.1.7.dev3", True),
        ("==0.1.*", "0.2.0", False),
        (">=0.1,<0.3", "0.2.9", True),
        (">=0.1,<0.3", "no version", False),
    ],
)
def test_versions_are_those_of_the_specifier(
    software: str, version: str, *, admitted: bool
) -> None:
    assert Federation(quorum=1, software=software).admits(version) is admitted


@pytest.mark.parametrize("rule", ["median", "trimmed_mean"])
def test_robust_mean_of_fewer_than_three_is_refused(rule: str) -> None:
    with pytest.raises(ValidationError, match="none of fewer than 3 updates"):
        Federation(quorum=2, aggregation=rule)  # type: ignore[arg-type]
    assert Federation(quorum=3, aggregation=rule).aggregation == rule  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("quorum = 2", 'quorum = 2\nsoftware = "0.1"', "software: it is no list of versions"),
        ("quorum = 2", 'quorum = 2\naggregation = "best"', "aggregation: that choice does not"),
        ("quorum = 2", "quorum = 2\nnorm_bound = 0.5", "norm_bound: the number is too small"),
        ("quorum = 2", "quorum = 2\ntrim_frac = 0.5", "trim_frac: the number is too large"),
        ("quorum = 2", 'quorum = 2\naggregation = "median"', "so that quorum must not be smaller"),
        ('"valley"]', '"valley"]\npredecessor = "north"', "predecessor: it is not written like a"),
    ],
)
def test_section_that_cannot_be_used_is_refused_by_its_key(
    old: str, new: str, message: str
) -> None:
    with pytest.raises(StudyError, match=message):
        parse_study(STUDY.replace(old, new).encode(), label="study.toml")
