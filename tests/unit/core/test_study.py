"""A study is one frozen document; what is wrong with it is told by file, key and remedy."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from vitrael.core.errors import StudyError
from vitrael.core.protocols import COVARIATES
from vitrael.core.study import Study, explain_fault, load_study


@pytest.fixture
def text(root: Path) -> str:
    return (root / "deploy" / "studies" / "brain-demo.toml").read_text(encoding="utf-8")


def read(folder: Path, text: str) -> Study:
    path = folder / "study.toml"
    path.write_text(text, encoding="utf-8")
    return load_study(path)


def changed(text: str, old: str, new: str) -> str:
    assert old in text, old
    return text.replace(old, new, 1)


SITES = 'sites = ["north", "harbour", "valley"]'

TEACHER = "[protocol.systems.teacher]\nchannels = [32, 64]"
STUDENT = "training = { length_images = 16_000"
LEVELS = "[protocol.systems.student]\nchannels = [32, 64]\nattention_levels = [false, true]"
DEEPER = LEVELS.replace("64]", "64, 64]").replace("true]", "true, true]")
REID = 'kind = "reid_encoder"'
FEDERATION = "[protocol.federation]"
SECOND = f"[[protocol.systems]]\n{REID}\ntraining = {{ length_images = 8 }}"
REID_ROUNDS = "training = { rounds = 2, length_images = 3_000"

WRONG = {
    "unknown-key": ("[protocol.audit]", "[protocol.audit]\ncolour = 1", "protocol.audit.colour"),
    "unknown-section": ("[performance]", "[extra]\na = 1\n[performance]", "extra"),
    "unknown-kind": (
        'kind = "reid_encoder"',
        'kind = "oracle"',
        "protocol.systems (number 2).kind",
    ),
    "missing-kind": (REID, "", "protocol.systems (number 2).kind: the key is missing"),
    "same-kind-twice": (
        "[protocol.federation]",
        f"{SECOND}\n[protocol.federation]",
        "protocol.systems",
    ),
    "misspelled-key": ("quorum = 3", "quorom = 3", "protocol.federation.quorom (and 1 more)"),
    "version-text": ("version = 1", 'version = "1"', "protocol.version"),
    "missing-key": ("quorum = 3", "", "protocol.federation.quorum"),
    "wrong-type": ("quorum = 3", 'quorum = "many"', "protocol.federation.quorum"),
    "out-of-range": ("false_match_rate = 0.05", "false_match_rate = 0.9", "false_match_rate"),
    "same-name": (SITES, 'sites = ["north", "north", "valley"]', "roster"),
    "bad-name": (SITES, 'sites = ["North", "harbour", "valley"]', "roster.sites (number 1)"),
    "no-site": (SITES, "sites = []", "roster.sites"),
    "quorum": ("quorum = 3", "quorum = 4", "correct protocol.federation.quorum"),
    "splits": ("training_frac = 0.50", "training_frac = 0.60", "protocol.data.splits"),
    "grid": ("grid_vox = [24, 24, 24]", "grid_vox = [24, 24, 25]", "protocol.data.grid_vox"),
    "range": ("low = 18.0, high = 95.0", "low = 95.0, high = 18.0", "covariates.age_years"),
    "covariate": ("covariates.sex = { low = 0.0, high = 1.0 }", "", "protocol.data"),
    "policy": ('policy = "rehearsal"', 'policy = "lenient"', "protocol.policy"),
    "dp": ('path = "empirical"', 'path = "dp"', "protocol.path"),
    "plane-model": (
        'kind = "brain_ldm"',
        'kind = "brain_ldm"\ndimensions = 2',
        "protocol.systems",
    ),
    "weights-of-medicalnet": (
        "patch_vox = 2",
        'patch_vox = 2\nperceptual_weight = 0.1\nperceptual = "medicalnet"',
        "protocol.systems",
    ),
    "grid-zero": ("grid_vox = [24, 24, 24]", "grid_vox = [0, 24, 24]", "data.grid_vox (number 1)"),
    "grid-negative": (
        "grid_vox = [24, 24, 24]",
        "grid_vox = [24, -24, 24]",
        "data.grid_vox (number 2)",
    ),
    "spacing-inf": ("spacing_mm = 8.0", "spacing_mm = inf", "data.spacing_mm"),
    "no-licence": ('license = "CC-BY-4.0"', "", "protocol.license"),
    "licence": ('license = "CC-BY-4.0"', 'license = "ask us"', "protocol.license"),
    "deadline-year": ("deadline_s = 900.0", "deadline_s = 3e7", "federation.deadline_s"),
    "deadline-inf": ("deadline_s = 900.0", "deadline_s = inf", "federation.deadline_s"),
    "rate-inf": ("learning_rate = 2e-3", "learning_rate = inf", "codec.training.learning_rate"),
    "range-inf": ("low = 18.0, high = 95.0", "low = 18.0, high = inf", "age_years.high"),
    "range-nan": ("low = 18.0, high = 95.0", "low = nan, high = 95.0", "age_years.low"),
    "codec-groups": ("channels = [24, 48]", "channels = [20, 48]", "norm_groups"),
    "teacher-groups": (TEACHER, TEACHER.replace("64", "60"), "norm_groups"),
    "teacher-negative": (TEACHER, TEACHER.replace("32", "-32"), "teacher.channels (number 1)"),
    "codec-empty": ("channels = [24, 48]", "channels = []", "codec.channels"),
    "reid-zero": (REID, f"{REID}\nchannels = [16, 0]", "systems (number 2).channels (number 2)"),
    "reid-rounds": (REID_ROUNDS, REID_ROUNDS.replace("2,", "0,"), "training.rounds"),
    "student-rounds": (STUDENT, STUDENT.replace("{", "{ rounds = 7,"), "student.training.rounds"),
    "student-levels": (LEVELS, DEEPER, "data.grid_vox"),
    "betas": (TEACHER, f"{TEACHER}\nbeta_start = 0.03", "below beta_end"),
    "steps": (TEACHER, f"{TEACHER}\ntimesteps = 20", "sampling_steps"),
    "critic": ("patch_vox = 2", "patch_vox = 2\ncritic = { layers = 4 }", "protocol.systems"),
}


@pytest.mark.parametrize("fault", list(WRONG))
def test_fault_is_told_with_file_key_and_remedy(fault: str, text: str, tmp_path: Path) -> None:
    old, new, key = WRONG[fault]
    with pytest.raises(StudyError) as caught:
        read(tmp_path, changed(text, old, new))
    error = caught.value
    assert "study.toml" in error.what
    assert key in error.sentence()
    assert error.why
    assert not error.why.endswith(".")  # a part of the sentence
    assert error.fix
    assert error.exit_code == 3


TOLD = {
    "pattern": ('"valley"', '"Valley"', "lower-case letters, digits and hyphens"),
    "most": (
        "deadline_s = 900.0",
        "deadline_s = 3e7",
        "too large. To do: set .* to 604800 or less",
    ),
    "least": ("quorum = 3", "quorum = 0", "too small. To do: set .* to 1 or more"),
    "above": ("spacing_mm = 8.0", "spacing_mm = 0", "set protocol.data.spacing_mm to more than 0"),
    "below": ("false_match_rate = 0.05", "false_match_rate = 0.5", "set .* to less than 0.5"),
    "choice": ('policy = "rehearsal"', 'policy = "x"', 'policy to "rehearsal" or "public"'),
    "only-choice": (STUDENT, STUDENT.replace("{", "{ rounds = 7,"), "rounds to 1"),
    "text": ('name = "brain-demo"', "name = 1", "name to a text in quotes"),
    "whole": ("quorum = 3", "quorum = 2.5", "not a whole number"),
    "switch": ("enabled = true", "enabled = 7", "not true or false"),
    "finite": ("spacing_mm = 8.0", "spacing_mm = inf", "not a finite number"),
    "empty-text": ('purpose = "', 'purpose = ""#', "purpose: the text is empty"),
    "empty-list": (SITES, "sites = []", "give roster.sites at least 1"),
    "two-of-grid": ("[24, 24, 24]", "[24, 24]", "grid_vox: numbers are missing.*three numbers"),
    "one-of-grid": ("[24, 24, 24]", "[24]", "grid_vox: numbers are missing.*three numbers"),
    "four-of-grid": ("[24, 24, 24]", "[24, 24, 24, 24]", "give protocol.data.grid_vox 3 and no"),
    "covariate": ("covariates.sex", "covariates.sax", 'covariates.sax or spell it "age_years",'),
}


@pytest.mark.parametrize("fault", list(TOLD))
def test_limits_are_told_in_words_for_authors(fault: str, text: str, tmp_path: Path) -> None:
    old, new, words = TOLD[fault]
    with pytest.raises(StudyError, match=words) as caught:
        read(tmp_path, changed(text, old, new))
    assert "more)" not in caught.value.what  # one fault is counted once


PYDANTIC = re.compile("Input|should|pattern|valid|character|item|greater|instance|Field")


def replaced(document: Any, value: object) -> Iterator[Any]:
    """Yield a document for each of its keys and entries, with a value in that one's place."""
    for place in list(document if isinstance(document, dict) else range(len(document))):
        held = document[place]
        if isinstance(held, dict | list):
            for inside in replaced(held, value):
                yield document
                del inside
        document[place] = value
        yield document
        document[place] = held


