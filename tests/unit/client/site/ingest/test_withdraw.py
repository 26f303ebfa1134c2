"""A patient who withdraws is gone from every cohort for good, and nobody else is."""

from __future__ import annotations

import shutil
import sqlite3
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.factories.intake import (
    KEY,
    files_below,
    identity_of,
    leftovers,
    make_home,
    manifest_of,
    set_aside,
    shard_files,
    take_in,
    write_brain,
    write_brains,
    write_slices,
)
from vitrael.client.site import database
from vitrael.client.site.ingest import pipeline, withdraw
from vitrael.client.site.ingest.index import Index
from vitrael.client.site.ingest.pipeline import WITHDRAWN
from vitrael.client.site.ingest.places import Home, only_one
from vitrael.client.site.ingest.told import SUMMARY_NAME
from vitrael.client.site.ingest.withdraw import find_patient, remove_patient
from vitrael.core.data.cache import write_private
from vitrael.core.data.manifest import Item, pseudonym_of
from vitrael.core.data.retention import latent_name
from vitrael.core.digest import digest_bytes
from vitrael.core.errors import CohortError, StorageError

WHO = "sub-01"
PSEUDONYM = pseudonym_of(WHO, key=KEY)


@pytest.fixture
def home(tmp_path: Path, scans: Path) -> Home:
    """A home with two cohorts of the same three patients."""
    home = make_home(tmp_path / "home")
    take_in(scans, home)
    take_in(scans, home, name="second")
    return home


def item_of(home: Home, pseudonym: str = PSEUDONYM, name: str = "main") -> Item:
    (item,) = (item for item in manifest_of(home, name).items if item.subject == pseudonym)
    return item


def write_latents(home: Home, item: Item) -> list[Path]:
    """Write what two codecs made of an item."""
    paths = [
        home.cohort("main").latents / latent_name(digest_bytes(codec), item.digest, view="plain")
        for codec in (b"one", b"two")
    ]
    for path in paths:
        write_private(path, b"latent")
    return paths


def withdraw_patient(home: Home, who: str = WHO) -> int:
    return remove_patient(home, find_patient(home, who)).files


def traces(home: Home, item: Item) -> set[str]:
    """Return the files that still say something of a patient."""
    needles = (item.subject.encode(), item.digest.removeprefix("sha256:").encode())
    found = files_below(home.folder)
    return {
        name
        for name, data in found.items()
        if any(needle in data or needle.decode() in name for needle in needles)
    }


def test_patient_is_gone_from_every_cohort(scans: Path, home: Home) -> None:
    item, other = item_of(home), item_of(home, pseudonym_of("sub-00", key=KEY))
    latents, kept = write_latents(home, item), write_latents(home, other)
    assert {"cohorts/main/manifest.json", "cohorts/second/index.sqlite"} <= traces(home, item)
    found = find_patient(home, WHO)
    assert (found.items, found.cohorts, found.known) == (2, ("main", "second"), False)
    removed = remove_patient(home, found)
    assert (removed.files, removed.size_bytes) == (4, 2 * (8192 + 128) + 12)
    for name in ("main", "second"):
        manifest = manifest_of(home, name)
        assert (manifest.version, manifest.withdrawn, len(manifest.items)) == (2, 1, 2)
        assert leftovers(home, name) == set()
        assert not home.cohort(name).report.exists()
    assert not any(path.exists() for path in latents)
    assert all(path.exists() for path in kept)
    assert traces(home, item) == {"withdrawn.json"}, "which tells whom to keep out"
    assert len(files_below(scans)) == 3, "the site's own files are the site's"


def test_patient_does_not_come_back(scans: Path, home: Home) -> None:
    item = item_of(home)
    withdraw_patient(home)
    report = take_in(scans, home)
    assert (report.items, report.anew, report.changed) == (2, 0, False)
    assert set_aside(report) == {WITHDRAWN: 1}
    assert not report.is_partial
    assert manifest_of(home).withdrawn == 1
    write_brain(scans / "sub-01_ses-2_T1w.nii.gz", 8)
    assert take_in(scans, home).items == 2
    assert take_in(scans, home, name="third").items == 2
    held = {name for name in traces(home, item) if "second" not in name}
    assert held == {"withdrawn.json"}


def test_headers_of_a_withdrawn_patient_are_not_kept_again(tmp_path: Path) -> None:
    root, home = tmp_path / "pacs", make_home(tmp_path / "home")
    for patient in (1, 2):
        write_slices(root / str(patient), patient)
    take_in(root, home)
    who = identity_of(2).patient_id
    index = home.cohort("main").index
    code = pseudonym_of(who, key=KEY).encode()
    assert code in index.read_bytes()
    withdraw_patient(home, who)
    assert code not in index.read_bytes()
    report = take_in(root, home)
    assert (report.items, set_aside(report)) == (1, {WITHDRAWN: 16})
    assert code not in index.read_bytes()


