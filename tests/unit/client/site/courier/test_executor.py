from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from typing import Any

import pytest
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec import run_superexec
from flwr.supercore.superexec.executor import subprocess_executor
from flwr.supercore.superexec.executor.types import ExecutionSpec, LaunchResultStatus

from vitrael.client.site.courier import executor
from vitrael.client.site.courier.executor import ForkExecutor, client_app_arguments

SPEC = ExecutionSpec(
    task_type=TaskType.CLIENT_APP,
    runtime_api_address="127.0.0.1:1",
    token="token",
    insecure=False,
    root_certificates_path="/ca.crt",
    runtime_dependency_install=False,
    parent_pid=7,
    suppress_output=False,
    task_id=1,
)


@pytest.mark.parametrize("spec", [SPEC, dataclasses.replace(SPEC, insecure=True, parent_pid=None)])
def test_the_fork_gets_the_command_line_that_flower_would_give(
    spec: ExecutionSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[list[str]] = []
    monkeypatch.setattr(subprocess_executor.subprocess, "Popen", lines.append)
    subprocess_executor.SubprocessExecutor().launch(spec)
    assert lines == [client_app_arguments(spec)]


@pytest.mark.parametrize(
    "spec",
    [
        dataclasses.replace(SPEC, task_type=TaskType.SERVER_APP),
        dataclasses.replace(SPEC, runtime_dependency_install=True),
    ],
)
def test_only_client_apps_of_installed_code_are_started(
    spec: ExecutionSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("forked"))
    assert ForkExecutor().launch(spec).status == LaunchResultStatus.FAILED
    assert ForkExecutor().get_eligible_capacity(set(TaskType)) == ({TaskType.CLIENT_APP}, set())


def test_a_client_app_is_a_fork_that_is_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    forked: list[int] = []

    def fork() -> int:
        child = subprocess.Popen([sys.executable, "-c", ""])
        forked.append(child.pid)
        child.wait()
        return child.pid

    monkeypatch.setattr(os, "fork", fork)
    assert ForkExecutor().launch(SPEC).status == LaunchResultStatus.ACCEPTED
    assert len(forked) == 1
    ForkExecutor().reconcile()


def test_flower_still_asks_for_its_executor_where_ours_is_put(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Any] = []
    monkeypatch.setattr(run_superexec, "get_executor", run_superexec.get_executor)
    monkeypatch.setattr(executor.gc, "freeze", lambda: None)
    monkeypatch.setattr(executor.sys, "argv", ["x"])
    monkeypatch.setattr(
        executor, "flower_superexec", lambda: made.append(run_superexec.get_executor("subprocess"))
    )
    executor.main()
    assert isinstance(made[0], ForkExecutor)
    assert "get_executor" in run_superexec.run_superexec.__code__.co_names
