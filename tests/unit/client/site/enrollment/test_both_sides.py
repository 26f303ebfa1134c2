"""The commands of both sides against each other: one federation from its founding."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.factories.site_study import STUDY
from tests.factories.tls import Identity, Request, Response, serve_tls
from vitrael.core.cli import run
from vitrael.core.errors import VitraelError
from vitrael.privacy.keys import load_roster
from vitrael.server.config import ServerSettings, load_server
from vitrael.server.sites.desk import Desk

Call = Callable[..., tuple[int, str, str]]


@dataclass
class Service:
    """The enrollment desk behind TLS with the coordinator's own certificate."""

    settings: ServerSettings | None = None

    def answer(self, request: Request) -> Response:
        assert self.settings is not None
        with Desk(self.settings) as desk:
            take = desk.join if request.path.endswith("/join") else desk.word
            try:
                return Response(body=take(request.body))
            except VitraelError as error:
                said = {"what": error.what, "why": error.why, "fix": error.fix}
                return Response(403, json.dumps({"error": said}).encode())


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    def run_command(*words: object) -> tuple[int, str, str]:
        code = run([str(word) for word in words])
        return code, *capsys.readouterr()

    return run_command


@pytest.fixture
def coordinator(tmp_path: Path, call: Call) -> Iterator[Path]:
    """The home of a coordinator whose service listens at its address."""
    home, service = tmp_path / "coordinator", Service()
    assert call("server", "init", "--home", home, "--address", "127.0.0.1:8443")[0] == 0
    tls = load_server(home).tls
    certificate = x509.load_pem_x509_certificate((tls / "server.pem").read_bytes())
    key = load_pem_private_key((tls / "server.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    with serve_tls(service.answer, identity=Identity(certificate, key)) as server:
        document = home / "server.toml"
        document.write_text(document.read_text().replace("127.0.0.1:8443", server.address))
        service.settings = load_server(home)
        yield home


def join(call: Call, coordinator: Path, home: Path, *, verb: str = "join") -> str:
    """Return the fingerprint of a site's request, after the commands of both sides."""
    file = home.parent / f"{home.name}-{verb}.json"
    words = ("invite", home.name) if verb == "join" else ("sites", "rotate", home.name)
    code, _, err = call("server", *words, "--home", coordinator, "--out", file)
    assert code == 0, err
    code, out, err = call("site", verb, file, "--home", home, "--yes")
    assert code == 0, err
    return out.strip()


def approve(call: Call, coordinator: Path, site: str, fingerprint: str) -> None:
    words = ("--fingerprint", fingerprint, "--yes", "--home", coordinator)
    code, _, err = call("server", "sites", "approve", site, *words)
    assert code == 0, err


def test_site_joins_rotates_and_is_revoked(call: Call, coordinator: Path, tmp_path: Path) -> None:
    north, harbour = tmp_path / "north", tmp_path / "harbour"
    for home in (north, harbour):
        shown = join(call, coordinator, home)
        out = call("site", "fetch", "--home", home)[1]
        assert f"waits for the coordinator to approve {shown}" in out
        approve(call, coordinator, home.name, shown)
    study = coordinator / "studies" / "site-test" / "study.toml"
    study.parent.mkdir(parents=True)
    study.write_text(STUDY)
    code, out, err = call("site", "fetch", "--home", north, "--json")
    assert code == 0, err
    assert json.loads(out)["members"] == ["harbour", "north"]
    assert call("site", "fetch", "--home", harbour)[0] == 0
    assert (north / "studies" / "site-test.toml").read_text() == STUDY
    before = load_roster(north / "roster.json")

    shown = join(call, coordinator, north, verb="rotate")
    assert json.loads(call("site", "fetch", "--home", north, "--json")[1])["rotating"]
    approve(call, coordinator, "north", shown)
    code, out, err = call("site", "fetch", "--home", north, "--json")
    assert code == 0, err
    assert json.loads(out)["rotated"]
    after = load_roster(north / "roster.json")
    assert after["north"] != before["north"]
    assert after["harbour"] == before["harbour"]
    assert call("site", "fetch", "--home", north)[0] == 0
    told = json.loads(call("site", "fetch", "--home", harbour, "--json")[1])
    assert told["members_rekeyed"] == ["north"]

    words = ("--reason", "a test", "--yes", "--home", coordinator)
    assert call("server", "sites", "revoke", "north", *words)[0] == 0
    code, _, err = call("site", "fetch", "--home", north)
    assert (code, "revoked the enrollment" in err) == (4, True)
    members = json.loads(call("site", "fetch", "--home", harbour, "--json")[1])["members"]
    assert members == ["harbour"]


def test_site_without_a_new_enough_backup_joins_again_in_a_new_home(
    call: Call, coordinator: Path, tmp_path: Path
) -> None:
    north, again = tmp_path / "north", tmp_path / "again"
    approve(call, coordinator, "north", join(call, coordinator, north))
    split = (north / "keys" / "split.key").read_bytes()
    file, words = tmp_path / "rotate.json", ("--home", coordinator)
    assert call("server", "sites", "rotate", "north", *words, "--out", file)[0] == 0
    (again / "keys").mkdir(mode=0o700, parents=True)
    (again / "keys").parent.chmod(0o700)
    (again / "keys" / "split.key").touch(mode=0o600)
    (again / "keys" / "split.key").write_bytes(split)
    (again / "withdrawn.json").write_text('{"subjects": []}')
    code, out, err = call("site", "join", file, "--home", again, "--yes")
    assert code == 0, err
    approve(call, coordinator, "north", out.strip())
    assert call("site", "fetch", "--home", again)[0] == 0
    assert (again / "keys" / "split.key").read_bytes() == split
    assert call("site", "fetch", "--home", north)[0] == 4  # the control: its keys are replaced


def test_revoked_site_comes_back_with_new_keys(
    call: Call, coordinator: Path, tmp_path: Path
) -> None:
    north = tmp_path / "north"
    approve(call, coordinator, "north", join(call, coordinator, north))
    assert call("site", "fetch", "--home", north)[0] == 0
    words = ("--reason", "a test", "--yes", "--home", coordinator)
    assert call("server", "sites", "revoke", "north", *words)[0] == 0
    assert call("site", "fetch", "--home", north)[0] == 4
    file = tmp_path / "again.json"
    assert call("server", "invite", "north", "--home", coordinator, "--out", file)[0] == 0
    code, _, err = call("site", "join", file, "--home", north, "--yes")
    assert code == 4
    assert "were brought before" in err
    code, out, err = call("site", "join", file, "--home", north, "--yes", "--new-keys")
    assert code == 0, err
    approve(call, coordinator, "north", out.strip())
    assert call("site", "fetch", "--home", north)[0] == 0


def test_wrong_fingerprint_approves_nobody(call: Call, coordinator: Path, tmp_path: Path) -> None:
    join(call, coordinator, tmp_path / "north")
    wrong = " ".join(["0000"] * 16)
    words = ("--fingerprint", wrong, "--yes", "--home", coordinator)
    assert call("server", "sites", "approve", "north", *words)[0] == 4
    assert (
        json.loads(call("site", "fetch", "--home", tmp_path / "north", "--json")[1])["status"]
        == "pending"
    )