def test_deleted_rows_leave_no_bytes_in_the_index(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some builds of SQLite overwrite what is deleted, others only mark it."""
    prepare = database._prepare

    def only_mark(connection: Any, record: object) -> None:
        prepare(connection, record)
        connection.execute("PRAGMA secure_delete = OFF")

    monkeypatch.setattr(database, "_prepare", only_mark)
    home = make_home(tmp_path / "other")
    take_in(scans, home)
    index = home.cohort("main").index
    with closing(Index(index)) as opened:
        (thumbnail,) = (
            stored.thumbnail
            for stored in opened.find_outcomes(outcome_codes(index)).values()
            if stored.subject == PSEUDONYM
        )
    middle = thumbnail[len(thumbnail) // 2 :][:64]
    assert middle in index.read_bytes()
    withdraw_patient(home)
    assert middle not in index.read_bytes()
    assert PSEUDONYM.encode() not in index.read_bytes()


def outcome_codes(index: Path) -> list[str]:
    with closing(sqlite3.connect(index)) as connection:
        return [code for (code,) in connection.execute("SELECT source FROM outcomes")]


def test_withdrawing_again_changes_nothing(home: Home) -> None:
    withdraw_patient(home)
    before = files_below(home.folder)
    found = find_patient(home, WHO)
    assert (found.items, found.cohorts, found.known) == (0, (), True)
    assert remove_patient(home, found).files == 0
    changed = {name for name, data in files_below(home.folder).items() if before[name] != data}
    assert changed <= {f"cohorts/{name}/index.sqlite" for name in ("main", "second")}
    assert manifest_of(home).version == 2


def test_unknown_patient_is_kept_out_of_later_intakes(scans: Path, home: Home) -> None:
    found = find_patient(home, "sub-09")
    assert (found.items, found.known) == (0, False)
    digest = manifest_of(home).digest
    assert remove_patient(home, found).files == 0
    assert (manifest_of(home).digest, manifest_of(home).version) == (digest, 1)
    write_brain(scans / "sub-09_T1w.nii.gz", 9)
    assert set_aside(take_in(scans, home)) == {WITHDRAWN: 1}


def test_name_is_found_however_it_is_typed(tmp_path: Path) -> None:
    root, home = tmp_path / "scans", make_home(tmp_path / "home")
    name = "Zoë Müller"
    write_brain(root / f"{unicodedata.normalize('NFD', name)}_T1w.nii.gz", 1)
    write_brains(root, [2])
    take_in(root, home)
    for typed in (name, unicodedata.normalize("NFD", name), f" {name} "):
        assert find_patient(home, typed).items == 1
    assert find_patient(home, "Zoe Muller").items == 0
    write_brain(root / "Ana 50%_T1w.nii.gz", 3)
    take_in(root, home)
    found = [find_patient(home, typed) for typed in ("Ana 50%", "Ana 50%25")]
    assert [each.items for each in found] == [1, 1], "as it stands in the folder, or in print"
    remove_patient(home, found[0])
    assert (take_in(root, home).items, manifest_of(home).withdrawn) == (2, 1)


def test_image_that_another_patient_has_as_well_stays_theirs(tmp_path: Path) -> None:
    for gone in ("sub-00", "sub-01"):
        root, home = tmp_path / gone / "scans", make_home(tmp_path / gone / "home")
        write_brain(root / "sub-00_T1w.nii.gz", 5)
        write_brain(root / "sub-01_T1w.nii.gz", 5)
        write_brain(root / "sub-02_T1w.nii.gz", 6)
        assert take_in(root, home).items == 2
        shards = shard_files(home)
        withdraw_patient(home, gone)
        assert shard_files(home) == shards
        report = take_in(root, home)
        assert (report.items, report.anew) == (2, 0)
        assert pseudonym_of(gone, key=KEY) not in {i.subject for i in manifest_of(home).items}
        assert leftovers(home) == set()


STEPS: dict[str, tuple[object, str]] = {
    "list": (Home, "add_withdrawn"),
    "manifest": (withdraw, "write_manifest"),
    "summary": (withdraw, "save_summary"),
    "index": (Index, "forget_subjects"),
    "shards": (withdraw, "sweep_orphans"),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("is_before", [True, False], ids=["before", "after"])
def test_withdrawal_that_is_killed_is_finished_by_asking_again(
    step: str, *, is_before: bool, scans: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = item_of(home)
    latents = write_latents(home, item)
    owner, name = STEPS[step]
    real: Callable[..., object] = getattr(owner, name)

    def kill(*args: object, **options: object) -> None:
        if not is_before:
            real(*args, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, kill)
        with pytest.raises(KeyboardInterrupt):
            withdraw_patient(home)
    withdraw_patient(home)
    for cohort in ("main", "second"):
        assert (manifest_of(home, cohort).version, len(manifest_of(home, cohort).items)) == (2, 2)
        assert leftovers(home, cohort) == set()
    assert not any(path.exists() for path in latents)
    held = {name for name in traces(home, item) if not name.endswith(SUMMARY_NAME)}
    assert held == {"withdrawn.json"}
    assert take_in(scans, home).items == 2


@pytest.mark.parametrize("others", [2, 0])
def test_killed_withdrawal_is_finished_by_the_next_intake(
    others: int, scans: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not others:
        for who in ("sub-00", "sub-02"):
            withdraw_patient(home, who)

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(withdraw, "write_manifest", kill)
        with pytest.raises(KeyboardInterrupt):
            withdraw_patient(home)
    item = item_of(home)
    report = take_in(scans, home)
    assert (report.items, set_aside(report)) == (others, {WITHDRAWN: 3 - others})
    assert len(manifest_of(home).items) == others
    held = {name for name in traces(home, item) if "second" not in name}
    assert held <= {"withdrawn.json", f"cohorts/main/{SUMMARY_NAME}"}


def test_patient_of_an_intake_that_never_ended_is_gone_too(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no manifest yet, but images and an index."""
    home = make_home(tmp_path / "fresh")

    def kill(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "conclude", kill)
        with pytest.raises(KeyboardInterrupt):
            take_in(scans, home)
    begun = home.cohort("main").shards / "ab" / ".partial-0123"
    write_private(begun, b"half an image")
    assert len(shard_files(home)) == 3
    assert PSEUDONYM.encode() in home.cohort("main").index.read_bytes()
    assert withdraw_patient(home) == 1
    assert len(shard_files(home)) == 2
    assert not begun.exists()
    assert PSEUDONYM.encode() not in home.cohort("main").index.read_bytes()
    assert (take_in(scans, home).items, take_in(scans, home).anew) == (2, 0)


@pytest.mark.parametrize("name", ["main", "second"])
def test_unfinished_manifest_and_report_of_a_killed_intake_are_gone_too(
    home: Home, name: str
) -> None:
    """They hold what the finished ones hold: pseudonyms, and pictures of the patient."""
    begun = home.cohort(name).folder / ".partial-0123"
    write_private(begun, home.cohort(name).report.read_bytes())
    withdraw_patient(home)
    assert not begun.exists()


def test_image_of_an_older_file_of_the_patient_is_gone_too(
    scans: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An intake wrote it, was killed, and the file was changed: nothing names the image now."""
    shutil.rmtree(home.cohort("second").folder)

    def kill(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for shift in (300, 600):
        write_brain(scans / "sub-01_T1w.nii.gz", 1, shift=shift)
        with monkeypatch.context() as patch:
            patch.setattr(pipeline, "conclude", kill)
            with pytest.raises(KeyboardInterrupt):
                take_in(scans, home)
    assert len(shard_files(home)) == 5
    assert withdraw_patient(home) == 3
    assert leftovers(home) == set()


def test_last_patient_may_withdraw(scans: Path, home: Home) -> None:
    for who in ("sub-00", "sub-01", "sub-02"):
        withdraw_patient(home, who)
    manifest = manifest_of(home)
    assert (manifest.items, manifest.withdrawn, manifest.version) == ((), 3, 4)
    assert shard_files(home) == set()
    assert take_in(scans, home).items == 0
    assert manifest_of(home).items == ()


def test_cohort_that_is_being_changed_is_told(home: Home) -> None:
    with only_one(home.cohort("second")), pytest.raises(StorageError, match="another process"):
        withdraw_patient(home)
    assert home.read_withdrawn() == {PSEUDONYM}
    withdraw_patient(home)
    assert len(manifest_of(home, "second").items) == 2


def test_two_who_withdraw_at_once_are_both_kept_out(home: Home) -> None:
    names = [f"p-{number:016x}" for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(home.add_withdrawn, [[name] for name in names]))
    assert home.read_withdrawn() == set(names)


@pytest.mark.parametrize("text", ["", "{}", "[", '{"subjects": 7}'])
def test_damaged_list_lets_nobody_come_back(text: str, scans: Path, home: Home) -> None:
    withdraw_patient(home)
    home.withdrawn.write_text(text)
    with pytest.raises(CohortError, match="withdrawn patients cannot be read"):
        take_in(scans, home)
    with pytest.raises(CohortError, match="withdrawn patients cannot be read"):
        withdraw_patient(home, "sub-00")


def test_cohort_without_an_index_forgets_the_patient_as_well(home: Home) -> None:
    item = item_of(home)
    home.cohort("main").index.unlink()
    withdraw_patient(home)
    assert item.shard not in shard_files(home)
    assert len(shard_files(home)) == 2
