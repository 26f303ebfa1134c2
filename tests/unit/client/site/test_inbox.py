"""A parcel of the spool is plain files, read when asked for, within a bound."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vitrael.client.site.courier.spool import write_parcel
from vitrael.client.site.inbox import LONGEST_ENVELOPE_BYTES, open_parcel
from vitrael.core.errors import DataError


def read(folder: Path, *, most: int) -> dict[str, bytes]:
    """Return every entry."""
    with open_parcel(folder, most=most) as parcel:
        return dict(parcel)


def test_envelope_has_a_small_bound_of_its_own(tmp_path: Path) -> None:
    large = bytes(LONGEST_ENVELOPE_BYTES + 1)
    write_parcel(tmp_path / "a", {"envelope": large, "codec": large})
    with open_parcel(tmp_path / "a", most=1 << 30) as parcel:
        assert len(parcel["codec"]) == len(large)
        with pytest.raises(DataError, match="larger"):
            parcel["envelope"]


def test_names_are_known_without_reading(tmp_path: Path) -> None:
    write_parcel(tmp_path / "a", {"envelope": b"1234", "codec": b"56"})
    with open_parcel(tmp_path / "a", most=0) as parcel:
        assert (set(parcel), len(parcel)) == ({"envelope", "codec"}, 2)
        assert parcel.get("absent", b"none") == b"none"
        with pytest.raises(DataError, match="larger"):
            parcel["codec"]


def test_parcel_is_read_within_bounds(tmp_path: Path) -> None:
    write_parcel(tmp_path / "a", {"envelope": b"1234", "codec": b"56"})
    assert read(tmp_path / "a", most=6) == {"envelope": b"1234", "codec": b"56"}
    with pytest.raises(DataError, match="larger"):
        read(tmp_path / "a", most=5)


def linked_file(folder: Path) -> None:
    (folder / "codec").symlink_to(folder / "envelope")


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "codec")


def folder_within(folder: Path) -> None:
    (folder / "codec").mkdir()


def hidden_file(folder: Path) -> None:
    (folder / ".codec").write_bytes(b"x")


def many_files(folder: Path) -> None:
    for number in range(64):
        (folder / f"e{number}").write_bytes(b"")


@pytest.mark.parametrize("plant", [linked_file, pipe, folder_within, hidden_file, many_files])
def test_entry_that_is_no_plain_file_is_refused(
    tmp_path: Path, plant: Callable[[Path], None]
) -> None:
    write_parcel(tmp_path / "a", {"envelope": b"1234"})
    plant(tmp_path / "a")
    with pytest.raises(DataError, match="holds"):
        read(tmp_path / "a", most=100)


def test_linked_folder_is_refused(tmp_path: Path) -> None:
    write_parcel(tmp_path / "a", {"envelope": b"1234"})
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(DataError, match="no such parcel"):
        read(tmp_path / "b", most=100)
