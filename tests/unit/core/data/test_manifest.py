"""A manifest that is read can be used; errors name an entry by its place and no value."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.factories.cohort import recipe_settings
from vitrael.core.data.cache import shard_name
from vitrael.core.data.manifest import (
    Item,
    Manifest,
    pseudonym_of,
    read_manifest,
    write_manifest,
)
from vitrael.core.digest import Digest, digest_bytes
from vitrael.core.errors import CohortError, StorageError

AFFINE = (
    (8.0, 0.0, 0.0, -92.0),
    (0.0, 8.0, 0.0, -92.0),
    (0.0, 0.0, 8.0, -92.0),
    (0.0, 0.0, 0.0, 1.0),
)


def content(number: int) -> dict[str, str]:
    digest = digest_bytes(bytes([number]))
    return {"shard": shard_name(digest), "digest": digest}


def entry(number: int = 1, **changes: object) -> dict[str, Any]:
    covariates = {"age_years": 71.25, "sex": 1.0, "ventricle_ml": 33.5}
    known = {"subject": f"p-{number}", "visit": 0, "affine": AFFINE, "covariates": covariates}
    return known | content(number) | changes


def save(path: Path, *entries: dict[str, Any], **changes: object) -> Path:
    document = {
        "format": "vitrael/manifest/2",
        "recipe": recipe_settings().model_dump(mode="json"),
        "items": entries,
    }
    path.write_text(json.dumps(document | changes))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(CohortError) as caught:
        read_manifest(path)
    assert caught.value.__cause__ is None
    assert "71.25" not in str(caught.value)
    assert "p-1" not in str(caught.value)
    return str(caught.value)


def manifest_of(*entries: dict[str, Any], **changes: object) -> Manifest:
    items = [Item.model_validate(item) for item in entries]
    return Manifest.model_validate({"recipe": recipe_settings(), "items": items, **changes})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    later = entry(1, visit=1, part=2, days=400, frame_s=0.02, unit="px", **content(2))
    labels = {"view": "A4C", "finding": "no mass"}
    manifest = manifest_of(entry(1), later | {"labels": labels}, version=3, withdrawn=1)
    write_manifest(manifest, tmp_path / "manifest.json")
    assert read_manifest(tmp_path / "manifest.json") == manifest
    assert manifest.items[1].labels == labels


def test_manifest_is_the_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "cohort" / "manifest.json"
    write_manifest(manifest_of(entry()), path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_manifest_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="manifest of the scans") as caught:
        write_manifest(manifest_of(entry()), tmp_path / "file" / "manifest.json")
    assert str(tmp_path) not in str(caught.value)


def test_nothing_of_a_patient_need_be_known(tmp_path: Path) -> None:
    manifest = read_manifest(save(tmp_path / "m.json", entry(covariates={})))
    assert manifest.items[0].covariates == {}
    assert (manifest.items[0].days, manifest.items[0].frame_s) == (None, None)
    assert read_manifest(save(tmp_path / "empty.json")).items == ()


def test_digest_names_what_the_cohort_holds() -> None:
    one, two = entry(1), entry(2)
    digest = manifest_of(one, two).digest
    assert manifest_of(one, two, version=9, withdrawn=4).digest == digest
    others = (
        manifest_of(one),
        manifest_of(one, entry(2, covariates={"age_years": 71.5})),
        manifest_of(one, entry(2, days=3)),
        manifest_of(one, two, recipe=recipe_settings(spacing_mm=4.0)),
    )
    assert len({digest, *(other.digest for other in others)}) == 5


def test_patient_visit_and_part_twice_is_refused(tmp_path: Path) -> None:
    told = refusal(save(tmp_path / "m.json", entry(1), entry(2), entry(1, **content(9))))
    assert "entries 0 and 2 have the same patient, visit and part" in told
    apart = entry(1, part=1, **content(9))
    assert len(read_manifest(save(tmp_path / "m.json", entry(1), entry(2), apart)).items) == 3


def test_one_content_for_two_patients_is_refused(tmp_path: Path) -> None:
    assert "same content" in refusal(save(tmp_path / "m.json", entry(1), entry(2, **content(1))))


def test_shard_of_another_content_is_refused(tmp_path: Path) -> None:
    told = refusal(save(tmp_path / "m.json", entry(1, shard=content(2)["shard"])))
    assert "not named by its digest" in told


@pytest.mark.parametrize(
    "changes",
    [
        {"covariates": {"age_years": -1.0}},
        {"covariates": {"age_years": float("nan")}},
        {"covariates": {"sex": "m"}},
        {"covariates": {"Jane Doe": 1.0}},
        {"covariates": {"ef_frac": 55.0}},
        {"labels": {"view": "Jane Doe, born 1950"}},
        {"labels": {"\n": "A4C"}},
        {"shard": "../elsewhere.safetensors"},
        {"shard": "/etc/passwd"},
        {"subject": "Doe, Jane"},
        {"subject": "p-1\n"},
        {"visit": -1},
        {"visit": 0.5},
        {"part": -1},
        {"days": 1.5},
        {"frame_s": 0.0},
        {"unit": "cm"},
        {"digest": "sha256:12"},
        {"digest": "md5:" + "0" * 64},
        {"affine": AFFINE[:3]},
        {"affine": [[0.0] * 4] * 4},
        {"affine": [[float("inf"), 0.0, 0.0, 0.0], *AFFINE[1:]]},
        {"name": "Jane Doe"},
    ],
)
def test_impossible_entry_is_refused_without_telling_it(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    told = refusal(save(tmp_path / "m.json", entry(1, **changes)))
    assert "entry 0" in told
    assert "Jane" not in told
    assert "passwd" not in told


@pytest.mark.parametrize("field", ["subject", "visit", "shard", "digest", "affine"])
def test_incomplete_entry_is_refused(tmp_path: Path, field: str) -> None:
    incomplete = entry(2)
    del incomplete[field]
    told = refusal(save(tmp_path / "m.json", entry(1), incomplete))
    assert f"entry 1 {field}" in told
    assert "missing" in told


def test_other_formats_missing_and_damaged_manifests_are_refused(tmp_path: Path) -> None:
    old = save(tmp_path / "old.json", entry(), format="vitrael/manifest/1")
    assert "wrong at format" in refusal(old)
    assert "recipe" in refusal(save(tmp_path / "m.json", entry(), recipe={"name": "mine"}))
    assert "cannot be read" in refusal(tmp_path / "none.json")
    for number, data in enumerate((b"\xff{", b"{", b"[" * 100_000)):
        (tmp_path / f"{number}.json").write_bytes(data)
        assert "not JSON" in refusal(tmp_path / f"{number}.json")


def test_repr_shows_nothing_of_a_patient() -> None:
    manifest = manifest_of(entry(1))
    for text in (repr(manifest), str(manifest), repr(manifest.items[0]), f"{manifest.items}"):
        assert "p-1" not in text
        assert "71.25" not in text


def test_pseudonym_is_the_keys_alone() -> None:
    keys = (b"k" * 16, b"l" * 16)
    names = {pseudonym_of(subject, key=key) for subject in ("a", "b") for key in keys}
    assert len(names) == 4
    assert pseudonym_of("a", key=keys[1]) in names
    digest = Digest(content(1)["digest"])
    for name in names:
        assert Item.model_validate(entry(1, subject=name)).digest == digest
