"""Coordinator and sites on hosts of their own, joined by the real commands over a real network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.factories.hosts import Host, connected_hosts, missing
from tests.factories.paced import SITES, Paced, give_scans, paced_study, wait_until
from vitrael.client.site.settings import load_settings
from vitrael.privacy.journal import read_journal
from vitrael.privacy.journal_line import DEPARTURES
from vitrael.server.board import read_server_state
from vitrael.server.config import load_server
from vitrael.server.federation.flower_home import program
from vitrael.server.federation.homes import listens
from vitrael.server.federation.layout import network_guard, site_home
from vitrael.server.federation.processes import ProcessGroup, child_environment
from vitrael.server.proxy import find_nginx, proxy_command, proxy_files

_WHY = missing() or ("" if find_nginx() else "nginx is not installed")
pytestmark = [pytest.mark.federation, pytest.mark.skipif(bool(_WHY), reason=_WHY)]

SCRIPTS = Path(__file__).resolve().parent
ADDRESS = "10.77.0.1:443"
SIZE = 1_000_000
ROUNDS = 3
MOST_BESIDE = 0.05
"""Share of a site's traffic that stands in no line of its journal: headers, polls, receipts."""
_SOCKETS = ("cat", "/proc/net/tcp", "/proc/net/tcp6")
_LISTENS = "0A"
_OWN_PLACES = {"0100007F", "0" * 24 + "01000000"}
"""127.0.0.1 and ::1, as the kernel writes them."""
_PROBE = """
import socket, sys
for port in sys.argv[2:]:
    try:
        socket.create_connection((sys.argv[1], int(port)), timeout=5).close()
    except OSError:
        continue
    print(port)
"""


