"""Every file below a folder is told once, in one order; what is no readable file has a reason."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.factories.folders import plant
from vitrael.core.data.walk import (
    BROKEN_LINK,
    CIRCLE,
    CLOSED_FILE,
    CLOSED_FOLDER,
    HIDDEN,
    LINKED_FOLDER,
    SPECIAL,
    walk_files,
)
from vitrael.core.errors import CohortError


def told(root: Path) -> dict[str, str]:
    return {f.path.relative_to(root).as_posix(): f.refusal for f in walk_files(root)}


def test_files_come_in_one_order_with_size_and_time(tmp_path: Path) -> None:
    plant(tmp_path, "b/2.png", "b/10.png", "a/z.png", "c.png", "B.png")
    (tmp_path / "c.png").write_bytes(b"12345")
    os.utime(tmp_path / "c.png", ns=(7, 7))
    found = list(walk_files(tmp_path))
    names = [f.path.relative_to(tmp_path).as_posix() for f in found]
    assert names == ["B.png", "a/z.png", "b/10.png", "b/2.png", "c.png"]
    assert (found[-1].size_bytes, found[-1].mtime_ns, found[-1].refusal) == (5, 7, "")


def test_links_are_followed_to_files_and_not_into_folders(tmp_path: Path) -> None:
    plant(tmp_path, "elsewhere/a.png", "root/own.png")
    (tmp_path / "elsewhere/a.png").write_bytes(b"123")
    root = tmp_path / "root"
    (root / "file").symlink_to(tmp_path / "elsewhere/a.png")
    (root / "folder").symlink_to(tmp_path / "elsewhere")
    (root / "up").symlink_to(root)
    (root / "gone").symlink_to(root / "nothing")
    (root / "through").symlink_to(root / "own.png/x")
    (root / "one").symlink_to(root / "two")
    (root / "two").symlink_to(root / "one")
    assert told(root) == {
        "file": "",
        "folder": LINKED_FOLDER,
        "gone": BROKEN_LINK,
        "one": CIRCLE,
        "own.png": "",
        "through": BROKEN_LINK,
        "two": CIRCLE,
        "up": LINKED_FOLDER,
    }
    assert {f.path.name: f.size_bytes for f in walk_files(root)}["file"] == 3


def test_pipes_and_sockets_are_told_and_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link").symlink_to(tmp_path / "pipe.png")
    with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{short}/s")
        assert told(Path(short)) == {"s": SPECIAL}
    assert told(tmp_path) == {"link": SPECIAL, "pipe.png": SPECIAL}


def test_hidden_files_and_folders_are_told_and_not_entered(tmp_path: Path) -> None:
    plant(tmp_path, ".git/a.png", ".DS_Store", "a/.b/c.png", "a/d.png")
    assert told(tmp_path) == {".DS_Store": HIDDEN, ".git": HIDDEN, "a/.b": HIDDEN, "a/d.png": ""}


@contextmanager
def as_nobody() -> Iterator[None]:
    """Give up root's right to read everything, for a while."""
    if os.geteuid():
        yield
        return
    try:
        os.seteuid(65534)
    except PermissionError:
        pytest.skip("this root may not become another user")
    try:
        yield
    finally:
        os.seteuid(0)


def test_what_may_not_be_read_is_told_and_the_rest_goes_on() -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        plant(root, "closed/a.png", "open/b.png", "secret.png")
        (root / "closed").chmod(0)
        (root / "secret.png").chmod(0)
        with as_nobody():
            assert told(root) == {
                "closed": CLOSED_FOLDER,
                "open/b.png": "",
                "secret.png": CLOSED_FILE,
            }
            with pytest.raises(CohortError, match="it may not be opened"):
                list(walk_files(root / "closed"))
        (root / "closed").chmod(0o755)
        (root / "secret.png").chmod(0o644)
        assert set(told(root).values()) == {""}


def test_no_folder_is_refused_without_its_name(tmp_path: Path) -> None:
    plant(tmp_path, "jane")
    for path in (tmp_path / "missing", tmp_path / "jane"):
        with pytest.raises(CohortError, match="it is not a folder") as caught:
            list(walk_files(path))
        assert path.name not in str(caught.value)


NAME = st.binary(min_size=1, max_size=12).filter(
    lambda name: not {0, ord("/")} & set(name) and not name.startswith(b".")
)


@given(names=st.sets(NAME, max_size=8), folder=NAME)
def test_every_name_of_bytes_works(
    names: set[bytes], folder: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("walk")
    below = root / os.fsdecode(folder)
    below.mkdir()
    for name in (*names, "Zoë Müller 1.png".encode(), b"a\nb", b"\xe4\xff"):
        (below / os.fsdecode(name)).touch()
    found = list(walk_files(root))
    assert [os.fsencode(f.path.name) for f in found] == sorted(
        {*names, "Zoë Müller 1.png".encode(), b"a\nb", b"\xe4\xff"}
    )
    assert all(f.path.is_file() and not f.refusal for f in found)
    assert repr(found[0]) == "FoundFile(0)"


def test_folders_are_read_one_after_the_other_and_never_all_at_once(tmp_path: Path) -> None:
    plant(tmp_path, "a/1.png", "b/2.png", "c/3.png")
    walk = walk_files(tmp_path)
    assert next(walk).path.name == "1.png"
    plant(tmp_path, "a/late.png", "b/early.png", "c/early.png")
    assert [file.path.name for file in walk] == ["2.png", "early.png", "3.png", "early.png"]


def test_folder_that_vanishes_on_the_way_is_told(tmp_path: Path) -> None:
    plant(tmp_path, "a/1.png", "b/2.png")
    walk = walk_files(tmp_path)
    next(walk)
    (tmp_path / "b/2.png").unlink()
    (tmp_path / "b").rmdir()
    assert [(file.path.name, file.refusal) for file in walk] == [("b", CLOSED_FOLDER)]
