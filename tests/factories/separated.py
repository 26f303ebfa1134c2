"""A site under three users, as ``deploy/systemd`` sets it up, beside a coordinator's SuperLink.

Owners and modes come from the tmpfiles document itself, users, umask and arguments from the units.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from tests.factories.cohort import recipe_settings, write_cohort
from tests.factories.courier import wait_for
from vitrael.client.site.consent import describe_cohort, draft_consent, keep_consent
from vitrael.client.site.control import Control
from vitrael.client.site.ingest.summary import summarize
from vitrael.client.site.ingest.told import save_summary
from vitrael.client.site.options import private_files
from vitrael.client.site.settings import SiteSettings, load_settings
from vitrael.client.site.store import Store
from vitrael.core.messages import Task
from vitrael.core.study import Study, parse_study
from vitrael.core.weights import Tensors
from vitrael.privacy.envelope import attachment_digests, make_task_parcel
from vitrael.privacy.journal import Journal
from vitrael.privacy.keys import KeyPair, roster_digest, save_public_keys, save_roster
from vitrael.privacy.node_keys import create_node_key
from vitrael.server.federation.control import SuperLink
from vitrael.server.federation.flower_home import FlowerHome
from vitrael.server.federation.processes import child_environment, free_ports

ROOT = Path(__file__).resolve().parents[2]
UNITS = ROOT / "deploy" / "systemd"
DEPLOYED_HOME = "/var/lib/vitrael/site"
GROUP = 61_000
USERS = {"root": 0, "vitrael-steward": 61_001, "vitrael-node": 61_002, "vitrael-courier": 61_003}
GROUPS = {"vitrael-site": GROUP, "vitrael-steward": 61_001, "vitrael-node": 61_002}
PATIENCE_S = 60.0
WITH_US = ("--pdeathsig", "KILL")
ENDED_WITH_US = ("setpriv", *WITH_US)
"""Ends a process with the test's, however that ends."""

_REACH = """
set -e
if [ -n "$1" ]; then
  mount --bind "$2" "$3"; mount -t tmpfs -o mode=755 none "$1"; mkdir -p "$2"
  mount --bind "$3" "$2"
fi
umask "$4"; shift 4; exec "$@"
"""
"""Lets other users reach a Python that lies below a folder of root's, in a mount namespace."""


def unit(name: str) -> dict[str, list[str]]:
    """Return the settings of a unit, each with all its values."""
    told: dict[str, list[str]] = {}
    for line in (UNITS / f"{name}.service").read_text().splitlines():
        key, mark, value = line.partition("=")
        if mark and not line.startswith("#"):
            told.setdefault(key, []).append(value)
    return told


def apply_tmpfiles(home: Path) -> None:
    """Give a home the owners and modes that ``vitrael-site.tmpfiles.conf`` says."""
    for line in (UNITS / "vitrael-site.tmpfiles.conf").read_text().splitlines():
        kind, _, rest = line.partition(" ")
        if kind not in {"d", "z"} or not rest.startswith(DEPLOYED_HOME):
            continue
        place, mode, user, group = rest.split()
        path = home / place.removeprefix(DEPLOYED_HOME).lstrip("/")
        if kind == "d":
            path.mkdir(exist_ok=True)
        if path.exists():
            os.chown(path, USERS[user], GROUPS[group])
            path.chmod(int(mode, 8))


