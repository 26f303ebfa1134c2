"""An outcome is kept only where another try would end the same way."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.factories.intake import (
    BRAIN,
    ECHO,
    PLANE,
    make_home,
    reason_of,
    take_in,
    write_brain,
    write_clip,
    write_dicom_echo,
    write_picture,
)
from vitrael.client.site.ingest.dicom_folder import UNREADABLE
from vitrael.core.data.recipes import RecipeSettings

WRITERS: dict[str, tuple[RecipeSettings, str, Callable[[Path, int], Path]]] = {
    "volume": (BRAIN, "_T1w.nii.gz", write_brain),
    "clip": (ECHO, "_a4c.avi", write_clip),
    "picture": (PLANE, "_xray.png", write_picture),
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EACCES, errno.ENOENT])
def test_file_that_the_system_cannot_read_is_tried_again(
    tmp_path: Path, kind: str, code: int
) -> None:
    settings, ending, write = WRITERS[kind]
    root, home = tmp_path / "scans", make_home(tmp_path / "home")
    good, lost, damaged = (
        write(root / f"sub-{n}{ending}", place)
        for place, n in enumerate(("good", "lost", "damaged"))
    )
    damaged.write_bytes(damaged.read_bytes()[:300])
    before = Path.open

    def drop(path: Path, *args: object, **options: object) -> object:
        if path == lost:
            raise OSError(code, os.strerror(code), str(path))
        return before(path, *args, **options)  # type: ignore[call-overload]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", drop)
        report = take_in(root, home, settings)
    assert (report.items, reason_of(report, good)) == (1, "")
    assert reason_of(report, lost) == "it cannot be opened"
    again = take_in(root, home, settings)
    assert (again.items, reason_of(again, lost)) == (2, "")
    assert again.anew == 1  # control: what is damaged is known to be
    assert reason_of(again, damaged) == reason_of(report, damaged) != ""


@pytest.mark.parametrize("opened_before", range(4))
def test_dicom_file_that_the_system_cannot_read_is_tried_again(
    tmp_path: Path, opened_before: int
) -> None:
    root, home = tmp_path / "scans", make_home(tmp_path / "home")
    good, lost = (write_dicom_echo(root / f"{n}", n, region=(0, 4, 31, 31)) for n in range(2))
    before, opened = Path.open, 0

    def drop(path: Path, *args: object, **options: object) -> object:
        nonlocal opened
        if path == lost:
            opened += 1
            if opened > opened_before:
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return before(path, *args, **options)  # type: ignore[call-overload]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", drop)
        report = take_in(root, home, ECHO)
    assert (report.items, reason_of(report, good)) == (1, "")
    assert reason_of(report, lost) == UNREADABLE
    again = take_in(root, home, ECHO)
    assert (again.items, reason_of(again, lost)) == (2, "")
