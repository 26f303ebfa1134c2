from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitrael.client.researcher.pull import find_offer, pull_release, read_recall
from vitrael.client.researcher.sources import FolderSource, HttpSource, Source
from vitrael.core.errors import (
    NetworkError,
    StorageError,
    UsageError,
    VerificationError,
)
from vitrael.privacy.release.catalogue import publish_recall
from vitrael.privacy.release.manifest import Reference
from vitrael.privacy.release.verify import VerifiedRelease, verify_release

Releases = Any  # ReleaseFactory of tests/unit/conftest.py
WebServer = Any  # of conftest.py
Option = Any  # a keyword argument of pull_release
NAME = Reference("brain-demo", 1)
IMAGE = "sub-syn0001/anat/sub-syn0001_T1w.nii.gz"


def _pull(source: Source, to: Path, releases: Releases, **options: Option) -> VerifiedRelease:
    offer = find_offer(NAME, source, trust=releases.trust)
    return pull_release(offer, source, trust=releases.trust, to=to, **options)


class _CountingSource(FolderSource):
    """A folder that remembers what was fetched and fails at the n-th file."""

    def __init__(self, root: Path, *, fail_at: int = 10**9) -> None:
        super().__init__(root)
        self.fetched: list[str] = []
        self.fail_at = fail_at

    def fetch(self, path: str, target: Path, *, size_bytes: int) -> None:
        if len(self.fetched) == self.fail_at:
            target.write_bytes(b"half")
            raise NetworkError("the line is dead")
        self.fetched.append(path)
        super().fetch(path, target, size_bytes=size_bytes)


def test_pull_from_a_folder_brings_a_release_that_verifies(
    catalogue: Path, tmp_path: Path, releases: Releases
) -> None:
    verified = _pull(FolderSource(catalogue), tmp_path / "mine", releases)
    assert verified == verify_release(tmp_path / "mine", releases.trust, expected=NAME)
    assert not list(tmp_path.glob(".mine*"))


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_every_pulled_file_has_the_mode_that_the_umask_gives(
    catalogue: Path, tmp_path: Path, releases: Releases, umask: int, mode: int
) -> None:
    before = os.umask(umask)
    try:
        verified = _pull(FolderSource(catalogue), tmp_path / "mine", releases)
    finally:
        os.umask(before)
    modes = {
        path.relative_to(tmp_path / "mine").as_posix(): path.stat().st_mode & 0o777
        for path in (tmp_path / "mine").rglob("*")
        if path.is_file()
    }
    assert {"manifest.json", "signatures/north.dsse.json", IMAGE} <= set(modes)
    assert len(modes) > verified.files
    assert set(modes.values()) == {mode}


def test_pull_from_http_brings_the_same(web: WebServer, tmp_path: Path, releases: Releases) -> None:
    with HttpSource(web.url) as source:
        verified = _pull(source, tmp_path / "mine", releases)
    assert verified.signed_by == ("harbour", "north", "valley")


def test_interrupted_pull_goes_on_with_finished_files_kept(
    catalogue: Path, tmp_path: Path, releases: Releases
) -> None:
    first = _CountingSource(catalogue, fail_at=4)
    with pytest.raises(NetworkError, match="the line is dead"):
        _pull(first, tmp_path / "mine", releases)
    assert not (tmp_path / "mine").exists()
    second = _CountingSource(catalogue)
    verified = _pull(second, tmp_path / "mine", releases)
    assert len(first.fetched) == 4
    assert not set(first.fetched) & set(second.fetched)
    assert len(first.fetched) + len(second.fetched) == verified.files


def test_pull_removes_what_a_partial_folder_should_not_hold(
    catalogue: Path, tmp_path: Path, releases: Releases
) -> None:
    partial = tmp_path / ".mine.partial"
    (partial / "old").mkdir(parents=True)
    (partial / "old" / "file").write_bytes(b"x")
    outside = tmp_path / "outside"
    outside.write_bytes(b"untouched")
    (partial / "card.md").symlink_to(outside)
    _pull(FolderSource(catalogue), tmp_path / "mine", releases)
    assert outside.read_bytes() == b"untouched"


def test_pulling_again_verifies_what_is_there(
    catalogue: Path, tmp_path: Path, releases: Releases
) -> None:
    _pull(FolderSource(catalogue), tmp_path / "mine", releases)
    again = _CountingSource(catalogue)
    _pull(again, tmp_path / "mine", releases)
    assert again.fetched == []
    (tmp_path / "mine" / "card.md").write_text("changed")
    with pytest.raises(VerificationError, match=r"card\.md was changed"):
        _pull(again, tmp_path / "mine", releases)


def test_pull_writes_over_nothing(catalogue: Path, tmp_path: Path, releases: Releases) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("keep")
    with pytest.raises(StorageError, match="something else already"):
        _pull(FolderSource(catalogue), tmp_path / "mine", releases)


