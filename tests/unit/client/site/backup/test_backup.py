"""A backup holds what nothing can make again, of one moment, for who has the passphrase."""

from __future__ import annotations

import io
import shutil
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.client.site.conftest import Home
from vitrael.client.site.backup import save
from vitrael.client.site.backup.contents import Counter, Manifest, is_kept, read_counter
from vitrael.client.site.backup.heads import read_witness
from vitrael.client.site.backup.save import save_backup
from vitrael.client.site.enrollment.home_lock import only_one_enrollment
from vitrael.client.site.store import Store
from vitrael.core.errors import ProcessError, StorageError, UsageError
from vitrael.privacy.journal import Entry, Journal
from vitrael.privacy.sealed_file import SealedReader

PHRASE = b"five words are enough here"
COST = 1 << 10


def back_up(home: Home, file: Path) -> Manifest:
    return save_backup(home.settings, file, passphrase=PHRASE, clock=home.clock, cost=COST)


def contents(file: Path) -> dict[str, bytes]:
    with file.open("rb") as raw:
        reader = SealedReader(raw, PHRASE)
        data = io.BytesIO(reader.read())
    with tarfile.open(fileobj=data) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


@pytest.fixture
def used(home: Home) -> Home:
    """A home with a consent, a record, an Update, a checkpoint and a withdrawal."""
    home.consent()
    for name, data in {
        "records/abc/calibration.json": b"{}",
        "records/abc/training/codec-1/state.bin": bytes(2000),
        "updates/0a.safetensors": bytes(3000),
        "studies/site-test.toml": b"study",
        "withdrawn.json": b'{"subjects":["a1"]}',
        "cohorts/told.json": b'{"told":[]}',
        "cohorts/main/versions.json": b'{"versions":[]}',
        "keys.next/signing.pem": b"next",
        "spool/in/parcel": b"in transit",
        "steward.log": b"log",
    }.items():
        path = home.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return home


def test_backup_holds_what_cannot_be_made_again_and_no_scan(used: Home, tmp_path: Path) -> None:
    back_up(used, tmp_path / "b")
    found = contents(tmp_path / "b")
    assert set(found) == {
        *("backup.json", "site.toml", "coordinator.json", "roster.json", "withdrawn.json"),
        *("keys/signing.pem", "keys/sealing.pem", "keys/split.key", "keys.next/signing.pem"),
        *("store.sqlite", "journal.jsonl", "journal.head.json", "cohorts/told.json"),
        *("records/abc/calibration.json", "updates/0a.safetensors", "studies/site-test.toml"),
        "cohorts/main/versions.json",
    }
    for name, data in found.items():
        if name not in {"backup.json", "store.sqlite"}:
            assert data == (used.path / name).read_bytes()


def test_backup_is_for_its_owner_alone_and_shows_nothing(used: Home, tmp_path: Path) -> None:
    back_up(used, tmp_path / "b")
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o600
    data = (tmp_path / "b").read_bytes()
    for secret in (b"north", b"PRIVATE KEY", b"consent", (used.path / "roster.json").read_bytes()):
        assert secret not in data


def test_backups_are_counted(used: Home, tmp_path: Path) -> None:
    first, second = back_up(used, tmp_path / "1"), back_up(used, tmp_path / "2")
    assert (first.number, second.number) == (1, 2)
    assert first.home == second.home
    assert first.journal.lines == 1
    assert first.journal.hash == used.lines()[-1].hash


