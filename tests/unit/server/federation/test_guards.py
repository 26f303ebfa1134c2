from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from vitrael.core.errors import StorageError, UsageError
from vitrael.server.federation.guards import explained_storage, locked, terminable, uninterrupted


def test_a_home_is_rehearsed_in_once(tmp_path: Path) -> None:
    with locked(tmp_path):
        with pytest.raises(UsageError, match="another rehearsal"), locked(tmp_path):
            pass
        with locked(tmp_path / "other"):
            pass
    with locked(tmp_path):
        pass


def test_sigterm_ends_like_ctrl_c_and_only_inside() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"), terminable():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.fixture
def heeding_ctrl_c() -> Iterator[None]:
    """A job in the background of a shell ignores Ctrl-C; a test of it must not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeding_ctrl_c")
def test_the_ending_is_not_interrupted() -> None:
    with uninterrupted():
        os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_full_disk_names_the_home_and_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no disk space"), explained_storage(tmp_path):
        raise OSError(errno.ENOSPC, "")
    with pytest.raises(PermissionError), explained_storage(tmp_path):
        raise PermissionError(errno.EACCES, "")
