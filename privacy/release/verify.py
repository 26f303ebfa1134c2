"""Verification of a release: from its folder and the trusted public keys alone, without network.

The order of the checks, each with its own refusal:

1. recall: ``RECALLED.json``, if there, ends it, forged or not;
2. manifest: well formed, canonical, every path inside the folder;
3. signatures: each one present is a trusted site's and holds; enough distinct sites have signed;
4. name: it is the release that was asked for, not another one or an older version;
5. files: each is there with its digest, and none is a link;
6. nothing else is in the folder;
7. verdict: it is that of this Evidence and policy, and its gates let it pass.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from vitrael.core.digest import Digest, digest_file, digest_json
from vitrael.core.errors import VerificationError
from vitrael.privacy.release.manifest import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    MAX_STATEMENT_BYTES,
    RECALLED,
    SIGNATURES,
    Manifest,
    Reference,
    parent_folders,
    parse_manifest,
    signature_path,
)
from vitrael.privacy.release.recall import refuse_recalled
from vitrael.privacy.release.sign import release_statement
from vitrael.privacy.release.statement import RELEASE_TYPE, open_statement
from vitrael.privacy.release.trust import Trust

_HASH_THREADS = 4
_AGAIN = "delete the folder, then get the release again"


@dataclass(frozen=True, slots=True)
class VerifiedRelease:
    """What is known of a release whose every check passed."""

    folder: Path
    name: str
    version: int
    manifest: Digest
    protocol: Digest
    roster: Digest
    policy: str
    publishable: bool
    """False: a rehearsal, not for publication."""
    signed_by: tuple[str, ...]
    threshold: int
    files: int
    size_bytes: int


def verify_release(
    folder: Path,
    trust: Trust,
    *,
    expected: Reference | None = None,
    recall: bytes | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> VerifiedRelease:
    """Return what the release says once everything about it holds, else raise VerificationError.

    ``recall`` is a recall that was found elsewhere, such as in the catalogue; ``progress`` is
    told the size of each file that was checked, in bytes.
    """
    held = _list_files(folder)
    data = _read(folder, MANIFEST, held=held, limit=MAX_MANIFEST_BYTES)
    if recall is None and RECALLED in held:
        recall = _read(folder, RECALLED, held=held, limit=MAX_STATEMENT_BYTES)
    signatures = {
        path.removeprefix(f"{SIGNATURES}/").removesuffix(".dsse.json"): _read(
            folder, path, held=held, limit=MAX_STATEMENT_BYTES
        )
        for path in sorted(held)
        if path.startswith(f"{SIGNATURES}/") and path.endswith(".dsse.json")
    }
    manifest = verify_manifest(data, signatures, trust, expected=expected, recall=recall)
    _check_files(folder, manifest, held=held, progress=progress)
    known = {MANIFEST, *manifest.files, *map(signature_path, signatures)}
    known |= {f"{parent}/" for path in known for parent in parent_folders(path)}
    if extra := sorted(held.keys() - known):
        raise VerificationError(
            f"{_shown(extra[0])} does not belong to the release",
            why=f"{MANIFEST} does not list it",
            fix="remove it, or get the release again",
        )
    _check_verdict(folder, manifest)
    return VerifiedRelease(
        folder=folder,
        name=manifest.name,
        version=manifest.version,
        manifest=manifest.digest,
        protocol=manifest.protocol,
        roster=manifest.roster,
        policy=manifest.policy,
        publishable=manifest.publishable,
        signed_by=tuple(sorted(signatures)),
        threshold=trust.threshold,
        files=len(manifest.files),
        size_bytes=manifest.size_bytes,
    )


def verify_manifest(
    data: bytes,
    signatures: Mapping[str, bytes],
    trust: Trust,
    *,
    expected: Reference | None = None,
    recall: bytes | None = None,
) -> Manifest:
    """Return the manifest once recall, form, signatures and name (checks 1 to 4) hold."""
    if recall is not None:
        refuse_recalled(recall, manifest=data, public=trust.recall)
    manifest = parse_manifest(data)
    for site in sorted(signatures):
        check_signature(signatures[site], manifest, site=site, trust=trust)
    _check_threshold(set(signatures), trust)
    _check_name(manifest.reference, expected)
    return manifest


def check_signature(data: bytes, manifest: Manifest, *, site: str, trust: Trust) -> None:
    """Raise VerificationError unless these bytes are a trusted site's signature on the manifest."""
    label = f"the signature of {_shown(site)}"
    if site not in trust.keys:
        raise VerificationError(
            f"{label} is by a foreign key",
            why="no site of that name is in your trust file",
            fix="do not use the release; ask the coordinator which sites took part",
        )
    statement = open_statement(data, public=trust.keys[site], kind=RELEASE_TYPE, label=label)
    if statement != release_statement(manifest, site=site):
        raise VerificationError(
            f"{label} is for another release",
            why=f"it does not name the digest of this {MANIFEST}",
            fix=_AGAIN,
        )


