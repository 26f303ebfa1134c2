"""A bundle of a hostile coordinator, at a site whose processes run as the units say.

The site's SuperNode, SuperExec and steward are three users here, the steward without a network.
The bundle first carries a true task, so that there is something to take, and then attacks.
"""

from __future__ import annotations

import base64
import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.factories.courier import wait_for
from tests.factories.separated import (
    GROUPS,
    ROOT,
    USERS,
    Separated,
    demand_root,
    make_separated,
    running_link,
    unit,
    weights,
    within,
)
from tests.factories.site_study import STUDY as SITE_STUDY
from vitrael.core.messages import Task
from vitrael.core.weights import pack_tensors
from vitrael.privacy.envelope import OpenedReply, open_reply_parcel
from vitrael.privacy.journal import read_journal, verify_journal

pytestmark = [pytest.mark.federation]

LEAST_BYTES = 8
"""Anything shorter stands somewhere by chance."""

FOREIGN = ROOT / "tests" / "federation" / "foreign_app.py"

STUDY = (
    SITE_STUDY.replace("Test a site.", "PURPOSE")
    .replace("codec = { training = { rounds = 2", "codec = { training = { rounds = 3")
    .replace("quorum = 3", "quorum = 1")
    .replace('["north", "harbour", "valley"]', '["north"]')
)

SERVER_APP = '''
"""Sends each folder of ``orders`` to the one node and writes down whatever comes back."""
import time
from pathlib import Path
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()

@app.main()
def main(grid, context):
    home = Path(str(context.run_config["home"]))
    until = time.monotonic() + 120
    for folder in sorted((home / "orders").iterdir()):
        while not (nodes := list(grid.get_node_ids())) and time.monotonic() < until:
            time.sleep(0.1)
        parcel = {p.name: p.read_bytes() for p in folder.iterdir()}
        arrays = {n: Array("uint8", (len(d),), "vitrael.bytes", d) for n, d in parcel.items()}
        terms = ConfigRecord({"deadline_s": 60.0, "word": folder.name.split("-")[1]})
        content = RecordDict({"parcel": ArrayRecord(arrays), "terms": terms})
        message = Message(content, dst_node_id=nodes[0], message_type="query", ttl=120)
        asked = list(grid.push_messages([message]))
        replies = []
        while not replies and time.monotonic() < until:
            replies = list(grid.pull_messages(asked))
            time.sleep(0.05)
        place = home / "received" / folder.name
        place.mkdir(parents=True)
        for reply in replies:
            if reply.has_error():
                (place / "error").write_text(str(reply.error))
                continue
            for record in reply.content.array_records.values():
                for name, array in record.items():
                    (place / name).write_bytes(array.data)
            for record in reply.content.config_records.values():
                (place / "terms").write_text(str(dict(record)))
    (home / "received" / "all").mkdir()
'''


@dataclass
class Aftermath:
    """What the hostile coordinator holds, and what stands at the site."""

    site: Separated
    tasks: list[Task]
    before: dict[str, tuple[int, ...]]
    after: dict[str, tuple[int, ...]]
    left: list[str]
    """Names in the outgoing spool while the steward still ran."""
    control: bytes
    """What the same code gets as the steward's own user."""

    def received(self, folder: str) -> dict[str, bytes]:
        place = self.site.link_home / "received" / folder
        return {path.name: path.read_bytes() for path in place.iterdir()}

    @property
    def report(self) -> dict[str, dict[str, Any]]:
        told: dict[str, dict[str, Any]] = json.loads(self.received("1-attack")["report"])
        return told

    @property
    def all_received(self) -> bytes:
        root = self.site.link_home / "received"
        return b"\n".join(path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file())

    def opened(self, folder: str, task: Task) -> OpenedReply:
        return open_reply_parcel(
            self.received(folder),
            task,
            coordinator=self.site.coordinator,
            site=self.site.keys.public,
        )


def inventory(home: Path) -> dict[str, tuple[int, ...]]:
    """Return type, mode and owner of all in a home; that which is in transit left out."""
    found = {}
    for path in (home, *home.rglob("*")):
        place = str(path.relative_to(home))
        if not place.startswith(("spool/in/", "spool/out/", "flower/executor/")):
            told = path.lstat()
            found[place] = (told.st_mode, told.st_uid, told.st_gid)
    return found


