"""A courier whose processes are fakes, and whose every look is a step of a script."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vitrael.client.site.courier.layout import CourierLayout, Role
from vitrael.client.site.courier.supervisor import Courier
from vitrael.client.site.settings import load_settings

NOW = datetime(2026, 6, 1, tzinfo=UTC)


@dataclass
class FakeChild:
    """A process that says its lines and ends as it is told."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    began: float
    on_line: Callable[[str], object]
    log: list[str]
    pid: int = 77
    code: int | None = None
    said: deque[str] = field(default_factory=deque)

    def say(self, *lines: str) -> None:
        for line in lines:
            self.said.append(line)
            self.on_line(line)

    def exit_code(self) -> int | None:
        return self.code

    def last_words(self) -> str:
        return "\n".join(self.said)

    def end(self, *, grace_s: float = 0) -> None:
        del grace_s
        if self.code is None:
            self.log.append(f"ended {self.name}")
            self.code = 0


@dataclass
class Stage:
    """A courier whose processes are fakes, and a clock that stands still between steps."""

    home: Path
    roles: tuple[Role, ...] = ("node", "executor")
    now_s: float = 0.0
    children: list[FakeChild] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    courier: Courier = field(init=False)

    def __post_init__(self) -> None:
        self.courier = Courier(
            CourierLayout(load_settings(self.home)),
            self.roles,
            base_environment={"HTTPS_PROXY": "http://evil:1", "PATH": "/bin"},
            pid=os.getpid(),
            start=self.start,
            clock=lambda: self.now_s,
        )
        self.courier.stop = Steps(self)  # type: ignore[assignment]
        self.script: list[Callable[[], object]] = []

    def start(self, name: str, command: Sequence[str], **options: Any) -> Any:
        now = options.pop("now")
        child = FakeChild(name, command, began=now, log=self.log, **options)
        self.children.append(child)
        return child

    def run(self, *script: Callable[[], object]) -> None:
        """Do a step of the script whenever the courier looks; stop it after the last."""
        self.script = list(script)
        self.courier.run(now=NOW)

    def named(self, name: str) -> list[FakeChild]:
        return [child for child in self.children if child.name == name]


class Steps:
    """The event that the courier waits for: each wait is a step of the script."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.is_over = False

    def is_set(self) -> bool:
        return self.is_over

    def set(self) -> None:
        self.is_over = True

    def wait(self, seconds: float) -> None:
        del seconds
        if not self.stage.script:
            self.is_over = True
            return
        self.stage.script.pop(0)()
