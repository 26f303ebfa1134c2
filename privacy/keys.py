"""Keys of a party: Ed25519 to sign (RFC 8032) and X25519 to receive sealed tensors (RFC 7748).

Private keys live as PEM PKCS#8 files of mode 0600 in one folder, ``signing.pem`` and
``sealing.pem``, each a sealed file where their owner has set a passphrase, and never leave their
machine. Public keys travel as hexadecimal digits.
"""

from __future__ import annotations

import functools
import hashlib
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self, TypeVar

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from pydantic import StringConstraints, TypeAdapter, ValidationError

from vitrael.core.configs import Section
from vitrael.core.digest import Digest, digest_json, write_atomically
from vitrael.core.errors import AuthError, StorageError, UsageError
from vitrael.core.protocols import Name
from vitrael.privacy.sealed_file import is_sealed, open_sealed, seal_bytes

T = TypeVar("T")

Passphrase = Callable[[], bytes]
"""Returns the passphrase of private keys; called for those alone that are encrypted."""

LEAST_PASSPHRASE = 12
"""Bytes of a new passphrase: fewer are guessed by who has a copy of the files."""

_UNFINISHED = ".keys-unfinished"
_FILES = ("signing.pem", "sealing.pem")
_RESTORE = "restore the keys that were made at enrollment"
_FETCH = "a site runs `vitrael site join` and `vitrael site fetch`, a coordinator approves sites"

PublicKeyHex = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""The 32 raw bytes of an Ed25519 or X25519 public key."""


class PublicKeys(Section):
    """What others need to know of a party: how to check its word and how to seal for it."""

    signing: PublicKeyHex
    sealing: PublicKeyHex

    def verifier(self) -> Ed25519PublicKey:
        """Return the key that checks signatures."""
        return Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.signing))

    def recipient(self) -> X25519PublicKey:
        """Return the key that tensors are sealed for."""
        return X25519PublicKey.from_public_bytes(bytes.fromhex(self.sealing))


@dataclass(frozen=True, slots=True, repr=False)
class KeyPair:
    """The two private keys of one party."""

    signing: Ed25519PrivateKey
    sealing: X25519PrivateKey

    def __repr__(self) -> str:
        """Show the public half only."""
        return f"KeyPair({self.public.signing[:16]}…)"

    @classmethod
    def create(cls) -> Self:
        """Return fresh keys from the operating system's generator."""
        return cls(Ed25519PrivateKey.generate(), X25519PrivateKey.generate())

    @classmethod
    def load(cls, folder: Path, *, passphrase: Passphrase | None = None) -> Self:
        """Return the keys of a folder.

        ``passphrase`` is asked, once, where a key is encrypted. Raises AuthError when a file is
        missing, damaged, of another kind, or open to other users, or its passphrase is another.
        """
        ask = None if passphrase is None else functools.cache(passphrase)
        signing, sealing = (_load_private(folder / name, passphrase=ask) for name in _FILES)
        if not isinstance(signing, Ed25519PrivateKey) or not isinstance(sealing, X25519PrivateKey):
            raise AuthError(
                f"the keys in {folder} are of another kind",
                why="signing.pem must be Ed25519 and sealing.pem X25519",
                fix=_RESTORE,
            )
        return cls(signing, sealing)

    def save(self, folder: Path, *, passphrase: bytes | None = None) -> None:
        """Write both keys, mode 0600; raise AuthError rather than replace a key.

        With a passphrase both are encrypted.

        A mark stands in the folder while only one may be there: half a pair that a killed process
        has left beside its mark is of use to nobody and is replaced, any other key never.
        """
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        mark = folder / _UNFINISHED
        pair = [folder / name for name in _FILES]
        there = [path for path in pair if path.exists()]
        if len(there) == len(pair):
            mark.unlink(missing_ok=True)
        if there and not mark.exists():
            raise AuthError(
                f"{there[0]} exists already",
                why="a key that is replaced cannot be had back",
                fix="choose an empty folder",
            )
        write_atomically(mark, b"")
        self.write(folder, passphrase=passphrase)
        mark.unlink()

    def write(self, folder: Path, *, passphrase: bytes | None) -> None:
        """Write both keys, mode 0600, over what lies there; with a passphrase encrypted.

        For keys that lie there already: ``save`` alone makes new ones.
        """
        if passphrase is not None:
            demand_passphrase(passphrase)
        pair: tuple[Ed25519PrivateKey | X25519PrivateKey, ...] = (self.signing, self.sealing)
        for name, key in zip(_FILES, pair, strict=True):
            pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            data = pem if passphrase is None else seal_bytes(pem, passphrase)
            write_atomically(folder / name, data)  # its temporary file is 0600 from the start

    @property
    def public(self) -> PublicKeys:
        """The half that others may have."""
        return PublicKeys(
            signing=self.signing.public_key().public_bytes_raw().hex(),
            sealing=self.sealing.public_key().public_bytes_raw().hex(),
        )


