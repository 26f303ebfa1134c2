"""``vitrael study`` and ``release``: what they explain, refuse, and leave alone."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vitrael.core import cli
from vitrael.core.errors import ProcessError, QuorumError, StorageError, StudyError, VitraelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.unit.conftest import ReleaseFactory

SAMPLE = Path("catalogue") / "brain-demo" / "1"


@pytest.fixture
def demo_study(root: Path) -> Path:
    return root / "deploy" / "studies" / "brain-demo.toml"


def change(study: Path, folder: Path, old: str, new: str) -> Path:
    text = study.read_text()
    assert old in text
    changed = folder / "study.toml"
    changed.write_text(text.replace(old, new))
    return changed


def test_check_explains_a_study(demo_study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["study", "check", str(demo_study)]) == 0
    text = capsys.readouterr().out
    for part in ("north, harbour, valley (quorum 3)", "24x24x24", "one vote a candidate", "256"):
        assert part in text
    assert "OFF" not in text


def test_check_says_when_screening_is_off(
    demo_study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = change(demo_study, tmp_path, "enabled = true", "enabled = false")
    assert cli.run(["study", "check", str(study)]) == 0
    assert "OFF: no candidate is judged, and the gates will refuse" in capsys.readouterr().out


def test_check_names_the_study_in_json(
    demo_study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vitrael.core.study import load_study

    assert cli.run(["study", "check", str(demo_study), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["study"] == load_study(demo_study).digest
    assert document["document"]["protocol"]["name"] == "brain-demo"
    faster = change(demo_study, tmp_path, "\nthreads = 1", "\nthreads = 7")
    assert cli.run(["study", "check", str(faster), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["study"] == document["study"]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("quorum = 3", "quorum = 4", "quorum is larger than the number of sites"),
        ("grid_vox = [24, 24, 24]", "grid_vox = [24, 24, 20]", "multiple of 8"),
        ('kind = "reid_encoder"', 'kind = "oracle"', "the kind is unknown"),
        ("seed = 20_250_117", "seed = 20_250_117\nsede = 1", "the key is unknown"),
        ("target = 192\n", "", "the key is missing"),
        ('path = "empirical"', 'path = "dp"', "not built yet"),
        ("[protocol]", "[protocol", "is not TOML"),
        ("utility_frac = 0.05", "utility_frac = 0.06", "not 1"),
    ],
)
def test_check_names_file_key_and_remedy(
    old: str,
    new: str,
    told: str,
    demo_study: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    study = change(demo_study, tmp_path, old, new)
    assert cli.run(["study", "check", str(study)]) == 3
    shown = capsys.readouterr()
    assert shown.out == ""
    assert str(study) in shown.err
    assert told in shown.err
    assert "To do: " in shown.err


def test_check_of_no_file_is_a_config_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["study", "check", str(tmp_path / "none.toml")]) == 3
    assert "cannot be read" in capsys.readouterr().err


# Recall


@pytest.fixture
def home(releases: ReleaseFactory, pristine_release: Path, tmp_path: Path) -> Path:
    """A coordinator's home that published one release."""
    from vitrael.privacy.release.catalogue import publish
    from vitrael.privacy.release.trust import save_trust

    home = tmp_path / "home"
    releases.coordinator.save(home / "keys")
    save_trust(releases.trust, home / "trust.json")
    publish(pristine_release, home / "catalogue", trust=releases.trust)
    return home


def recall(home: Path, *more: str, name: str = "brain-demo@1", reason: str = "a copy") -> int:
    return cli.run(["release", "recall", name, "--home", str(home), "--reason", reason, *more])