@pytest.fixture(scope="module")
def aftermath() -> Iterator[Aftermath]:
    """Run all of it once."""
    demand_root()
    base = Path(tempfile.mkdtemp(prefix="vt-", dir="/tmp"))
    base.chmod(0o711)
    site = make_separated(base, STUDY)
    try:
        with running_link(site, server_app=SERVER_APP, client_app=FOREIGN.read_text()) as link:
            tasks = [lay_order(site, "0-carry", 0), lay_order(site, "2-carry", 1)]
            (site.link_home / "orders" / "1-attack").mkdir()
            before = inventory(site.home)
            done = site.link_home / "received" / "all"
            bundle = site.link_home / "flower" / "bundle"
            link.start_run(bundle, config={"home": str(site.link_home)})
            wait_for(lambda: site.demand_alive() and done.exists(), seconds=150)
            after = inventory(site.home)
            left = sorted(path.name for path in (site.home / "spool" / "out").iterdir())
            control = read_as_steward(site)
            site.end()
        yield Aftermath(site, tasks, before, after, left, control)
    finally:
        site.end()
        (base / "python").rmdir()  # first: it must hold nothing that is mounted
        shutil.rmtree(base)


def read_as_steward(site: Separated) -> bytes:
    """Return what the reading part gets as the steward's user, with no mark of its own."""
    command = within(
        site.base,
        user=USERS["vitrael-steward"],
        umask="0077",
        network=True,
        command=[sys.executable, str(FOREIGN), str(site.home)],
    )
    env = {**site.environment(), "VITRAEL_TEST_MARK": "none"}
    return subprocess.run(command, capture_output=True, check=True, env=env, timeout=60).stdout


def lay_order(site: Separated, name: str, round_number: int) -> Task:
    task, parcel = site.order(round_number=round_number)
    folder = site.link_home / "orders" / name
    folder.mkdir(parents=True)
    for entry, data in parcel.items():
        (folder / entry).write_bytes(data)
    return task


def forms(secret: bytes) -> set[bytes]:
    """Return a secret as it stands in files and as a thief might write it."""
    coded = {base64.b64encode(bytes(n) + secret)[4:-4] for n in range(3)}
    return {secret, secret.hex().encode(), *(one for one in coded if len(one) >= LEAST_BYTES)}


def secrets_of(site: Separated) -> dict[str, bytes]:
    """Return all that must not be seen outside of its own process."""
    keys = {path.name: path.read_bytes() for path in (site.home / "keys").iterdir()}
    lines = {name: data.splitlines()[1] for name, data in keys.items() if b"-----" in data}
    text = {name: mark.encode() for name, mark in site.marks.items()}
    count = int(site.marks["environment"][:9], 16)
    tensors = pack_tensors({"w": weights(0)["w"] + 1})
    return {
        **(keys | lines | text),
        "count in the body": str(count).encode(),
        "loss in the body": str(count / 1000).encode(),
        "name in the body": b"curve_images",
        "weights": tensors[-64:],
        "inputs": pack_tensors(weights(0))[-64:],
        "tls": (site.home / "flower" / "tls" / "server.key").read_bytes().splitlines()[1],
        "store": b"SQLite format 3",
    }


def seen(data: bytes, site: Separated) -> list[str]:
    """Return which secrets stand in some bytes."""
    return [name for name, it in secrets_of(site).items() if any(f in data for f in forms(it))]


def entropy_bits(data: bytes) -> float:
    """Return how many bits a byte tells, at most 8."""
    counts = Counter(data).values()
    return -sum(n / len(data) * math.log2(n / len(data)) for n in counts)


def test_no_secret_reaches_whoever_ships_a_foreign_bundle(aftermath: Aftermath) -> None:
    assert len(aftermath.report) > 100
    assert seen(aftermath.all_received, aftermath.site) == []


def test_the_same_code_as_the_stewards_user_reads_all_of_it(aftermath: Aftermath) -> None:
    """The control: marks are found where they can be read."""
    found = set(seen(aftermath.control, aftermath.site))
    assert {*aftermath.site.marks, "weights", "store", "signing.pem", "split.key", "node"} <= found
    assert "tls" not in found  # the SuperNode's alone


def test_nothing_but_what_is_the_couriers_is_read_or_changed(aftermath: Aftermath) -> None:
    told = [name for name, one in aftermath.report.items() if one["ok"]]
    files = {name.removeprefix("read ") for name in told if name.startswith("read ")}
    own = {name for name in files if name.startswith("flower/executor/")}
    assert own  # the control: what is its own it reads
    assert files - own == {
        *("site.toml", "authority.pem", "steward.json", "metrics.prom"),
        *("flower/tls", "flower/tls/ca.crt", "flower/superexec.secret"),
        *("spool", "spool/in", "spool/out"),
    }
    before, after = aftermath.before, aftermath.after
    assert {n for n in before if after.get(n) != before[n]} == set()
    made = {n for n in after.keys() - before.keys() if not n.startswith(("flower/", "updates"))}
    assert {n for n in made if after[n][1] != USERS["vitrael-steward"]} == set()
    assert {gid for _, _, gid in after.values()} == set(GROUPS.values())
    settings = tomllib.loads((aftermath.site.home / "site.toml").read_text())
    assert settings.keys() == {"name", "address", "network"}  # it holds no secret


