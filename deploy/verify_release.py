#!/usr/bin/env python3
"""Verify a Vitrael release with nothing of Vitrael: Python 3.11 and the package ``cryptography``.

    python verify_release.py DIR TRUST.json [--expect NAME@VERSION]

DIR is the release's folder. TRUST.json holds the public keys that you trust, and should come to
you by another way than the release::

    {"threshold": 3,
     "keys": {"harbour": "<64 hex>", "north": "<64 hex>", "valley": "<64 hex>"},
     "recall": "<64 hex>"}

Exit code 0: everything holds. 2: the call is wrong. 3: the trust file cannot be used. 4: the
release does not hold or cannot be read, and the message says what. It is written apart from
``vitrael verify`` on purpose: two readings of one rule, which a test holds to the same answers in
the same order (recall, manifest, signatures, name, files, nothing else, verdict).
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import re
import stat
import sys
from pathlib import Path
from typing import Any, NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

NAME = re.compile(r"[a-z][a-z0-9-]{0,47}")
SEGMENT = re.compile(r"\.?[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
KEY = re.compile(r"[0-9a-f]{64}")
REFERENCE = re.compile(r"([a-z][a-z0-9-]{0,47})@([1-9][0-9]{0,8})")
FIELDS = {"format", "name", "version", "protocol", "roster", "policy", "publishable", "files"}
REQUIRED = {"evidence.json", "study.toml", "verdict.json"}
RESERVED = {"manifest.json", "recalled.json", "signatures"}
RECALL_LABEL = "RECALLED.json, the recall of this release,"
MALFORMED = "manifest.json is not well formed"
MAX_MANIFEST_BYTES = 64 << 20
MAX_STATEMENT_BYTES = 64 << 10
MAX_PATH_CHARS = 200


class TrustError(Exception):
    """The trust file cannot be used."""


class RefusedError(Exception):
    """The release does not hold."""


def main() -> int:
    """Verify the release of the command line and return the exit code."""
    parser = argparse.ArgumentParser(description="Verify a Vitrael release.")
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("trust", type=Path, metavar="TRUST.json")
    parser.add_argument(
        "--expect", type=parse_reference, metavar="NAME@VERSION", help="refuse any other release"
    )
    arguments = parser.parse_args()
    try:
        trust = read_trust(arguments.trust)
        manifest, signed_by = verify(arguments.folder, trust, expected=arguments.expect)
    except TrustError as error:
        sys.stderr.write(f"Error: trust file: {error}.\n")
        return 3
    except RefusedError as error:
        sys.stderr.write(f"Refused: {error}.\n")
        return 4
    mark = "" if manifest["publishable"] else " (REHEARSAL: NOT FOR PUBLICATION)"
    sites = f"signed by {', '.join(signed_by)}"
    sys.stdout.write(f"{manifest['name']}@{manifest['version']} verifies, {sites}{mark}\n")
    return 0


def verify(
    folder: Path, trust: dict[str, Any], *, expected: str | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Return the manifest and the sites that signed it, else raise RefusedError."""
    try:
        return check_release(folder, trust, expected)
    except OSError as error:
        raise RefusedError(f"the release cannot be read: {error.strerror}") from error


def check_release(
    folder: Path, trust: dict[str, Any], expected: str | None
) -> tuple[dict[str, Any], list[str]]:
    """Return what ``verify`` does; OSError when a file cannot be read."""
    if not folder.is_dir():
        raise RefusedError(f"there is no release at {folder}")
    held = list_files(folder)
    data = read(folder, "manifest.json", held, MAX_MANIFEST_BYTES)
    digest = hashlib.sha256(data).hexdigest()
    if "RECALLED.json" in held:
        refuse_recalled(read(folder, "RECALLED.json", held, MAX_STATEMENT_BYTES), digest, trust)
    manifest = parse_manifest(data)
    signed_by = check_signatures(folder, held, manifest, digest, trust)
    reference = f"{manifest['name']}@{manifest['version']}"
    if expected not in (None, reference):
        older = f", {age(manifest, expected)} version than {expected}"
        same_name = expected.split("@")[0] == manifest["name"]
        raise RefusedError(f"this is {reference}" + (older if same_name else f", not {expected}"))
    check_files(folder, held, manifest, signed_by)
    check_verdict(folder, manifest)
    return manifest, signed_by


def parse_reference(text: str) -> str:
    """Return a text that has the form NAME@VERSION; argparse tells of any other."""
    if not REFERENCE.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{shown(text)} is not of the form NAME@VERSION")
    return text


