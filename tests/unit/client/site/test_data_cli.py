"""``vitrael site ingest``, ``withdraw``, ``cache``, ``deidentify``: codes, streams and schemas."""

from __future__ import annotations

import io
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.factories.intake import (
    KEY,
    files_below,
    make_home,
    manifest_of,
    write_brain,
    write_brains,
    write_dicom_echo,
    write_pictures,
    write_slices,
)
from vitrael.client.site import data_cli
from vitrael.client.site.ingest import dicom_copies, dicom_folder, pipeline
from vitrael.client.site.ingest.places import Home
from vitrael.client.site.ingest.pool import Pool
from vitrael.core.cli import run
from vitrael.core.data.manifest import pseudonym_of
from vitrael.core.data.recipes import RECIPES
from vitrael.core.errors import EXIT_OK, EXIT_PARTIAL

BRAIN = ("--recipe", "brain-t1", "--grid", "16x16x16", "--spacing-mm", "12")
REPORT_KEYS = {
    *("cohort", "recipe", "version", "digest", "changed", "files", "series", "items", "patients"),
    *("read", "left_out", "removed", "findings", "notes", "report"),
}
LEFT_OUT_KEYS = {"reason", "expected", "groups", "files", "numbers"}


@dataclass(frozen=True)
class Said:
    """What a command said, and the code that it ended with."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do all work in this process: what processes are like is tested elsewhere."""

    def make_pool(work: Any, *, processes: int) -> Pool[Any, Any]:
        return Pool(work, processes=min(processes, 0))

    for module in (pipeline, dicom_folder, dicom_copies):
        monkeypatch.setattr(module, "Pool", make_pool)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    write_brains(tmp_path / "scans")
    return tmp_path / "scans"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return make_home(tmp_path / "home")


class Call:
    """Runs a command of ``vitrael site`` as a terminal would."""

    def __init__(self, home: Home, capsys: pytest.CaptureFixture[str]) -> None:
        self._home = home
        self._capsys = capsys

    def __call__(self, *arguments: object) -> Said:
        self._capsys.readouterr()
        code = run(["site", *map(str, arguments), "--home", str(self._home.folder)])
        out, err = self._capsys.readouterr()
        return Said(code, out, err)


@pytest.fixture
def call(home: Home, capsys: pytest.CaptureFixture[str]) -> Call:
    return Call(home, capsys)


def test_names_of_recipes_are_those_of_the_table() -> None:
    assert tuple(RECIPES) == data_cli.RECIPE_NAMES


def test_intake_tells_what_it_did(scans: Path, home: Home, call: Call) -> None:
    said = call("ingest", scans, *BRAIN)
    assert said.code == EXIT_OK
    assert "taken in   3 items of 3 patients, 3 read now" in said.out
    assert manifest_of(home).digest in said.out
    assert "reading images" in said.err
    assert "reading images" not in said.out
    again = call("ingest", scans, *BRAIN)
    assert (again.code, "0 read now" in again.out, "as before" in again.out) == (0, True, True)


def test_partial_intake_ends_with_its_own_code(scans: Path, call: Call) -> None:
    (scans / "sub-X_T1w.nii.gz").touch()
    (scans / "notes.txt").touch()
    said = call("ingest", scans, *BRAIN)
    assert said.code == EXIT_PARTIAL
    assert "left out: 1 file\n" in said.out
    assert "it cannot be used: the file is empty (number 5)" in said.out
    assert "not for this recipe: 1 file\n" in said.out
    (scans / "sub-X_T1w.nii.gz").unlink()
    assert call("ingest", scans, *BRAIN).code == EXIT_OK


@pytest.mark.parametrize("has_paths", [False, True])
def test_json_has_one_schema(scans: Path, call: Call, *, has_paths: bool) -> None:
    bad = scans / "sub-X_T1w.nii.gz"
    bad.touch()
    write_slices(scans / "pacs", 5)
    (scans / "notes.txt").touch()
    said = call("ingest", scans, *BRAIN, "--json", *(["--paths"] if has_paths else []))
    assert said.code == EXIT_PARTIAL
    document = said.document
    assert document.keys() == REPORT_KEYS
    assert (document["items"], document["patients"], document["read"]) == (4, 4, 5)
    assert (document["files"], document["series"], document["version"]) == (21, 5, 1)
    assert document["recipe"]["grid_vox"] == [16, 16, 16]
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", document["digest"])
    assert document["removed"]["(0010,1040)"] == 1
    wrong, usual = document["left_out"]
    assert wrong.keys() == LEFT_OUT_KEYS | ({"paths"} if has_paths else set())
    assert (wrong["expected"], wrong["files"], wrong["numbers"]) == (False, 1, [21])
    assert (usual["expected"], usual["reason"]) == (True, "a text")
    assert wrong.get("paths") == ([str(bad)] if has_paths else None)
    assert ("sub-X" in said.out + said.err) is has_paths


