"""What was recalled is refused, and so is a recall that is not in order."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitrael.core.errors import VerificationError
from vitrael.privacy.release.sign import sign_manifest

Releases = Any  # ReleaseFactory of conftest.py, which no test can import
IMAGE = "sub-syn0001/anat/sub-syn0001_T1w.nii.gz"


def test_recalled_release_is_refused_with_reason_and_date(
    release: Path, releases: Releases, refuse: Callable[..., VerificationError]
) -> None:
    (release / "RECALLED.json").write_bytes(releases.recall(release, reason="a copy was found"))
    error = refuse()
    assert error.what == "brain-demo@1 was recalled on 2025-03-01T12:00:00+00:00"
    assert error.why == "a copy was found"


def test_recall_comes_before_everything_else(
    release: Path, releases: Releases, refuse: Callable[..., VerificationError]
) -> None:
    (release / "RECALLED.json").write_bytes(releases.recall(release))
    shutil.rmtree(release / "signatures")
    (release / "card.md").unlink()
    assert "was recalled on" in refuse().what


def test_recall_by_another_key_is_refused_too(
    release: Path, releases: Releases, refuse: Callable[..., VerificationError]
) -> None:
    (release / "RECALLED.json").write_bytes(releases.recall(release, by="north"))
    assert refuse().what == "RECALLED.json, the recall of this release, is by a foreign key"


def test_forged_recall_is_refused_too(
    release: Path, releases: Releases, refuse: Callable[..., VerificationError]
) -> None:
    document = json.loads(releases.recall(release))
    document["payload"] = json.loads(releases.recall(release, reason="none"))["payload"]
    data = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    (release / "RECALLED.json").write_bytes(data)
    assert refuse().what == "RECALLED.json, the recall of this release, does not hold"


def test_site_signature_in_place_of_a_recall_says_something_else(
    release: Path, releases: Releases, refuse: Callable[..., VerificationError]
) -> None:
    manifest = (release / "manifest.json").read_bytes()
    data = sign_manifest(manifest, releases.coordinator.signing, site="north")
    (release / "RECALLED.json").write_bytes(data)
    assert refuse().what == "RECALLED.json, the recall of this release, says something else"


def test_recall_of_another_release_is_refused_too(
    release: Path, tmp_path: Path, releases: Releases, refuse: Callable[..., VerificationError]
) -> None:
    other = releases.write(tmp_path / "other", releases.contents(version=2))
    (release / "RECALLED.json").write_bytes(releases.recall(other))
    assert refuse().what == "RECALLED.json is about another release"