def read_private(path: Path, *, fix: str, what: str = "key", by_group: bool = False) -> bytes:
    """Return the bytes of a secret file.

    Raises AuthError, with ``fix`` as its remedy, when it cannot be read, and when it is open to
    other users; ``by_group`` is for a file that its group may read and nobody else. The error names
    file and folder and not where they lie: a site may send the sentence.
    """
    name = f"{path.parent.name}/{path.name}"
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read()
    except OSError as error:
        why = error.strerror or ""
        raise AuthError(f"{what} {name} cannot be read", why=why, fix=fix) from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO) & ~(stat.S_IRGRP if by_group else 0):
        raise AuthError(
            f"{what} {name} is open to other users",
            why=f"its mode is {stat.S_IMODE(mode):o}",
            fix=f"chmod {640 if by_group else 600} {name}",
        )
    return data


def is_protected(folder: Path) -> bool:
    """Return whether any private key of a folder is encrypted; AuthError when one is missing."""
    return any(is_sealed(read_private(folder / name, fix=_RESTORE)) for name in _FILES)


def protect_keys(folder: Path, *, passphrase: bytes) -> None:
    """Encrypt those keys of a folder that are there and in the clear.

    A process killed in between leaves one of the two as it was: done again, it ends the work, and
    until then both load with the passphrase. Raises AuthError for a key that cannot be read, and
    UsageError for a passphrase that is too short.
    """
    demand_passphrase(passphrase)
    for path in (folder / name for name in _FILES if (folder / name).exists()):
        if not is_sealed(data := read_private(path, fix=_RESTORE)):
            write_atomically(path, seal_bytes(data, passphrase))


def unprotect_keys(folder: Path, *, passphrase: Passphrase) -> None:
    """Write the keys of a folder in the clear; done again after it was killed, it ends the work.

    Raises AuthError as ``KeyPair.load`` does.
    """
    KeyPair.load(folder, passphrase=passphrase).write(folder, passphrase=None)


def demand_passphrase(passphrase: bytes) -> None:
    """Raise UsageError for a new passphrase that is too short."""
    if len(passphrase) < LEAST_PASSPHRASE:
        raise UsageError(
            "the passphrase is too short",
            why=f"it has fewer than {LEAST_PASSPHRASE} bytes",
            fix="choose a longer one, such as five words",
        )


def _load_private(path: Path, *, passphrase: Passphrase | None) -> object:
    name = f"{path.parent.name}/{path.name}"
    data = read_private(path, fix=_RESTORE)
    if is_sealed(data):
        if passphrase is None:
            raise AuthError(
                f"key {name} is protected by a passphrase",
                why="none was given",
                fix="take the protection away, or name the passphrase",
            )
        try:
            data = open_sealed(data, passphrase())
        except (AuthError, StorageError) as error:
            raise AuthError(
                f"key {name} does not open",
                why="the passphrase is wrong, or the file is damaged",
                fix="give the passphrase that was set when the key was protected, or restore a "
                "backup",
            ) from error
    try:
        return load_pem_private_key(data, password=None)
    except TypeError as error:  # it wants a password
        raise AuthError(
            f"key {name} is encrypted by another program",
            why="it is PEM with a password of its own",
            fix="decrypt it with what encrypted it, then run `vitrael site keys protect`",
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise AuthError(f"key {name} is no private key in PEM", fix=_RESTORE) from error


def fingerprint(public: str) -> str:
    """Return SHA-256 of a public key, in 16 groups of four digits, for reading aloud."""
    digits = hashlib.sha256(bytes.fromhex(public)).hexdigest()
    return " ".join(digits[start : start + 4] for start in range(0, len(digits), 4))


def save_public_keys(keys: PublicKeys, path: Path) -> None:
    """Write public keys as JSON."""
    write_atomically(path, keys.model_dump_json(indent=2).encode() + b"\n")


def load_public_keys(path: Path) -> PublicKeys:
    """Return the public keys of a JSON file; raise AuthError when it holds none."""
    return _load_json(path, TypeAdapter(PublicKeys))


def roster_digest(
    members: Mapping[str, PublicKeys], *, labels: Mapping[str, Mapping[str, str]] | None = None
) -> Digest:
    """Return the name of a roster: of its members' names and keys, whatever their order.

    Where the study maps words of its sites (``labels``), the map is part of the name.
    """
    keyed = {name: keys.model_dump() for name, keys in members.items()}
    if not labels:
        return digest_json(keyed)
    return digest_json([keyed, {site: dict(words) for site, words in labels.items()}])


def save_roster(members: Mapping[str, PublicKeys], path: Path) -> None:
    """Write a roster as JSON: each member's name and public keys."""
    data = TypeAdapter(dict[Name, PublicKeys]).dump_json(dict(members), indent=2)
    write_atomically(path, data + b"\n")


def load_roster(path: Path) -> dict[str, PublicKeys]:
    """Return the members of a roster file; raise AuthError when it is none."""
    return _load_json(path, TypeAdapter(dict[Name, PublicKeys]))


def _load_json(path: Path, adapter: TypeAdapter[T]) -> T:
    """Return what a file holds; an error names file and folder alone: a site may send it."""
    name = f"{path.parent.name}/{path.name}"
    try:
        return adapter.validate_json(path.read_bytes())
    except OSError as error:
        raise AuthError(
            f"{name} cannot be read",
            why=error.strerror or "",
            fix=_FETCH,
        ) from error
    except ValidationError as error:
        raise AuthError(
            f"{name} does not hold public keys",
            why="each party needs signing and sealing, 64 hexadecimal digits each",
            fix=_FETCH,
        ) from error
