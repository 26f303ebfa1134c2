"""Signatures that are missing, foreign, forged or spelled otherwise are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]

from vitrael.core.digest import canonical_json
from vitrael.core.errors import VerificationError
from vitrael.privacy.release.sign import add_signature, sign_manifest
from vitrael.privacy.release.verify import verify_release

Releases = Any  # ReleaseFactory of conftest.py, which no test can import
IMAGE = "sub-syn0001/anat/sub-syn0001_T1w.nii.gz"


def test_missing_signature_is_refused_by_the_site_name(
    release: Path, refuse: Callable[..., VerificationError]
) -> None:
    (release / "signatures" / "north.dsse.json").unlink()
    assert refuse().what == "the signature of north is missing"


def test_too_few_signatures_are_refused(
    release: Path, refuse: Callable[..., VerificationError]
) -> None:
    for site in ("north", "valley"):
        (release / "signatures" / f"{site}.dsse.json").unlink()
    error = refuse()
    assert error.what == "too few sites have signed: 1 of 3"
    assert "north, valley" in error.why


def test_unsigned_release_is_refused(
    release: Path, refuse: Callable[..., VerificationError]
) -> None:
    shutil.rmtree(release / "signatures")
    assert refuse().what == "too few sites have signed: 0 of 3"


def test_threshold_of_two_accepts_two_of_three(release: Path, releases: Releases) -> None:
    (release / "signatures" / "north.dsse.json").unlink()
    trust = releases.trust_of(("harbour", "north", "valley"), threshold=2)
    assert verify_release(release, trust).signed_by == ("harbour", "valley")


def test_foreign_key_is_refused(
    release: Path, releases: Releases, refuse: Callable[..., VerificationError]
) -> None:
    manifest = (release / "manifest.json").read_bytes()
    signature = sign_manifest(manifest, releases.keys["stranger"].signing, site="north")
    add_signature(release, signature, site="north")
    assert refuse().what == "the signature of north is by a foreign key"


def test_foreign_site_is_refused_beside_enough_good_signatures(
    release: Path, releases: Releases, refuse: Callable[..., VerificationError]
) -> None:
    releases.sign(release, ("stranger",))
    assert refuse().what == "the signature of stranger is by a foreign key"


def test_signature_of_one_site_does_not_count_as_anothers(
    release: Path, refuse: Callable[..., VerificationError]
) -> None:
    folder = release / "signatures"
    shutil.copy(folder / "north.dsse.json", folder / "valley.dsse.json")
    assert refuse().what == "the signature of valley is by a foreign key"


def test_signature_with_the_right_key_id_and_wrong_bytes_is_refused(
    release: Path, refuse: Callable[..., VerificationError]
) -> None:
    north = release / "signatures" / "north.dsse.json"
    valley = json.loads((release / "signatures" / "valley.dsse.json").read_bytes())
    document = json.loads(north.read_bytes())
    document["signatures"][0]["sig"] = valley["signatures"][0]["sig"]
    north.write_bytes(json.dumps(document, sort_keys=True, separators=(",", ":")).encode())
    assert refuse().what == "the signature of north does not hold"


def test_task_envelope_of_the_same_key_is_no_signature(
    release: Path, releases: Releases, refuse: Callable[..., VerificationError]
) -> None:
    envelope = Envelope(b"{}", "application/vnd.vitrael.reply+json", {})
    envelope.sign(CryptoSigner(releases.keys["north"].signing))
    data = canonical_json(envelope.to_dict())
    (release / "signatures" / "north.dsse.json").write_bytes(data)
    assert refuse().what == "the signature of north says something else"


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b"[" * 50_000, b"x" * 70_000])
def test_damaged_signature_is_refused(
    release: Path, refuse: Callable[..., VerificationError], data: bytes
) -> None:
    (release / "signatures" / "north.dsse.json").write_bytes(data)
    assert refuse().what == "the signature of north is damaged"


def _spare_bits(document: dict[str, Any]) -> None:
    """Change the four bits of the last base64 letter that decoding throws away."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    text = document["signatures"][0]["sig"]
    last = letters[letters.index(text[-3]) ^ 1]
    document["signatures"][0]["sig"] = f"{text[:-3]}{last}=="


@pytest.mark.parametrize(
    "change",
    [
        _spare_bits,
        lambda document: document.update(more=1),
        lambda document: document["signatures"][0].update(cert="x"),
        lambda document: document["signatures"].append(
            {**document["signatures"][0], "keyid": "0" * 64}
        ),
    ],
    ids=["spare bits", "another field", "a field of the signature", "another signature"],
)
def test_same_signature_in_another_spelling_is_refused(
    release: Path,
    refuse: Callable[..., VerificationError],
    change: Callable[[dict[str, Any]], object],
) -> None:
    path = release / "signatures" / "north.dsse.json"
    document = json.loads(path.read_bytes())
    assert canonical_json(document) == path.read_bytes()
    change(document)
    path.write_bytes(canonical_json(document))
    assert refuse().what == "the signature of north is damaged"


def test_signature_with_white_space_is_refused(
    release: Path, refuse: Callable[..., VerificationError]
) -> None:
    path = release / "signatures" / "north.dsse.json"
    path.write_bytes(path.read_bytes() + b"\n")
    assert refuse().what == "the signature of north is damaged"


def test_every_byte_of_a_signature_matters(
    release: Path, releases: Releases, alone: ModuleType
) -> None:
    path = release / "signatures" / "north.dsse.json"
    original = path.read_bytes()
    for place in range(0, len(original), 7):
        changed = bytearray(original)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(VerificationError):
            verify_release(release, releases.trust)
        with pytest.raises(alone.RefusedError):
            alone.verify(release, releases.trust.model_dump())


def test_good_signatures_over_another_manifest_are_refused(
    release: Path, tmp_path: Path, releases: Releases, refuse: Callable[..., VerificationError]
) -> None:
    other = releases.write(tmp_path / "other", releases.contents(version=2))
    shutil.copy(other / "signatures" / "harbour.dsse.json", release / "signatures")
    assert refuse().what == "the signature of harbour is for another release"
