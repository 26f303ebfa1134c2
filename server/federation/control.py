"""The coordinator's side of a SuperLink: enrol nodes, start a run, ask how it goes.

This is what the commands ``flwr supernode register``, ``flwr supernode list``, ``flwr run`` and
``flwr stop`` do over Flower's Control API, without a new Python process of a second for each.
"""

from __future__ import annotations

import hashlib
import ssl
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from vitrael.core.errors import NetworkError

if TYPE_CHECKING:
    from flwr.supercore.control import ControlHttpClient
    from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext

_MOST_RUNS = 1000
"""Flower lists 20 unless it is told otherwise."""
_HEALTH_S = 2.0


@dataclass(frozen=True, slots=True)
class NodeState:
    """What a SuperLink knows of one node."""

    node_id: int
    name: str
    public_key: bytes
    online: bool


@dataclass(frozen=True, slots=True)
class SuperLink:
    """A SuperLink that listens at ``address`` with a certificate of ``authority``."""

    address: str
    authority: Path

    def is_up(self) -> bool:
        """Say whether it answers, within two seconds."""
        try:
            with self._direct() as direct:
                url = f"https://{self.address}/health"
                return direct.client.get(url, timeout=_HEALTH_S).is_success
        except httpx.HTTPError:
            return False

    def nodes(self) -> list[NodeState]:
        """Return every node that was ever registered and not removed."""
        from flwr.proto.control_pb2 import ListNodesRequest  # noqa: PLC0415 - slow to import

        with self._control() as control:
            response = control.ListNodes(ListNodesRequest())
        return [
            NodeState(node.node_id, node.name, node.public_key, node.status == "online")
            for node in response.nodes_info
            if node.status != "unregistered"
        ]

    def register(self, name: str, *, public_key: bytes) -> int:
        """Return the node id of a key, registered under ``name`` unless it already is."""
        from flwr.proto.control_pb2 import RegisterNodeRequest  # noqa: PLC0415 - slow to import

        for node in self.nodes():
            if node.public_key == public_key:
                return node.node_id
        with self._control() as control:
            response = control.RegisterNode(RegisterNodeRequest(public_key=public_key, name=name))
        if not response.node_id:
            raise NetworkError(f"the SuperLink did not register the node of site {name}")
        return int(response.node_id)

    def unregister(self, node_id: int) -> None:
        """Remove a node for good: it is cut off, and its key is never taken again."""
        from flwr.proto.control_pb2 import UnregisterNodeRequest  # noqa: PLC0415 - slow to import

        with self._control() as control:
            control.UnregisterNode(UnregisterNodeRequest(node_id=node_id))

    def start_run(self, bundle: Path, *, config: dict[str, str]) -> int:
        """Start a run of an app folder and return its number."""
        from flwr.cli.build import build_fab_from_disk  # noqa: PLC0415 - slow to import
        from flwr.common.serde import fab_to_proto, user_config_to_proto  # noqa: PLC0415
        from flwr.proto.control_pb2 import StartRunRequest  # noqa: PLC0415
        from flwr.supercore.fab import Fab  # noqa: PLC0415

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of Flower, to its developers
            content = build_fab_from_disk(bundle)
        fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
        request = StartRunRequest(
            fab=fab_to_proto(fab), override_config=user_config_to_proto(dict(config))
        )
        with self._control() as control:
            response = control.StartRun(request)
        if not response.HasField("run_id"):
            raise NetworkError("the SuperLink did not start the run")
        return int(response.run_id)

    def stop_runs(self) -> list[int]:
        """Stop what of the newest thousand runs is not finished and return their numbers."""
        from flwr.proto.control_pb2 import ListRunsRequest, StopRunRequest  # noqa: PLC0415

        with self._control() as control:
            runs = control.ListRuns(ListRunsRequest(limit=_MOST_RUNS)).run_dict
            open_runs = [int(n) for n, run in runs.items() if run.status.status != "finished"]
            for number in open_runs:
                control.StopRun(StopRunRequest(run_id=number))
        return open_runs

    def run_status(self, run_id: int) -> str:
        """Return a run's status in Flower's words, such as ``running`` or ``finished:failed``."""
        from flwr.proto.control_pb2 import ListRunsRequest  # noqa: PLC0415 - slow to import

        with self._control() as control:
            run = control.ListRuns(ListRunsRequest(run_id=run_id)).run_dict[run_id]
        status = run.status
        return f"{status.status}:{status.sub_status}" if status.sub_status else str(status.status)

    @contextmanager
    def _control(self) -> Iterator[ControlHttpClient]:
        from flwr.supercore.control import ControlHttpClient  # noqa: PLC0415 - slow to import
        from flwr.supercore.interceptors import (  # noqa: PLC0415 - slow to import
            RuntimeVersionHttpInterceptor,
        )

        if not self.is_up():  # one that hangs would keep us for as long as a request may take
            raise NetworkError(f"the SuperLink at {self.address} does not answer")
        with _as_network_error(self.address), self._direct() as direct:
            control = ControlHttpClient.from_server_address(
                self.address,
                insecure=False,
                root_certificates=self.authority.read_bytes(),
                interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI"), direct],
            )
            with control:
                yield control

    @contextmanager
    def _direct(self) -> Iterator[_Direct]:
        context = ssl.create_default_context(cafile=str(self.authority))
        with httpx.Client(verify=context, timeout=30, trust_env=False) as client:
            yield _Direct(client)


@dataclass(frozen=True, slots=True)
class _Direct:
    """The last interceptor: sends a request itself, past any proxy that the environment names."""

    client: httpx.Client

    def intercept(
        self,
        context: ProtobufRequestContext,
        call_next: ProtobufCall,  # noqa: ARG002 - what it would call goes through the proxy
    ) -> httpx.Response:
        """Return the answer of the SuperLink."""
        return self.client.send(context.request)


@contextmanager
def _as_network_error(address: str) -> Iterator[None]:
    try:
        yield
    except httpx.HTTPStatusError as error:
        raise NetworkError(
            f"the SuperLink at {address} refused a request",
            why=f"it answered with status {error.response.status_code}",
        ) from error
    except httpx.HTTPError as error:
        raise NetworkError(
            f"the SuperLink at {address} does not answer", why=type(error).__name__
        ) from error