@pytest.mark.parametrize(
    "value", ["", "x y", -1, 0.5, 1e12, math.inf, True, [], [[]], {}, {"a": 1}]
)
def test_no_key_is_refused_in_the_words_of_a_library(value: object, text: str) -> None:
    told = []
    for document in replaced(tomllib.loads(text), value):
        try:
            Study.model_validate(document)
        except ValidationError as error:
            told.append(" ".join(explain_fault(error)))
    assert len(told) > 20
    assert [words for words in told if PYDANTIC.search(words)] == []
    assert PYDANTIC.search("Input should be greater than 0")  # what it would find


@pytest.mark.parametrize("name", ["brain-demo", "brain-leaky"])
def test_studies_that_come_along_are_accepted(name: str, root: Path) -> None:
    generator = load_study(root / "deploy" / "studies" / f"{name}.toml").protocol.generator
    assert generator.student.training.rounds == 1


def test_one_round_may_be_written_out_where_there_is_no_other(text: str, tmp_path: Path) -> None:
    said = changed(text, STUDENT, STUDENT.replace("{", "{ rounds = 1,"))
    assert read(tmp_path, said).digest == read(tmp_path, text).digest


def test_example_is_accepted(text: str, tmp_path: Path) -> None:
    study = read(tmp_path, text)
    assert study.roster.sites == ("north", "harbour", "valley")
    assert set(study.protocol.data.covariates) == set(COVARIATES)