@dataclass
class Country:
    """The hosts, what runs on them, and the study."""

    hosts: dict[str, Host]
    paced: Paced
    group: ProcessGroup

    @property
    def home(self) -> Path:
        return self.paced.home

    def site(self, name: str) -> Path:
        return site_home(self.home, name)

    def environment(self) -> dict[str, str]:
        return child_environment(os.environ, home=self.home, flower_home=self.home / "flower")

    def say(self, host: str, *words: str) -> subprocess.Popen[str]:
        """Start a command of an operator on a host."""
        home = self.home if host == "coordinator" else self.site(host)
        line = self.hosts[host].command(program("vitrael"), *words, "--home", str(home))
        return subprocess.Popen(
            line,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def hear(self, *asked: subprocess.Popen[str]) -> list[str]:
        """Return what commands printed; all must have gone well."""
        said = [process.communicate(timeout=120) for process in asked]
        for process, (_, error) in zip(asked, said, strict=True):
            assert process.returncode == 0, error
        return [output for output, _ in said]

    def start(self, name: str, command: Sequence[str]) -> None:
        log = self.home / "logs" / f"{name.replace(' ', '-')}.log"
        self.group.start(name, command, environment=self.environment(), log=log)

    def opens(self, host: str, address: str, *ports: str) -> list[str]:
        """Return those of some ports that a host reaches at an address."""
        address = address.partition(":")[0]
        probe = self.hosts[host].command(sys.executable, "-c", _PROBE, address, *ports)
        done = subprocess.run(probe, capture_output=True, text=True, check=True, timeout=60)
        return done.stdout.split()

    def shown(self, host: str) -> set[int]:
        """Return the ports of a host on which something listens for others than itself."""
        table = subprocess.run(
            self.hosts[host].command(*_SOCKETS), capture_output=True, text=True, check=True
        ).stdout
        rows = [line.split() for line in table.splitlines() if line.split()[0][:1].isdigit()]
        places = [row[1].split(":") for row in rows if row[3] == _LISTENS]
        return {int(port, 16) for place, port in places if place not in _OWN_PLACES}

    def everybody_is_there(self) -> bool:
        self.group.check()
        state = read_server_state(self.home)
        return state is not None and all(
            site in state.sites and state.sites[site].online for site in SITES
        )

    def finish(self, rounds: int, *, seconds: float = 120) -> None:
        """Let the study come to so many rounds."""
        self.paced.order(rounds)
        self.wait_for(rounds, seconds=seconds)

    def wait_for(self, rounds: int, *, seconds: float = 120) -> None:
        def done() -> bool:
            self.group.check()
            return len(self.paced.finished()) >= rounds

        logs = sorted((self.home / "logs").iterdir())
        wait_until(done, f"round {rounds} is finished", seconds=seconds, told=logs)

    def everybody_answered(self) -> bool:
        rounds = self.paced.assert_sound()
        return all(set(record.participants) == set(SITES) for record in rounds)


def _start_coordinator(one: Country) -> None:
    one.hear(one.say("coordinator", "server", "init", "--address", ADDRESS))
    app = one.paced.gates / "server_app.py"
    app.write_text(one.paced.server_app())
    command = (sys.executable, str(SCRIPTS / "coordinator.py"), str(app), "--home", str(one.home))
    one.start("coordinator", one.hosts["coordinator"].command(*command))
    authority = proxy_files(load_server(one.home)).superlink_authority
    wait_until(lambda: one.group.check() or authority.exists(), "the coordinator starts")
    configuration = one.home / "proxy.conf"
    words = ("server", "proxy-config", "--output", str(configuration), "--yes")
    one.hear(one.say("coordinator", *words))
    nginx = find_nginx()
    assert nginx is not None
    door = proxy_command(nginx, configuration, proxy_files(load_server(one.home)))
    one.start("front door", one.hosts["coordinator"].command(*door))


def _enroll(one: Country) -> None:
    files = {site: one.paced.gates / f"{site}.json" for site in SITES}
    told = [("server", "invite", site, "--out", str(file)) for site, file in files.items()]
    one.hear(*(one.say("coordinator", *words) for words in told))
    wait_until(lambda: one.opens("north", ADDRESS, "443") == ["443"], "the front door opens")
    asked = [one.say(site, "site", "join", str(files[site]), "--yes", "--json") for site in SITES]
    for site, said in zip(SITES, one.hear(*asked), strict=True):
        approve = ("server", "sites", "approve", site, "--yes", "--fingerprint")
        one.hear(one.say("coordinator", *approve, str(json.loads(said)["fingerprint"])))
        give_scans(one.site(site), one.paced.study)
    study = one.paced.gates / "study.toml"
    study.write_bytes(paced_study())
    one.hear(one.say("coordinator", "study", "offer", str(study), "--yes"))
    one.hear(*(one.say(site, "site", "fetch") for site in SITES))
    name = one.paced.study.protocol.name
    one.hear(*(one.say(site, "site", "consent", name, "--yes") for site in SITES))


def _start_sites(one: Country) -> None:
    for site in SITES:
        home = ("--home", str(one.site(site)))
        steward = (sys.executable, str(SCRIPTS / "gated_steward.py"), str(one.paced.gates))
        one.start(f"{site} steward", (*network_guard(), *steward, *home))
        courier = one.hosts[site].command(program("vitrael"), "site", "courier", *home)
        one.start(f"{site} courier", courier)
    wait_until(one.everybody_is_there, "both sites are connected", seconds=120)
    wait_until(lambda: all(listens(one.site(site)) for site in SITES), "both stewards listen")


@pytest.fixture(scope="module")
def country(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Country]:
    """A coordinator and two sites, each on a host of its own; a study that waits for orders."""
    folder = tmp_path_factory.mktemp("hosts")
    with connected_hosts(["coordinator", *SITES]) as hosts:
        home = folder / "home"
        one = Country(hosts, Paced(home, folder / "gates", SIZE), ProcessGroup(home))
        try:
            _start_coordinator(one)
            _enroll(one)
            _start_sites(one)
            one.hear(one.say("coordinator", "study", "start", "tiny", "--yes"))
            yield one
        finally:
            others = [name for name in one.group.children if name != "coordinator"]
            one.group.end(first=others, grace_s=15)


def _journal_total(one: Country, site: str, *, after: int) -> int:
    lines = read_journal(one.site(site) / "journal.jsonl")
    return sum(line.bytes for line in lines if line.event in DEPARTURES and line.line > after)


def test_a_journal_tells_what_left_as_the_cable_counts_it(
    country: Country, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = {s: len(list(read_journal(country.site(s) / "journal.jsonl"))) for s in SITES}
    before = {site: country.hosts[site].sent_bytes() for site in SITES}
    country.finish(ROUNDS)
    sent = {site: country.hosts[site].sent_bytes() - before[site] for site in SITES}
    assert country.everybody_answered()
    country.paced.assert_journals()
    for site in SITES:
        total = _journal_total(country, site, after=lines[site])
        with capsys.disabled():
            sys.stdout.write(f"\n{site}: journal {total:,} bytes, eth0 {sent[site]:,} bytes\n")
        assert total > ROUNDS * 4 * SIZE  # updates of four-byte numbers
        assert total < sent[site] < total * (1 + MOST_BESIDE)


def test_only_the_front_door_is_open(country: Country) -> None:
    document = load_server(country.home).document
    own = [str(port) for port in document.ports.model_dump().values()]
    coordinator, south = country.hosts["coordinator"].address, country.hosts["south"].address
    assert country.opens("north", coordinator, "443", *own) == ["443"]
    assert country.opens("coordinator", "127.0.0.1", *own) == own  # the control: they are there
    assert country.shown("coordinator") == {443}
    assert country.shown("north") == country.shown("south") == set()
    node_port = str(load_settings(country.site("south")).document.network.node_port)
    assert country.opens("north", south, node_port) == []
    assert country.opens("south", "127.0.0.1", node_port) == [node_port]  # the control


@pytest.mark.parametrize("seconds", [10, pytest.param(60, marks=pytest.mark.slow)])
def test_a_cable_that_is_cut_in_the_middle_of_an_update_loses_nothing(
    country: Country, seconds: int
) -> None:
    north, done = country.hosts["north"], len(country.paced.finished())
    country.paced.hold("north")
    country.paced.order(done + 1)
    wait_until(lambda: country.paced.is_at("north", done + 1), "north computes")
    with north.at_most(mbit=8):
        before = north.sent_bytes()
        country.paced.let_go("north")
        wait_until(lambda: north.sent_bytes() - before > SIZE, "a part of the update is on its way")
        north.cut()
        try:
            mended = time.monotonic() + seconds
            wait_until(lambda: time.monotonic() >= mended, "the cable is mended")
            assert len(country.paced.finished()) == done  # the control: it was cut
        finally:
            north.mend()
    country.wait_for(done + 1)
    assert country.everybody_answered()
    country.paced.assert_journals()
