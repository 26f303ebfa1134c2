from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from vitrael.core.digest import digest_bytes
from vitrael.core.errors import UsageError, VerificationError
from vitrael.privacy.release.recall import open_recall, sign_recall
from vitrael.privacy.release.sign import sign_manifest

Releases = Any  # ReleaseFactory of conftest.py


def test_signature_is_an_in_toto_statement_in_dsse(
    pristine_release: Path, releases: Releases
) -> None:
    manifest = (pristine_release / "manifest.json").read_bytes()
    envelope = json.loads(sign_manifest(manifest, releases.keys["north"].signing, site="north"))
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    statement = json.loads(base64.b64decode(envelope["payload"]))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    digest = {"sha256": digest_bytes(manifest).removeprefix("sha256:")}
    assert statement["subject"] == [{"name": "manifest.json", "digest": digest}]
    assert statement["predicate"]["site"] == "north"
    assert statement["predicate"]["publishable"] is False


def test_equal_manifest_and_key_give_equal_signatures(
    pristine_release: Path, releases: Releases
) -> None:
    manifest = (pristine_release / "manifest.json").read_bytes()
    key = releases.keys["north"].signing
    assert sign_manifest(manifest, key, site="north") == sign_manifest(manifest, key, site="north")


@pytest.mark.parametrize("data", [b"", b"{}", b"anything else"])
def test_site_signs_nothing_but_a_manifest(releases: Releases, data: bytes) -> None:
    with pytest.raises(VerificationError, match="not well formed"):
        sign_manifest(data, releases.keys["north"].signing, site="north")


def test_recall_says_which_release_why_and_when(pristine_release: Path, releases: Releases) -> None:
    recall = open_recall(
        releases.recall(pristine_release), public=releases.coordinator.public.signing
    )
    assert recall.release == "brain-demo@1"
    assert recall.reason == "a copy was found"
    assert recall.recalled_utc == "2025-03-01T12:00:00+00:00"


@pytest.mark.parametrize("reason", ["", "  \n ", "x" * 501, "\x1b[2Jcleared"])
def test_recall_without_a_usable_reason_is_refused(
    pristine_release: Path, releases: Releases, reason: str
) -> None:
    with pytest.raises(UsageError, match="no usable reason"):
        releases.recall(pristine_release, reason=reason)


def test_recall_without_a_time_zone_is_refused(pristine_release: Path, releases: Releases) -> None:
    manifest = (pristine_release / "manifest.json").read_bytes()
    now = datetime(2025, 3, 1, tzinfo=UTC).replace(tzinfo=None)
    with pytest.raises(UsageError, match="no zone"):
        sign_recall(manifest, releases.coordinator.signing, reason="x", now=now)
