"""The courier's SuperNode: ``flower-supernode`` that looks for messages more often.

Flower 1.41 lets a SuperNode that found no message sleep for a fixed 3 s, and one that waits for
its courier's answer look twice a second; no setting changes it, and a study of twenty messages
would spend its minute there. Here the same program sleeps half a second and a tenth. Should a
later Flower keep its time elsewhere, this is plain ``flower-supernode``.

Two arguments are ours. ``--sign-off ID`` first tells the SuperLink, with the node's own key, that
this node is gone: one that was killed could not say so, and until its heartbeats run out, 60 s,
the SuperLink refuses another with the same key. ``--parent-pid`` ends it when that process ends.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
from flwr.proto.fleet_pb2 import DeactivateNodeRequest
from flwr.supercore.app_utils import start_parent_process_monitor
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supernode import start_client_internal
from flwr.supernode.cli import flower_supernode
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from vitrael.core.errors import AuthError
from vitrael.privacy.node_keys import load_node_key

LONGEST_SLEEP_S = 0.5


def shorten_sleep(seconds: float) -> None:
    """Sleep a fifth of what is asked, at most ``LONGEST_SLEEP_S``."""
    time.sleep(min(seconds / 5, LONGEST_SLEEP_S))


def look_often() -> bool:
    """Make this process's SuperNode sleep less; say whether there was something to change."""
    if getattr(start_client_internal, "time", None) is not time:
        return False
    patched: Any = start_client_internal
    patched.time = SimpleNamespace(**{**vars(time), "sleep": shorten_sleep})
    return True


def sign_off(node_id: int, *, address: str, authorities: Path, key: Path) -> str:
    """Tell the SuperLink that a node is gone and return how that went, for the log.

    Whatever goes wrong, the SuperNode that starts next meets it too and tells it.
    """
    try:
        private = load_node_key(key)
        with FleetHttpClient.from_server_address(
            address,
            insecure=False,
            root_certificates=authorities.read_bytes(),
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperNode"),
                NodeAuthHttpInterceptor(private, private.public_key()),
            ],
        ) as fleet:
            fleet.DeactivateNode(DeactivateNodeRequest(node_id=node_id))
    except httpx.HTTPStatusError as error:
        return f"not signed off: status {error.response.status_code}"
    except (OSError, ValueError, RuntimeError, httpx.HTTPError, AuthError) as error:
        return f"not signed off: {type(error).__name__}"
    return "signed off"


def own_arguments(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return what is ours on a command line, and the words that are Flower's."""
    ours = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    ours.add_argument("--sign-off", type=int)
    ours.add_argument("--parent-pid", type=int)
    told, rest = ours.parse_known_args(words)
    theirs = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    theirs.add_argument("--superlink", default="")
    theirs.add_argument("--root-certificates", type=Path, default=Path())
    theirs.add_argument("--auth-supernode-private-key", type=Path, default=Path())
    theirs.parse_known_args(rest, namespace=told)
    return told, rest


def main() -> None:
    """Run the SuperNode on this process's command line."""
    look_often()
    told, rest = own_arguments(sys.argv[1:])
    if told.parent_pid is not None:
        start_parent_process_monitor(told.parent_pid)
    if told.sign_off is not None:
        said = sign_off(
            told.sign_off,
            address=told.superlink,
            authorities=told.root_certificates,
            key=told.auth_supernode_private_key,
        )
        sys.stdout.write(f"{said}\n")
    sys.argv = ["flower-supernode", *rest]
    flower_supernode()
    # Flower returns here when it has lost the SuperLink, and its own server keeps the process.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


if __name__ == "__main__":
    main()
