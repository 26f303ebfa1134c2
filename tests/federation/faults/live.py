"""One long-lived federation whose processes, cables and disks a test may break, one at a time.

What a service unit would start again, the harness starts again at once; an exit code with which a
unit leaves a process to a person (3 and 4) is a fault of the matrix.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.factories.enrollment import enroll_everywhere
from tests.factories.paced import SITES, Paced, give_scans, paced_study, wait_until
from tests.federation.faults.disk import Disk, small_disk
from tests.federation.faults.relay import Relay, relayed
from vitrael.client.site.consent import describe_cohort, draft_consent, keep_consent
from vitrael.client.site.options import utc_now
from vitrael.client.site.settings import load_settings
from vitrael.client.site.store import Store
from vitrael.core.digest import write_atomically
from vitrael.privacy.journal import Journal
from vitrael.privacy.keys import KeyPair, load_roster
from vitrael.server.federation.homes import listens
from vitrael.server.federation.layout import RehearsalLayout, site_home
from vitrael.server.federation.processes import HOME_MARK, Child
from vitrael.server.proxy import find_nginx
from vitrael.server.rehearsal import COORDINATOR, FRONT, Rehearsal, courier_of, steward_of

SCRIPTS = Path(__file__).resolve().parents[1]
SITE = "north"
"""The site that is struck; the other one is left in peace."""
SIZE = 50_000
_LEFT_TO_A_PERSON = (3, 4)
_RECOVERY_S = 180.0
_ROUND_S = 300.0
_STAYS_S = 3.0
"""Longer than it takes until the coordinator's state tells what was struck."""
_DISK_MBYTES = 512

PROCESSES = (
    "coordinator",
    "superlink",
    "superexec",
    "serverapp",
    "enrollment",
    "nginx",
    "courier",
    "supernode",
    "executor",
    "clientapp",
    "steward",
)


@dataclass
class Live:
    """The federation, its cables and its disks."""

    rehearsal: Rehearsal
    paced: Paced
    cables: dict[str, Relay] = field(default_factory=dict)
    disks: dict[str, Disk] = field(default_factory=dict)
    left_to_a_person: list[str] = field(default_factory=list)
    """What no service unit would have started again."""
    told_failures: list[str] = field(default_factory=list)
    """Why the study failed, each time that its operator had to start it again."""
    _ended: threading.Event = field(default_factory=threading.Event)

    @property
    def home(self) -> Path:
        return self.paced.home

    def coordinator(self) -> int:
        """Return the coordinator's process."""
        return self.rehearsal.group.children[COORDINATOR].pid

    def logs(self) -> list[Path]:
        return [*(self.home / "logs").iterdir(), self.site() / "flower" / "node" / "courier.log"]

    def site(self, site: str = SITE) -> Path:
        return site_home(self.home, site)

    def keep_up(self) -> None:
        """Start again at once what has ended, until the end."""
        while not self._ended.wait(0.1):
            for child in list(self.rehearsal.group.children.values()):
                if child.ended() is not None:
                    self._start_again(child)

    def _start_again(self, child: Child) -> None:
        if child.process.returncode in _LEFT_TO_A_PERSON:
            self.left_to_a_person.append(f"{child.name}: {child.last_words()}")
        with contextlib.suppress(OSError):  # a full disk takes no log: again in a moment
            self.rehearsal.group.restart(child)

    def end(self) -> None:
        self._ended.set()

    def victim(self, name: str) -> psutil.Process:
        """Return the process of a name, once it is there."""
        found: list[psutil.Process] = []

        def look() -> bool:
            with contextlib.suppress(psutil.Error, OSError, ValueError, KeyError, AssertionError):
                found[:] = [self._find(name)]
            return bool(found)

        wait_until(look, f"there is a {name}", told=self.logs())
        return found[0]

    def _find(self, name: str) -> psutil.Process:
        children = self.rehearsal.group.children
        own = {"coordinator": COORDINATOR, "nginx": FRONT, "courier": courier_of(SITE)}
        own["steward"] = steward_of(SITE)
        if name in own:
            return psutil.Process(children[own[name]].pid)
        if name in {"superlink", "superexec", "enrollment"}:
            entries = json.loads((self.home / "server-processes.json").read_bytes())
            return psutil.Process(int(entries[name]["pid"]))
        if name == "serverapp":
            state = self.rehearsal.state()
            assert state is not None
            assert state.status == "running"
            return psutil.Process(state.pid)
        courier = psutil.Process(children[courier_of(SITE)].pid)
        module = "courier.node" if name == "supernode" else "courier.executor"
        (parent,) = [
            one for one in courier.children() if any(module in word for word in one.cmdline())
        ]
        return parent.children()[0] if name == "clientapp" else parent

    def strike(self, name: str, number: signal.Signals) -> None:
        """Send a process a signal and return once it is gone."""
        process = self.victim(name)
        process.send_signal(number)
        if name == "clientapp" and number == signal.SIGTERM:
            return  # Flower lets the message that it carries come to its end
        wait_until(lambda: not _is_there(process), f"{name} has ended", told=self.logs())

    def is_whole(self) -> bool:
        """Say whether everything runs and is connected, and the study is at work."""
        if self._tend_study():
            return False
        study = self.rehearsal.study()
        state = self.rehearsal._server_state()
        if state is None or state.trouble or study is None or study.status != "running":
            return False
        running = {one.name for one in state.children if one.status == "running"}
        return (
            {"superlink", "superexec", "enrollment"} <= running
            and self.rehearsal.online() >= set(SITES)
            and all(listens(self.site(site)) for site in SITES)
            and self.rehearsal._door_is_open()
            and self.rehearsal.state() is not None
        )

    def wait_for_round(self, number: int) -> None:
        """Return once a round is finished, having started a failed study again."""

        def done() -> bool:
            self._tend_study()
            return len(self.paced.finished()) >= number

        wait_until(done, f"round {number} is finished", seconds=_ROUND_S, told=self.logs())

    def _tend_study(self) -> bool:
        """Do what an operator does who has read why a study failed; say whether it had."""
        study = self.rehearsal.study()
        if study is None or study.status not in {"failed", "stopped"}:
            return False
        self.told_failures.append(study.sentence)
        for disk in self.disks.values():
            disk.empty()
        self.rehearsal.command("study", "start", self.paced.study.protocol.name, "--yes")
        return True

    def recover(self) -> None:
        """Return once everything is whole again, and stays so, and no process is left over."""
        whole_since = math.inf

        def stays_whole() -> bool:
            nonlocal whole_since
            now = time.monotonic()
            whole_since = min(whole_since, now) if self.is_whole() else math.inf
            return now - whole_since >= _STAYS_S

        wait_until(
            stays_whole,
            "all is whole again",
            seconds=_RECOVERY_S,
            told=self.logs(),
            every_s=1,  # the front door answers nobody more often for long
        )
        wait_until(lambda: not self.orphans(), "no process is left over", seconds=90)
        assert self.left_to_a_person == []

    def orphans(self) -> list[str]:
        """Return the processes of this home that nobody answers for."""
        roots = {child.pid for child in self.rehearsal.group.children.values()}
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                mark = process.environ().get(HOME_MARK)
                if mark != str(self.home) or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                line = {process.pid, *(one.pid for one in process.parents())}
                if (not line & roots and os.getpid() not in line) or (
                    not line & roots and process.ppid() == 1
                ):
                    found.append(" ".join(process.cmdline()))
        return found


