"""The report and the command: what is written, refused and returned."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from tests.unit.privacy.audit_folder.conftest import write_clip, write_png
from vitrael.core.errors import EXIT_PARTIAL, EXIT_REFUSED, StorageError, UsageError
from vitrael.core.records import PatientImages
from vitrael.core.rng import stream
from vitrael.privacy.audit_folder.cli import audit_folder
from vitrael.privacy.audit_folder.closeness import measure_closeness
from vitrael.privacy.audit_folder.findings import FORMAT


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
    assert "broken" not in json.dumps(document["real"])


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


@pytest.mark.parametrize("is_clip", [False, True])
def test_a_copy_lies_at_no_distance_and_a_stranger_at_some(*, is_clip: bool) -> None:
    image = stream(1, "real").random((9, 1, 1, 24, 24)).astype(np.float32)
    real = PatientImages(image, np.zeros((9, 1), np.float32), np.arange(9) // 2, np.arange(9) % 2)
    new = stream(2, "new").random((1, 1, 1, 24, 24)).astype(np.float32)
    found = measure_closeness(
        np.concatenate([image[4:5], new]), real, is_clip=is_clip, rng=stream(1, "closeness")
    )
    assert found is not None
    assert found.nearest_B[0] == 4
    assert found.distance_B[0] < 0.01
    assert found.distance_B[1] > 0.3
    assert len(found.stranger_P) == 5
    assert found.stranger_P.min() > 0.3


def test_one_patient_has_no_stranger() -> None:
    image = stream(1, "real").random((2, 1, 1, 24, 24)).astype(np.float32)
    real = PatientImages(image, np.zeros((2, 1), np.float32), np.zeros(2, np.int64), np.arange(2))
    assert measure_closeness(image, real, is_clip=False, rng=stream(1, "closeness")) is None


def test_dark_pictures_are_compared_without_a_template() -> None:
    image = 0.01 * stream(1, "dark").random((4, 1, 1, 24, 24)).astype(np.float32)
    real = PatientImages(image, np.zeros((4, 1), np.float32), np.arange(4), np.zeros(4, np.int64))
    found = measure_closeness(image[2:3], real, is_clip=False, rng=stream(1, "closeness"))
    assert found is not None
    assert found.nearest_B[0] == 2
