"""The versions that held a patient who withdraws are named, and no others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.factories.intake import make_home, manifest_of, take_in, write_brains
from tests.fakes.clock import FakeClock
from vitrael.client.site.backup.restore import restore_backup
from vitrael.client.site.backup.save import save_backup
from vitrael.client.site.ingest import versions, withdraw
from vitrael.client.site.ingest.places import Home
from vitrael.client.site.ingest.versions import VERSIONS_NAME, HeldVersion, note_versions
from vitrael.client.site.ingest.withdraw import find_patient, remove_patient
from vitrael.client.site.settings import load_settings
from vitrael.core.cli import run
from vitrael.core.errors import CohortError


@pytest.fixture
def grown(tmp_path: Path) -> tuple[Home, list[HeldVersion]]:
    """A cohort of three versions: patient 3 came with the second, patient 4 with the third."""
    root, home = tmp_path / "scans", make_home(tmp_path / "home")
    versions = []
    for patients in (range(3), range(4), range(5)):
        write_brains(root, patients)
        take_in(root, home)
        manifest = manifest_of(home)
        versions.append(HeldVersion("main", manifest.version, manifest.digest))
    assert [each.version for each in versions] == [1, 2, 3]
    return home, versions


def told(home: Home, who: str) -> list[HeldVersion]:
    return list(find_patient(home, who).versions)


def test_versions_that_held_the_patient_are_named(grown: tuple[Home, list[HeldVersion]]) -> None:
    home, versions = grown
    assert told(home, "sub-00") == versions
    assert told(home, "sub-03") == versions[1:]
    assert told(home, "sub-04") == versions[2:]
    assert told(home, "nobody") == []


def test_version_without_the_patient_is_not_named_afterwards(
    grown: tuple[Home, list[HeldVersion]],
) -> None:
    home, versions = grown
    remove_patient(home, find_patient(home, "sub-03"))
    after = manifest_of(home)
    assert after.version == 4
    assert told(home, "sub-03") == versions[1:], "asked again, the same is told"
    assert told(home, "nobody") == []
    fourth = HeldVersion("main", 4, after.digest)
    assert told(home, "sub-00") == [*versions, fourth]


def listed(home: Home) -> list[set[str]]:
    """Return the codes of the patients of each version."""
    document = json.loads((home.cohort("main").folder / VERSIONS_NAME).read_bytes())
    return [set(each["patients"]) for each in document["versions"]]


def test_list_holds_no_name_and_forgets_who_withdrew(
    grown: tuple[Home, list[HeldVersion]],
) -> None:
    home, _ = grown
    path = home.cohort("main").folder / VERSIONS_NAME
    before = listed(home)
    assert [len(codes) for codes in before] == [3, 4, 5]
    (code,) = before[1] - before[0]
    found = find_patient(home, "sub-03")
    (name,) = found.subjects
    assert name not in path.read_text()
    remove_patient(home, found)
    assert code not in path.read_text()
    assert [len(codes) for codes in listed(home)] == [3, 3, 4, 4]


def test_patient_who_left_the_files_long_ago_is_found_in_older_versions(tmp_path: Path) -> None:
    root, home = tmp_path / "scans", make_home(tmp_path / "home")
    *_, last = write_brains(root)
    take_in(root, home)
    first = manifest_of(home)
    last.unlink()
    take_in(root, home)
    assert len(manifest_of(home).items) == 2
    found = find_patient(home, "sub-02")
    assert (found.items, found.versions) == (0, (HeldVersion("main", 1, first.digest),))
    remove_patient(home, found)
    assert [len(codes) for codes in listed(home)] == [2, 2]
    assert told(home, "sub-02") == [HeldVersion("main", 1, first.digest)]


def test_cohort_of_an_earlier_release_tells_its_present_version(tmp_path: Path) -> None:
    root, home = tmp_path / "scans", make_home(tmp_path / "home")
    write_brains(root)
    take_in(root, home)
    (home.cohort("main").folder / VERSIONS_NAME).unlink()
    held = [HeldVersion("main", 1, manifest_of(home).digest)]
    assert told(home, "sub-01") == held
    remove_patient(home, find_patient(home, "sub-01"))
    assert told(home, "sub-01") == held


PHRASE = b"five words are enough here"


def back_up(home: Home, file: Path) -> None:
    (home.folder / "site.toml").write_text('name = "north"\n')
    settings = load_settings(home.folder)
    save_backup(settings, file, passphrase=PHRASE, clock=FakeClock(), cost=1 << 10)


def restore(file: Path, to: Path) -> Home:
    restore_backup(file, to, passphrase=PHRASE, expected=None, clock=FakeClock())
    return Home(to)


def test_restored_home_names_the_versions_of_before(tmp_path: Path) -> None:
    root, home = tmp_path / "scans", make_home(tmp_path / "home")
    *_, last = write_brains(root, range(3))
    versions = []
    for patients in (range(3), range(4)):
        write_brains(root, patients)
        take_in(root, home)
        manifest = manifest_of(home)
        versions.append(HeldVersion("main", manifest.version, manifest.digest))
    last.unlink()
    take_in(root, home)
    assert told(home, "sub-02") == versions, "the control: so it is before"
    back_up(home, tmp_path / "backup")
    restored = restore(tmp_path / "backup", tmp_path / "new")
    assert not restored.cohort("main").manifest.exists()
    take_in(root, restored)
    found = find_patient(restored, "sub-02")
    assert (list(found.versions), found.forgotten) == (versions, ())
    assert told(restored, "nobody") == []


def test_restored_list_forgets_who_withdrew_since(tmp_path: Path) -> None:
    root, home = tmp_path / "scans", make_home(tmp_path / "home")
    write_brains(root)
    take_in(root, home)
    first = manifest_of(home)
    (code,) = {*listed(home)[0]} & {*_codes_of(home, "sub-01")}
    back_up(home, tmp_path / "backup")
    remove_patient(home, find_patient(home, "sub-01"))
    second = manifest_of(home)
    restored = restore(tmp_path / "backup", home.folder)
    text = (restored.cohort("main").folder / VERSIONS_NAME).read_text()
    assert code not in text
    assert text.count(first.digest) == text.count(second.digest) == 1
    assert told(restored, "sub-01") == [HeldVersion("main", 1, first.digest)]


def _codes_of(home: Home, who: str) -> set[str]:
    return set(versions._codes(find_patient(home, who).subjects))


def test_versions_that_stand_on_no_list_are_told(
    grown: tuple[Home, list[HeldVersion]], capsys: pytest.CaptureFixture[str]
) -> None:
    home, versions = grown
    words = ["site", "withdraw", "sub-00", "--dry-run", "--home", str(home.folder)]
    assert find_patient(home, "sub-00").forgotten == ()
    assert run(words) == 0
    assert "not known any more" not in capsys.readouterr().out
    (home.cohort("main").folder / VERSIONS_NAME).unlink()
    found = find_patient(home, "sub-00")
    assert (found.versions, found.forgotten) == ((versions[-1],), ("main",))
    assert run(words) == 0
    assert "cohort main: earlier versions are not known any more" in capsys.readouterr().out
    remove_patient(home, found)
    assert find_patient(home, "sub-00").forgotten == ("main",)


def test_version_stands_on_the_list_before_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, home = tmp_path / "scans", make_home(tmp_path / "home")
    write_brains(root)
    take_in(root, home)
    first = manifest_of(home)

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(withdraw, "write_manifest", kill)
        with pytest.raises(KeyboardInterrupt):
            remove_patient(home, find_patient(home, "sub-01"))
    assert manifest_of(home).version == 1
    held = [HeldVersion("main", 1, first.digest)]
    assert told(home, "sub-01") == held
    remove_patient(home, find_patient(home, "sub-01"))
    assert told(home, "sub-01") == held
    text = (home.cohort("main").folder / VERSIONS_NAME).read_text()
    assert text.count(manifest_of(home).digest) == 1


def test_same_version_is_noted_once(tmp_path: Path) -> None:
    root, home = tmp_path / "scans", make_home(tmp_path / "home")
    write_brains(root)
    take_in(root, home)
    folder = home.cohort("main").folder
    before = (folder / VERSIONS_NAME).read_bytes()
    note_versions(folder, manifest_of(home), None)
    take_in(root, home)
    assert (folder / VERSIONS_NAME).read_bytes() == before


@pytest.mark.parametrize("text", ["", "{", '{"versions": [{"version": 1}]}'])
def test_damaged_list_is_refused(text: str, tmp_path: Path) -> None:
    root, home = tmp_path / "scans", make_home(tmp_path / "home")
    write_brains(root)
    take_in(root, home)
    (home.cohort("main").folder / VERSIONS_NAME).write_text(text)
    with pytest.raises(CohortError, match="list of the versions of cohort main"):
        find_patient(home, "sub-01")
