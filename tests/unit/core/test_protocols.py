"""A study of experts is told apart by its aim, and what is wrong with it by key and remedy."""

from __future__ import annotations

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from tests.factories.own_views import STUDY, VIEWS, experts_study
from vitrael.core.errors import StudyError
from vitrael.core.protocols import KINDS, ExpertsProtocol, SynthesisProtocol, ViewSplits
from vitrael.core.study import Study, load_study, parse_study


@pytest.fixture
def brain(root: Path) -> str:
    return (root / "deploy" / "studies" / "brain-demo.toml").read_text(encoding="utf-8")


def read(text: str) -> Study:
    return parse_study(text.encode(), label="study.toml")


def changed(text: str, old: str, new: str) -> str:
    assert old in text, old
    return text.replace(old, new, 1)


def told(text: str) -> StudyError:
    with pytest.raises(StudyError) as caught:
        read(text)
    error = caught.value
    assert error.exit_code == 3
    assert error.why
    assert error.fix
    return error


def test_study_of_experts_loads_with_what_goes_without_saying() -> None:
    study = read(STUDY)
    protocol = study.experts
    assert isinstance(protocol, ExpertsProtocol)
    assert (protocol.path, protocol.told, protocol.begin) == ("empirical", "means", "fresh")
    assert protocol.data.grid_vox == (16, 16)
    assert (protocol.expert.kind, protocol.fusion.kind) == KINDS["experts"]
    assert {stage: part.rounds for stage, part in protocol.trained.items()} == {
        "expert": 1,
        "averaged": 2,
        "relay": 1,
    }


def test_baselines_are_trained_where_they_are_asked_for_alone() -> None:
    plain = experts_study({"baselines": {}}).experts
    assert list(plain.trained) == ["expert"]
    assert "averaged" in read(STUDY).experts.trained  # the control


def test_example_of_views_loads(root: Path) -> None:
    study = load_study(root / "deploy" / "studies" / "echo-views.toml")
    assert len(study.roster.sites) == 6
    assert study.experts.told == "means"
    assert set(study.roster.labels["bedside"].values()) <= set(study.experts.data.views)


@pytest.mark.parametrize("aim", ["oracle", "expert", "Synthesis", ""])
def test_unknown_aim_is_told_with_the_aims(aim: str) -> None:
    error = told(changed(STUDY, 'aim = "experts"', f'aim = "{aim}"'))
    assert error.what.endswith("protocol.aim")
    assert "synthesis, experts" in error.fix


def test_aim_that_is_no_word_is_told_with_the_aims() -> None:
    assert "synthesis, experts" in told(changed(STUDY, 'aim = "experts"', "aim = 3")).fix


@pytest.mark.parametrize("line", ["", "aims ="])
def test_study_that_does_not_name_its_aim_is_none_of_experts(line: str) -> None:
    text = changed(STUDY, 'aim = "experts"', f'{line} "experts"' if line else "")
    assert told(text).what.startswith("study study.toml: protocol.")
    assert read(STUDY).experts.aim == "experts"  # the control


