"""Real servers on loopback for what a network does to a site: certificates, TLS, two proxies.

``make_authority`` and ``issue`` make certificates; ``serve_tls`` answers HTTP/1.1, over TLS or in
the clear; ``connect_proxy`` passes tunnels on as a hospital's proxy does, and ``inspecting_proxy``
opens them with certificates of its own. Each server runs in a thread of its own until its ``with``
ends; all of it is IPv4 on 127.0.0.1.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from vitrael.privacy.loopback_tls import TlsFiles

_BLOCK = 1 << 16
_JOIN_S = 20.0


@dataclass(frozen=True)
class Identity:
    """A certificate with its private key; that of an authority signs others."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()

    def context(self, *protocols: str) -> ssl.SSLContext:
        """Return what a server with this certificate speaks TLS with."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        secret = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        with tempfile.NamedTemporaryFile(suffix=".tmp") as file:
            file.write(self.pem.encode() + secret)
            file.flush()
            context.load_cert_chain(file.name)
        context.set_alpn_protocols(list(protocols) or ["http/1.1"])
        return context


def make_authority(name: str = "an authority") -> Identity:
    """Return a private authority, good from yesterday on for a year."""
    return _sign(name, by=None, names=None, valid=(_days(-1), _days(365)))


def issue(
    authority: Identity | None,
    *names: str,
    valid_days: tuple[float, float] = (-1, 90),
) -> Identity:
    """Return a server's certificate for names and addresses; signed by itself without authority.

    ``valid_days`` is counted from now.
    """
    names = names or ("127.0.0.1", "localhost")
    first, last = valid_days
    return _sign(names[0], by=authority, names=names, valid=(_days(first), _days(last)))


@dataclass(frozen=True)
class Request:
    """What a client asked."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Response:
    """What it is told; with ``pace_s`` byte after byte, so long apart."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    pace_s: float | None = None


Answer = Callable[[Request], Response | None]
"""None: nothing comes back, and the connection stays open."""


@dataclass
class Server:
    """Where a server listens, and what it has seen."""

    port: int = 0
    requests: list[Request] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


@dataclass
class Proxy:
    """Where a proxy listens, and what has passed through it, whatever the tunnel."""

    port: int = 0
    tunnels: list[str] = field(default_factory=list)
    up_bytes: int = 0
    """From clients to servers; of an inspecting proxy in the clear."""
    down_bytes: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextlib.contextmanager
def serve_tls(answer: Answer, *, identity: Identity | None) -> Iterator[Server]:
    """Answer requests; without an identity there is no TLS."""
    server = Server()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            request = await _read_request(reader)
            if not request.method:
                await _write_response(writer, Response(400))
                return
            server.requests.append(request)
            response = answer(request)
            if response is None:
                await asyncio.Event().wait()
            else:
                await _write_response(writer, response)

    with _running(serve, tls=identity.context() if identity else None) as server.port:
        yield server


@contextlib.contextmanager
def connect_proxy(
    *, routes: Mapping[str, int] | None = None, refuse: int | None = None
) -> Iterator[Proxy]:
    """Pass CONNECT tunnels on; with ``refuse``, answer that status instead.

    ``routes`` leads ``host:port`` to a port of this machine: the proxy alone knows such a host.
    """
    proxy = Proxy()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port = await _accept_tunnel(reader, writer, proxy, routes=routes or {}, refuse=refuse)
        if port is not None:
            out = await asyncio.open_connection("127.0.0.1", port)
            await _relay(proxy, (reader, writer), out)

    with _running(serve, tls=None) as proxy.port:
        yield proxy


@contextlib.contextmanager
def inspecting_proxy(
    authority: Identity, *, routes: Mapping[str, int] | None = None
) -> Iterator[Proxy]:
    """Open each tunnel with a certificate that ``authority`` signs, and read all that passes."""
    proxy = Proxy()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port = await _accept_tunnel(reader, writer, proxy, routes=routes or {}, refuse=None)
        if port is None:
            return
        host = proxy.tunnels[-1].rpartition(":")[0]
        await writer.start_tls(issue(authority, host).context("h2", "http/1.1"))
        onward = ssl.create_default_context()
        onward.check_hostname, onward.verify_mode = False, ssl.CERT_NONE
        spoken = writer.get_extra_info("ssl_object").selected_alpn_protocol()
        onward.set_alpn_protocols([spoken] if spoken else [])
        out = await asyncio.open_connection("127.0.0.1", port, ssl=onward)
        await _relay(proxy, (reader, writer), out)

    with _running(serve, tls=None) as proxy.port:
        yield proxy


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.contextmanager
def _running(serve: Serve, *, tls: ssl.SSLContext | None) -> Iterator[int]:
    """Run a server in a thread of its own; yield its port."""
    ports: list[int] = []
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # What a client does to its connection is what is tested elsewhere.
        with contextlib.suppress(OSError, asyncio.CancelledError, asyncio.IncompleteReadError):
            await serve(reader, writer)
        writer.close()
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await asyncio.wait_for(writer.wait_closed(), 1)

    async def main() -> None:
        listener = await asyncio.start_server(one, "127.0.0.1", 0, ssl=tls)
        ports.append(listener.sockets[0].getsockname()[1])
        ready.set()
        await stop.wait()
        listener.close()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        # Also a connection whose handshake was never finished, of which no task knows.
        for transport in list(getattr(loop, "_transports").values()):  # noqa: B009 - no public way
            transport.abort()
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # an abort closes the socket one turn later, through TLS two

    def run() -> None:
        loop.set_exception_handler(lambda *_: None)  # handshakes that a client broke off
        with contextlib.closing(loop):
            loop.run_until_complete(main())
            loop.run_until_complete(loop.shutdown_asyncgens())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(_JOIN_S)
    try:
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(_JOIN_S)
        assert not thread.is_alive()


_HANDSHAKE = b"\x16"
"""How TLS begins; to who speaks none a request without any sense."""


async def _read_request(reader: asyncio.StreamReader) -> Request:
    begin = await reader.readexactly(1)
    if begin == _HANDSHAKE:
        return Request("", "", {}, b"")
    head = begin + await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").strip().split("\r\n")
    method, path, _ = first.split(" ", 2)
    pairs = (line.split(":", 1) for line in lines)
    headers = {name.lower(): value.strip() for name, value in pairs}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, path, headers, body)


async def _write_response(writer: asyncio.StreamWriter, response: Response) -> None:
    lines = {"content-length": str(len(response.body)), **response.headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    data = f"HTTP/1.1 {response.status} X\r\n{head}\r\n".encode() + response.body
    step = len(data) if response.pace_s is None else 1
    for start in range(0, len(data), step):
        writer.write(data[start : start + step])
        await writer.drain()
        if response.pace_s is not None:
            await asyncio.sleep(response.pace_s)


async def _accept_tunnel(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    proxy: Proxy,
    *,
    routes: Mapping[str, int],
    refuse: int | None,
) -> int | None:
    request = await _read_request(reader)
    proxy.tunnels.append(request.path)
    if refuse is not None or request.method != "CONNECT":
        await _write_response(writer, Response(refuse or 405))
        return None
    port = routes.get(request.path) or int(request.path.rpartition(":")[2])
    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
    await writer.drain()
    return port


async def _relay(proxy: Proxy, client: Streams, server: Streams) -> None:
    async def copy(source: Streams, target: Streams, *, up: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await source[0].read(_BLOCK):
                proxy.up_bytes += len(data) * up
                proxy.down_bytes += len(data) * (not up)
                target[1].write(data)
                await target[1].drain()
        target[1].close()

    try:
        await asyncio.gather(copy(client, server, up=True), copy(server, client, up=False))
    finally:
        server[1].close()


def _days(days: float) -> datetime:
    return datetime.now(UTC) + timedelta(days=days)


def _sign(
    name: str,
    *,
    by: Identity | None,
    names: tuple[str, ...] | None,
    valid: tuple[datetime, datetime],
) -> Identity:
    """Return a certificate for ``names``, or one of an authority for None."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer = by.key if by else key
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.certificate.subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(valid[0])
        .not_valid_after(valid[1])
        .add_extension(x509.BasicConstraints(ca=names is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    if names is not None:
        others = x509.SubjectAlternativeName([_general_name(each) for each in names])
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        builder = builder.add_extension(others, critical=False)
        builder = builder.add_extension(usage, critical=False)
    return Identity(builder.sign(signer, hashes.SHA256()), key)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def shake_hands(server: TlsFiles, trusted: Path, name: str) -> None:
    """Do a TLS handshake in memory; raises what the client thinks of the server."""
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.load_cert_chain(server.certificate, server.key)
    theirs = ssl.create_default_context(cafile=str(trusted))
    theirs.verify_flags |= ssl.VERIFY_X509_STRICT
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = theirs.wrap_bio(down, up, server_hostname=name)
    host = ours.wrap_bio(up, down, server_side=True)
    for _ in range(4):
        for side in (client, host):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert client.version() is not None
