"""A folder in which a training leaves its State now and then, and finds it when it begins again.

Each generation is one file, named by its step and by the digest of its bytes. It appears whole or
not at all, and the last two stay: when the newest is damaged, the one before is used.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from vitrael.core.digest import digest_bytes, digest_file
from vitrael.core.errors import WeightsError, storage_error
from vitrael.core.training.state import State, read_state, write_state

logger = logging.getLogger(__name__)

EVERY_S: Final = 60.0
"""What a kill costs at most, where a State is written in a second."""
MOST_SHARE: Final = 0.02
"""Of the time of a training that its checkpoints may take: large ones come less often."""

_KEPT: Final = 2
_NAME = re.compile(r"([0-9]{12})-([0-9a-f]{64})\.safetensors")
_BEGUN: Final = ".partial-"


class FileCheckpoints:
    """Checkpoints of one training in a folder that is for this user alone."""

    def __init__(
        self,
        folder: Path,
        *,
        key: str,
        every_s: float = EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Keep the folder, which need not exist.

        ``key`` names all that decides the training: what another one has left is never used.
        """
        self._folder = folder
        self._key = key
        self._every_s = every_s
        self._clock = clock
        self._due = clock() + every_s

    def load(self) -> State | None:
        """Return the newest whole State of this training, or None.

        What is damaged, begun and not finished, or of another training is removed.
        """
        for begun in self._folder.glob(f"{_BEGUN}*"):
            shutil.rmtree(begun, ignore_errors=True)
        for path in self._generations():
            try:
                data = path.read_bytes()
                state, key = read_state(_whole(data, path))
            except (OSError, WeightsError):
                logger.warning("a checkpoint of a training is damaged: the one before is used")
            else:
                if key == self._key:
                    return state
            path.unlink(missing_ok=True)
        return None

    def is_due(self) -> bool:
        """Say whether the last State is old enough for another."""
        return self._clock() >= self._due

    def save(self, state: State) -> None:
        """Keep a State and the one before it; where the disk refuses, say so in the log alone."""
        began = self._clock()
        try:
            self._write(state)
        except OSError as error:
            logger.warning("%s", storage_error("a checkpoint of a training", error))
        took_s = self._clock() - began
        self._due = self._clock() + max(self._every_s, took_s / MOST_SHARE)

    def _write(self, state: State) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=_BEGUN) as workshop:
            begun = Path(workshop) / "state"
            write_state(state, begun, key=self._key)
            begun.chmod(0o600)
            _sync(begun)
            code = digest_file(begun).removeprefix("sha256:")
            begun.replace(self._folder / f"{state.step:012d}-{code}.safetensors")
        _sync(self._folder)
        for old in self._generations()[_KEPT:]:
            old.unlink(missing_ok=True)

    def _generations(self) -> list[Path]:
        """Return the files of all generations, the newest first."""
        found = [path for path in self._folder.glob("*") if _NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: path.name, reverse=True)


def _whole(data: bytes, path: Path) -> bytes:
    """Return the bytes of a generation; raise WeightsError unless they are those in its name."""
    if digest_bytes(data).removeprefix("sha256:") not in path.name:
        raise WeightsError("a training's state is damaged", why="its digest is another")
    return data


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
