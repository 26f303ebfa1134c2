from __future__ import annotations

import fcntl
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vitrael.core.errors import StorageError, VerificationError
from vitrael.privacy.release import catalogue
from vitrael.privacy.release.catalogue import (
    Catalogue,
    Entry,
    parse_catalogue,
    publish,
    publish_recall,
)
from vitrael.privacy.release.manifest import Reference
from vitrael.privacy.release.verify import verify_release

Releases = Any  # ReleaseFactory of conftest.py
NAME = Reference("brain-demo", 1)


def _listed(root: Path) -> Catalogue:
    return parse_catalogue((root / "catalogue.json").read_bytes())


def _entry(root: Path) -> Entry:
    entry = _listed(root).find(NAME)
    assert entry is not None
    return entry


def test_published_release_is_listed_and_verifies(
    pristine_release: Path, tmp_path: Path, releases: Releases
) -> None:
    verified = publish(pristine_release, tmp_path, trust=releases.trust)
    entry = _entry(tmp_path)
    assert entry.manifest == verified.manifest
    assert entry.signatures == ("harbour", "north", "valley")
    assert not entry.recalled
    held = verify_release(tmp_path / "brain-demo" / "1", releases.trust, expected=NAME)
    assert held.manifest == verified.manifest


def test_publishing_again_does_nothing_and_other_content_is_refused(
    release: Path, tmp_path: Path, releases: Releases
) -> None:
    root = tmp_path / "catalogue"
    first = publish(release, root, trust=releases.trust)
    assert publish(release, root, trust=releases.trust) == first
    other = replace(releases.contents(), code_version="0.2.0")
    changed = releases.write(tmp_path / "other", other)
    with pytest.raises(StorageError, match="published already with other content"):
        publish(changed, root, trust=releases.trust)
    assert _entry(root).manifest == first.manifest


def test_catalogue_that_another_process_holds_is_waited_for_and_then_told(
    release: Path, tmp_path: Path, releases: Releases, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "catalogue"
    root.mkdir()
    monkeypatch.setattr(catalogue, "_LOCK_S", 0.0)
    with (root / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match="the catalogue is in use"):
            publish(release, root, trust=releases.trust)
    publish(release, root, trust=releases.trust)  # the control
    assert _entry(root)


def test_versions_stand_side_by_side(release: Path, tmp_path: Path, releases: Releases) -> None:
    root = tmp_path / "catalogue"
    publish(release, root, trust=releases.trust)
    second = releases.write(tmp_path / "second", releases.contents(version=2))
    publish(second, root, trust=releases.trust)
    assert sorted(_listed(root).releases["brain-demo"]) == [1, 2]


def test_unsigned_release_is_not_published(
    release: Path, tmp_path: Path, releases: Releases
) -> None:
    shutil.rmtree(release / "signatures")
    with pytest.raises(VerificationError, match="too few sites"):
        publish(release, tmp_path / "catalogue", trust=releases.trust)
    assert not (tmp_path / "catalogue").exists()


def test_refused_release_is_not_published(tmp_path: Path, releases: Releases) -> None:
    folder = releases.write(tmp_path / "refused", releases.contents(passes=False))
    with pytest.raises(VerificationError, match="refused by its gates"):
        publish(folder, tmp_path / "catalogue", trust=releases.trust)


def test_recall_ends_the_release_and_is_listed(
    release: Path, tmp_path: Path, releases: Releases
) -> None:
    root = tmp_path / "catalogue"
    publish(release, root, trust=releases.trust)
    recall = releases.recall(release, reason="a copy was found")
    assert publish_recall(root, NAME, recall=recall, trust=releases.trust).release == str(NAME)
    assert _entry(root).recalled
    with pytest.raises(VerificationError, match="was recalled on"):
        verify_release(root / "brain-demo" / "1", releases.trust)


def test_forged_recall_is_not_published(release: Path, tmp_path: Path, releases: Releases) -> None:
    root = tmp_path / "catalogue"
    publish(release, root, trust=releases.trust)
    forged = releases.recall(release, by="stranger")
    with pytest.raises(VerificationError, match="foreign key"):
        publish_recall(root, NAME, recall=forged, trust=releases.trust)
    other = releases.write(tmp_path / "other", releases.contents(version=2))
    with pytest.raises(VerificationError, match="not of brain-demo@1"):
        publish_recall(root, NAME, recall=releases.recall(other), trust=releases.trust)
    with pytest.raises(StorageError, match="not in the catalogue"):
        publish_recall(root, Reference("x", 1), recall=forged, trust=releases.trust)
    assert verify_release(root / "brain-demo" / "1", releases.trust).version == 1


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"<html>", b'{"releases": {"A": {}}}'])
def test_other_document_is_no_catalogue(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a catalogue"):
        parse_catalogue(data)