def test_paths_are_named_on_the_terminal_alone_when_asked_for(scans: Path, call: Call) -> None:
    path = scans / "Müller\nKlara_T1w.nii.gz"
    path.touch()
    plain, asked = call("ingest", scans, *BRAIN), call("ingest", scans, *BRAIN, "--paths")
    assert "Klara" not in plain.out + plain.err
    assert repr(str(path)) in asked.out, "one line, whatever the name holds"


def test_dry_run_tells_and_writes_nothing(scans: Path, home: Home, call: Call) -> None:
    write_slices(scans / "pacs", 5)
    new = Call(Home(home.folder.parent / "new"), call._capsys)
    said = new("ingest", scans, *BRAIN, "--dry-run", "--json")
    assert said.code == EXIT_OK
    assert not (home.folder.parent / "new").exists()
    assert said.document.keys() == REPORT_KEYS
    assert (said.document["items"], said.document["read"]) == (4, 0)
    assert (said.document["version"], said.document["digest"]) == (0, "")
    assert "to take in 4 items" in new("ingest", scans, *BRAIN, "--dry-run").out
    call("ingest", scans, *BRAIN)
    before = files_below(home.folder)
    write_brain(scans / "sub-09_T1w.nii.gz", 9)
    (scans / "empty").touch()
    assert call("ingest", scans, *BRAIN, "--dry-run").code == EXIT_PARTIAL
    assert files_below(home.folder) == before


def test_everything_that_a_command_writes_is_the_users_alone(scans: Path, call: Call) -> None:
    before = os.umask(0)
    try:
        new = Call(Home(scans.parent / "new"), call._capsys)
        assert new("ingest", scans, *BRAIN).code == EXIT_OK
    finally:
        os.umask(before)
    folder = scans.parent / "new"
    assert {path.stat().st_mode & 0o077 for path in (folder, *folder.rglob("*"))} == {0}


USAGE: dict[str, tuple[str, ...]] = {
    "no recipe": (),
    "a recipe and a study": ("--recipe", "brain-t1", "--study", "study.toml"),
    "a grid beside a study": ("--study", "study.toml", "--grid", "16x16x16"),
    "a grid that is none": ("--recipe", "brain-t1", "--grid", "16by16"),
    "a recipe that is none": ("--recipe", "brain-t9"),
    "a name that leads out": (*BRAIN, "--cohort", "../other"),
    "no process": (*BRAIN, "--workers", "0"),
}
CONFIG: dict[str, tuple[str, ...]] = {
    "a grid of two axes": ("--recipe", "brain-t1", "--grid", "16x16"),
    "a grid of few voxels": ("--recipe", "brain-t1", "--grid", "4x4x4"),
    "a plane that is no square": ("--recipe", "image-2d", "--grid", "16x32"),
    "a spacing of a plane": ("--recipe", "image-2d", "--spacing-mm", "1"),
    "a spacing beyond any": ("--recipe", "brain-t1", "--spacing-mm", "99"),
    "a study that is not there": ("--study", "nowhere.toml"),
}


@pytest.mark.parametrize(
    ("options", "code"),
    [
        *(pytest.param(options, 2, id=name) for name, options in USAGE.items()),
        *(pytest.param(options, 3, id=name) for name, options in CONFIG.items()),
    ],
)
def test_wrong_options_are_told_before_anything_is_written(
    options: tuple[str, ...], code: int, scans: Path, home: Home, call: Call
) -> None:
    before = files_below(home.folder)
    said = call("ingest", scans, *options, "--json")
    assert said.code == code
    assert said.document["error"]["exit_code"] == code
    assert said.document["error"]["what"]
    assert files_below(home.folder) == before


