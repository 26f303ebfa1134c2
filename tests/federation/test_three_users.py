"""A site joins, fetches and renews its keys where its processes are three users.

The commands run as the steward's user, owners and modes come from the tmpfiles document.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.factories.enrollment import found
from tests.factories.separated import USERS, apply_tmpfiles, demand_root, within
from tests.factories.tls import Identity, Request, Response, serve_tls
from vitrael.core.errors import VitraelError
from vitrael.server.config import ServerSettings, load_server
from vitrael.server.sites.desk import Desk
from vitrael.server.sites.invitations import hand_out
from vitrael.server.sites.registry import Registry

pytestmark = [pytest.mark.federation]


@dataclass
class Parted:
    """A site's home under three users, and its coordinator."""

    base: Path
    settings: ServerSettings

    @property
    def home(self) -> Path:
        return self.base / "north"

    @property
    def node(self) -> Path:
        return self.home / "keys" / "node"

    def steward(self, *words: str) -> tuple[int, str, str]:
        """Run a command of the site as its steward; return exit code and what it said."""
        program = str(Path(sys.executable).parent / "vitrael")
        command = [program, "site", *words, "--home", str(self.home), "--json"]
        parted = within(
            self.base, user=USERS["vitrael-steward"], umask="0077", network=True, command=command
        )
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        done = subprocess.run(
            parted, env=environment, capture_output=True, text=True, check=False, timeout=120
        )
        return done.returncode, done.stdout, done.stderr

    def demand(self, *words: str) -> dict[str, object]:
        code, out, err = self.steward(*words)
        assert code == 0, err
        return dict(json.loads(out))

    def readable(self) -> dict[str, bool]:
        """Say of each user whether it can read the node key."""
        return {user: self._reads(number) for user, number in USERS.items() if user != "root"}

    def _reads(self, user: int) -> bool:
        cat = within(
            self.base, user=user, umask="0077", network=True, command=["cat", str(self.node)]
        )
        return subprocess.run(cat, capture_output=True, check=False, timeout=60).returncode == 0

    def invite(self, verb: str) -> Path:
        """Return an invitation that the steward can read."""
        file = self.base / "invitation.json"
        file.unlink(missing_ok=True)
        with Registry(self.settings) as registry:
            issue = registry.rotate if verb == "rotate" else registry.invite
            hand_out(self.settings, file, issue=lambda: issue("north"))
        os.chown(file, USERS["vitrael-steward"], -1)
        return file

    def ask(self, verb: str) -> str:
        """Invite, let the site ask; return what it shows."""
        return str(self.demand(verb, str(self.invite(verb)), "--yes")["fingerprint"])

    def approve(self, fingerprint: str) -> None:
        with Registry(self.settings) as registry:
            registry.approve("north", fingerprint=fingerprint)


@pytest.fixture
def parted(tmp_path: Path) -> Iterator[Parted]:
    demand_root()
    base = Path(tempfile.mkdtemp(prefix="vt-", dir="/tmp"))
    base.chmod(0o711)
    settings = found(tmp_path / "coordinator")
    shown = x509.load_pem_x509_certificate((settings.tls / "server.pem").read_bytes())
    key = load_pem_private_key((settings.tls / "server.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)

    def answer(request: Request) -> Response:
        with Desk(settings) as desk:
            take = desk.join if request.path.endswith("/join") else desk.word
            try:
                return Response(body=take(request.body))
            except VitraelError as error:
                return Response(403, json.dumps({"error": {"what": error.what}}).encode())

    try:
        with serve_tls(answer, identity=Identity(shown, key)) as server:
            document = settings.home / "server.toml"
            own = settings.document.address
            document.write_text(document.read_text().replace(own, server.address))
            settings = load_server(settings.home)
            apply_tmpfiles(base / "north")
            yield Parted(base, settings)
    finally:
        shutil.rmtree(base)


def test_steward_enrolls_and_renews_keys_that_the_node_reads(parted: Parted) -> None:
    shown = parted.ask("join")
    assert not parted.readable()["vitrael-node"]
    apply_tmpfiles(parted.home)
    readable = parted.readable()
    assert readable == {"vitrael-steward": True, "vitrael-node": True, "vitrael-courier": False}
    code, out, _ = parted.steward("fetch")
    assert (code, json.loads(out)["status"]) == (7, "pending")
    assert json.loads(out)["fingerprint"] == shown
    parted.approve(shown)
    assert parted.demand("fetch")["status"] == "enrolled"
    assert parted.readable() == readable  # nobody has made another one

    shown = parted.ask("rotate")
    parted.approve(shown)
    assert parted.demand("fetch")["rotated"] is True
    apply_tmpfiles(parted.home)
    assert parted.readable() == readable
    assert parted.demand("fetch")["fingerprint"] == shown

    with Registry(parted.settings) as registry:
        registry.revoke("north", reason="a key may be known to others")
    assert parted.steward("fetch")[0] == 4
    os.chown(parted.node, USERS["vitrael-node"], -1)  # set up by hand
    parted.node.chmod(0o600)
    assert parted.demand("join", str(parted.invite("invite")), "--yes", "--new-keys")
    assert (parted.home / "keys.unused-1" / "node").exists()
