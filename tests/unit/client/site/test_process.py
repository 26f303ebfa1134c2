"""The real steward as a process: no network, SIGTERM, kill -9, and a disk that is full."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from vitrael.client.site.courier.spool import call_steward
from vitrael.core.errors import ProcessError
from vitrael.privacy.journal import verify_journal

if TYPE_CHECKING:
    from tests.unit.client.site.conftest import Home

STEWARD = (sys.executable, "-c", "from vitrael.client.site.cli import site; site()", "run")
PATIENCE_S = 60.0


@pytest.fixture
def consenting(home: Home) -> Home:
    home.clock.now = datetime.now(UTC)  # the process reads the true clock
    home.consent()
    return home


@contextmanager
def running(
    home: Home, *, within: Sequence[str] = (), program: Sequence[str] = ()
) -> Iterator[subprocess.Popen[str]]:
    """Start the steward and wait until it says where it listens."""
    process = subprocess.Popen(
        [*within, *(program or (*STEWARD, "--home", str(home.path)))],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "listens at" in line, line + process.stderr.read()
        yield process
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE_S)


def consent_status(home: Home) -> str:
    task = home.task({}, stage="consent")
    parcel = call_steward(home.path, home.parcel(task, {}), wait_s=PATIENCE_S)
    reply, _ = home.open(parcel)
    reply.check_answers(task)
    return reply.status


def without_network() -> tuple[str, ...]:
    """Return the command that starts a process without a network, or skip with the reason."""
    program = shutil.which("unshare")
    if program is None:
        pytest.skip("unshare is not installed")
    for options in (("-n",), ("-r", "-n")):
        done = subprocess.run([program, *options, "true"], check=False, capture_output=True)
        if done.returncode == 0:
            return (program, *options)
    pytest.skip("this user may not make network namespaces")


def interfaces(pid: int) -> set[str]:
    lines = Path(f"/proc/{pid}/net/dev").read_text(encoding="utf-8").splitlines()[2:]
    return {line.split(":")[0].strip() for line in lines}


def test_steward_without_a_network_answers_a_signed_task(consenting: Home) -> None:
    with running(consenting, within=without_network()) as process:
        there, here = (Path(f"/proc/{who}/ns/net").readlink() for who in (process.pid, "self"))
        assert there != here
        assert interfaces(process.pid) == {"lo"}
        assert consent_status(consenting) == "done"


def test_sigterm_ends_the_steward_cleanly(consenting: Home) -> None:
    with running(consenting) as process:
        assert consent_status(consenting) == "done"
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    assert not consenting.settings.steward.exists()
    assert not (consenting.path / "steward.sock").exists()


def test_what_the_steward_writes_is_for_its_user_alone(home: Home) -> None:
    before = {*home.path.rglob("*")}
    with running(home, within=("sh", "-c", 'umask 022; exec "$@"', "sh")):
        assert consent_status(home) == "refused"
        written = {*home.path.rglob("*")} - before
        assert {home.settings.store, home.settings.log, home.settings.outbox} <= written
        modes = {path.name: path.stat().st_mode & 0o777 for path in written}
    # The home keeps others out; a courier under another user shares the group.
    shared = {name for name, mode in modes.items() if mode & 0o077}
    assert shared <= {"steward.sock", "steward.json", "metrics.prom"}
    assert not any(mode & 0o007 for mode in modes.values())


def test_killed_steward_starts_again(consenting: Home) -> None:
    with running(consenting) as process:
        assert consent_status(consenting) == "done"
        process.kill()
        process.wait(PATIENCE_S)
    with running(consenting):
        assert consent_status(consenting) == "done"
    assert verify_journal(consenting.settings.journal) == []


def fake(root: Path, home: Home, mode: str) -> tuple[str, ...]:
    return (sys.executable, str(root / "tests/fakes/steward_process.py"), str(home.path), mode)


def test_kill_in_the_middle_of_a_task_loses_nothing(consenting: Home, root: Path) -> None:
    home, answers = consenting, []

    def send() -> None:
        try:
            answers.append(call_steward(home.path, home.parcel(home.task()), wait_s=PATIENCE_S))
        except ProcessError as error:
            answers.append({"error": error.sentence().encode()})

    courier = threading.Thread(target=send)
    with running(home, program=fake(root, home, "hang")) as process:
        courier.start()
        assert process.stderr is not None
        assert process.stderr.readline() == "task begun\n"
        process.kill()
        process.wait(PATIENCE_S)
    assert answers == []
    assert not list(home.settings.updates.glob("*"))
    with running(home, program=fake(root, home, "work")):
        courier.join(PATIENCE_S)
    reply, outputs = home.open(answers[0])
    assert (reply.status, outputs["codec"]["w"][0, 0]) == ("done", 1)
    assert verify_journal(home.settings.journal) == []


@pytest.mark.parametrize(("mode", "signals"), [("steps", 1), ("hang", 2)])
def test_sigterm_in_the_middle_of_a_task_ends_in_order_and_loses_nothing(
    consenting: Home, root: Path, mode: str, signals: int
) -> None:
    """One is enough between two steps; a step that does not end takes a second one."""
    home, answers = consenting, []

    def send() -> None:
        try:
            answers.append(call_steward(home.path, home.parcel(home.task()), wait_s=PATIENCE_S))
        except ProcessError as error:
            answers.append({"error": error.sentence().encode()})

    courier = threading.Thread(target=send)
    with running(home, program=fake(root, home, mode)) as process:
        courier.start()
        assert process.stderr is not None
        assert process.stderr.readline() == "task begun\n"
        for _ in range(signals):
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):  # two at one moment would be heard as one
                process.wait(1)
        assert process.wait(PATIENCE_S) == 0
    assert answers == []
    assert not list(home.settings.updates.glob("*"))
    assert not home.settings.steward.exists()
    with running(home, program=fake(root, home, "work")):
        courier.join(PATIENCE_S)
    reply, _ = home.open(answers[0])
    assert reply.status == "done"
    assert [line.event for line in home.lines()] == ["consent", "sent"]


def test_full_disk_is_told_to_both_sides_and_leaves_nothing_half_written(
    consenting: Home, root: Path
) -> None:
    home = consenting
    large = {"codec": {"w": np.zeros(200_000, np.float32)}}
    with running(home, program=fake(root, home, "full")):
        parcel = home.parcel(home.task(large), large)
        reply, _ = home.open(call_steward(home.path, parcel, wait_s=PATIENCE_S))
        assert reply.status == "failed"
        assert "no disk space left" in reply.reason
        assert list(home.settings.updates.iterdir()) == []
        small = home.parcel(home.task())
        reply, _ = home.open(call_steward(home.path, small, wait_s=PATIENCE_S))
        assert reply.status == "done"
    assert [line.event for line in home.lines()] == ["consent", "failed", "sent"]


def test_second_steward_ends_with_a_sentence(consenting: Home) -> None:
    from vitrael.client.site.cli import run

    with running(consenting):
        with pytest.raises(ProcessError, match="another steward"):
            run.main(["--home", str(consenting.path)], standalone_mode=False)
        assert consent_status(consenting) == "done"


def test_operator_is_heard_by_a_steward_that_runs(consenting: Home) -> None:
    from vitrael.client.site.control_cli import pause, resume

    home = ["--home", str(consenting.path)]
    with running(consenting):
        assert consent_status(consenting) == "done"
        pause.main(home, standalone_mode=False)
        assert consent_status(consenting) == "refused"
        resume.main(home, standalone_mode=False)
        assert consent_status(consenting) == "done"


def test_steward_imports_no_network_client_and_no_torch() -> None:
    program = (
        "import sys, vitrael.client.site.steward, vitrael.client.site.listener\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    clients = {"flwr", "grpc", "requests", "urllib3", "httpx", "aiohttp", "mlflow", "torch"}
    assert clients & loaded == set()
    assert "sqlalchemy" in loaded  # what is loaded would be seen