def test_folder_and_home_that_are_none_are_told(scans: Path, tmp_path: Path, call: Call) -> None:
    missing = call("ingest", tmp_path / "nowhere", *BRAIN)
    assert (missing.code, "does not exist" in missing.err) == (2, True)
    (tmp_path / "empty").mkdir()
    empty = call("ingest", tmp_path / "empty", *BRAIN, "--json")
    assert (empty.code, empty.document["error"]["kind"]) == (1, "CohortError")
    elsewhere = Call(Home(scans), call._capsys)
    used = elsewhere("ingest", tmp_path / "empty", *BRAIN)
    assert (used.code, "is no home of a site" in used.err) == (2, True)
    assert len(files_below(scans)) == 3


@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_intake_of_nothing_is_a_failure(
    options: tuple[str, ...], tmp_path: Path, call: Call
) -> None:
    root = tmp_path / "broken"
    root.mkdir()
    path = root / ("sub-X_T1w.nii.gz" if not options else "notes.txt")
    path.touch()
    said = call("ingest", root, *BRAIN, "--json", *options)
    assert (said.code, said.document["items"], said.document["digest"]) == (1, 0, "")
    assert "nothing in the folder could be taken in" in said.err
    write_brains(root)
    assert call("ingest", root, *BRAIN, *options).code == (EXIT_OK if options else EXIT_PARTIAL)


def test_cohort_of_another_folder_needs_a_word(scans: Path, tmp_path: Path, call: Call) -> None:
    call("ingest", scans, *BRAIN)
    write_brains(tmp_path / "others", range(5, 7))
    refused = call("ingest", tmp_path / "others", *BRAIN)
    assert (refused.code, "--replace" in refused.err) == (2, True)
    assert call("ingest", tmp_path / "others", *BRAIN, "--replace").code == EXIT_OK


def test_study_says_what_images_are_brought_to(
    scans: Path, study_file: Path, home: Home, call: Call
) -> None:
    assert call("ingest", scans, "--study", study_file).code == EXIT_OK
    assert manifest_of(home).recipe.grid_vox == (32, 32, 32)
    assert manifest_of(home).recipe.spacing_mm == 8.0


def test_mask_that_is_none_is_told(tmp_path: Path, call: Call) -> None:
    write_pictures(tmp_path / "pictures")
    said = call(
        *("ingest", tmp_path / "pictures", "--recipe", "image-2d"),
        *("--pixel-mask", tmp_path / "nothing.png"),
    )
    assert (said.code, "pixel mask cannot be read" in said.err) == (1, True)


@pytest.fixture
def taken(scans: Path, call: Call) -> Path:
    assert call("ingest", scans, *BRAIN).code == EXIT_OK
    return scans