def test_backup_that_could_not_be_counted_leaves_no_file(
    used: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, counted = save.save_counter, []

    def full(home: Path, counter: Counter) -> None:
        counted.append(counter)
        if len(counted) > 1:
            raise OSError(28, "No space left on device")
        count(home, counter)

    with monkeypatch.context() as patch:
        patch.setattr(save, "save_counter", full)
        with pytest.raises(StorageError, match="no disk space"):
            back_up(used, tmp_path / "b")
    assert not (tmp_path / "b").exists()
    assert back_up(used, tmp_path / "b").number == 2


def test_backup_never_replaces_another(used: Home, tmp_path: Path) -> None:
    back_up(used, tmp_path / "b")
    before = (tmp_path / "b").read_bytes()
    with pytest.raises(UsageError, match="exists already"):
        back_up(used, tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == before


def test_short_passphrase_is_refused(used: Home, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="too short"):
        save_backup(used.settings, tmp_path / "b", passphrase=b"short", clock=used.clock)
    assert not (tmp_path / "b").exists()


def test_store_and_journal_are_of_one_moment(
    used: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line that comes meanwhile is in neither: else the copy would not be whole."""
    copy = save._copy_database

    def copy_and_go_on(source: Path, target: Path) -> None:
        copy(source, target)
        store = Store(used.settings.store, updates=used.settings.updates)
        journal = Journal(used.settings.journal, clock=used.clock, witness=store, patience_s=0.05)
        with pytest.raises(StorageError, match="the journal is locked"):
            journal.append(Entry(event="consent"))
        store.close()

    with monkeypatch.context() as patch:
        patch.setattr(save, "_copy_database", copy_and_go_on)
        manifest = back_up(used, tmp_path / "b")
    assert manifest.journal.lines == 1
    store = Store(used.settings.store, updates=used.settings.updates)
    Journal(used.settings.journal, clock=used.clock, witness=store).append(Entry(event="consent"))
    store.close()
    assert back_up(used, tmp_path / "c").journal.lines == 2


def test_journal_that_is_not_whole_is_not_backed_up(used: Home, tmp_path: Path) -> None:
    text = used.settings.journal.read_text()
    used.settings.journal.write_text(text.replace("consent", "consend"))
    with pytest.raises(StorageError, match="the journal is not whole"):
        back_up(used, tmp_path / "b")
    assert not (tmp_path / "b").exists()
    assert read_counter(used.path) is None


def _full(*_: object) -> None:
    raise OSError(28, "No space left on device")


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("fail", "error"), [(_full, StorageError), (_killed, KeyboardInterrupt)])
def test_backup_that_was_not_finished_leaves_no_file(
    used: Home,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fail: Callable[..., None],
    error: type[BaseException],
) -> None:
    (tmp_path / "safe").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr("vitrael.privacy.sealed_file.SealedWriter.finish", fail)
        with pytest.raises(error):
            back_up(used, tmp_path / "safe" / "b")
    assert list((tmp_path / "safe").iterdir()) == []
    assert not (used.path / ".partial-backup").exists()
    counter = read_counter(used.path)
    assert counter is not None
    assert (counter.number, counter.made) == (1, 0)
    assert back_up(used, tmp_path / "safe" / "b").number == 2


def test_keys_are_not_copied_while_a_command_changes_them(used: Home, tmp_path: Path) -> None:
    with (
        only_one_enrollment(used.path),
        pytest.raises(ProcessError, match="another command changes the keys"),
    ):
        back_up(used, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_rotation_that_was_approved_is_ended_before_the_copy(used: Home, tmp_path: Path) -> None:
    (used.path / "keys.next" / "approved").touch()
    back_up(used, tmp_path / "b")
    found = contents(tmp_path / "b")
    assert found["keys/signing.pem"] == b"next"
    assert not any(name.startswith("keys.next/") for name in found)


def test_file_that_waits_in_the_target_s_folder_is_not_written_to(
    used: Home, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").write_bytes(b"kept")
    (tmp_path / ".partial-b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / ".partial-c").touch(mode=0o666)
    for name in "bc":
        back_up(used, tmp_path / name)
        assert stat.S_IMODE((tmp_path / name).lstat().st_mode) == 0o600
    assert (tmp_path / "elsewhere").read_bytes() == b"kept"


def test_file_of_another_user_is_told_and_no_backup_is_made(
    used: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Path.open

    def closed(self: Path, *words: Any, **named: Any) -> Any:
        if self.name == "node":
            raise PermissionError(13, "Permission denied")
        return plain(self, *words, **named)

    (used.path / "keys" / "node").touch(mode=0o600)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", closed)
        with pytest.raises(StorageError, match=r"keys/node cannot be read.*systemd-tmpfiles"):
            back_up(used, tmp_path / "b")
    assert not (tmp_path / "b").exists()
    back_up(used, tmp_path / "b")
    assert "keys/node" in contents(tmp_path / "b")


def test_store_below_a_folder_with_any_name_says_where_the_journal_ends(
    used: Home, tmp_path: Path
) -> None:
    folder = tmp_path / "50% of? all#1"
    folder.mkdir()
    shutil.copyfile(used.settings.store, folder / "store.sqlite")
    found = read_witness(folder / "store.sqlite")
    assert found is not None
    assert found == read_witness(used.settings.store)
    assert read_witness(folder / "none.sqlite") is None


@pytest.mark.parametrize(
    "name",
    [
        *("../site.toml", "/etc/passwd", "keys/../../x", "keys", "cohorts/main/shards/a"),
        *("records/a/training/x", "spool/in/x", "keys/.hidden", "steward.sock", "", "other.toml"),
        *("cohorts/main/manifest.json", "cohorts/versions.json", "cohorts/.a/versions.json"),
    ],
)
def test_no_other_file_belongs_into_a_backup(name: str) -> None:
    assert not is_kept(name)
    assert is_kept("keys/node")


def test_link_out_of_the_home_is_not_followed(used: Home, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"elsewhere")
    (used.path / "keys" / "link").symlink_to(tmp_path / "secret")
    back_up(used, tmp_path / "b")
    assert "keys/link" not in contents(tmp_path / "b")