def test_recalled_release_is_refused_from_then_on(
    home: Path, releases: ReleaseFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    from vitrael.core.errors import VerificationError
    from vitrael.privacy.release.verify import verify_release

    verify_release(home / SAMPLE, releases.trust)
    assert recall(home, "--yes") == 0
    assert capsys.readouterr().out == "brain-demo@1 is recalled: a copy\n"
    assert recall(home, "--yes", reason="another") == 1
    assert "is recalled already" in capsys.readouterr().err
    with pytest.raises(VerificationError, match=r"recalled on .*: a copy"):
        verify_release(home / SAMPLE, releases.trust)


def test_dry_run_recalls_nothing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert recall(home, "--dry-run", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document == {"release": "brain-demo@1", "reason": "a copy", "published": False}
    unusable = [recall(home, how, reason=" ") for how in ("--dry-run", "--yes")]
    assert unusable == [2, 2]
    assert capsys.readouterr().err.count("no usable reason") == 2
    assert recall(home, "--dry-run") == 0
    assert capsys.readouterr().out == "brain-demo@1 would be recalled: a copy\n"
    assert not (home / SAMPLE / "RECALLED.json").exists()


def test_recall_that_is_not_confirmed_is_none(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recall(home) == 1  # nobody answers the question
    assert not (home / SAMPLE / "RECALLED.json").exists()
    capsys.readouterr()


@pytest.mark.parametrize("name", ["brain-demo@2", "other@1", "brain-demo", "../brain-demo@1"])
def test_release_that_was_not_published_cannot_be_recalled(
    name: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recall(home, "--yes", name=name) == 2
    assert "Error: " in capsys.readouterr().err
    assert list(home.rglob("RECALLED.json")) == []


def test_recall_without_a_reason_is_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert recall(home, "--yes", reason="  ") == 2
    assert "no usable reason" in capsys.readouterr().err


def test_recall_by_another_key_is_refused(
    home: Path, releases: ReleaseFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(home / "keys")
    releases.keys["stranger"].save(home / "keys")
    assert recall(home, "--yes") == 4
    assert "Error: " in capsys.readouterr().err
    assert not (home / SAMPLE / "RECALLED.json").exists()


def test_demo_of_a_study_that_is_no_toml_is_a_config_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wrong.toml").write_text("[protocol")
    asked = ["--study", str(tmp_path / "wrong.toml"), "--home", str(tmp_path / "home")]
    assert cli.run(["demo", *asked]) == 3
    assert "is not TOML" in capsys.readouterr().err
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("more", [[], ["--resume"]])
def test_demo_that_would_change_a_prepared_home_is_a_usage_error(
    more: list[str], demo_study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(demo_study, tmp_path / "study.toml")
    (tmp_path / "prepared.json").write_text('{"scans": {}, "asked": {"--patients": 160}}')
    assert cli.run(["demo", "--home", str(tmp_path), "--policy", "public", *more]) == 2
    assert "--policy would change it" in capsys.readouterr().err


def test_demo_with_too_few_patients_or_nothing_to_resume_is_a_usage_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["demo", "--patients", "3", "--home", str(tmp_path)]) == 2
    assert cli.run(["demo", "--resume", "--home", str(tmp_path)]) == 2
    assert "holds no prepared demo" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_help_of_the_demo_names_its_exit_codes_and_its_home(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.run(["demo", "--help"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    codes = told.partition("Exit codes: ")[2].partition(" Options:")[0]
    for code in ("0", "1", "2", "3", "6", "7", "130"):
        assert re.search(rf"(?:^|; ){code} \w", codes), code
    assert "[default: demo-home/N" in told


def test_interrupted_demo_says_its_home_and_how_to_go_on(
    demo_study: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vitrael.server import demo_run
    from vitrael.server.demo_run import program

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_run, "run_demo", interrupt)
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "demo-home" / "1"
    home.mkdir(parents=True)
    shutil.copy(demo_study, home / "study.toml")
    (home / "prepared.json").write_text('{"scans": {}, "asked": {"--patients": 160}}')
    again = shlex.join([program(), "demo", "--resume", "--home", str(home)])
    assert Path(program()).exists()
    for more in ([], ["--home", str(home)]):
        assert cli.run(["demo", "--resume", *more]) == 130
        told = capsys.readouterr().err
        assert told.startswith(f"home: {home}\n")
        assert told.endswith(f"To go on where it stopped: {again}\n\nInterrupted.\n")
    assert cli.run(["demo", "--resume", "--json"]) == 130
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == 130


@pytest.mark.parametrize("own", [True, False])
def test_demo_says_how_long_its_own_study_takes_and_the_time_of_each_step(
    demo_study: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    *,
    own: bool,
) -> None:
    from vitrael.server import demo

    def prepare(_: object, *, tell: Callable[[str], None]) -> None:
        tell("drawing phantoms")
        raise StorageError("it is full")

    monkeypatch.setattr(demo, "prepare_demo", prepare)
    study = [] if own else ["--study", str(demo_study)]
    assert cli.run(["demo", "--home", str(tmp_path / "home"), *study]) == 1
    told = capsys.readouterr().err
    assert re.search(r"^ *\d+:\d\d drawing phantoms$", told, re.MULTILINE)
    assert ("about fifteen minutes" in told) is own


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            QuorumError(
                "stage teacher: 0 of 3 sites answered",
                why="site north did not answer within 900 s",
                fix="mend what is named, then run `vitrael study start brain-demo`",
            ),
            (
                "900 s. To do: run `{again}`: what was finished is kept. A site that did not "
                "answer in time was slow: do less else meanwhile."
            ),
        ),
        (ProcessError("it ended"), "it ended. To do: run `{again}`: what was finished is kept."),
        (
            StorageError("it is full", fix="make room"),
            "full. To do: make room; then run `{again}`: what was finished is kept.",
        ),
        (StudyError("it is wrong", fix="mend it"), "it is wrong. To do: mend it."),  # the control
    ],
    ids=lambda value: type(value).__name__,
)
def test_demo_that_failed_says_how_to_go_on(
    error: VitraelError,
    told: str,
    demo_study: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vitrael.server import demo_run
    from vitrael.server.demo_run import program

    def fail(*_: object, **__: object) -> None:
        raise VitraelError(error.sentence()) if isinstance(error, QuorumError) else error

    monkeypatch.setattr(demo_run, "run_demo", fail)
    shutil.copy(demo_study, tmp_path / "study.toml")
    (tmp_path / "prepared.json").write_text('{"scans": {}, "asked": {"--patients": 160}}')
    again = shlex.join([program(), "demo", "--resume", "--home", str(tmp_path)])
    assert cli.run(["demo", "--resume", "--home", str(tmp_path)]) == error.exit_code
    assert capsys.readouterr().err.endswith(told.format(again=again) + "\n")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("version = 1", "version = 2", "no number of this document is too small for them"),
        (
            "plants_per_class = 60",
            "plants_per_class = 59",
            "no number of this document is too small for them",
        ),
        (
            "plants_per_class = 60",
            "plants_per_class = 57",
            "protocol.audit.plants_per_class to 60 or more",
        ),
        ("released = 96", "released = 5", "protocol.distillation.released to 30 or more"),
        (
            'policy = "rehearsal"',
            'policy = "public"',
            (
                "protocol.audit.plants_per_class to 300 or more, "
                "protocol.audit.memorize_images to 128,000 or more, "
                "protocol.distillation.released to 2,995 or more"
            ),
        ),
    ],
)
def test_study_too_small_for_its_gates_is_told_so(
    old: str,
    new: str,
    told: str,
    demo_study: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    study = str(change(demo_study, tmp_path, old, new))
    assert cli.run(["study", "check", study]) == 0
    assert told in capsys.readouterr().out
    assert cli.run(["study", "check", study, "--json"]) == 0
    too_small = json.loads(capsys.readouterr().out)["too_small"]
    said = ", ".join(f"{key} to {least:,} or more" for key, least in too_small.items())
    assert said == (told if "or more" in told else "")


def test_drops_by_chance_are_told_beside_those_of_the_filter(
    demo_study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["study", "check", str(demo_study)]) == 0
    assert "3% more by chance" in capsys.readouterr().out
    off = change(demo_study, tmp_path, "enabled = true", "enabled = false")
    assert cli.run(["study", "check", str(off)]) == 0
    told = capsys.readouterr().out
    assert "by chance" not in told  # the control
    assert "set protocol.screening.enabled to true" in told
