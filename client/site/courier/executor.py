"""The courier's SuperExec: ``flower-superexec`` that has Flower imported once and for all.

For each message Flower starts a new Python, of whose life nine tenths go into importing Flower.
Here the ClientApp process is a fork of one that has it imported already: the same program with
the same arguments, a second of processor time earlier. Only ClientApps are started.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback
from typing import Any, NoReturn

from flwr.supercore.cli import flower_superexec
from flwr.supercore.constant import TaskType
from flwr.supercore.exit import exit_handler
from flwr.supercore.superexec import run_superexec
from flwr.supercore.superexec.executor.types import ExecutionSpec, LaunchResult
from flwr.supernode.cli import flwr_clientapp

import vitrael.client.site.courier.app  # noqa: F401 - imported before the fork, used after it


class ForkExecutor:
    """Starts ClientApp processes by forking; satisfies Flower's Executor protocol."""

    def get_eligible_capacity(
        self,
        supported_task_types: set[TaskType],
        *,
        insecure: bool = False,
        root_certificates_path: str | None = None,
    ) -> tuple[set[TaskType], set[str]]:
        """Take ClientApps and nothing else."""
        del insecure, root_certificates_path
        return supported_task_types & {TaskType.CLIENT_APP}, set()

    def wait_for_capacity(
        self,
        task_type: TaskType | None = None,
        *,
        fab_hash: str | None = None,
        insecure: bool = False,
        root_certificates_path: str | None = None,
    ) -> None:
        """Return at once: a node handles one message at a time."""
        del task_type, fab_hash, insecure, root_certificates_path

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        """Fork and become the ClientApp in the child; refuse any other kind of task."""
        if spec.task_type != TaskType.CLIENT_APP or spec.runtime_dependency_install:
            return LaunchResult.failed("only ClientApps of installed code are started here")
        if os.fork() == 0:
            _become_client_app(client_app_arguments(spec))
        return LaunchResult.accepted()

    def reconcile(self) -> None:
        """Collect the ClientApps that have ended."""
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return

    def close(self) -> None:
        """Hold nothing, release nothing: a ClientApp ends when its parent does."""


def client_app_arguments(spec: ExecutionSpec) -> list[str]:
    """Return the command line of ``flwr-clientapp`` for one task."""
    arguments = ["flwr-clientapp", "--runtime-api-address", spec.runtime_api_address]
    arguments += ["--token", spec.token]
    if spec.insecure:
        arguments.append("--insecure")
    elif spec.root_certificates_path is not None:
        arguments += ["--root-certificates", spec.root_certificates_path]
    if spec.parent_pid is not None:
        arguments += ["--parent-pid", str(spec.parent_pid)]
    return arguments


def _become_client_app(arguments: list[str]) -> NoReturn:
    """Run ``flwr-clientapp`` in a forked child and leave without the parent's exit handlers."""
    code = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
            signal.signal(number, signal.default_int_handler)
        exit_handler.registered_exit_handlers.clear()
        sys.argv = arguments
        flwr_clientapp()
        code = 0
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else 0
    except BaseException:  # noqa: BLE001 - a fork must never return into its parent's loop
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Run the SuperExec on this process's command line."""
    patched: Any = run_superexec
    patched.get_executor = lambda *_args, **_options: ForkExecutor()
    gc.freeze()
    sys.argv[0] = "flower-superexec"
    flower_superexec()


if __name__ == "__main__":
    main()
