"""A manifest that is read can be used; errors name an entry by its place and no value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vitrael.core.data.manifest import Item, Manifest, read_manifest, write_manifest
from vitrael.core.digest import digest_bytes
from vitrael.core.errors import CohortError


def entry(number: int = 1, **changes: object) -> dict[str, Any]:
    return {
        "subject": f"p-{number}",
        "visit": 0,
        "path": f"p-{number}_v0_T1w.nii.gz",
        "age_years": 71.25,
        "sex": 1.0,
        "ventricle_ml": 33.5,
        "brain_ml": 1200.0,
        "digest": digest_bytes(bytes([number])),
    } | changes


def save(path: Path, *entries: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"format": "vitrael/manifest/1", "items": entries}))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(CohortError) as caught:
        read_manifest(path)
    assert caught.value.__cause__ is None
    assert "71.25" not in str(caught.value)
    assert "p-1" not in str(caught.value)
    return str(caught.value)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    items = (Item(**entry(1)), Item(**entry(1, visit=1, path="b.nii", digest=entry(2)["digest"])))
    manifest = Manifest(items=items, assumed={"sex": 2})
    write_manifest(manifest, tmp_path / "manifest.json")
    assert read_manifest(tmp_path / "manifest.json") == manifest


def test_volumes_may_be_left_to_be_measured(tmp_path: Path) -> None:
    unmeasured = entry(ventricle_ml=None)
    del unmeasured["brain_ml"]
    manifest = read_manifest(save(tmp_path / "m.json", unmeasured))
    assert (manifest.items[0].ventricle_ml, manifest.items[0].brain_ml) == (None, None)


def test_patient_and_visit_twice_is_refused(tmp_path: Path) -> None:
    twin = entry(1, path="other.nii.gz", digest=entry(9)["digest"])
    told = refusal(save(tmp_path / "m.json", entry(1), entry(2), twin))
    assert "entries 0 and 2 have the same patient and visit" in told


@pytest.mark.parametrize(
    ("field", "told"), [("path", "same path"), ("digest", "same file content")]
)
def test_one_file_for_two_patients_is_refused(tmp_path: Path, field: str, told: str) -> None:
    twin = entry(2, **{field: entry(1)[field]})
    assert told in refusal(save(tmp_path / "m.json", entry(1), twin))


@pytest.mark.parametrize("covariate", ["age_years", "sex"])
def test_missing_covariate_is_refused(tmp_path: Path, covariate: str) -> None:
    incomplete = entry(2)
    del incomplete[covariate]
    told = refusal(save(tmp_path / "m.json", entry(1), incomplete))
    assert f"entry 1 {covariate}" in told
    assert "missing" in told


@pytest.mark.parametrize(
    "changes",
    [
        {"age_years": -1.0},
        {"age_years": float("nan")},
        {"sex": "m"},
        {"path": "../elsewhere.nii.gz"},
        {"path": "/etc/passwd"},
        {"subject": "Doe, Jane"},
        {"digest": "sha256:12"},
        {"name": "Jane Doe"},
    ],
)
def test_impossible_entry_is_refused_without_telling_it(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    told = refusal(save(tmp_path / "m.json", entry(1, **changes)))
    assert "Jane" not in told
    assert "passwd" not in told


def test_empty_missing_and_damaged_manifests_are_refused(tmp_path: Path) -> None:
    assert "wrong at entry" in refusal(save(tmp_path / "m.json"))
    assert "cannot be read" in refusal(tmp_path / "none.json")
    (tmp_path / "bad.json").write_bytes(b"\xff{")
    assert "not JSON" in refusal(tmp_path / "bad.json")


def test_repr_shows_nothing_of_a_patient() -> None:
    manifest = Manifest(items=(Item(**entry(1)),))
    for text in (repr(manifest), str(manifest), repr(manifest.items[0]), f"{manifest.items}"):
        assert "p-1" not in text
        assert "71.25" not in text
