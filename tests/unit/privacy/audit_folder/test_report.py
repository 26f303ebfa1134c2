"""The report and the command: what is written, refused and returned."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from markupsafe import escape
from PIL import Image
from pydantic import ValidationError

from tests.unit.privacy.audit_folder.conftest import write_clip, write_png
from vitrael.core.errors import (
    EXIT_OK,
    EXIT_PARTIAL,
    EXIT_REFUSED,
    StorageError,
    UsageError,
    VitraelError,
)
from vitrael.privacy.audit.power import Tally, share_dropped
from vitrael.privacy.audit_folder.auditing import Order, audit_folders
from vitrael.privacy.audit_folder.certificate import judge, plants_taken
from vitrael.privacy.audit_folder.cli import audit_folder
from vitrael.privacy.audit_folder.findings import (
    FORMAT,
    Conspicuous,
    Findings,
    Outcome,
    PlantOutcome,
)
from vitrael.privacy.audit_folder.pair import read_pair
from vitrael.privacy.audit_folder.picture_plants import PICTURE_PLANTS
from vitrael.privacy.audit_folder.report import headline_of, render_page, summarize, tell_ending
from vitrael.privacy.audit_folder.sentences import tell_found, tell_not_estimated


def _folders(root: Path, *, copied: str = "") -> tuple[str, str, str, str]:
    for number in range(3):
        write_png(root / "real" / f"r{number}.png", number)
        write_png(root / "syn" / f"s{number}.png", 50 + number)
    if copied:
        shutil.copy(root / "real" / "r1.png", root / "syn" / copied)
    return str(root / "real"), str(root / "syn"), "--out", str(root / "report")


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(audit_folder, arguments)


def test_too_few_patients_end_with_the_code_of_an_incomplete_audit(tmp_path: Path) -> None:
    result = _run(*_folders(tmp_path))
    assert result.exit_code == EXIT_PARTIAL
    assert "Not estimable" in result.output
    assert "anonymous" in result.output
    document = json.loads((tmp_path / "report" / "audit.json").read_text())
    assert document["format"] == FORMAT
    assert document["exit_code"] == EXIT_PARTIAL
    assert document["conspicuous_share"]["value"] is None


def test_the_last_line_says_the_exit_code_and_why(tmp_path: Path) -> None:
    told = _run(*_folders(tmp_path)).stdout
    last = "Exit code 7: the audit is incomplete, since disguised copies could not be looked for."
    assert told.splitlines()[-1] == last
    (tmp_path / "syn" / "broken.png").write_bytes(b"no picture")
    real, synthetic, *_ = _folders(tmp_path, copied="taken.png")
    again = _run(real, synthetic, "--out", str(tmp_path / "again")).stdout
    assert again.splitlines()[-1] == "Exit code 6: copies were found."
    (tmp_path / "syn" / "taken.png").unlink()
    third = _run(real, synthetic, "--out", str(tmp_path / "third")).stdout
    assert "since files were refused and disguised copies could not" in third.splitlines()[-1]


def test_without_a_filter_the_nearest_by_plain_distance_are_listed(tmp_path: Path) -> None:
    arguments = _folders(tmp_path)
    Image.open(tmp_path / "real" / "r2.png").save(tmp_path / "syn" / "near.jpg", quality=95)
    told = _run(*arguments).stdout
    listed = told.partition("nearest real image by plain distance")[2].splitlines()
    assert listed[1].startswith("  near.jpg ~ r2.png (0.")


def test_a_byte_copy_is_named_and_escaped(tmp_path: Path) -> None:
    name = "<script>alert(1)<img>.png".replace("/", "")
    result = _run(*_folders(tmp_path, copied=name), "--json")
    assert result.exit_code == EXIT_REFUSED
    document = json.loads(result.stdout)
    assert document["same_files"] == [{"real": "r1.png", "synthetic": name, "how": "bytes"}]
    page = (tmp_path / "report" / "audit.html").read_text()
    assert "&lt;script&gt;alert" in page
    assert "<script" not in page
    assert "<img" not in page  # no scan, and nothing of a name
    assert "http" not in page.replace("http-equiv", "")


def test_nothing_is_written_over(tmp_path: Path) -> None:
    arguments = _folders(tmp_path)
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "mine.txt").write_text("mine")
    result = _run(*arguments)
    assert isinstance(result.exception, StorageError)
    assert [one.name for one in (tmp_path / "report").iterdir()] == ["mine.txt"]


def test_refused_images_make_the_audit_incomplete(tmp_path: Path) -> None:
    arguments = _folders(tmp_path)
    (tmp_path / "real" / "broken.png").write_bytes(b"no picture")
    result = _run(*arguments, "--json")
    assert result.exit_code == EXIT_PARTIAL
    document = json.loads(result.stdout)
    assert sum(document["real"]["refused"].values()) == 1
    (refused,) = document["real"]["refused_files"]
    assert refused["file"] == "broken.png"
    assert document["synthetic"]["refused_files"] == []


def test_refused_files_are_named_with_their_reasons(tmp_path: Path) -> None:
    arguments = _folders(tmp_path)
    Image.fromarray(np.full((30, 30), 9, np.uint8)).save(tmp_path / "syn" / "<flat>.png")
    (tmp_path / "syn" / "notes.txt").write_text("nothing")
    told = _run(*arguments).output
    assert "refused in the synthetic folder, 1:\n    <flat>.png: the picture is constant" in told
    assert "real folder, 1" not in told
    page = (tmp_path / "report" / "audit.html").read_text()
    assert "<td>&lt;flat&gt;.png</td><td>the picture is constant" in page
    assert "<td>s0.png</td><td>the" not in page


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (
            ["real", "syn", "--patients", "none.csv"],
            1,
            "the table of patients none.csv cannot be read: there is none at this path. To do: ",
        ),
        (
            ["real", "syn", "--patients", "torn.csv"],
            1,
            "torn.csv names two patients for one file: rows 1 and 2 (the header not counted). To",
        ),
        (
            ["real", "syn", "--out", "torn.csv"],
            1,
            "report cannot be written to the folder torn.csv: it is a file. To do: name another",
        ),
        (
            ["real", "syn", "--out", "torn.csv/report"],
            1,
            "a part of its path is a file. To do: name another folder with --out",
        ),
        (
            ["real", "syn", "--out", "syn"],
            1,
            "there are files in it already, and nothing is written over. To do: name another",
        ),
        (
            ["real", "syn", "--kind", "volume"],
            1,
            "the real folder holds no volumes: it holds 3 pictures. To do: leave --kind out",
        ),
        (
            ["real", "none"],
            2,
            "none at this path. To do: check the path; the real folder comes first",
        ),
        (["real", "syn", "--kind", "film"], 2, "'film' is not one of 'picture', 'clip', 'volume'"),
    ],
)
def test_each_wrong_call_gets_one_sentence_and_its_code(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    says: str,
) -> None:
    _folders(tmp_path)
    (tmp_path / "torn.csv").write_text("file,patient\nr0.png,X\nr0.png,Y\nr1.png,X\n")
    monkeypatch.chdir(tmp_path)
    result = _run(*arguments)
    fault = result.exception
    if isinstance(fault, VitraelError):
        assert fault.exit_code == code
        assert says in str(fault)
    else:
        assert result.exit_code == code
        assert says in result.output
    assert not (tmp_path / "audit-report").exists()


@pytest.mark.parametrize(
    ("patients", "says"),
    [
        (20, "and the real folder has 20; add the images of 19 more patients, or give --rate 0.1"),
        (13, "images of 26 more patients, or give --rate 0.15, which takes 13."),
        (8, "the real folder has 8; add the images of 31 more patients."),
    ],
)
def test_too_few_patients_are_told_what_would_help(
    tmp_path: Path, patients: int, says: str
) -> None:
    arguments = _folders(tmp_path)
    for number in range(3, patients):
        write_png(tmp_path / "real" / f"r{number}.png", number)
    result = _run(*arguments)
    assert result.exit_code == EXIT_PARTIAL
    assert says in result.output


def _with_plants(findings: Findings, *outcomes: PlantOutcome) -> Findings:
    """Return findings as a calibrated filter gives them."""
    certificate = findings.certificate.model_copy(update={"plants": outcomes})
    known = findings.filter.model_copy(update={"calibrated": True, "threshold": 3.0})
    share = share_dropped("conspicuous.share", [Tally(3, 1)], unit="synthetic images", method="x")
    seen = Conspicuous(synthetic="s0.png", real="r1.png", members=("copy", "regions"), score=4.0)
    draft = findings.model_copy(
        update={
            "filter": known,
            "certificate": certificate,
            "conspicuous": (seen,),
            "conspicuous_share": share,
            "chance": 0.5,
        }
    )
    told = {"found": tell_found(draft), "not_estimated": tell_not_estimated(draft)}
    return draft.model_copy(update=told)


def _outcome(name: str, shown: int) -> PlantOutcome:
    plant = PICTURE_PLANTS[name]
    tally = Tally(shown, shown)
    caught = share_dropped(f"power.{name}", [tally], unit="patients", method="x")
    return PlantOutcome(
        name=name,
        says=plant.says,
        must=plant.must,
        demanded=plant.demanded,
        takes=plants_taken(plant),
        caught=caught,
        outcome=judge(plant, tally),
    )


@pytest.fixture
def findings(tmp_path: Path) -> Findings:
    """Of two folders of three pictures, without a filter."""
    real, synthetic, *_ = _folders(tmp_path)
    return audit_folders(*read_pair(Path(real), Path(synthetic)), Order())


def _quiet(findings: Findings, *outcomes: Outcome) -> Findings:
    """Return findings of no copy, with must-catch classes of these outcomes."""
    plants = [_outcome("exact", 60).model_copy(update={"outcome": one}) for one in outcomes]
    known = _with_plants(findings, *plants)
    return known.model_copy(update={"same_files": (), "chance": 0.5})


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        (["not estimable", "not estimable"], EXIT_PARTIAL),
        (["not estimable", "not reached"], EXIT_PARTIAL),
        (["not reached", "not reached"], EXIT_PARTIAL),
        ([], EXIT_PARTIAL),
        (["not estimable", "reached"], EXIT_OK),
        (["reached", "reached"], EXIT_OK),
        (["not reached", "reached"], EXIT_PARTIAL),
    ],
)
def test_a_weaker_filter_never_gets_the_better_exit_code(
    findings: Findings, outcomes: list[Outcome], code: int
) -> None:
    audited = _quiet(findings, *outcomes)
    assert audited.exit_code == code
    gap = "the filter is not shown to catch any class that must be caught"
    if "reached" in outcomes:
        says = audited.certificate.plants[0].says
        gap = f"the filter is not shown to catch {says}, which must be caught"
    assert audited.gaps == ((gap,) if code else ())


def test_conspicuous_images_are_not_called_copies(findings: Findings, tmp_path: Path) -> None:
    many = _quiet(findings, "reached").model_copy(update={"chance": 0.01})
    assert many.exit_code == EXIT_REFUSED
    assert headline_of(many) == "More images than chance explains come near a real patient"
    assert tell_ending(many) == "Exit code 6: more images are conspicuous than chance explains."
    real, synthetic, *_ = _folders(tmp_path, copied="taken.png")  # the control: an equal file
    equal = audit_folders(*read_pair(Path(real), Path(synthetic)), Order())
    assert headline_of(equal) == "Copies of real images were found"
    assert tell_ending(equal) == "Exit code 6: copies were found."


def test_a_class_that_need_not_be_caught_makes_no_audit_whole(findings: Findings) -> None:
    reached = _quiet(findings, "reached")
    (plant,) = reached.certificate.plants
    beside = plant.model_copy(update={"must": False})
    certificate = reached.certificate.model_copy(update={"plants": (beside,)})
    assert reached.model_copy(update={"certificate": certificate}).exit_code == EXIT_PARTIAL


def test_headline_and_page_say_that_an_audit_is_incomplete(findings: Findings) -> None:
    whole, partial = _quiet(findings, "reached"), _quiet(findings, "not reached")
    assert headline_of(whole) == "No more copies were found than chance explains"
    assert headline_of(partial) == (
        "Incomplete: no more copies were found than chance explains, and the filter is not shown "
        "to catch any class that must be caught"
    )
    missed = _quiet(findings, "reached", "not reached")
    assert headline_of(missed).startswith("Incomplete: ")
    shown = ((whole, "none"), (partial, "unknown"), (missed, "unknown"), (findings, "unknown"))
    for audited, frame in shown:
        page = render_page(audited)
        assert f'class="verdict {frame}"' in page
        headline, ending = (escape(one) for one in (headline_of(audited), tell_ending(audited)))
        assert f'<h2 id="verdict">{headline}</h2>\n<p>{ending}</p>' in page
        assert f"Exit code {audited.exit_code}: " in page


def test_findings_of_before_the_plants_were_told_are_still_read(findings: Findings) -> None:
    document = findings.model_dump(mode="json")
    del document["plants"]
    earlier = Findings.model_validate(document)
    assert earlier.plants is None
    assert "one copy of each patient that --plants allowed. Bounds" in render_page(earlier)
    assert "one copy of each of 60 patients at most (--plants). Bounds" in render_page(findings)
    with pytest.raises(ValidationError):
        Findings.model_validate({**document, "format": "vitrael-audit-folder/2"})


def test_plants_that_cannot_show_a_demand_are_told_with_the_number_that_can(
    findings: Findings,
) -> None:
    few = _with_plants(findings, _outcome("blur_2", 60), _outcome("noise_5", 60))
    told = " ".join(few.not_estimated)
    assert "60 plants of a class, one of each patient, show at most 95.1%" in told
    assert "even when all are caught; to show 98% takes 149." in told
    assert "--plants (60)" in told
    assert "to show 95%" not in told  # sixty show it
    enough = _with_plants(findings, _outcome("noise_5", 149))
    assert "show at most" not in " ".join(enough.not_estimated)


def test_measurements_are_told_in_words_and_not_by_their_names(findings: Findings) -> None:
    few = _with_plants(findings, _outcome("dtype_half", 60), _outcome("noise_5", 60))
    told = "\n".join(summarize(few))
    assert "stored in half precision*: 100.0%" in told
    assert "(said so: copy encoder, regions)" in told
    for name in ("dtype_half", "noise_5", "sdedit_10", "latent_blend_90"):
        assert name not in told
    page = render_page(few)
    assert "copy encoder, regions" in page
    assert "98 % (149)" in page


def test_the_filters_choice_and_the_nearest_by_distance_have_names_of_their_own(
    findings: Findings,
) -> None:
    page = render_page(_with_plants(findings, _outcome("blur_2", 60)))
    assert page.count("Real image most like it, by the filter") == 1
    assert page.count('<th scope="col">Nearest by plain distance') == 1
    assert "nearest real image" not in page.lower()


def test_synthetic_images_are_not_counted_as_patients(tmp_path: Path) -> None:
    told = _run(*_folders(tmp_path)).output
    assert "real folder: 3 images of 3 patients" in told
    assert "synthetic folder: 3 images\n" in told
    assert told.count("each file counts as a patient of its own") == 1


def test_clips_are_told_to_have_no_filter(tmp_path: Path) -> None:
    for number in range(3):
        write_clip(tmp_path / "real" / f"r{number}.mp4", number)
        write_clip(tmp_path / "syn" / f"s{number}.mp4", 10 + number)
    result = _run(
        str(tmp_path / "real"), str(tmp_path / "syn"), "--out", str(tmp_path / "report"), "--json"
    )
    assert result.exit_code == EXIT_PARTIAL
    document = json.loads(result.stdout)
    assert "no filter for clips" in document["filter"]["reason"]
    assert len(document["neighbors"]["each"]) == 3


def test_one_folder_twice_is_a_wrong_call(tmp_path: Path) -> None:
    real, _, *rest = _folders(tmp_path)
    result = _run(real, real, *rest)
    assert isinstance(result.exception, UsageError)
    assert not (tmp_path / "report").exists()


def test_help_tells_the_exit_codes() -> None:
    told = " ".join(_run("--help").output.split())
    assert "7 when the audit is incomplete" in told
    assert "6 when copies were found" in told
    assert "1 when a folder, the table or the place of the report cannot be used, 2 for" in told
    assert "60 show 0.95 at most: a demand of 0.98 takes 149, and 0.99 takes 299" in told