def type_in(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a text come through a pipe."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode()), "utf-8"))


@pytest.mark.usefixtures("taken")
def test_patient_is_withdrawn_by_name(home: Home, call: Call) -> None:
    before = files_below(home.folder)
    digest = manifest_of(home).digest
    foreseen = call("withdraw", "sub-01", "--dry-run")
    told = f"1 item in main\ncohort main, version 1: {digest}\n"
    assert (foreseen.code, foreseen.out) == (0, told)
    assert files_below(home.folder) == before
    said = call("withdraw", "sub-01", "--yes")
    assert (said.code, "1 file removed" in said.err) == (0, True)
    assert "cannot be called back" in said.err
    assert digest in said.out
    assert "--cohort-version DIGEST" in said.err
    assert home.read_withdrawn() == {pseudonym_of("sub-01", key=KEY)}
    assert len(manifest_of(home).items) == 2
    again = call("withdraw", "sub-01", "--yes", "--json")
    held = [{"cohort": "main", "version": 1, "digest": digest}]
    none = {"items": 0, "cohorts": [], "files": 0, "bytes": 0}
    assert again.document == {**none, "known": True, "versions": held, "versions_forgotten": []}


@pytest.mark.usefixtures("taken")
def test_patient_is_withdrawn_by_a_name_from_a_pipe(
    home: Home, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    type_in("\n", monkeypatch)
    assert call("withdraw", "-", "--yes", "--json").document["error"]["exit_code"] == 2
    type_in("sub-01\n", monkeypatch)
    said = call("withdraw", "-", "--yes", "--json")
    assert (said.document["items"], said.document["versions_forgotten"]) == (1, [])
    assert len(said.document) == 7
    assert home.read_withdrawn() == {pseudonym_of("sub-01", key=KEY)}


@pytest.mark.usefixtures("taken")
def test_nobody_is_withdrawn_without_a_yes(
    home: Home, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_below(home.folder)
    for answer in ("n\n", ""):
        type_in(answer, monkeypatch)
        said = call("withdraw", "sub-01")
        assert said.code == 1
        assert "Nothing was done" in said.err
        type_in(answer, monkeypatch)
        asked = call("withdraw", "sub-01", "--json")
        assert "1 item in main" in asked.err, "told before it is asked"
        assert asked.document["error"]["exit_code"] == 1
    assert files_below(home.folder) == before


def test_unknown_patient_and_no_patient_are_told(home: Home, call: Call) -> None:
    said = call("withdraw", "nobody", "--dry-run")
    assert "no cohort holds this patient" in said.out
    assert call("withdraw", " ", "--yes").code == 2
    assert "no cohort holds" in call("withdraw", "\udcfcber", "--dry-run").out, "bytes, no text"
    assert home.read_withdrawn() == frozenset()
    elsewhere = Call(Home(home.folder / "else"), call._capsys)
    for command in (("withdraw", "nobody", "--yes"), ("cache", "ls"), ("cache", "gc")):
        assert elsewhere(*command).code == 2
    assert not (home.folder / "else").exists()


@pytest.mark.usefixtures("taken")
def test_caches_are_listed_and_cleared(home: Home, call: Call) -> None:
    (cohort,) = call("cache", "ls", "--json").document["cohorts"]
    assert cohort == {
        "name": "main",
        "recipe": "brain-t1",
        "version": 1,
        "patients": 3,
        "items": 3,
        "image_bytes": 3 * 8320,
        "latent_bytes": 0,
        "orphan_bytes": 0,
        "digest": manifest_of(home).digest,
    }
    code = "ab" + "0" * 62
    orphan = home.cohort("main").shards / "ab" / f"{code}.safetensors"
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(bytes(1 << 21))
    assert "2.0 MiB to clear" in call("cache", "ls").out
    assert call("cache", "gc", "--dry-run").out == "1 file, 2.0 MiB would be removed\n"
    assert orphan.exists()
    assert call("cache", "gc", "--older-than", "5").out == "0 files, 0.0 MiB removed\n"
    assert call("cache", "gc", "--json").document == {"files": 1, "bytes": 1 << 21}
    assert not orphan.exists()
    assert [call("cache", "gc", "--older-than", days).code for days in ("-1", "nan")] == [2, 2]


def test_home_without_a_cohort_says_how_to_make_one(call: Call) -> None:
    assert "vitrael site ingest PATH" in call("cache", "ls").out
    assert call("cache", "ls", "--json").document == {"cohorts": []}


def test_copies_are_counted(tmp_path: Path, call: Call) -> None:
    root, out = tmp_path / "pacs", tmp_path / "copies"
    write_slices(root, 1)
    said = call("deidentify", root, out, "--json")
    assert (said.code, said.document.keys()) == (0, {"files", "copies", "removed", "left_out"})
    assert [said.document[key] for key in ("files", "copies", "left_out")] == [16, 16, []]
    assert call("deidentify", root, out).code == 2
    assert "may not lie in the folder" in call("deidentify", root, root / "copies").err
    assert not (root / "copies").exists()
    write_dicom_echo(root / "echo", 2)
    partly = call("deidentify", root, tmp_path / "more")
    assert partly.code == EXIT_PARTIAL
    assert "copied: 16 of 17 files" in partly.out
    assert "burned-in text cannot be ruled out" in partly.out
    assert str(root) not in partly.out
    write_dicom_echo(tmp_path / "us" / "echo", 2)
    vain = call("deidentify", tmp_path / "us", tmp_path / "vain", "--json")
    assert (vain.code, vain.document["copies"], "could be copied" in vain.err) == (1, 0, True)
    named = call("deidentify", root, tmp_path / "again", "--paths")
    assert str(root / "echo") in named.out
    (tmp_path / "empty").mkdir()
    assert call("deidentify", tmp_path / "empty", tmp_path / "none").code == 1
