"""Who holds the lock of his note lives, in whatever container; who left a note alone does not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vitrael.client.site.life import is_alive, note_of_life

HOLDER = """
import sys
from pathlib import Path
from vitrael.client.site.life import note_of_life
with note_of_life(Path(sys.argv[1]), {"pid": 1}):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_note_lives_as_long_as_its_process(tmp_path: Path) -> None:
    note = tmp_path / "steward.json"
    before = os.umask(0o077)
    try:
        with note_of_life(note, {"pid": 7}):
            assert is_alive(note)
            assert is_alive(note)  # whoever asks leaves nothing behind
            assert json.loads(note.read_text()) == {"pid": 7}
            assert note.stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(before)
    assert not is_alive(note)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_is_dead_though_its_number_lives(tmp_path: Path) -> None:
    note = tmp_path / "steward.json"
    ask = (sys.executable, "-m", "vitrael.client.site.life", str(note))
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(note)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert is_alive(note)
        assert subprocess.run(ask, check=False, timeout=60).returncode == 0
        holder.send_signal(signal.SIGKILL)
    assert json.loads(note.read_text()) == {"pid": 1}  # the number of a process that there is
    assert not is_alive(note)
    assert subprocess.run(ask, check=False, timeout=60).returncode == 1
    with note_of_life(note, {}):
        assert is_alive(note)


def test_who_fails_leaves_no_note(tmp_path: Path) -> None:
    note = tmp_path / "steward.json"
    with pytest.raises(ValueError, match="x"), note_of_life(note, {}):
        raise ValueError("x")
    assert not note.exists()


def test_a_note_that_cannot_be_read_is_of_nobody(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "note")
    with note_of_life(tmp_path / "note", {}):
        assert not is_alive(tmp_path / "link")
    assert not is_alive(tmp_path / "none")
    assert not is_alive(tmp_path / "none" / "none")
