"""What a study of experts asks of its sites is told before anybody consents."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.factories.experts_study import write_study
from vitrael.core.study import Study, load_study, parse_study
from vitrael.privacy.leakage import SMALLEST_COUNT
from vitrael.server.explaining import explain_study, find_shortfalls


@pytest.fixture
def demo(root: Path) -> Study:
    """The bundled study, which makes a synthetic set."""
    return load_study(root / "deploy" / "studies" / "brain-demo.toml")


def read(text: str) -> Study:
    return parse_study(text.encode(), label="tiny")


def rows_of(study: Study) -> dict[str, str]:
    """Return name -> sentence of what is told of a study."""
    lines = explain_study(study).splitlines()
    width = max(len(name) for name in ("held against", "leaves a site"))
    rows = {line[:width].strip(): line[width:].strip() for line in lines}
    assert len(rows) == len(lines)
    return rows


def test_means_are_told_with_their_smallest_count_and_noise() -> None:
    told = rows_of(read(write_study()))["told"]
    assert told.startswith(f"means by view, of views with {SMALLEST_COUNT} patients or more")
    assert "noise of" in told


def test_features_of_single_pictures_are_told_in_capitals() -> None:
    shouted = "THE FEATURES OF EVERY SINGLE PICTURE"
    assert shouted in rows_of(read(write_study(told="features")))["told"]
    assert shouted not in explain_study(read(write_study()))  # the control


def test_words_of_sites_are_told_with_what_they_mean() -> None:
    labels = {"harbour": {"apical 4": "A4C"}, "valley": {"long": "PLAX", "short": "PSAX"}}
    assert rows_of(read(write_study(labels=labels)))["words"] == (
        "apical 4 of harbour is A4C; long of valley is PLAX; short of valley is PSAX"
    )
    assert rows_of(read(write_study(labels={})))["words"] == "every site uses those of the study"


@pytest.mark.parametrize(
    ("rounds", "in_turn", "told"),
    [
        (3, True, "averaged over the sites in 3 rounds and trained at one site after the other"),
        (2, False, "averaged over the sites in 2 rounds"),
        (0, True, "trained at one site after the other"),
        (0, False, ""),
    ],
)
def test_rivals_that_were_asked_for_are_told_and_no_others(
    rounds: int, in_turn: object, told: str
) -> None:
    text = write_study(rounds=rounds)
    if not in_turn:
        assert "in_turn = true" in text
        text = text.replace("in_turn = true", "in_turn = false")
    rivals = f"experts without fusion and {told}" if told else "experts without fusion"
    assert rows_of(read(text))["held against"] == rivals


def test_what_leaves_and_comes_down_and_who_takes_part_is_told() -> None:
    study = read(write_study(quorum=2))
    rows = rows_of(study)
    assert rows["sites"] == "north, harbour, valley (quorum 2)"
    assert rows["study"] == f"tiny-views 1, {study.digest}"
    assert rows["protocol"].startswith(study.protocol.digest)
    assert rows["pictures"] == "recipe image-2d, 24x24 pixels"
    assert rows["views"] == "A2C, A4C, PLAX, PSAX"
    assert rows["expert"] == "64 images a site in 1 round"
    assert "weights of its expert" in rows["leaves a site"]
    assert "every expert" in rows["comes down"]
    assert "nothing is released, so no gate is asked" in rows["path"]


def test_nothing_of_a_synthetic_set_is_told(demo: Study) -> None:
    of_a_set = set(rows_of(demo)) - {"path", "leaves a site", "comes down"}
    own = set(rows_of(read(write_study())))
    assert of_a_set & own == {"study", "protocol", "purpose", "sites"}
    assert {"gates", "screening", "teacher"} <= of_a_set  # the control


def test_answers_beyond_the_votes_are_told_where_arms_are_compared(demo: Study) -> None:
    asked = demo.model_dump(mode="json")
    asked["protocol"]["distillation"]["compare"] = True
    study = Study.model_validate(asked)
    told = rows_of(study)["arms"]
    compared = study.synthesis.distillation.compared
    assert told.startswith(f"of {compared} samples each of teacher")
    # Five counts of 0 to all samples have so many values, and each answer halves what is left.
    most = ((compared + 1) ** 5).bit_length() - 1
    assert f"no cap on votes covers; up to {most} single answers" in told
    assert "arms" not in rows_of(demo)  # the control


def test_a_single_drop_is_all_that_proves_nothing(demo: Study) -> None:
    screening = rows_of(demo)["screening"]
    assert "a single drop proves nothing; drops of several like images together do" in screening
    assert "5% of held-out patients" in screening


def test_no_gate_asks_experts_for_more(demo: Study) -> None:
    assert find_shortfalls(read(write_study())) == {}
    few = demo.model_dump(mode="json")
    few["protocol"]["distillation"]["released"] = 4
    assert find_shortfalls(Study.model_validate(few))  # the control
