"""An intake that is killed, interrupted or without disk space ends, run again, as if it had not."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from tests.factories.intake import (
    PLANE,
    leftovers,
    make_home,
    manifest_of,
    reason_of,
    shard_files,
    take_in,
    write_brain,
    write_brains,
    write_pictures,
    write_slices,
)
from vitrael.client.site.ingest import dicom_folder, pipeline
from vitrael.client.site.ingest.index import Index
from vitrael.client.site.ingest.places import Home
from vitrael.client.site.ingest.pool import Lost, Pool
from vitrael.client.site.options import EXIT_ENDED
from vitrael.core.data.cache import write_private
from vitrael.core.errors import EXIT_INTERRUPTED, StorageError

PICTURES = 400
"""So many that a machine with other work sees the intake in its middle."""
PATIENCE_S = 120.0
"""Longest time for what takes seconds; nothing waits for it to pass."""
GLANCE_S = 0.01

COMMAND = (sys.executable, "-c", "from vitrael.core.cli import main; main()", "site", "ingest")
_LIMIT = "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (100_000, 100_000)); "
LIMITED = (*COMMAND[:2], _LIMIT + COMMAND[2], *COMMAND[3:])


@contextlib.contextmanager
def started(root: Path, home: Home) -> Iterator[subprocess.Popen[str]]:
    """Start the command in a session of its own, so that whatever it starts can be found."""
    options = ("--recipe", "image-2d", "--grid", "16x16", "--workers", "1")
    process = subprocess.Popen(
        [*COMMAND, str(root), "--home", str(home.folder), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        for pid in members(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate(timeout=PATIENCE_S)


def members(session: int) -> list[int]:
    """Return the processes of a session that live."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, its_session = path.read_text().rpartition(")")[2].split()[:4]
            if int(its_session) == session and state not in "ZX":
                found.append(int(path.parent.name))
    return found


def glances(process: subprocess.Popen[str]) -> Iterator[None]:
    """Yield again and again, until it took far too long."""
    deadline = monotonic() + PATIENCE_S
    while monotonic() < deadline:
        yield
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=GLANCE_S)
    pytest.fail(f"nothing happened within {PATIENCE_S:g} s")


def count_outcomes(home: Home) -> int:
    """Return how many sources count as done."""
    place = home.cohort("main").index
    with contextlib.suppress(sqlite3.OperationalError):
        connection = sqlite3.connect(f"file:{place}?mode=ro", uri=True)
        try:
            (count,) = connection.execute("SELECT count(*) FROM outcomes").fetchone()
            return int(count)
        finally:
            connection.close()
    return 0


def wait_until_some_are_done(process: subprocess.Popen[str], home: Home) -> None:
    for _ in glances(process):
        if count_outcomes(home):
            break
        assert process.poll() is None, process.communicate()[1]


def wait_until_all_have_ended(process: subprocess.Popen[str]) -> None:
    for _ in glances(process):
        if not members(process.pid):
            break


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    write_pictures(root, range(PICTURES))
    return root


