"""A sealed file opens with its passphrase alone, whole or not at all."""

from __future__ import annotations

import io

import pytest

from vitrael.core.errors import AuthError, StorageError
from vitrael.privacy.sealed_file import CHUNK_BYTES, SealedReader, SealedWriter

PHRASE = b"five words are enough here"
COST = 1 << 10


def seal(data: bytes, *, pieces: int = 3) -> bytes:
    file = io.BytesIO()
    writer = SealedWriter(file, PHRASE, cost=COST)
    step = len(data) // pieces + 1
    for start in range(0, len(data), step):
        writer.write(data[start : start + step])
    writer.finish()
    return file.getvalue()


def unseal(data: bytes, passphrase: bytes = PHRASE) -> bytes:
    reader = SealedReader(io.BytesIO(data), passphrase)
    found = reader.read()
    reader.drain()
    return found


SIZES = (0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES)


@pytest.mark.parametrize("size", SIZES)
def test_what_was_sealed_comes_back(size: int) -> None:
    data = bytes(range(251)) * (size // 251 + 1)
    sealed = seal(data[:size])
    assert unseal(sealed) == data[:size]
    if size > 251:
        assert bytes(range(251)) not in sealed


def test_it_is_read_in_pieces_of_any_size() -> None:
    data = bytes(range(256)) * 5000
    reader = SealedReader(io.BytesIO(seal(data)), PHRASE)
    found = b""
    while piece := reader.read(300_007):
        found += piece
    assert found == data


def test_two_files_of_one_text_are_different() -> None:
    assert seal(b"text") != seal(b"text")


def test_wrong_passphrase_is_refused() -> None:
    with pytest.raises(AuthError, match="the passphrase is wrong") as caught:
        unseal(seal(b"text"), b"another passphrase")
    assert caught.value.exit_code == 4


@pytest.fixture(scope="module")
def long() -> bytes:
    return seal(bytes(2 * CHUNK_BYTES + 100))


def test_every_cut_is_found(long: bytes) -> None:
    header = long.index(b"}\n") + 2
    chunk = CHUNK_BYTES + 16
    ends = [0, 5, 40, header, header + 7, header + chunk, header + chunk + 1]
    for end in (*ends, header + 2 * chunk, len(long) - 16, len(long) - 1):
        with pytest.raises((AuthError, StorageError)):
            unseal(long[:end])
    assert len(unseal(long)) == 2 * CHUNK_BYTES + 100


def test_every_changed_byte_is_found(long: bytes) -> None:
    header = long.index(b"}\n") + 2
    places = [*range(0, header, 3), header, header + CHUNK_BYTES, len(long) - 120, len(long) - 1]
    for place in places:
        changed = bytearray(long)
        changed[place] ^= 1
        with pytest.raises((AuthError, StorageError)):
            unseal(bytes(changed))


def test_chunks_in_another_order_are_found(long: bytes) -> None:
    header, chunk = long.index(b"}\n") + 2, CHUNK_BYTES + 16
    first, second = long[header : header + chunk], long[header + chunk : header + 2 * chunk]
    rest = long[header + 2 * chunk :]
    for mixed in (second + first + rest, first + rest, first + second + rest + rest):
        with pytest.raises((AuthError, StorageError)):
            unseal(long[:header] + mixed)


def test_header_asks_for_no_endless_work() -> None:
    sealed = seal(b"text")
    for cost in (b"1048577", b"1073741824", b"1023", b"3000"):
        with pytest.raises(StorageError, match="its header was changed"):
            unseal(sealed.replace(b"1024", cost, 1))


def test_other_file_is_told_apart() -> None:
    with pytest.raises(StorageError, match="no sealed file"):
        unseal(b"PK\x03\x04 something else")