WRONG = {
    "unknown-kind": (
        'kind = "score_fusion"',
        'kind = "score_fusing"',
        "protocol.systems (number 2).kind",
        "view_expert, score_fusion",
    ),
    "kind-of-the-other-aim": (
        'kind = "score_fusion"\nhidden = 4',
        'kind = "reid_encoder"',
        "protocol.systems (number 2).kind",
        "view_expert, score_fusion",
    ),
    "missing-kind": (
        'kind = "score_fusion"',
        "",
        "protocol.systems (number 2).kind",
        "view_expert, score_fusion",
    ),
    "unknown-key": ("stem_stride = 2", "stem_strid = 2", "(number 1).stem_strid", "remove"),
    "three-stages": ("[4, 4, 8, 8]", "[4, 4, 8]", "(number 1).channels", "four numbers"),
    "choice": ("seed = 5", 'seed = 5\ntold = "everything"', "protocol.told", '"means"'),
    "begin": ("seed = 5", 'seed = 5\nbegin = "last"', "protocol.begin", '"fresh"'),
    "dp": ("seed = 5", 'seed = 5\npath = "dp"', "protocol.path", '"empirical"'),
    "policy": ("seed = 5", 'seed = 5\npolicy = "public"', "protocol.policy", "remove"),
    "recipe": ('"image-2d"', '"brain-t1"', "protocol.data.recipe", '"image-2d"'),
    "small": ("edge_px = 16", "edge_px = 15", "protocol.data.edge_px", "16 or more"),
    "large": ("edge_px = 16", "edge_px = 513", "protocol.data.edge_px", "512 or less"),
    "one-view": (
        '["A2C", "A4C", "PLAX", "PSAX"]',
        '["A4C"]',
        "protocol.data.views",
        "at least 2",
    ),
    "no-word": ('["A2C"', '["A2C/3"', "protocol.data.views (number 1)", "as the documentation"),
    "rounds": ("averaged_rounds = 2", "averaged_rounds = -1", "averaged_rounds", "0 or more"),
    "filter": (
        "training_frac = 0.4",
        "training_frac = 0.4\nfilter_frac = 0.1",
        "protocol.data.splits.filter_frac",
        "remove",
    ),
}


@pytest.mark.parametrize("fault", list(WRONG))
def test_fault_is_told_by_key_and_remedy(fault: str) -> None:
    old, new, key, remedy = WRONG[fault]
    error = told(changed(STUDY, old, new))
    assert key in error.what
    assert ".experts" not in error.what  # no part of the document's own path
    assert remedy in error.fix


SYSTEM = '[[protocol.systems]]\nkind = "{}"\ntraining = {{ length_images = 8 }}\n'


@pytest.mark.parametrize("kind", KINDS["experts"])
def test_each_kind_of_system_stands_once(kind: str) -> None:
    twice = changed(STUDY, "[protocol.baselines]", SYSTEM.format(kind) + "[protocol.baselines]")
    assert f"exactly one of kind {kind}" in told(twice).why
    document = read(STUDY).model_dump(mode="json")
    without = deepcopy(document)
    without["protocol"]["systems"] = [
        s for s in document["protocol"]["systems"] if s["kind"] != kind
    ]
    with pytest.raises(ValueError, match=f"exactly one of kind {kind}"):
        Study.model_validate(without)
    assert Study.model_validate(document) == read(STUDY)  # the control


def test_view_is_named_once() -> None:
    error = told(changed(STUDY, '"PLAX", "PSAX"]', '"PLAX", "A2C"]'))
    assert "protocol.data" in error.what
    assert error.why == "a view is named twice"


@pytest.mark.parametrize("utility", ["0.2", "0.4"])
def test_fractions_of_the_splits_are_a_whole(utility: str) -> None:
    error = told(changed(STUDY, "utility_frac = 0.3", f"utility_frac = {utility}"))
    assert error.what.endswith("protocol.data.splits")
    assert "not 1" in error.why
    # the control: decimal fractions that are a whole up to rounding
    ViewSplits(training_frac=0.7, calibration_frac=0.1, utility_frac=0.2)


def test_labels_are_those_of_a_member() -> None:
    error = told(changed(STUDY, "[roster.labels.north]", "[roster.labels.south]"))
    assert error.what.endswith("roster.labels")
    assert "south is not on the roster" in error.why


def test_label_means_a_view_of_the_study() -> None:
    error = told(changed(STUDY, '"apical 4" = "A4C"', '"apical 4" = "A5C"'))
    assert error.what.endswith("roster.labels.north")
    assert "A5C is no view" in error.why


def test_study_of_a_synthetic_set_has_no_labels(brain: str) -> None:
    labels = '\n[roster.labels.north]\n"head" = "A4C"\n'
    error = told(changed(brain, "\n[performance]", f"{labels}[performance]"))
    assert error.what.endswith("roster.labels.north")
    read(brain)  # the control