def test_full_disk_is_told_before_anything_is_downloaded(
    catalogue: Path, tmp_path: Path, releases: Releases
) -> None:
    source = _CountingSource(catalogue)
    with pytest.raises(StorageError, match="no room") as refusal:
        _pull(source, tmp_path / "mine", releases, free_bytes=lambda _: 1 << 20)
    assert "1 MiB are free" in refusal.value.why
    assert source.fetched == []


def test_changed_file_at_the_source_is_refused(
    catalogue: Path, tmp_path: Path, releases: Releases
) -> None:
    path = catalogue / "brain-demo" / "1" / IMAGE
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(VerificationError, match=r"T1w\.nii\.gz was changed"):
        _pull(FolderSource(catalogue), tmp_path / "mine", releases)
    assert not (tmp_path / "mine").exists()


def test_missing_signature_at_the_source_is_refused_before_any_file(
    catalogue: Path, tmp_path: Path, releases: Releases
) -> None:
    (catalogue / "brain-demo" / "1" / "signatures" / "north.dsse.json").unlink()
    source = _CountingSource(catalogue)
    with pytest.raises(VerificationError, match="signature of north is missing"):
        _pull(source, tmp_path / "mine", releases)
    assert source.fetched == []


def test_foreign_key_at_the_source_is_refused(catalogue: Path, releases: Releases) -> None:
    place = catalogue / "brain-demo" / "1"
    releases.sign(place, ("stranger",))
    (place / "signatures" / "stranger.dsse.json").rename(place / "signatures/north.dsse.json")
    with pytest.raises(VerificationError, match="foreign key"):
        find_offer(NAME, FolderSource(catalogue), trust=releases.trust)


def test_recalled_release_is_refused_with_its_reason(
    catalogue: Path, tmp_path: Path, releases: Releases
) -> None:
    place = catalogue / "brain-demo" / "1"
    recall = releases.recall(place, reason="a copy was found")
    publish_recall(catalogue, NAME, recall=recall, trust=releases.trust)
    with pytest.raises(VerificationError, match=r"was recalled on .* a copy was found"):
        _pull(FolderSource(catalogue), tmp_path / "mine", releases)
    (place / "RECALLED.json").write_bytes(releases.recall(place, by="stranger"))
    with pytest.raises(VerificationError, match="recall of this release, is by a foreign key"):
        _pull(FolderSource(catalogue), tmp_path / "mine", releases)
    (place / "RECALLED.json").unlink()
    with pytest.raises(VerificationError, match="lists brain-demo@1 as recalled"):
        _pull(FolderSource(catalogue), tmp_path / "mine", releases)


def test_other_release_or_older_version_under_the_name_is_refused(
    catalogue: Path, tmp_path: Path, releases: Releases
) -> None:
    place = catalogue / "brain-demo" / "1"
    for name, version, message in (
        ("heart-demo", 1, "this is heart-demo@1, not brain-demo@1"),
        ("brain-demo", 2, "another version than brain-demo@1"),
    ):
        shutil.rmtree(place)
        releases.write(place, releases.contents(name=name, version=version))
        with pytest.raises(VerificationError, match=message):
            _pull(FolderSource(catalogue), tmp_path / "mine", releases)


def test_release_that_is_not_listed_is_refused_with_what_there_is(
    catalogue: Path, releases: Releases
) -> None:
    with pytest.raises(UsageError, match="it holds brain-demo@1"):
        find_offer(Reference("brain-demo", 9), FolderSource(catalogue), trust=releases.trust)


def test_unlisted_release_cannot_be_cleared_of_a_recall(catalogue: Path) -> None:
    assert read_recall(NAME, FolderSource(catalogue)) is None
    with pytest.raises(UsageError, match="not in the catalogue"):
        read_recall(Reference("other", 1), FolderSource(catalogue))


def test_source_without_a_catalogue_is_a_network_failure(
    tmp_path: Path, releases: Releases
) -> None:
    with pytest.raises(NetworkError, match=r"no catalogue\.json"):
        find_offer(NAME, FolderSource(tmp_path), trust=releases.trust)
    (tmp_path / "catalogue.json").write_text("<html>sign in</html>")
    with pytest.raises(NetworkError, match="not a catalogue"):
        find_offer(NAME, FolderSource(tmp_path), trust=releases.trust)


def test_progress_is_told_for_every_phase(
    catalogue: Path, tmp_path: Path, releases: Releases
) -> None:
    phases: dict[str, list[int]] = {}

    def ticker(label: str, total: int) -> Callable[[int], None]:
        phases[label] = [total, 0]

        def advance(count: int) -> None:
            phases[label][1] += count

        return advance

    _pull(FolderSource(catalogue), tmp_path / "mine", releases, ticker=ticker)
    assert set(phases) == {"checking finished files", "downloading", "verifying"}
    assert all(total == done for total, done in phases.values())