def test_all_but_reading_its_own_is_denied(aftermath: Aftermath) -> None:
    allowed = {
        name
        for name, told in aftermath.report.items()
        if told["ok"] and not name.startswith("read ")
    }
    replays = {f"replay order-0 attachment {way}" for way in ("dropped", "changed", "foreign")}
    # The steward answers what the coordinator signed; the spool is as large as its disk; the
    # SuperNode has no other task to give; a way outside the unit alone takes away.
    harmless = {"replay order-0", "fill the spool", "flower with the secret", "route outside"}
    harmless |= {"own environment"}  # which tells nothing of the operator's
    assert allowed == replays | harmless
    report = aftermath.report
    assert report["flower with the secret"]["how"] == ""
    for name in ("swap spool/in", "swap spool/out", "create spool/out/x", "kill SIGKILL", "ptrace"):
        assert report[name]["how"].startswith("PermissionError"), name
    for page in ("pull-messages", "pull-task-input", "acquire-task"):
        assert report[f"flower {page}"]["how"].startswith("HTTPError: HTTP Error 40"), page


def test_a_replayed_order_gives_the_same_update_sealed(aftermath: Aftermath) -> None:
    loot = aftermath.received("1-attack")["loot"]
    first = aftermath.opened("0-carry", aftermath.tasks[0])
    assert first.reply.status == "done"
    np.testing.assert_array_equal(first.tensors["codec"]["w"], weights(0)["w"] + 1)
    replies = re.split(rb'\{"parcel": "[0-9a-f]{32}"\}\n', loot)[1:]
    assert len(replies) == 4
    for sealed in replies:
        assert entropy_bits(sealed[: 1 << 16]) > 7.98
        assert len(zlib.compress(sealed, 9)) >= len(sealed)
    plain = pack_tensors(first.tensors["codec"])  # the control: in clear it is otherwise
    assert len(zlib.compress(plain, 9)) < len(plain) / 8
    # One answer a round, whatever came with the order: all replies were of the one Update.
    sent = [line for line in read_journal(aftermath.site.settings.journal) if line.event == "sent"]
    assert [line.round for line in sent] == [0] * 5 + [1]
    assert {str(line.attachments) for line in sent[:5]} == {str(sent[0].attachments)}
    assert len(aftermath.left) <= 4


def test_the_journal_is_whole_and_names_the_refusals(aftermath: Aftermath) -> None:
    journal = aftermath.site.settings.journal
    assert verify_journal(journal) == []
    lines = [line for line in read_journal(journal) if line.event == "refused"]
    refused = [told for told in aftermath.report.values() if "took no task" in told["how"]]
    assert len(refused) > 30
    sentence = b'{"error": "the steward took no task from this parcel; its log tells why"}\n'
    assert sum(line.bytes for line in lines) == len(refused) * len(sentence)
    assert not any(mark in str(lines) for mark in aftermath.site.marks.values())


def test_the_steward_still_answers_a_true_order(aftermath: Aftermath) -> None:
    opened = aftermath.opened("2-carry", aftermath.tasks[1])
    assert opened.reply.status == "done"
    np.testing.assert_array_equal(opened.tensors["codec"]["w"], weights(1)["w"] + 1)


def test_the_units_take_the_network_and_the_sight_of_others() -> None:
    executor, steward, node = (unit(f"vitrael-{n}") for n in ("executor", "steward", "node"))
    assert (executor["IPAddressAllow"], executor["IPAddressDeny"]) == (["localhost"], ["any"])
    assert steward["PrivateNetwork"] == ["yes"]
    assert steward["RestrictAddressFamilies"] == ["AF_UNIX"]
    assert {told["User"][0] for told in (executor, steward, node)} == USERS.keys() - {"root"}
    for told in (executor, steward, node):
        assert told["ProtectProc"] == ["invisible"]
        assert told["NoNewPrivileges"] == told["RestrictNamespaces"] == ["yes"]
        assert set(told["RestrictAddressFamilies"][0].split()) <= {"AF_INET", "AF_INET6", "AF_UNIX"}
    hidden = " ".join(executor["InaccessiblePaths"])
    for name in ("cohorts", "records", "updates", "store.sqlite", "journal.jsonl", "keys"):
        assert f"/{name}" in hidden