def _is_there(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _consent(paced: Paced, site: str) -> None:
    settings = load_settings(site_home(paced.home, site))
    give_scans(settings.home, paced.study)
    keys = KeyPair.load(settings.keys)
    members = load_roster(settings.roster)
    draft = draft_consent(
        paced.study,
        site=site,
        keys=keys.public,
        members=members,
        cohort=describe_cohort(settings.cohorts / "main"),
        now=utc_now(),
    )
    with closing(Store(settings.store, updates=settings.updates)) as store:
        journal = Journal(settings.journal, clock=utc_now, witness=store)
        keep_consent(draft, paced.study, store, members=members, keys=keys, journal=journal)


def _lay_cables(live: Live, stack: ExitStack) -> None:
    """Let each site reach the front door over a cable of its own."""
    addresses = live.rehearsal.addresses
    assert addresses is not None
    for site in SITES:
        live.cables[site] = stack.enter_context(relayed(addresses.front))
        document = live.site(site) / "site.toml"
        cable = f"127.0.0.1:{live.cables[site].port}"
        text = document.read_text().replace(addresses.address, cable)
        assert cable in text
        write_atomically(document, text.encode())


@contextlib.contextmanager
def running(folder: Path, *, disks: bool) -> Iterator[Live]:
    """Yield a federation of two sites whose study waits for orders."""
    home, site = folder / "home", site_home(folder / "home", SITE)
    with ExitStack() as stack:
        made: dict[str, Disk] = {}
        if disks:
            made["coordinator"] = stack.enter_context(small_disk(home, mbytes=_DISK_MBYTES))
            made[SITE] = stack.enter_context(small_disk(site, mbytes=_DISK_MBYTES))
        paced = Paced(home, folder / "gates", SIZE)
        enroll_everywhere(home, SITES, study=paced_study())
        for name in SITES:
            _consent(paced, name)
        app = folder / "server_app.py"
        app.write_text(paced.server_app())
        layout = RehearsalLayout(
            home,
            SITES,
            coordinator=(sys.executable, str(SCRIPTS / "coordinator.py"), str(app)),
            steward=(sys.executable, str(SCRIPTS / "gated_steward.py"), str(paced.gates)),
            nginx=find_nginx(),
            environment={**os.environ, "HOME": str(folder / "nobody")},
        )
        rehearsal = stack.enter_context(Rehearsal(layout))
        live = Live(rehearsal, paced, disks=made)
        rehearsal.start_coordinator()
        _lay_cables(live, stack)
        rehearsal.start_sites()
        rehearsal.start_study()
        keeper = threading.Thread(target=live.keep_up, daemon=True)
        keeper.start()
        try:
            yield live
        finally:
            live.end()
            keeper.join(30)
