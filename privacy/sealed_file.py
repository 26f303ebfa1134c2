"""A file that only a passphrase opens, written and read in one pass.

The header is one line of JSON. Passphrase and salt make a key by scrypt (RFC 7914), and HKDF-SHA256
binds it to the header, so that no number in it can be changed. What follows are chunks of
ChaCha20-Poly1305 in the STREAM construction (Hoang, Reyhanitabar, Rogaway, Vizár: Online
Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance, 2015), as in age: the nonce of a
chunk is its number and whether it is the last. So a chunk that is changed, dropped, moved or cut
off is found. What was read is believed only once the last chunk was.
"""

from __future__ import annotations

import io
import json
import secrets
from typing import BinaryIO, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from pydantic import Field, ValidationError

from vitrael.core.configs import Section
from vitrael.core.digest import canonical_json
from vitrael.core.errors import AuthError, StorageError

COST: Final = 1 << 17
"""Of scrypt: 128 MiB and a third of a second for each guess."""
CHUNK_BYTES: Final = 1 << 20

_MAGIC: Final = b"vitrael-sealed/1\n"
_MOST_COST: Final = 1 << 20
_BLOCK: Final = 8
_TAG_BYTES: Final = 16
_LONGEST_HEADER: Final = 512


def seal_bytes(data: bytes, passphrase: bytes) -> bytes:
    """Return bytes that only a passphrase opens."""
    file = io.BytesIO()
    writer = SealedWriter(file, passphrase, cost=COST)
    writer.write(data)
    writer.finish()
    return file.getvalue()


def open_sealed(data: bytes, passphrase: bytes) -> bytes:
    """Return what ``seal_bytes`` was given; raise as ``SealedReader`` does."""
    reader = SealedReader(io.BytesIO(data), passphrase)
    return reader.read()


def is_sealed(data: bytes) -> bool:
    """Return whether bytes are those of a sealed file."""
    return data.startswith(_MAGIC)


class _Header(Section):
    cost: int = Field(ge=1 << 10, le=_MOST_COST)
    salt: str = Field(pattern=r"^[0-9a-f]{32}$")


class SealedWriter:
    """Encrypts what is written to it; the file is whole once ``finish`` has returned."""

    def __init__(self, file: BinaryIO, passphrase: bytes, *, cost: int = COST) -> None:
        """Write the header. ``cost`` is a power of two."""
        header = _Header(cost=cost, salt=secrets.token_hex(16))
        line = canonical_json(header.model_dump()) + b"\n"
        self._file = file
        self._cipher = _cipher(passphrase, header, line)
        self._buffer = bytearray()
        self._number = 0
        file.write(_MAGIC + line)

    def write(self, data: bytes, /) -> int:
        """Take bytes; return how many."""
        self._buffer += data
        while len(self._buffer) > CHUNK_BYTES:  # the last chunk is written by ``finish`` alone
            self._seal(bytes(self._buffer[:CHUNK_BYTES]), last=False)
            del self._buffer[:CHUNK_BYTES]
        return len(data)

    def finish(self) -> None:
        """Write the last chunk; without it the file is one that was cut."""
        self._seal(bytes(self._buffer), last=True)
        self._buffer.clear()

    def _seal(self, chunk: bytes, *, last: bool) -> None:
        self._file.write(self._cipher.encrypt(_nonce(self._number, last=last), chunk, None))
        self._number += 1


class SealedReader:
    """Decrypts a sealed file; what it gives is believed only once ``drain`` has returned."""

    def __init__(self, file: BinaryIO, passphrase: bytes) -> None:
        """Read the header and the first chunk.

        Raises StorageError for what is no sealed file, AuthError for another passphrase (or a first
        chunk that was changed: the two look the same).
        """
        if file.read(len(_MAGIC)) != _MAGIC:
            raise StorageError("the file is no sealed file of vitrael", fix="check the path")
        line = file.readline(_LONGEST_HEADER)
        try:
            header = _Header.model_validate(json.loads(line))
        except (ValueError, ValidationError):
            raise _damaged("its header was changed") from None
        self._file = file
        self._cipher = _cipher(passphrase, header, line)
        self._number = 0
        self._ahead = file.read(CHUNK_BYTES + _TAG_BYTES)
        self._last = False
        try:
            self._buffer = self._open()
        except InvalidTag:
            raise AuthError(
                "the sealed file does not open",
                why="the passphrase is wrong, or the file was changed",
                fix="give the passphrase that it was sealed with, or take another copy",
            ) from None

    def read(self, size: int = -1, /) -> bytes:
        """Return so many bytes, fewer at the end alone; StorageError where the file is damaged."""
        parts, wanted = [], size
        while wanted:
            if not self._buffer:
                if self._last:
                    break
                try:
                    self._buffer = self._open()
                except InvalidTag:
                    raise _damaged("a part of it was changed, or its end is missing") from None
                continue
            part = self._buffer if wanted < 0 else self._buffer[:wanted]
            self._buffer = self._buffer[len(part) :]
            wanted -= len(part) if wanted > 0 else 0
            parts.append(part)
        return b"".join(parts)

    def drain(self) -> None:
        """Read to the end; StorageError unless the file is whole."""
        while self.read(CHUNK_BYTES):
            pass

    def _open(self) -> bytes:
        chunk, self._ahead = self._ahead, self._file.read(CHUNK_BYTES + _TAG_BYTES)
        self._last = not self._ahead
        number, self._number = self._number, self._number + 1
        return self._cipher.decrypt(_nonce(number, last=self._last), chunk, None)


def _cipher(passphrase: bytes, header: _Header, line: bytes) -> ChaCha20Poly1305:
    salt = bytes.fromhex(header.salt)
    try:
        secret = Scrypt(salt=salt, length=32, n=header.cost, r=_BLOCK, p=1).derive(passphrase)
    except ValueError:
        raise _damaged("its header was changed") from None
    key = HKDF(algorithm=SHA256(), length=32, salt=salt, info=_MAGIC + line).derive(secret)
    return ChaCha20Poly1305(key)


def _nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])


def _damaged(why: str) -> StorageError:
    return StorageError("the sealed file is damaged", why=why, fix="take another copy of it")
