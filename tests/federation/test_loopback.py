"""Real Flower processes on loopback with stewards that only echo."""

from __future__ import annotations

import dataclasses
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.factories.crashes import crash
from tests.factories.loopback import SITES, enrolled, layout_of, server_app
from vitrael.core.errors import NetworkError, ProcessError, VitraelError
from vitrael.server.rehearsal import Event, Rehearsal, rehearse

pytestmark = [pytest.mark.federation]

HERE = Path(__file__).resolve().parent
WAIT_S = 300.0  # Flower takes a ClientApp for lost after 60 s, an exchange has 120 s

FAILS = """
from vitrael.core.errors import QuorumError
from vitrael.server.federation.app import make_app

def run(home, exchange):
    raise QuorumError("the round failed", why="site north is away")

app = make_app(run)
"""


def belongs(process: psutil.Process, home: Path) -> bool:
    try:
        words = process.cmdline()
        alive = process.status() != psutil.STATUS_ZOMBIE
        return alive and "driver.py" not in " ".join(words) and any(str(home) in w for w in words)
    except psutil.Error:
        return False


def listening(home: Path) -> list[int]:
    ports = json.loads((home / "ports.json").read_text()).values()
    taken = []
    for port in ports:
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                taken.append(port)
    return taken


def assert_nothing_left(home: Path) -> None:
    assert [p.cmdline() for p in psutil.process_iter() if belongs(p, home)] == []
    assert listening(home) == []


@contextmanager
def driven(home: Path, app: str) -> Iterator[subprocess.Popen[str]]:
    """Rehearse in a process of its own and yield when all sites are connected."""
    path = home.parent / "server_app.py"
    path.write_text(app)
    command = [sys.executable, str(HERE / "driver.py"), str(enrolled(home)), str(path), *SITES]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        try:
            for line in driver.stdout:
                if line.startswith("ready"):
                    break
            yield driver
        finally:
            driver.kill()


def test_parcels_of_megabytes_cross_and_nothing_is_left(tmp_path: Path) -> None:
    home = tmp_path / "a home"
    events: list[Event] = []
    layout = layout_of(home, server_app(rounds=2, size=6_000_000))
    with Rehearsal(layout, on_event=events.append) as rehearsal:
        rehearsal.start()
        code = rehearsal.watch(timeout_s=WAIT_S)
        guard = rehearsal.guard
    assert code == 6
    assert json.loads((home / "rounds.json").read_text()) == [dict.fromkeys(SITES, True)] * 2
    assert_nothing_left(home)
    assert not (tmp_path / "nobody").exists()
    for site in SITES:
        networks = json.loads((layout.site_home(site) / "networks.json").read_text())
        assert guard == () or set(networks) <= {"lo"}
        assert list((layout.site_home(site) / "spool" / "out").iterdir()) == []
    nodes = {site: entry["node_id"] for site, entry in json_of(home / "sites.json").items()}
    assert len(set(nodes.values())) == len(SITES)
    assert [event.kind for event in events].count("ready") == 1


def json_of(path: Path) -> dict[str, dict[str, int]]:
    value: dict[str, dict[str, int]] = json.loads(path.read_text())
    return value


def test_a_home_goes_on_after_a_crash_and_ctrl_c_leaves_nothing_listening(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with driven(home, server_app(rounds=1000)) as driver:
        wait_for_rounds(home, 1)
        driver.send_signal(signal.SIGKILL)
        driver.wait(10)
    orphans = [process for process in psutil.process_iter() if belongs(process, home)]
    assert orphans != []
    done = len(json.loads((home / "rounds.json").read_text()))
    with driven(home, server_app(rounds=1000)) as driver:
        assert not any(orphan.is_running() for orphan in orphans)
        wait_for_rounds(home, done + 1)
        assert listening(home) != []
        driver.send_signal(signal.SIGINT)
        said, _ = driver.communicate(timeout=WAIT_S)
        assert "interrupted" in said
        assert driver.returncode == 130
    assert all(all(one.values()) for one in json.loads((home / "rounds.json").read_text()))
    assert_nothing_left(home)


def wait_for_rounds(home: Path, number: int) -> None:
    path = home / "rounds.json"
    until = time.monotonic() + WAIT_S
    while not path.exists() or path.read_text().count("north") < number:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_killed_steward_is_named_and_everything_ends(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with Rehearsal(layout_of(home, server_app(rounds=1000))) as rehearsal:
        rehearsal.start()
        crash(rehearsal, "site north: steward")
        with pytest.raises(ProcessError, match=r"site north: steward ended \(signal 9\)"):
            rehearsal.watch(timeout_s=WAIT_S)
    assert_nothing_left(home)


def test_a_study_that_fails_is_told_in_its_own_words(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with pytest.raises(VitraelError, match="the round failed: site north is away") as caught:
        rehearse(layout_of(home, FAILS))
    assert caught.value.exit_code == 1
    assert_nothing_left(home)


def test_a_port_in_use_is_named_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = int(taken.getsockname()[1])
        layout = dataclasses.replace(layout_of(tmp_path / "home", FAILS), port=port)
        with pytest.raises(NetworkError, match=f"port {port} "):
            rehearse(layout)
    assert not (tmp_path / "home" / "logs").exists()