@dataclass(slots=True)
class Separated:
    """A site's home, its coordinator's home, and what runs for both."""

    base: Path
    study: Study
    coordinator: KeyPair
    keys: KeyPair
    marks: dict[str, str]
    node_public: bytes
    port: int
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def home(self) -> Path:
        """The site's home."""
        return self.base / "site"

    @property
    def link_home(self) -> Path:
        """The coordinator's home."""
        return self.base / "coordinator"

    @property
    def settings(self) -> SiteSettings:
        """The site's settings."""
        return load_settings(self.home)

    def order(self, *, round_number: int, deadline_s: float = 60.0) -> tuple[Task, dict[str, Any]]:
        """Return a true task of the codec's training, and its parcel."""
        inputs = {"codec": weights(round_number)}
        task = Task(
            protocol=self.study.protocol.digest,
            roster=roster_digest({"north": self.keys.public}),
            site="north",
            stage="codec",
            round=round_number,
            nonce=secrets.token_hex(16),
            issued_utc=datetime.now(UTC).isoformat(),
            deadline_s=deadline_s,
            inputs=attachment_digests(inputs),
        )
        parcel = make_task_parcel(task, inputs, coordinator=self.coordinator, site=self.keys.public)
        return task, parcel

    def spawn(
        self, name: str, command: Sequence[str], *, user: int, network: bool = True
    ) -> subprocess.Popen[bytes]:
        """Start a process as a user of the site, as its unit would."""
        log = (self.base / f"{name}.log").open("wb")
        umask = unit(name)["UMask"][0]
        with log:
            process = subprocess.Popen(
                within(self.base, user=user, umask=umask, network=network, command=command),
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.running.append(process)
        return process

    def environment(self) -> Mapping[str, str]:
        """Return the environment of the site's processes: it bears a mark."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        return {
            **kept,
            "HOME": str(self.home),
            "PYTHONDONTWRITEBYTECODE": "1",
            "VITRAEL_TEST_MARK": self.marks["environment"],
        }

    def start_steward(self) -> None:
        """Start the steward without a network; return when it listens."""
        script = ROOT / "tests" / "federation" / "marked_steward.py"
        self.spawn(
            "vitrael-steward",
            [sys.executable, str(script), str(self.home)],
            user=USERS["vitrael-steward"],
            network=unit("vitrael-steward")["PrivateNetwork"] != ["yes"],
        )
        note = self.settings.steward
        wait_for(lambda: self.demand_alive() and note.exists(), seconds=PATIENCE_S)

    def start_courier(self) -> None:
        """Start SuperNode and SuperExec, each as its unit says."""
        for name in ("vitrael-node", "vitrael-executor"):
            told = unit(name)
            words = told["ExecStart"][0].replace(DEPLOYED_HOME, str(self.home)).split()
            program = str(Path(sys.executable).parent / Path(words[0]).name)
            self.spawn(name, [program, *words[1:]], user=USERS[told["User"][0]])

    def demand_alive(self) -> bool:
        """Fail with what it said when a process of the site has ended; return True."""
        for process in self.running:
            assert process.poll() is None, self.said()
        return True

    def said(self) -> str:
        """Return the last words of all processes."""
        logs = [*self.base.glob("*.log"), *self.home.glob("flower/*/courier.log")]
        return "\n".join(f"{log.name}: {log.read_text()[-1500:]}" for log in sorted(logs))

    def end(self) -> None:
        """End what runs: by SIGTERM, then by force."""
        for process in reversed(self.running):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        for process in self.running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)
        self.running.clear()


def within(
    base: Path, *, user: int, umask: str, network: bool, command: Sequence[str]
) -> list[str]:
    """Return the command that runs another one as a user of the site."""
    blocked = next((p for p in Path(sys.base_prefix).parents if not p.stat().st_mode & 0o1), None)
    held = base / "python"
    held.mkdir(exist_ok=True)
    groups = ",".join(str(one) for one in (GROUP, *({user} & {*GROUPS.values()})))
    reach = [str(blocked or ""), sys.base_prefix, str(held), umask]
    return [
        *("unshare", "-m", *(() if network else ("-n",)), "sh", "-c", _REACH, "sh", *reach),
        *("setpriv", f"--reuid={user}", f"--regid={GROUP}", f"--groups={groups}"),
        *("--no-new-privs", *WITH_US),
        *command,
    ]


def demand_root() -> None:
    """Skip the test where this user cannot be three others."""
    if os.geteuid() != 0:
        pytest.skip("three users of a site can be shown by root alone")
    if shutil.which("unshare") is None or shutil.which("setpriv") is None:
        pytest.skip("unshare and setpriv are not installed")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        probe = within(
            Path(folder),
            user=USERS["vitrael-steward"],
            umask="0077",
            network=False,
            command=[sys.executable, "-c", ""],
        )
        if subprocess.run(probe, capture_output=True, check=False).returncode:
            pytest.skip("this machine allows no mount or network namespaces")


def weights(round_number: int) -> Tensors:
    """Return weights that repeat themselves: in clear they could be compressed."""
    some = np.random.default_rng(round_number).random(256, dtype=np.float32)
    return {"w": np.tile(some, 64)}


def make_separated(base: Path, document: str) -> Separated:
    """Return a site and its coordinator, on disk; nothing runs yet."""
    marks = {
        name: secrets.token_hex(12)
        for name in ("cohort", "records", "journal", "environment", "purpose")
    }
    study = parse_study(document.replace("PURPOSE", marks["purpose"]).encode(), label="study")
    coordinator, keys = KeyPair.create(), KeyPair.create()
    home = base / "site"
    with private_files():
        keys.save(home / "keys")
        (home / "keys" / "split.key").write_bytes(secrets.token_bytes(32))
        node = create_node_key(home / "keys" / "node")
        save_public_keys(coordinator.public, home / "coordinator.json")
        save_roster({"north": keys.public}, home / "roster.json")
        (superlink, node_port) = free_ports(2)
        site = {"name": "north", "address": f"127.0.0.1:{superlink}"}
        (home / "site.toml").write_text(tomli_w.dumps(site | {"network": {"node_port": node_port}}))
        data = study.protocol.data
        manifest = write_cohort(
            home / "cohorts" / "main",
            recipe=recipe_settings(data.grid_vox, data.spacing_mm),
            patients=12,
            prefix=f"p-{marks['cohort']}-",
        )
        save_summary(summarize(manifest), manifest, home / "cohorts" / "main")
        (home / "records" / "filter").mkdir(parents=True)
        (home / "records" / "filter" / "point.json").write_text(json.dumps(marks["records"]))
        made = Separated(base, study, coordinator, keys, marks, node, superlink)
        _consent(made)
    for path in (home, *home.rglob("*")):
        os.chown(path, USERS["vitrael-steward"], GROUP)
    apply_tmpfiles(home)
    return made


def _consent(made: Separated) -> None:
    def clock() -> datetime:
        return datetime.now(UTC)

    settings = made.settings
    members = {"north": made.keys.public}
    consent = draft_consent(
        made.study,
        site="north",
        keys=made.keys.public,
        members=members,
        cohort=describe_cohort(settings.cohorts / "main"),
        now=clock(),
    )
    with contextlib.closing(Store(settings.store, updates=settings.updates)) as store:
        journal = Journal(settings.journal, clock=clock, witness=store)
        keep_consent(consent, made.study, store, members=members, keys=made.keys, journal=journal)
        control = Control(store, journal, clock=clock)
        control.pause(reason=made.marks["journal"])
        control.resume()


@contextlib.contextmanager
def running_link(made: Separated, *, server_app: str, client_app: str) -> Iterator[SuperLink]:
    """Yield the coordinator's SuperLink, which knows the site's node; its SuperExec runs too."""
    flower = FlowerHome(made.link_home)
    made.link_home.mkdir(mode=0o700)
    flower.prepare(now=datetime.now(UTC), server_app=server_app, client_app=client_app)
    authority = made.home / "authority.pem"
    authority.write_bytes(flower.tls.authority.read_bytes())
    apply_tmpfiles(made.home)
    environment = child_environment(os.environ, home=made.link_home, flower_home=flower.folder)
    started = []

    def start(name: str, command: Sequence[str]) -> None:
        with (made.base / f"{name}.log").open("wb") as log:
            started.append(
                subprocess.Popen(
                    [*ENDED_WITH_US, *command],
                    env=environment,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    try:
        start("superlink", flower.superlink(port=made.port))
        made.start_steward()
        link = SuperLink(f"127.0.0.1:{made.port}", flower.tls.authority)
        wait_for(link.is_up, seconds=PATIENCE_S)
        start("superexec", flower.superexec(port=made.port))
        link.register("north", public_key=made.node_public)
        made.start_courier()
        yield link
    finally:
        for process in reversed(started):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)