@pytest.fixture(scope="module")
def undisturbed(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of the cohort that an intake makes which nobody interrupts."""
    report = take_in(pictures, make_home(tmp_path_factory.mktemp("home") / "undisturbed"), PLANE)
    assert (report.anew, report.items) == (PICTURES, PICTURES)
    return report.digest


def demand_same_end(root: Path, home: Home, undisturbed: str) -> None:
    """Take in again: what was done is not done again, and the cohort is the undisturbed one."""
    done = count_outcomes(home)
    assert 0 < done < PICTURES
    assert not home.cohort("main").manifest.exists()
    report = take_in(root, home, PLANE)
    assert (report.anew, report.digest) == (PICTURES - done, undisturbed)
    assert leftovers(home) == set()


def test_killed_intake_leaves_no_process_and_ends_the_same(
    pictures: Path, home: Home, undisturbed: str
) -> None:
    with started(pictures, home) as process:
        wait_until_some_are_done(process, home)
        assert len(members(process.pid)) >= 3, "control: there are processes to be left behind"
        process.kill()
        wait_until_all_have_ended(process)
        assert process.returncode == -signal.SIGKILL
        assert "resource_tracker" not in process.communicate(timeout=PATIENCE_S)[1]
    demand_same_end(pictures, home, undisturbed)


def test_interrupted_intake_says_so_and_ends_the_same(
    pictures: Path, home: Home, undisturbed: str
) -> None:
    with started(pictures, home) as process:
        wait_until_some_are_done(process, home)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: to all of them
        wait_until_all_have_ended(process)
        _, said = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == EXIT_INTERRUPTED, said
    assert "Interrupted." in said
    assert "Traceback" not in said
    demand_same_end(pictures, home, undisturbed)


@pytest.mark.parametrize("ask", [os.kill, os.killpg])
def test_ended_intake_says_so_and_ends_the_same(
    ask: Callable[[int, int], None], pictures: Path, home: Home, undisturbed: str
) -> None:
    with started(pictures, home) as process:
        wait_until_some_are_done(process, home)
        assert len(members(process.pid)) >= 3, "control: there are processes to be left behind"
        ask(process.pid, signal.SIGTERM)
        wait_until_all_have_ended(process)
        _, said = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == EXIT_ENDED == 143, said
    *progress, last = said.splitlines()
    assert last.startswith("Error: the command was ended: SIGTERM came. To do: start it again")
    assert all(re.match(r"(files found|reading images): ", line) for line in progress), said
    assert list(home.folder.rglob(".partial-*")) == []
    demand_same_end(pictures, home, undisturbed)


def test_full_disk_ends_the_command_with_its_reason(pictures: Path, home: Home) -> None:
    options = ("--recipe", "xray-2d", "--grid", "256x256", "--workers", "1", "--json")
    done = subprocess.run(
        [*LIMITED, str(pictures), "--home", str(home.folder), *options],
        capture_output=True,
        check=False,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 1
    assert "a prepared item cannot be written: there is no disk space left" in done.stderr
    assert "what was finished is kept" in done.stderr
    assert "Traceback" not in done.stderr
    assert '"kind": "StorageError"' in done.stdout
    assert leftovers(home) == set()


@contextlib.contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    """Let no file grow beyond a size: what the system then says is what a full disk says."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk_keeps_what_was_finished(pictures: Path, home: Home, undisturbed: str) -> None:
    with largest_file(200_000), pytest.raises(StorageError):
        take_in(pictures, home, PLANE)
    demand_same_end(pictures, home, undisturbed)


def breaking(
    path: Path, *, files: Callable[[Any], Iterable[Path]]
) -> Callable[..., Pool[Any, Any]]:
    """Return what makes a pool whose process ends whenever it reads one of the files."""

    class Breaking(Pool[Any, Any]):
        def run(self, jobs: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
            for job in jobs:
                is_lost = path in files(job)
                yield job, Lost("reading it ended the process") if is_lost else self._work(job)

    return Breaking


def test_header_that_ends_its_process_costs_its_own_file(
    tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "scans"
    write_brains(root, [1])
    paths = write_slices(root / "pacs", 2)
    alone = write_slices(root / "other", 3)[5]
    with monkeypatch.context() as patch:
        made = breaking(alone, files=lambda job: [path for _, path in job.files])
        patch.setattr(dicom_folder, "Pool", made)
        report = take_in(root, home)
    assert report.items == 2
    assert reason_of(report, alone) == "reading it ended the process"
    assert {reason_of(report, path) for path in paths} == {""}
    assert take_in(root, home).items == 3, "another try may end otherwise"


def test_image_that_ends_its_process_costs_itself_and_is_tried_again(
    tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "scans"
    paths = write_brains(root)
    with monkeypatch.context() as patch:
        made = breaking(paths[1], files=lambda job: job.images["T1w"])
        patch.setattr(pipeline, "Pool", made)
        report = take_in(root, home)
        assert (report.items, report.anew) == (2, 3)
        assert take_in(root, home).anew == 1
    assert reason_of(report, paths[1]) == "reading it ended the process"
    later = take_in(root, home)
    assert (later.items, later.anew) == (3, 1)


@pytest.mark.parametrize("place", ["", "shards/ab", "latents/0123456789abcdef"])
@pytest.mark.parametrize("is_killed", [True, False])
def test_failed_intake_leaves_nothing_that_was_begun(
    place: str, *, is_killed: bool, tmp_path: Path, home: Home
) -> None:
    write_brains(tmp_path / "scans")
    begun = home.cohort("main").folder / place / ".partial-0123"

    def fail(*_: object) -> None:
        if is_killed:
            assert not begun.exists(), "it was removed before anything else was done"
        else:
            write_private(begun, b"half an image")
        raise KeyboardInterrupt

    if is_killed:
        write_private(begun, b"half an image")
    with pytest.raises(KeyboardInterrupt):
        take_in(tmp_path / "scans", home, tell=fail)
    assert leftovers(home) & {begun.name} == set()


STEPS = ("write_manifest", "save_summary", "write_report", "sweep_orphans")


@pytest.mark.parametrize("step", [*STEPS, "save_outcome", "forget_others"])
def test_intake_that_ends_at_any_step_is_finished_by_the_next(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, home, other = tmp_path / "scans", make_home(tmp_path / "home"), tmp_path / "other"
    write_brains(root)
    take_in(root, home)
    write_brain(root / "sub-01_T1w.nii.gz", 1, shift=300)
    (root / "sub-02_T1w.nii.gz").unlink()
    write_brain(root / "sub-07_T1w.nii.gz", 7)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline if step in STEPS else Index, step, interrupt)
        with pytest.raises(KeyboardInterrupt):
            take_in(root, home)
    assert manifest_of(home).version == (1 if step in {"write_manifest", "save_outcome"} else 2)
    report = take_in(root, home)
    undisturbed = make_home(other)
    assert report.digest == take_in(root, undisturbed).digest
    assert (report.version, report.items) == (2, 3)
    assert leftovers(home) == set()
    assert shard_files(home) == shard_files(undisturbed)
    assert home.cohort("main").report.is_file()
