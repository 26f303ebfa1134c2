"""What one value becomes: the keyed codes, which must never change, and words that are read."""

from __future__ import annotations

import hmac
from hashlib import sha256

import pytest
from pydicom.dataset import Dataset as DicomHeader
from pydicom.tag import Tag

from tests.factories.planted_dicom import raw_element
from vitrael.core.data.manifest import pseudonym_of
from vitrael.privacy.deidentify import (
    MOST_SHIFT_DAYS,
    date_shift_days,
    deidentify_header,
    remap_uid,
)
from vitrael.privacy.dicom_values import read_words

KEY = bytes(range(32))
TEXT = "1.2.3"
"""A UID that some writer also gave as Patient ID."""


def test_codes_of_a_key_stay_what_they_were() -> None:
    """Otherwise later scans of a patient would no longer be linked to earlier ones."""
    assert remap_uid(TEXT, key=KEY) == "2.25.144391192125548988408982323351884238952"
    assert date_shift_days(TEXT, key=KEY) == -438
    assert pseudonym_of(TEXT, key=KEY) == "p-d20b20bedae5c663"


def test_codes_of_one_text_say_nothing_of_each_other() -> None:
    """Each use has a label of its own: a pseudonym, which is told, gives away no other code."""
    pseudonym = pseudonym_of(TEXT, key=KEY).removeprefix("p-")
    uid = f"{int(remap_uid(TEXT, key=KEY).removeprefix('2.25.')):032x}"
    assert uid[:12] != pseudonym[:12]
    days = {
        label: -1
        - int.from_bytes(hmac.digest(KEY, label + TEXT.encode(), sha256)) % MOST_SHIFT_DAYS
        for label in (b"", b"vitrael/pseudonym/1\0", b"vitrael/dicom-uid/1\0")
    }
    assert date_shift_days(TEXT, key=KEY) not in days.values()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"YES ", ("YES",)),
        (b"derived\\Screen Save\0", ("DERIVED", "SCREEN SAVE")),
        (b"\xdcber\\YES", ("\xdcBER", "YES")),
        (b"", ()),
    ],
)
def test_words_are_read_in_capitals_and_none_is_lost(data: bytes, words: tuple[str, ...]) -> None:
    header = DicomHeader()
    assert read_words(header, "ImageType") == ()
    header["ImageType"] = raw_element(Tag("ImageType"), "CS", data)
    assert read_words(header, "ImageType") == words
    assert header.get_item("ImageType").value == data  # nothing was decoded in place


@pytest.mark.parametrize(
    ("keyword", "vr", "data"),
    [("ImageType", "CS", b"ORIGINAL\\\xdcber"), ("SOPInstanceUID", "UI", b"1.2.\xb2\0")],
)
def test_listed_text_beyond_ascii_is_removed(keyword: str, vr: str, data: bytes) -> None:
    header = DicomHeader()
    header[keyword] = raw_element(Tag(keyword), vr, data)
    clean = deidentify_header(header, key=KEY, subject="s")
    assert keyword not in clean.header
    assert sum(clean.removed.values()) == 1