BACKMIX = changed(STUDY, "stem_stride = 2", "stem_stride = 2\nbackmix = { sectors_frac = 0.1 }")


def test_backmix_needs_a_recipe_that_finds_sectors() -> None:
    error = told(BACKMIX)
    assert error.what.endswith("protocol.systems")
    assert "image-2d finds none" in error.why
    study = read(changed(BACKMIX, '"image-2d"', '"echo-apical"'))  # the control
    assert study.experts.expert.backmix is not None


def test_labels_enter_the_name_of_the_study_and_not_of_the_protocol() -> None:
    labels = STUDY[STUDY.index("[roster.labels.north]") :]
    with_labels, without = read(STUDY), read(changed(STUDY, labels, ""))
    other = read(changed(STUDY, '"apical 4" = "A4C"', '"apical 4" = "A2C"'))
    assert without.roster.labels == {}
    assert with_labels.protocol.digest == without.protocol.digest == other.protocol.digest
    assert len({with_labels.digest, without.digest, other.digest}) == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 6},
        {"told": "features"},
        {"begin": "first"},
        {"data.edge_px": 32},
        {"data.views": list(reversed(VIEWS))},
        {"baselines.averaged_rounds": 3},
        {"systems.1.hidden": 8},
    ],
)
def test_every_change_of_the_protocol_of_experts_changes_its_name(changes: dict[str, Any]) -> None:
    assert experts_study(changes).protocol.digest != experts_study().protocol.digest
    assert experts_study().protocol.digest == read(STUDY).protocol.digest  # the control


def test_aim_of_a_synthetic_set_goes_without_saying(brain: str) -> None:
    silent = read(brain)
    spoken = read(changed(brain, "[protocol]\n", '[protocol]\naim = "synthesis"\n'))
    assert isinstance(spoken.protocol, SynthesisProtocol)
    assert spoken.digest == silent.digest
    assert spoken.protocol.digest == silent.protocol.digest
    assert "aim" not in spoken.protocol.model_dump()
    assert read(STUDY).protocol.model_dump()["aim"] == "experts"  # the control


@pytest.mark.parametrize("name", ["brain-demo.toml", "echo-views.toml"])
def test_document_that_was_kept_is_the_study_that_it_was(name: str, root: Path) -> None:
    """A consent keeps its study as JSON."""
    study = load_study(root / "deploy" / "studies" / name)
    again = Study.model_validate(study.model_dump(mode="json"))
    assert again == study
    assert again.digest == study.digest
    assert type(again.protocol) is type(study.protocol)


def test_study_gives_the_protocol_of_its_own_aim_alone(brain: str) -> None:
    views, synthetic = read(STUDY), read(brain)
    assert views.experts is views.protocol
    assert synthetic.synthesis is synthetic.protocol
    with pytest.raises(StudyError, match="small-views makes no synthetic set"):
        _ = views.synthesis
    with pytest.raises(StudyError, match="trains no experts"):
        _ = synthetic.experts


def test_arms_of_a_study_without_a_filter_are_refused(brain: str) -> None:
    compared = changed(brain, "[protocol.distillation]", "[protocol.distillation]\ncompare = true")
    assert read(compared).synthesis.distillation.compare  # the control
    off = changed(
        compared, "[protocol.screening]\nenabled = true", "[protocol.screening]\nenabled = false"
    )
    assert "distillation.compare" in told(off).sentence()


@pytest.mark.parametrize("value", ['"yes"', "1", '"off"'])
def test_only_true_and_false_compare_arms(brain: str, value: str) -> None:
    asked = changed(brain, "[protocol.distillation]", f"[protocol.distillation]\ncompare = {value}")
    assert "distillation.compare" in told(asked).sentence()


@pytest.mark.parametrize("value", ['"60"', "true", "60.0"])
def test_counts_of_a_study_are_whole_numbers(brain: str, value: str) -> None:
    asked = re.sub(r"plants_per_class = \d+", f"plants_per_class = {value}", brain)
    assert asked != brain
    assert "audit.plants_per_class" in told(asked).sentence()
