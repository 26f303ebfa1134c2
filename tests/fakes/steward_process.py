"""A real steward whose codec task adds one to every weight: ``steward_process.py HOME MODE``.

``hang``: the task says that it has begun and then waits until standard input closes.
``steps``: the task reports one step after another, as training does, and never ends by itself.
``full``: no file may grow beyond a limit, as on a full disk.
"""

from __future__ import annotations

import resource
import select
import sys
from collections.abc import Mapping
from pathlib import Path

from vitrael.client.site.listener import serve
from vitrael.client.site.options import utc_now
from vitrael.client.site.settings import load_settings
from vitrael.client.site.steward import Steward
from vitrael.client.site.stopping import Stop
from vitrael.client.site.tasks import SiteContext, TaskResult
from vitrael.core.messages import Task
from vitrael.core.weights import Tensors

DISK_BYTES = 400_000


def main(home: Path, mode: str) -> None:
    """Serve until killed."""
    if mode == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (DISK_BYTES, DISK_BYTES))

    def codec(_task: Task, inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:
        sys.stderr.write("task begun\n")
        if mode == "hang":
            sys.stdin.read()
        while mode == "steps":
            context.report(1, 2)
            select.select([sys.stdin], [], [], 0.01)
        tensors = {name: array + 1 for name, array in inputs["codec"].items()}
        return TaskResult(tensors={"codec": tensors}, num_examples=1)

    settings = load_settings(home)
    stop = Stop()
    steward = Steward(settings, clock=utc_now, tasks={"codec": codec}, layouts=None, stopping=stop)

    def announce(path: Path) -> None:
        sys.stderr.write(f"listens at {path}\n")

    with stop.listening():
        serve(settings, steward.answer, ready=announce, stopping=stop)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
