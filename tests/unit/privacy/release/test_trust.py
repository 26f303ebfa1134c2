from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vitrael.core.errors import ConfigError
from vitrael.privacy.release.trust import load_trust, save_trust

Releases = Any  # ReleaseFactory of conftest.py
A, B = "a" * 64, "b" * 64


def test_trust_comes_back_as_it_was_saved(tmp_path: Path, releases: Releases) -> None:
    save_trust(releases.trust, tmp_path / "trust.json")
    assert load_trust(tmp_path / "trust.json") == releases.trust


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ({"threshold": 2, "keys": {"north": A}, "recall": B}, "only 1 keys"),
        ({"threshold": 0, "keys": {"north": A}, "recall": B}, "greater than or equal to 1"),
        ({"threshold": 1, "keys": {}, "recall": B}, "at least 1"),
        ({"threshold": 1, "keys": {"north": A, "valley": A}, "recall": B}, "count twice"),
        ({"threshold": 1, "keys": {"north": "zz"}, "recall": B}, "pattern"),
        ({"threshold": 1, "keys": {"../x": A}, "recall": B}, "pattern"),
        ({"threshold": 1, "keys": {"north": A}}, "required"),
        ({"threshold": 1, "keys": {"north": A}, "recall": B, "more": 1}, "not permitted"),
        ({"threshold": True, "keys": {"north": A}, "recall": B}, "integer"),
        ([], "valid dictionary|object"),
    ],
)
def test_trust_that_protects_nothing_is_refused(tmp_path: Path, document: object, why: str) -> None:
    path = tmp_path / "trust.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=why):
        load_trust(path)


def test_missing_trust_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read") as refusal:
        load_trust(tmp_path / "none.json")
    assert refusal.value.exit_code == 3