def _check_threshold(signed: set[str], trust: Trust) -> None:
    if len(signed) >= trust.threshold:
        return
    missing = sorted(trust.keys.keys() - signed)
    fix = "get the release again, or ask the coordinator who has not signed"
    if len(missing) == 1:
        raise VerificationError(
            f"the signature of {missing[0]} is missing",
            why=f"{trust.threshold} sites must have signed and {len(signed)} have",
            fix=fix,
        )
    raise VerificationError(
        f"too few sites have signed: {len(signed)} of {trust.threshold}",
        why=f"there is no signature of {', '.join(missing)}",
        fix=fix,
    )


def _check_name(reference: Reference, expected: Reference | None) -> None:
    if expected is None or reference == expected:
        return
    if reference.name != expected.name:
        raise VerificationError(
            f"this is {reference}, not {expected}",
            why="another release stands under the name that was asked for",
            fix="ask the coordinator; the catalogue may have been tampered with",
        )
    older = "an older" if reference.version < expected.version else "another"
    raise VerificationError(
        f"this is {reference}, {older} version than {expected}",
        why="the version that was asked for was replaced",
        fix="ask the coordinator; the catalogue may have been tampered with",
    )


def _check_files(
    folder: Path, manifest: Manifest, *, held: Mapping[str, int], progress: Callable[[int], None]
) -> None:
    for path, entry in sorted(manifest.files.items()):
        if path not in held:
            raise VerificationError(f"{path} is missing", why=f"{MANIFEST} lists it", fix=_AGAIN)
        if held[path] != entry.size_bytes:
            size = f"it has {held[path]} bytes, not {entry.size_bytes}"
            raise VerificationError(f"{path} was changed", why=size, fix=_AGAIN)
    paths = sorted(manifest.files)
    with ThreadPoolExecutor(_HASH_THREADS) as pool:
        digests = pool.map(lambda path: digest_file(folder / path), paths)
        for path, digest in zip(paths, digests, strict=True):
            if digest != manifest.files[path].digest:
                why = f"its bytes are not those that {MANIFEST} names"
                raise VerificationError(f"{path} was changed", why=why, fix=_AGAIN)
            progress(manifest.files[path].size_bytes)


def _check_verdict(folder: Path, manifest: Manifest) -> None:
    try:
        evidence = json.loads((folder / "evidence.json").read_bytes())
        verdict = json.loads((folder / "verdict.json").read_bytes())
        said = {name: verdict[name] for name in ("evidence", "policy", "publishable")}
        outcome, protocol = verdict["outcome"], evidence["protocol"]
        due = {
            "evidence": digest_json(evidence),
            "policy": manifest.policy,
            "publishable": manifest.publishable,
        }
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise VerificationError("evidence.json or verdict.json holds none") from error
    if protocol != manifest.protocol or said != due:
        raise VerificationError(
            "evidence, verdict and manifest do not belong together",
            why="the verdict is of other evidence, policy or protocol",
            fix=_AGAIN,
        )
    if outcome != "pass":
        raise VerificationError(
            "the release was refused by its gates",
            why="its verdict is not a pass, whoever signed it",
            fix="do not use it; read verdict.json for the reasons",
        )


def _list_files(folder: Path) -> dict[str, int]:
    """Return path -> bytes of all plain files, and ``path/`` -> 0 of all folders below ``folder``.

    Raises VerificationError for a link or anything else that is neither.
    """
    if not folder.is_dir():
        raise VerificationError(
            f"there is no release at {folder}", why="it is no folder", fix="check the path"
        )
    return dict(_walk(folder, ""))


def _walk(folder: Path, prefix: str) -> Iterator[tuple[str, int]]:
    for path in sorted(folder.iterdir()):
        name, status = prefix + path.name, path.lstat()
        if stat.S_ISDIR(status.st_mode):
            yield f"{name}/", 0
            yield from _walk(path, f"{name}/")
        elif stat.S_ISREG(status.st_mode):
            yield name, status.st_size
        else:
            raise VerificationError(
                f"{_shown(name)} is a link or a special file",
                why="a release holds plain files only",
                fix=_AGAIN,
            )


def _read(folder: Path, path: str, *, held: Mapping[str, int], limit: int) -> bytes:
    if path not in held:
        raise VerificationError(f"{path} is missing", why="the folder is no release", fix=_AGAIN)
    with (folder / path).open("rb") as file:
        return file.read(limit + 1)


def _shown(name: str) -> str:
    """Return a foreign file name for a message: no control characters, not too long."""
    return ascii(name)[1:-1][:120]
