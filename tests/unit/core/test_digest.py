"""Equal content has one name, different content has another, and files are whole or absent."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vitrael.core.digest import (
    canonical_json,
    digest_bytes,
    digest_file,
    digest_json,
    write_atomically,
)

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
)
KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@given(DOCUMENTS)
def test_canonical_json_is_stable_through_a_round_trip(document: object) -> None:
    data = canonical_json(document)
    assert canonical_json(json.loads(data)) == data


@given(st.dictionaries(KEYS, SCALARS, min_size=2, max_size=6))
def test_order_of_keys_does_not_change_the_digest(document: dict[str, object]) -> None:
    assert digest_json(dict(reversed(document.items()))) == digest_json(document)


@given(DOCUMENTS, DOCUMENTS)
def test_documents_that_differ_have_different_digests(one: object, other: object) -> None:
    assume(canonical_json(one) != canonical_json(other))
    assert digest_json(one) != digest_json(other)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_json_lacks_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json({"x": [value]})


def test_value_that_json_cannot_hold_is_refused() -> None:
    with pytest.raises(TypeError):
        canonical_json({"x": b"bytes"})


def test_digest_is_sha256_of_the_canonical_form() -> None:
    expected = hashlib.sha256(b'{"a":"\xc3\xa9","b":[1,2.5]}').hexdigest()
    assert digest_json({"b": [1, 2.5], "a": "é"}) == f"sha256:{expected}"


def test_digest_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000  # more than one block
    (tmp_path / "file").write_bytes(data)
    assert digest_file(tmp_path / "file") == digest_bytes(data)


def test_written_file_replaces_the_old_one_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new-folder" / "file"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
