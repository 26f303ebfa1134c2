"""What the system says of a file is no judgment of the file: it is raised, and without its path."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitrael.core.data.files import open_file
from vitrael.core.data.nifti import read_mask, read_nifti, write_nifti
from vitrael.core.data.pictures import read_picture_file, write_picture
from vitrael.core.data.planar import Clip, Picture
from vitrael.core.data.scan import Scan
from vitrael.core.data.video import read_video, write_video
from vitrael.core.errors import ScanError
from vitrael.core.rng import stream

SECRET = "Amendoeira"
VALUES = stream(3, "noise").integers(0, 256, (20, 32, 48)).astype(np.uint8)


class Failing(io.FileIO):
    """A file of which only some bytes can be read, as when a network share drops."""

    whole_bytes = 0

    def readinto(self, buffer: Any, /) -> int:
        """Fill the buffer, or fail as the system does."""
        if self.tell() + len(memoryview(buffer)) > self.whole_bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO), self.name)
        return super().readinto(buffer) or 0


@contextmanager
def share_that_drops(after_bytes: int) -> Iterator[None]:
    def open_failing(path: Path, *_: object, **__: object) -> Failing:
        file = Failing(path)
        file.whole_bytes = after_bytes
        return file

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", open_failing)
        yield


def scan() -> Scan:
    return Scan(VALUES[None].astype(np.float32), np.eye(4), "T1w")


READERS: dict[str, tuple[str, Callable[[Path], object], Callable[[Path], object]]] = {
    "volume": (".nii", lambda path: write_nifti(scan(), path), read_nifti),
    "packed volume": (".nii.gz", lambda path: write_nifti(scan(), path), read_nifti),
    "mask": (".nii.gz", lambda path: write_nifti(scan(), path), read_mask),
    "lossless clip": (
        ".avi",
        lambda path: write_video(Clip(VALUES, 0.04, None, "US"), path),
        read_video,
    ),
    "clip": (".mp4", lambda path: write_video(Clip(VALUES, 0.04, None, "US"), path), read_video),
    "picture": (
        ".png",
        lambda path: write_picture(Picture(VALUES[0].astype(np.float32), None, "DX"), path),
        read_picture_file,
    ),
}


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("share", [0.0, 0.05, 0.6])
def test_share_that_drops_is_no_fault_of_the_file(
    tmp_path: Path, kind: str, share: float, capfd: pytest.CaptureFixture[str]
) -> None:
    ending, write, read = READERS[kind]
    path = tmp_path / f"{SECRET}{ending}"
    write(path)
    with (
        share_that_drops(int(share * path.stat().st_size)),
        pytest.raises(OSError, match="Input/output error") as caught,
    ):
        read(path)
    assert caught.value.errno == errno.EIO
    assert SECRET not in repr(caught.value) + str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert read(path) is not None  # it is whole
    path.write_bytes(path.read_bytes()[: int(0.6 * path.stat().st_size)])
    with pytest.raises(ScanError):  # control: a file that ends there is at fault
        read(path)


@pytest.mark.parametrize("kind", READERS)
def test_file_that_is_not_there_or_not_ours_is_no_fault_of_the_file(
    tmp_path: Path, kind: str
) -> None:
    ending, write, read = READERS[kind]
    path = tmp_path / f"{SECRET}{ending}"
    with pytest.raises(FileNotFoundError) as caught:
        read(path)
    assert SECRET not in repr(caught.value) + str(caught.value)
    with pytest.raises(IsADirectoryError):
        read(tmp_path)
    write(path)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        with pytest.raises(PermissionError) as caught_too:
            read(path)
    assert SECRET not in repr(caught_too.value) + str(caught_too.value)


def test_empty_file_is_refused_and_a_wrong_place_is_no_fault_of_the_system(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.touch()
    with pytest.raises(ScanError, match="is empty"), open_file(path):
        pass
    path.write_bytes(b"abc")
    with open_file(path) as (file, size_bytes):
        with pytest.raises((OSError, ValueError)):
            file.seek(-5)
        assert (file.read(), size_bytes) == (b"abc", 3)
