"""Who has nothing but the coordinator's certificate gets nothing: real nginx, real SuperLink."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.factories.loopback import SITES, layout_of, server_app
from tests.factories.strangers import REFUSED, Stranger, fleet_paths, hidden_paths
from vitrael.core.errors import NetworkError
from vitrael.privacy.node_keys import create_node_key
from vitrael.server.proxy import find_nginx
from vitrael.server.rehearsal import Rehearsal
from vitrael.server.sites.nodes import find_superlink

pytestmark = [
    pytest.mark.federation,
    pytest.mark.skipif(find_nginx() is None, reason="nginx is not installed"),
]

ESCAPES = (
    "/v1/fleet/../control/list-nodes",
    "/v1/fleet/%2e%2e/control/list-nodes",
    "/v1/fleet/%252e%252e/control/list-nodes",
    "/v1/fleet/..%2fcontrol%2flist-nodes",
    "/v1/fleet//../../v1/runtime/acquire-task",
    "//v1/control/list-nodes",
    "/V1/CONTROL/list-nodes",
    "/api/v1/control/list-nodes",
    "/v1/control/../fleet/../control/list-nodes",
)


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    """A coordinator behind nginx; its two sites are enrolled and not connected."""
    home = tmp_path_factory.mktemp("door") / "home"
    with Rehearsal(layout_of(home, server_app(rounds=1))) as rehearsal:
        rehearsal.start_coordinator()
        rehearsal._wait("nodes", lambda: rehearsal._know(SITES))
        yield rehearsal


@pytest.fixture
def stranger(coordinator: Rehearsal, tmp_path: Path) -> Stranger:
    return Stranger.of(coordinator.layout.home, tmp_path)


def test_control_and_runtime_are_not_behind_the_door(
    coordinator: Rehearsal, stranger: Stranger
) -> None:
    paths = hidden_paths()
    assert {"/v1/control/start-run", "/v1/control/list-nodes", "/v1/runtime/acquire-task"} <= set(
        paths
    )
    with stranger.client() as client:
        for path in (*paths, "/docs", "/openapi.json", "/redoc", "/"):
            assert client.post(path).status_code == 404, path
            assert client.get(path).status_code == 404, path
        assert client.get("/health").json() == {"status": "ok"}  # the control
    link = find_superlink(coordinator.settings)
    trust = ssl.create_default_context(cafile=str(link.authority))
    with httpx.Client(verify=trust, trust_env=False) as client:  # the control: it is there
        assert client.post(f"https://{link.address}/v1/control/list-nodes").status_code != 404


@pytest.mark.parametrize("path", ESCAPES)
def test_no_spelling_of_a_path_leads_around_the_door(stranger: Stranger, path: str) -> None:
    host, _, port = stranger.address.rpartition(":")
    trust = ssl.create_default_context(cafile=str(stranger.authority))
    with (
        socket.create_connection((host, int(port)), timeout=10) as plain,
        trust.wrap_socket(plain, server_hostname=host) as secure,
    ):
        head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n"
        secure.sendall(f"{head}Connection: close\r\n\r\n".encode())
        said = secure.recv(4096)
    assert int(said.split()[1]) in {400, 404}


def test_nobody_lists_or_starts_runs_or_registers_a_node(
    coordinator: Rehearsal, stranger: Stranger
) -> None:
    outside = stranger.control()
    with pytest.raises(NetworkError):
        outside.nodes()
    with pytest.raises(NetworkError):
        outside.stop_runs()
    with pytest.raises(NetworkError):
        outside.start_run(coordinator.layout.home / "flower" / "bundle", config={"home": "/"})
    with pytest.raises(NetworkError):
        outside.register("stranger", public_key=create_node_key(stranger.folder / "node"))
    inside = find_superlink(coordinator.settings)
    assert {node.name for node in inside.nodes()} == set(SITES)  # the control
    assert inside.stop_runs() == []


def test_a_fourth_supernode_gets_nothing(coordinator: Rehearsal, stranger: Stranger) -> None:
    said = stranger.run_supernode()
    assert said.returncode != 0
    assert REFUSED in said.stdout + said.stderr
    nodes = find_superlink(coordinator.settings).nodes()
    assert {node.name for node in nodes} == set(SITES)
    assert not any(node.online for node in nodes)


def test_the_fleet_answers_registered_keys_alone(
    coordinator: Rehearsal, stranger: Stranger
) -> None:
    from flwr.proto.fleet_pb2 import ActivateNodeRequest, RegisterNodeFleetRequest
    from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
    from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
    from flwr.supernode.fleet_http_client import FleetHttpClient
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

    from vitrael.privacy.node_keys import load_node_key

    def fleet(key: Path) -> FleetHttpClient:
        private = load_node_key(key)
        return FleetHttpClient.from_server_address(
            stranger.address,
            insecure=False,
            root_certificates=stranger.authority.read_bytes(),
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperNode"),
                NodeAuthHttpInterceptor(private, private.public_key()),
            ],
        )

    public = create_node_key(stranger.folder / "node")
    with fleet(stranger.folder / "node") as client:
        with pytest.raises(httpx.HTTPStatusError):
            client.RegisterNode(RegisterNodeFleetRequest(public_key=public))
        request = ActivateNodeRequest(public_key=public, heartbeat_interval=30.0)
        with pytest.raises(httpx.HTTPStatusError):
            client.ActivateNode(request)
    assert "/v1/fleet/pull-messages" in fleet_paths()
    with stranger.client() as plain:  # without any signature
        for path in fleet_paths():
            said = plain.post(path, headers={"Content-Type": PROTOBUF_MEDIA_TYPE})
            assert said.status_code == 401, path
    own = coordinator.layout.site_home("north") / "keys" / "node"
    request = ActivateNodeRequest(public_key=create_node_key(own), heartbeat_interval=30.0)
    with fleet(own) as client:  # the control: an enrolled site's key
        assert client.ActivateNode(request).node_id


def test_flower_and_enrollment_listen_on_loopback_alone(coordinator: Rehearsal) -> None:
    ports = coordinator.settings.document.ports
    own = set(ports.model_dump().values())
    found = {
        (connection.laddr.ip, connection.laddr.port)
        for connection in psutil.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port in own
    }
    assert found == {("127.0.0.1", port) for port in own}


def test_the_door_speaks_tls_of_today_and_says_no_version(stranger: Stranger) -> None:
    host, _, port = stranger.address.rpartition(":")
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.load_verify_locations(stranger.authority)
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = ssl.TLSVersion.TLSv1_1
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    with (
        socket.create_connection((host, int(port)), timeout=10) as plain,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        old.wrap_socket(plain, server_hostname=host)
    with stranger.client() as client:
        answer = client.get("/nothing")
    assert answer.headers["server"] == "nginx"
    with httpx.Client(trust_env=False) as client:
        assert client.get(f"http://{stranger.address}/health").status_code == 400


def test_whoever_trusts_another_authority_does_not_come_in(stranger: Stranger) -> None:
    with (
        httpx.Client(trust_env=False) as client,
        pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        client.get(f"https://{stranger.address}/health")


def test_a_body_that_is_too_large_is_not_read(stranger: Stranger) -> None:
    with stranger.client() as client:
        assert client.post("/v1/enrollment/join", content=b"x" * (65 << 10)).status_code == 413
        assert client.post("/v1/fleet/push-object", content=b"x" * (13 << 20)).status_code == 413
        small = client.post("/v1/enrollment/join", content=b"x" * 100)
    assert small.status_code == 400  # the control: that one was read, and refused for its form


def test_what_is_asked_for_stands_in_the_log_without_its_query(
    coordinator: Rehearsal, stranger: Stranger
) -> None:
    with stranger.client() as client:
        client.get("/health?token=secret-word")
    log = (coordinator.layout.home / "proxy" / "access.log").read_text()
    assert '"/health" 200' in log
    assert "secret-word" not in log
