"""A steward without torch: says the parcel back, and notes which networks it sees."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import tempfile
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--home", type=Path, required=True)
home = parser.parse_args().home
(home / "networks.json").write_text(json.dumps([name for _, name in socket.if_nameindex()]))

listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
folder = tempfile.TemporaryDirectory(prefix="echo-")
signal.signal(signal.SIGTERM, lambda *_: (folder.cleanup(), os._exit(0)))
short = Path(folder.name) / "s"
listener.bind(str(short))
listener.listen()
(home / "steward.json").write_text(json.dumps({"socket": str(short)}))
while True:
    connection, _ = listener.accept()
    with connection, connection.makefile("rb") as stream:
        name = json.loads(stream.readline())["parcel"]
        shutil.copytree(home / "spool" / "in" / name, home / "spool" / "out" / f"re-{name}")
        connection.sendall(json.dumps({"parcel": f"re-{name}"}).encode() + b"\n")
