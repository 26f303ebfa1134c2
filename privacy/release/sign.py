"""Each site signs the manifest of a release with its own key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from vitrael.core.digest import write_atomically
from vitrael.privacy.release.manifest import MANIFEST, Manifest, parse_manifest, signature_path
from vitrael.privacy.release.statement import RELEASE_TYPE, Statement, sign_statement


def sign_manifest(manifest: bytes, key: Ed25519PrivateKey, *, site: str) -> bytes:
    """Return the site's DSSE envelope over the bytes of a manifest.

    Raises VerificationError for bytes that are no manifest: a site signs nothing else.
    """
    return sign_statement(release_statement(parse_manifest(manifest), site=site), key)


def release_statement(manifest: Manifest, *, site: str) -> Statement:
    """Return what a site says of a release: this is it, and so it was made."""
    predicate: dict[str, Any] = {  # any JSON value
        "site": site,
        "release": str(manifest.reference),
        "protocol": manifest.protocol,
        "roster": manifest.roster,
        "policy": manifest.policy,
        "publishable": manifest.publishable,
    }
    return Statement(MANIFEST, manifest.digest, RELEASE_TYPE, predicate)


def add_signature(folder: Path, signature: bytes, *, site: str) -> Path:
    """Write a site's signature into a release folder and return its path."""
    path = folder / signature_path(site)
    write_atomically(path, signature)
    path.chmod(0o644)
    return path
