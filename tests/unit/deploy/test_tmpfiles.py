"""systemd-tmpfiles itself makes a site's home: who may see and change what in it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

PROGRAM = shutil.which("systemd-tmpfiles") or ""
USERS = {"root": 0, "vitrael-steward": 61_001, "vitrael-node": 61_002, "vitrael-courier": 61_003}
GROUPS = {"root": 0, "vitrael-site": 61_000, "vitrael-steward": 61_001, "vitrael-node": 61_002}

pytestmark = [
    pytest.mark.skipif(not PROGRAM, reason="systemd-tmpfiles is not installed"),
    pytest.mark.skipif(os.geteuid() != 0, reason="owners can be set by root alone"),
]


def create(root: Path, document: Path) -> subprocess.CompletedProcess[str]:
    command = [PROGRAM, "--create", f"--root={root}", str(document)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Return the root of a machine with the users of a site."""
    etc = tmp_path / "machine" / "etc"
    etc.mkdir(parents=True, mode=0o755)
    (etc / "passwd").write_text("".join(f"{n}:x:{u}:61000::/:/bin/sh\n" for n, u in USERS.items()))
    (etc / "group").write_text("".join(f"{name}:x:{g}:\n" for name, g in GROUPS.items()))
    (etc.parent / "var" / "lib").mkdir(parents=True)
    return etc.parent


def test_systemd_makes_the_home_of_a_site(machine: Path, root: Path) -> None:
    document = root / "deploy" / "systemd" / "vitrael-site.tmpfiles.conf"
    first = create(machine, document)
    assert (first.returncode, first.stderr) == (0, "")
    home = machine / "var" / "lib" / "vitrael" / "site"
    for name in ("site.toml", "authority.pem", "keys/node"):  # as `join` leaves them
        (home / name).touch()
        os.chown(home / name, USERS["vitrael-steward"], GROUPS["vitrael-site"])
    second = create(machine, document)
    assert (second.returncode, second.stderr) == (0, "")
    users, groups = ({number: n for n, number in known.items()} for known in (USERS, GROUPS))
    found = {}
    for path in (home, *home.rglob("*")):
        told = path.stat()
        owner = f"{told.st_mode & 0o7777:o} {users[told.st_uid]} {groups[told.st_gid]}"
        found[str(path.relative_to(home))] = owner
    assert found == {
        ".": "1771 root vitrael-steward",
        "site.toml": "640 vitrael-steward vitrael-site",
        "authority.pem": "640 vitrael-steward vitrael-site",
        "keys": "711 vitrael-steward vitrael-site",
        "keys/node": "640 vitrael-steward vitrael-node",
        "spool": "750 vitrael-steward vitrael-site",
        "spool/in": "2770 vitrael-steward vitrael-site",
        "spool/out": "2750 vitrael-steward vitrael-site",
        "flower": "1771 root vitrael-node",
        "flower/node": "700 vitrael-node vitrael-site",
        "flower/executor": "710 vitrael-courier vitrael-site",
    }
    third = create(machine, document)
    assert (third.returncode, third.stderr) == (0, "")


@pytest.mark.skipif(not shutil.which("setpriv"), reason="setpriv is not installed")
def test_node_key_is_read_by_steward_and_supernode_alone(machine: Path, root: Path) -> None:
    document = root / "deploy" / "systemd" / "vitrael-site.tmpfiles.conf"
    create(machine, document)
    keys = machine / "var" / "lib" / "vitrael" / "site" / "keys"
    for name in ("node", "signing.pem"):
        (keys / name).touch(mode=0o600)
        os.chown(keys / name, USERS["vitrael-steward"], GROUPS["vitrael-site"])
    create(machine, document)

    def reads(user: str, name: str) -> bool:
        groups = f"{GROUPS['vitrael-site']},{GROUPS.get(user, GROUPS['vitrael-site'])}"
        who = (f"--reuid={USERS[user]}", f"--regid={GROUPS['vitrael-site']}", f"--groups={groups}")
        command = ["setpriv", *who, "cat", name]
        done = subprocess.run(command, cwd=keys, capture_output=True, check=False, timeout=60)
        return done.returncode == 0

    users = [user for user in USERS if user != "root"]
    assert [user for user in users if reads(user, "node")] == ["vitrael-steward", "vitrael-node"]
    assert [user for user in users if reads(user, "signing.pem")] == ["vitrael-steward"]


def test_a_path_from_one_user_s_folder_into_another_s_is_refused(
    machine: Path, tmp_path: Path
) -> None:
    """The control: why home and ``flower`` are root's."""
    document = tmp_path / "shared.conf"
    document.write_text(
        "d /var/lib/site 0750 vitrael-steward vitrael-site\n"
        "d /var/lib/site/flower 0750 vitrael-node vitrael-site\n"
        "d /var/lib/site/flower/node 0700 vitrael-node vitrael-site\n"
    )
    refused = create(machine, document)
    assert refused.returncode != 0
    assert "unsafe path transition" in refused.stderr
    assert not (machine / "var" / "lib" / "site" / "flower" / "node").exists()
