from __future__ import annotations

import csv
import json
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitrael.core.data.nifti import read_nifti
from vitrael.core.errors import StorageError
from vitrael.privacy.release import bundle
from vitrael.privacy.release.bundle import write_bundle
from vitrael.privacy.release.manifest import DOCUMENTS, is_image_path, parse_manifest

Releases = Any  # ReleaseFactory of conftest.py


def test_same_contents_give_the_same_manifest_bytes(tmp_path: Path, releases: Releases) -> None:
    first = write_bundle(releases.contents(), tmp_path / "one")
    second = write_bundle(releases.contents(), tmp_path / "two")
    assert (tmp_path / "one/manifest.json").read_bytes() == second.to_bytes()
    other = write_bundle(replace(releases.contents(), code_version="0.2.0"), tmp_path / "three")
    assert first.digest == second.digest != other.digest


def test_manifest_lists_every_file_but_itself(tmp_path: Path, releases: Releases) -> None:
    manifest = write_bundle(releases.contents(), tmp_path / "release")
    held = {
        path.relative_to(tmp_path / "release").as_posix()
        for path in (tmp_path / "release").rglob("*")
        if path.is_file()
    }
    assert held == {*manifest.files, "manifest.json"}
    assert parse_manifest((tmp_path / "release/manifest.json").read_bytes()) == manifest


def test_bundle_holds_only_what_sites_sign(tmp_path: Path, releases: Releases) -> None:
    contents = replace(releases.contents(), report_html=b"<html></html>")
    files = write_bundle(contents, tmp_path / "release").files
    images = {path for path in files if is_image_path(path)}
    assert len(images) == len(contents.samples)
    assert files.keys() - images == DOCUMENTS


def test_images_come_back_with_their_geometry(tmp_path: Path, releases: Releases) -> None:
    contents = releases.contents()
    write_bundle(contents, tmp_path / "release")
    scan = read_nifti(tmp_path / "release/sub-syn0002/anat/sub-syn0002_T1w.nii.gz")
    np.testing.assert_allclose(scan.image_CDHW, contents.samples.image_BCDHW[1], atol=1e-5)
    np.testing.assert_allclose(scan.affine, contents.samples.affine)


def test_participants_hold_asked_and_measured_in_physical_units(
    tmp_path: Path, releases: Releases
) -> None:
    contents = releases.contents()
    write_bundle(contents, tmp_path / "release")
    with (tmp_path / "release/participants.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [row["participant_id"] for row in rows] == ["sub-syn0001", "sub-syn0002", "sub-syn0003"]
    asked = [float(row["asked_ventricle_ml"]) for row in rows]
    expected = [origin.condition[2] for origin in contents.samples.provenance]
    np.testing.assert_allclose(asked, expected, rtol=1e-5)
    assert min(asked) >= 5
    assert [row["measured_ventricle_ml"] for row in rows] == ["30", "40.5", "n/a"]
    columns = json.loads((tmp_path / "release/participants.json").read_text())
    assert set(rows[0]) == set(columns)
    assert columns["asked_ventricle_ml"]["Units"] == "mL"


def test_rehearsal_is_marked_and_a_publishable_release_is_not(
    tmp_path: Path, releases: Releases
) -> None:
    for policy, marked in (("rehearsal", True), ("public", False)):
        folder = tmp_path / policy
        manifest = write_bundle(releases.contents(policy=policy), folder)
        assert manifest.publishable is not marked
        for path in ("card.md", "dataset_description.json", "CITATION.cff", "croissant.json"):
            assert ("NOT FOR PUBLICATION" in (folder / path).read_text()) is marked, path


def test_croissant_names_each_file_with_its_sha256(tmp_path: Path, releases: Releases) -> None:
    contents = replace(releases.contents(), released=date(2025, 3, 1))
    manifest = write_bundle(contents, tmp_path / "release")
    document = json.loads((tmp_path / "release/croissant.json").read_text())
    listed = {item["contentUrl"]: "sha256:" + item["sha256"] for item in document["distribution"]}
    expected = {path: entry.digest for path, entry in manifest.files.items()}
    assert listed == {path: digest for path, digest in expected.items() if path != "croissant.json"}
    assert document["datePublished"] == "2025-03-01"


@pytest.mark.parametrize("path", ["card.md", "croissant.json"])
def test_no_release_promises_that_it_holds_no_copy(
    path: str, tmp_path: Path, releases: Releases
) -> None:
    write_bundle(releases.contents(), tmp_path / "release")
    said = (tmp_path / "release" / path).read_text()
    assert "real person" not in said
    assert "drawn by a generator" in said
    assert "the bounds of the audit say how likely one is a copy" in said


def test_bundle_is_never_written_over(tmp_path: Path, releases: Releases) -> None:
    folder = tmp_path / "release"
    first = write_bundle(releases.contents(), folder)
    assert write_bundle(releases.contents(), folder) == first
    with pytest.raises(StorageError, match="something else already"):
        write_bundle(releases.contents(version=2), folder)
    assert (folder / "manifest.json").read_bytes() == first.to_bytes()


def test_failed_bundle_leaves_nothing(
    tmp_path: Path, releases: Releases, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle, "encode_nifti", fail)
    with pytest.raises(OSError, match="No space"):
        write_bundle(releases.contents(), tmp_path / "release")
    assert list(tmp_path.iterdir()) == []