def test_dp_is_refused_because_it_is_not_built_yet(text: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="not built yet"):
        read(tmp_path, changed(text, 'path = "empirical"', 'path = "dp"'))


def test_unknown_kind_names_the_known_ones(text: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"brain_ldm.*reid_encoder"):
        read(tmp_path, changed(text, 'kind = "reid_encoder"', 'kind = "oracle"'))


def test_missing_kind_names_the_known_ones(text: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"kind: the key is missing.*brain_ldm, reid_encoder"):
        read(tmp_path, changed(text, 'kind = "brain_ldm"', ""))


def test_key_is_spelled_as_in_the_document(text: str, tmp_path: Path) -> None:
    with pytest.raises(
        StudyError, match=r"protocol\.systems \(number 1\)\.codec\.training\.learning_rate"
    ):
        read(tmp_path, changed(text, "learning_rate = 2e-3", "learning_rate = -1.0"))


def test_several_faults_are_counted(text: str, tmp_path: Path) -> None:
    both = changed(changed(text, "quorum = 3", "quorum = 0"), "seed = ", "sed = ")
    with pytest.raises(StudyError, match=r"and 2 more"):
        read(tmp_path, both)


def test_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"nowhere\.toml cannot be read: No such file"):
        load_study(tmp_path / "nowhere.toml")


@pytest.mark.parametrize("data", [b"a = = 1", b"\xff\xfe\x00"], ids=["syntax", "encoding"])
def test_file_that_is_no_toml_is_told(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_bytes(data)
    with pytest.raises(StudyError, match="is not TOML"):
        load_study(path)


def test_study_cannot_be_changed(text: str, tmp_path: Path) -> None:
    study = read(tmp_path, text)
    with pytest.raises(ValidationError, match="frozen"):
        study.protocol.seed = 1  # type: ignore[misc]


def test_layout_of_the_file_does_not_change_the_digest(text: str, tmp_path: Path) -> None:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    rewritten = "\n\n".join(lines).replace("6_000", "6000")
    assert read(tmp_path, rewritten).digest == read(tmp_path, text).digest


def test_site_that_joins_changes_the_study_and_not_the_protocol(text: str, tmp_path: Path) -> None:
    before = read(tmp_path, text)
    after = read(tmp_path, changed(text, '"valley"]', '"valley", "hill"]'))
    assert after.protocol.digest == before.protocol.digest
    assert after.digest != before.digest


def test_performance_enters_no_digest(text: str, tmp_path: Path) -> None:
    before = read(tmp_path, text)
    after = read(tmp_path, changed(text, 'device = "cpu"', 'device = "cuda"'))
    assert (after.protocol.digest, after.digest) == (before.protocol.digest, before.digest)
    assert after.performance.device == "cuda"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("seed = 20_250_117", "seed = 1"),
        ("released = 96", "released = 97"),
        ("enabled = true", "enabled = false"),
    ],
)
def test_every_change_of_the_protocol_changes_its_digest(
    old: str, new: str, text: str, tmp_path: Path
) -> None:
    before = read(tmp_path, text)
    assert read(tmp_path, changed(text, old, new)).protocol.digest != before.protocol.digest


def test_critic_that_fits_the_grid_is_accepted(text: str, tmp_path: Path) -> None:
    fitting = changed(text, "patch_vox = 2", "patch_vox = 2\ncritic = { layers = 3 }")
    critic = read(tmp_path, fitting).protocol.generator.codec.critic
    assert critic is not None
    assert critic.least_vox == 24  # the grid's own edge
    with pytest.raises(StudyError, match="edges of at least 48 voxels"):
        read(tmp_path, changed(fitting, "layers = 3", "layers = 4"))
