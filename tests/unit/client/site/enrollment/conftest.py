"""A coordinator behind real TLS on loopback, and an invitation to it."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest

from tests.factories.tls import Identity, Request, Response, issue, make_authority, serve_tls
from tests.fakes.clock import FakeClock
from vitrael.client.site.enrollment.join import Asked, Plan, join, plan_join
from vitrael.client.site.enrollment.link import Patience
from vitrael.client.site.settings import SiteSettings, load_settings
from vitrael.core.study import parse_study
from vitrael.privacy.enrollment import (
    ENROLLMENT_PATH,
    Invitation,
    JoinRequest,
    Offer,
    SiteWord,
    Standing,
    proof_of,
)
from vitrael.privacy.envelope import open_word, peek_join, sign_enrollment
from vitrael.privacy.keys import KeyPair, PublicKeys
from vitrael.privacy.node_keys import check_node_proof

TOKEN = "a7" * 32


def no_passphrase() -> bytes:
    raise AssertionError("nobody may be asked for a passphrase")


@dataclass
class FakeCoordinator:
    """Answers as the enrollment service does; the test decides who is approved."""

    clock: FakeClock
    authority: Identity
    keys: KeyPair = field(default_factory=KeyPair.create)
    port: int = 0
    token: str = TOKEN
    joined: list[JoinRequest] = field(default_factory=list)
    words: list[SiteWord] = field(default_factory=list)
    approved: dict[str, PublicKeys] = field(default_factory=dict)
    offers: dict[str, Offer] = field(default_factory=dict)
    status: str = ""
    changes: dict[str, object] = field(default_factory=dict)
    """Fields of the next standings that are to be wrong."""
    signer: KeyPair | None = None
    refusal: Response | None = None
    asked: list[str] = field(default_factory=list)
    """The path of each request, also of those that were refused."""
    once: list[Response | None] = field(default_factory=list)
    """What comes instead of the first answers; the message is heard for all that."""

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def answer(self, request: Request) -> Response | None:
        self.asked.append(request.path)
        if self.refusal is not None:
            return self.refusal
        if request.path == f"{ENROLLMENT_PATH}/join":
            said: JoinRequest | SiteWord = peek_join(request.body)
            assert isinstance(said, JoinRequest)
            check_node_proof(said.node, proof_of(said.keys, site=said.site), said.node_proof)
            if said.token != self.token:
                return refuse("the token is unknown")
            self.joined.append(said)
            keys, nonce = said.keys, said.token[:32]
        else:
            assert request.path == f"{ENROLLMENT_PATH}/word"
            keys, said = self._recognize(request.body)
            nonce = said.nonce
            if said.nonce in {word.nonce for word in self.words}:
                return refuse("the word was heard before")
            self.words.append(said)
        if self.once:
            return self.once.pop(0)
        return Response(body=self._standing(said.site, keys, nonce=nonce))

    def _recognize(self, data: bytes) -> tuple[PublicKeys, SiteWord]:
        known = [request.keys for request in self.joined] + list(self.approved.values())
        for keys in known:
            try:
                return keys, open_word(data, keys)
            except Exception:  # noqa: BLE001, S112 - the next key may be the one
                continue
        raise AssertionError("a word of nobody")

    def _standing(self, site: str, keys: PublicKeys, *, nonce: str) -> bytes:
        enrolled = self.approved.get(site) == keys
        fields: dict[str, object] = {
            "site": site,
            "status": self.status or ("enrolled" if enrolled else "pending"),
            "members": self.approved if enrolled else {},
            "offers": self.offers if enrolled else {},
            "expires_utc": (self.clock() + timedelta(days=365)).isoformat() if enrolled else None,
            "nonce": nonce,
            "utc": self.clock().isoformat(),
            **self.changes,
        }
        return sign_enrollment(Standing.model_validate(fields), self.signer or self.keys)

    def approve(self, *, others: tuple[str, ...] = ()) -> None:
        self.approved = {name: KeyPair.create().public for name in others}
        self.approved["north"] = self.joined[-1].keys

    def offer(self, text: str, *, name: str = "site-test") -> None:
        digest = parse_study(text.encode(), label=name).protocol.digest
        self.offers[name] = Offer(study=text, protocol=digest)

    def invite(self, *, site: str = "north", hours: float = 24, **changes: object) -> Invitation:
        fields: dict[str, object] = {
            "site": site,
            "address": self.address,
            "authority": self.authority.pem,
            "coordinator": self.keys.public,
            "token": self.token,
            "expires_utc": (self.clock() + timedelta(hours=hours)).isoformat(),
            **changes,
        }
        return Invitation.model_validate(fields)


def refuse(what: str, *, status: int = 403) -> Response:
    body = {"error": {"what": what, "why": "the test says so", "fix": "ask", "exit_code": 4}}
    return Response(status, json.dumps(body).encode())


def hide(patch: pytest.MonkeyPatch, secret: Path) -> None:
    """Let a file be another user's: it cannot be read."""
    read = Path.read_bytes

    def refuse_one(path: Path) -> bytes:
        if path == secret:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read(path)

    patch.setattr(Path, "read_bytes", refuse_one)


@pytest.fixture(autouse=True)
def quick_passphrases(monkeypatch: pytest.MonkeyPatch) -> None:
    """A passphrase of keys costs little."""
    monkeypatch.setattr("vitrael.privacy.sealed_file.COST", 1 << 10)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(scope="session")
def authority() -> Identity:
    return make_authority("the coordinator's authority")


@pytest.fixture(scope="session")
def identity(authority: Identity) -> Identity:
    return issue(authority)


@pytest.fixture
def coordinator(
    clock: FakeClock, authority: Identity, identity: Identity
) -> Iterator[FakeCoordinator]:
    fake = FakeCoordinator(clock, authority)
    with serve_tls(fake.answer, identity=identity) as server:
        fake.port = server.port
        yield fake


@pytest.fixture
def patience() -> Patience:
    """Three attempts, without a pause."""
    moments = iter(range(1000))
    return Patience(
        total_s=3.5, pause_s=1, monotonic=lambda: float(next(moments)), sleep=lambda _: None
    )


@dataclass
class Site:
    """A site's home, and what was told to its operator."""

    home: Path
    coordinator: FakeCoordinator
    clock: FakeClock
    patience: Patience
    told: list[str] = field(default_factory=list)

    @property
    def settings(self) -> SiteSettings:
        return load_settings(self.home)

    def plan(self, invitation: Invitation | None = None) -> Plan:
        found = invitation or self.coordinator.invite()
        return plan_join(self.home, found, proxy=None, authority=None)

    def join(
        self,
        invitation: Invitation | None = None,
        *,
        passphrase: bytes | None = None,
        new_keys: bool = False,
        ask: Callable[[], bytes] = no_passphrase,
    ) -> Asked:
        return join(
            self.plan(invitation),
            passphrase=passphrase,
            ask=ask,
            new_keys=new_keys,
            clock=self.clock,
            tell=self.told.append,
            patience=self.patience,
        )

    def private_files(self) -> dict[str, bytes]:
        names = ("signing.pem", "sealing.pem", "node", "split.key")
        return {name: (self.home / "keys" / name).read_bytes() for name in names}


@pytest.fixture
def site(
    tmp_path: Path, coordinator: FakeCoordinator, clock: FakeClock, patience: Patience
) -> Site:
    return Site(tmp_path / "north", coordinator, clock, patience)