def read_trust(path: Path) -> dict[str, Any]:
    """Return the trust file's content, else raise TrustError."""
    try:
        trust = json.loads(path.read_bytes())
        keys, threshold, recall = trust["keys"], trust["threshold"], trust["recall"]
        names_hold = all(NAME.fullmatch(name) for name in keys)
        keys_hold = all(KEY.fullmatch(key) for key in (*keys.values(), recall))
        known = trust.keys() == {"keys", "threshold", "recall"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TrustError("it cannot be read, or lacks threshold, keys or recall") from error
    if not (names_hold and keys_hold and known):
        raise TrustError("a name or a key is not in its form, or there is an unknown field")
    if type(threshold) is not int or not 1 <= threshold <= len(keys):
        raise TrustError("the threshold must be between 1 and the number of keys")
    if len(set(keys.values())) < len(keys):
        raise TrustError("two sites have one key")
    return dict(trust)


def list_files(folder: Path, prefix: str = "") -> dict[str, int]:
    """Return path -> size of all plain files, and ``path/`` -> 0 of all folders."""
    held: dict[str, int] = {}
    for name in sorted(os.listdir(folder)):  # noqa: PTH208 - names, not paths
        path, status = folder / name, (folder / name).lstat()
        if stat.S_ISDIR(status.st_mode):
            held[f"{prefix}{name}/"] = 0
            held |= list_files(path, f"{prefix}{name}/")
        elif stat.S_ISREG(status.st_mode):
            held[prefix + name] = status.st_size
        else:
            raise RefusedError(f"{shown(prefix + name)} is a link or a special file")
    return held


def read(folder: Path, path: str, held: dict[str, int], limit: int) -> bytes:
    """Return the bytes of a small file, one more than the limit at most."""
    if path not in held:
        raise RefusedError(f"{path} is missing")
    with (folder / path).open("rb") as file:
        return file.read(limit + 1)


def parse_manifest(data: bytes) -> dict[str, Any]:
    """Return the manifest once its form, every path and every digest is right."""
    try:
        manifest = json.loads(data)
        canonical = json.dumps(manifest, sort_keys=True, indent=1, allow_nan=False).encode() + b"\n"
        texts = [manifest[key] for key in ("protocol", "roster")]
        files = manifest["files"]
        entries = [(entry["digest"], entry["size_bytes"]) for entry in files.values()]
        whole = (
            len(data) <= MAX_MANIFEST_BYTES
            and canonical == data
            and manifest.keys() == FIELDS
            and manifest["format"] == "vitrael-release/1"
            and all(NAME.fullmatch(manifest[key]) for key in ("name", "policy"))
            and type(manifest["version"]) is int
            and manifest["version"] >= 1
            and type(manifest["publishable"]) is bool
            and all(DIGEST.fullmatch(text) for text in texts)
            and all(entry.keys() == {"digest", "size_bytes"} for entry in files.values())
            and all(DIGEST.fullmatch(text) for text, _ in entries)
            and all(type(size) is int and size >= 0 for _, size in entries)
            and files.keys() >= REQUIRED
            and paths_hold(files)
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RefusedError(MALFORMED) from error
    if not whole:
        raise RefusedError(MALFORMED)
    return dict(manifest)


def paths_hold(files: dict[str, Any]) -> bool:
    """Return whether every path stays in the folder and no two are in each other's way."""
    folded = {path.lower() for path in files}
    inner = {parent for path in folded for parent in parents(path)}
    return (
        len(folded) == len(files)
        and not inner & folded
        and all(len(path) <= MAX_PATH_CHARS for path in files)
        and all(path.split("/")[0].lower() not in RESERVED for path in files)
        and all(SEGMENT.fullmatch(segment) for path in files for segment in path.split("/"))
    )


def check_signatures(
    folder: Path,
    held: dict[str, int],
    manifest: dict[str, Any],
    digest: str,
    trust: dict[str, Any],
) -> list[str]:
    """Return the sites that signed: each signature is trusted and holds, and enough are there."""
    signed_by = []
    for path in sorted(held):
        if not (path.startswith("signatures/") and path.endswith(".dsse.json")):
            continue
        site = path.removeprefix("signatures/").removesuffix(".dsse.json")
        label = f"the signature of {shown(site)}"
        if site not in trust["keys"]:
            raise RefusedError(f"{label} is by a foreign key")
        data = read(folder, path, held, MAX_STATEMENT_BYTES)
        predicate = {key: manifest[key] for key in ("protocol", "roster", "policy", "publishable")}
        predicate |= {"site": site, "release": f"{manifest['name']}@{manifest['version']}"}
        said = open_statement(data, trust["keys"][site], "urn:vitrael:release:1", label)
        if said != ("manifest.json", digest, predicate):
            raise RefusedError(f"{label} is for another release")
        signed_by.append(site)
    missing = sorted(trust["keys"].keys() - set(signed_by))
    if len(signed_by) < trust["threshold"]:
        if len(missing) == 1:
            raise RefusedError(f"the signature of {missing[0]} is missing")
        raise RefusedError(f"too few sites have signed: {len(signed_by)} of {trust['threshold']}")
    return signed_by


def open_statement(
    data: bytes, public: str, kind: str, label: str
) -> tuple[str, str, dict[str, Any]]:
    """Return subject, its SHA-256 and the predicate of a DSSE envelope that ``public`` signed."""
    try:
        envelope = json.loads(data)
        (signature,) = envelope["signatures"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        raw = base64.b64decode(signature["sig"], validate=True)
        kind_of_payload = envelope["payloadType"].encode()
        whole = (
            len(data) <= MAX_STATEMENT_BYTES
            and compact(envelope) == data
            and envelope.keys() == {"payload", "payloadType", "signatures"}
            and signature.keys() == {"keyid", "sig"}
            and base64.b64encode(payload).decode() == envelope["payload"]
            and base64.b64encode(raw).decode() == signature["sig"]
        )
        key_id = signature["keyid"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RefusedError(f"{label} is damaged") from error
    if not whole:
        raise RefusedError(f"{label} is damaged")
    if key_id != key_id_of(public):
        raise RefusedError(f"{label} is by a foreign key")
    message = b"DSSEv1 %d %b %d %b" % (
        len(kind_of_payload), kind_of_payload, len(payload), payload
    )  # fmt: skip
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(raw, message)
    except (InvalidSignature, ValueError) as error:
        raise RefusedError(f"{label} does not hold") from error
    return parse_statement(payload, kind_of_payload, kind, label)


def parse_statement(
    payload: bytes, kind_of_payload: bytes, kind: str, label: str
) -> tuple[str, str, dict[str, Any]]:
    """Return subject, its SHA-256 and the predicate of an in-toto Statement v1."""
    try:
        statement = json.loads(payload)
        (subject,) = statement["subject"]
        said = subject["name"], subject["digest"]["sha256"], statement["predicate"]
        right = (
            kind_of_payload == b"application/vnd.in-toto+json"
            and statement["_type"] == "https://in-toto.io/Statement/v1"
            and statement["predicateType"] == kind
            and compact(statement) == payload
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RefusedError(f"{label} says something else") from error
    if not right:
        raise RefusedError(f"{label} says something else")
    return said


def refuse_recalled(data: bytes, digest: str, trust: dict[str, Any]) -> NoReturn:
    """Raise RefusedError, always: recalled, forged, or about another release."""
    subject, recalled, predicate = open_statement(
        data, trust["recall"], "urn:vitrael:recall:1", RECALL_LABEL
    )
    if recalled != digest:
        raise RefusedError("RECALLED.json is about another release")
    when, why = (str(predicate.get(key, "")) for key in ("recalled_utc", "reason"))
    raise RefusedError(f"{subject} was recalled on {shown(when)}: {shown(why)}")


def check_files(
    folder: Path, held: dict[str, int], manifest: dict[str, Any], signed_by: list[str]
) -> None:
    """Raise RefusedError unless every file is there unchanged, and no other."""
    files = manifest["files"]
    for path in sorted(files):
        if path not in held:
            raise RefusedError(f"{path} is missing")
        if held[path] != files[path]["size_bytes"]:
            raise RefusedError(f"{path} was changed")
    for path in sorted(files):
        with (folder / path).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if f"sha256:{found}" != files[path]["digest"]:
            raise RefusedError(f"{path} was changed")
    known = {"manifest.json", *files, *(f"signatures/{site}.dsse.json" for site in signed_by)}
    known |= {f"{parent}/" for path in known for parent in parents(path)}
    if extra := sorted(held.keys() - known):
        raise RefusedError(f"{shown(extra[0])} does not belong to the release")


def check_verdict(folder: Path, manifest: dict[str, Any]) -> None:
    """Raise RefusedError unless the verdict is of this evidence and policy, and a pass."""
    try:
        evidence = json.loads((folder / "evidence.json").read_bytes())
        verdict = json.loads((folder / "verdict.json").read_bytes())
        outcome = verdict["outcome"]
        said = [verdict["evidence"], verdict["policy"], verdict["publishable"]]
        said.append(evidence["protocol"])
        digest = f"sha256:{hashlib.sha256(compact(evidence)).hexdigest()}"
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RefusedError("evidence.json or verdict.json holds none") from error
    if said != [digest, manifest["policy"], manifest["publishable"], manifest["protocol"]]:
        raise RefusedError("evidence, verdict and manifest do not belong together")
    if outcome != "pass":
        raise RefusedError("the release was refused by its gates")


def age(manifest: dict[str, Any], expected: str) -> str:
    """Return how the manifest's version stands to the expected one, as words."""
    asked = REFERENCE.fullmatch(expected)
    return "an older" if asked and manifest["version"] < int(asked[2]) else "another"


def key_id_of(public: str) -> str:
    """Return the key id that securesystemslib gives an Ed25519 public key."""
    key = {"keytype": "ed25519", "scheme": "ed25519", "keyval": {"public": public}}
    return hashlib.sha256(compact(key)).hexdigest()


def compact(value: Any) -> bytes:  # noqa: ANN401 - any JSON value
    """Return canonical JSON: sorted keys, no white space, UTF-8."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def parents(path: str) -> list[str]:
    """Return the folders that a path lies in."""
    parts = path.split("/")
    return ["/".join(parts[:end]) for end in range(1, len(parts))]


def shown(name: str) -> str:
    """Return a foreign text for a message: no control characters, not too long."""
    return ascii(name)[1:-1][:120]


if __name__ == "__main__":
    sys.exit(main())
