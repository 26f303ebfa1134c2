"""A home is made once, its cohorts hold still under a steward, and damage is told with a remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.factories.intake import (
    KEY,
    NOW,
    files_below,
    manifest_of,
    take_in,
    write_brain,
    write_brains,
)
from vitrael.client.site import listener
from vitrael.client.site.ingest import places
from vitrael.client.site.ingest.keeping import sweep_caches
from vitrael.client.site.ingest.places import SPLIT_KEY, Home
from vitrael.client.site.ingest.withdraw import find_patient, remove_patient
from vitrael.client.site.settings import SiteDocument, SiteSettings
from vitrael.core.cli import run
from vitrael.core.data.cache import write_private
from vitrael.core.errors import CohortError, ProcessError, StorageError, UsageError


@pytest.fixture
def home(home: Home, scans: Path) -> Home:
    take_in(scans, home)
    return home


def settings_of(home: Home) -> SiteSettings:
    return SiteSettings(home.folder, SiteDocument(name="north"))


def test_two_commands_that_make_one_home_at_once_have_one_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Home.find_key
    others: list[bytes] = []

    def find_too_early(self: Home) -> bytes | None:
        found = real(self)
        monkeypatch.setattr(Home, "find_key", real)
        others.append(Home(self.folder).key())  # the other one is faster
        return found

    monkeypatch.setattr(Home, "find_key", find_too_early)
    home = Home(tmp_path / "home")
    assert [home.key()] == others == [home.find_key()]
    assert Home(tmp_path / "second").key() not in others, "control: a key is drawn, not fixed"


@pytest.mark.parametrize(
    "begun", ["keys/.partial-0123", "home.lock", "keys/", "spool/in/", "flower/node/"]
)
def test_home_whose_making_was_interrupted_is_made_by_the_next(tmp_path: Path, begun: str) -> None:
    home = Home(tmp_path / "home")
    path = home.folder / begun
    path.parent.mkdir(parents=True)
    path.mkdir() if begun.endswith("/") else path.touch()
    assert home.find_key() is None
    assert len(home.key()) == len(KEY)


@pytest.mark.parametrize("held", ["keys/signing.pem", "notes.txt", "cohorts/", "flower"])
def test_folder_of_something_else_gets_no_key(tmp_path: Path, held: str) -> None:
    home = Home(tmp_path / "home")
    path = home.folder / held
    path.parent.mkdir(parents=True)
    path.mkdir() if held.endswith("/") else path.touch()
    for ask in (home.find_key, home.key):
        with pytest.raises(UsageError, match="is no home of a site"):
            ask()
    assert not (home.folder / "home.lock").exists()


@pytest.mark.parametrize("length", [0, 5, 31, 33])
def test_damaged_key_is_refused_before_anything_else(
    length: int, scans: Path, home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    remove_patient(home, find_patient(home, "sub-01"))
    key = home.folder / "keys" / SPLIT_KEY
    key.write_bytes(KEY[:length].ljust(length, b"\n"))
    home.cohort("main").manifest.write_text("{")  # damage that would be told after it
    before = files_below(home.folder)
    brain = ("--recipe", "brain-t1", "--grid", "16x16x16", "--spacing-mm", "12")
    write_brains(tmp_path / "others")
    for command in (
        ("ingest", scans, *brain),
        ("ingest", scans, *brain, "--dry-run"),
        ("ingest", tmp_path / "others", *brain, "--replace"),
        ("withdraw", "sub-01", "--yes"),
        ("deidentify", scans, tmp_path / "copies"),
    ):
        assert run(["site", *map(str, command), "--home", str(home.folder)]) == 4
        said = capsys.readouterr().err
        assert f"key keys/split.key is damaged: it holds {length} bytes and not 32" in said
        assert "from a backup" in said
    assert files_below(home.folder) == before
    key.write_bytes(KEY)
    home.cohort("main").manifest.unlink()
    assert take_in(scans, home).items == 2, "control: with the key whoever was withdrawn stays out"


def test_lock_that_is_never_let_go_is_told(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_PATIENCE_S", 0.0)
    with home._locked(), pytest.raises(StorageError, match="the site's home is held by another"):
        home.add_withdrawn(["p-1"])
    home.add_withdrawn(["p-1"])
    assert home.read_withdrawn() == {"p-1"}


def test_no_cohort_is_changed_while_a_steward_runs(scans: Path, home: Home) -> None:
    write_brain(scans / "sub-07_T1w.nii.gz", 7)
    with listener._only_one(settings_of(home)):
        before = files_below(home.folder)
        with pytest.raises(StorageError, match="while the site's steward runs") as refusal:
            take_in(scans, home)
        assert "end the steward" in refusal.value.fix
        with pytest.raises(StorageError, match="while the site's steward runs"):
            remove_patient(home, find_patient(home, "sub-01"))
        assert files_below(home.folder) == before
        assert home.read_withdrawn() == frozenset()
    assert take_in(scans, home).items == 4
    remove_patient(home, find_patient(home, "sub-01"))
    assert len(manifest_of(home).items) == 3


def test_no_steward_starts_while_a_cohort_is_changed(scans: Path, home: Home) -> None:
    refusals: list[str] = []

    def start(*_: object) -> None:
        with pytest.raises(ProcessError) as refusal, listener._only_one(settings_of(home)):
            pass
        refusals.append(refusal.value.sentence())

    take_in(scans, home, tell=start)
    assert refusals
    assert all("a cohort of site north is being changed" in said for said in refusals)
    with listener._only_one(settings_of(home)):  # control: afterwards it does
        pass


def test_commands_on_two_cohorts_do_not_wait_for_each_other(scans: Path, home: Home) -> None:
    with home.without_steward():
        assert take_in(scans, home, name="second").items == 3


def test_latents_are_cleared_while_a_steward_runs(home: Home) -> None:
    with listener._only_one(settings_of(home)):
        assert sweep_caches(home, now=NOW, older_than_days=0, dry_run=False).files == 0


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "vitrael/manifest/1"}'])
def test_damaged_manifest_is_told_before_the_work_and_with_a_remedy_that_works(
    text: str, scans: Path, home: Home
) -> None:
    place = home.cohort("main")
    whole = manifest_of(home)
    place.manifest.write_text(text)
    told: list[str] = []
    with pytest.raises(CohortError, match="the manifest of cohort main") as refusal:
        take_in(scans, home, tell=lambda what, *_: told.append(what))
    assert "remove it and take the folder in again" in refusal.value.fix
    assert told == []
    with pytest.raises(CohortError, match="the manifest of cohort main"):
        find_patient(home, "sub-01")
    place.manifest.unlink()
    report = take_in(scans, home)
    assert (report.digest, report.anew) == (whole.digest, 0)


@pytest.mark.parametrize("text", ['{"subjects": "p-1"}', '{"subjects": {}}', '{"subjects": [1]}'])
def test_list_of_withdrawn_patients_that_is_no_list_is_damaged(text: str, home: Home) -> None:
    write_private(home.withdrawn, b'{"subjects": ["p-1"]}')
    assert home.read_withdrawn() == {"p-1"}
    home.withdrawn.write_text(text)
    with pytest.raises(CohortError, match="withdrawn patients cannot be read"):
        home.read_withdrawn()
