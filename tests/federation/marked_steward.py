"""The real steward as `vitrael site run` starts it, with a codec task that needs no torch.

What the task sends bears a mark, so that it is known when it is seen.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from vitrael.client.site.options import private_files
from vitrael.client.site.service import run_steward
from vitrael.client.site.settings import load_settings
from vitrael.client.site.tasks import SiteContext, TaskResult
from vitrael.core.messages import Task
from vitrael.core.weights import Tensors


def main(home: Path, mark: str) -> None:
    """Serve until SIGTERM."""
    count = int(mark[:9], 16)

    def codec(_task: Task, inputs: Mapping[str, Tensors], _context: SiteContext) -> TaskResult:
        tensors = {name: array + 1 for name, array in inputs["codec"].items()}
        body = {"curve_images": [count], "curve_loss": [count / 1000]}
        return TaskResult(body=body, tensors={"codec": tensors}, num_examples=count % 9_000_011)

    with private_files():
        run_steward(load_settings(home), ready=lambda _: None, tasks={"codec": codec}, layouts=None)


if __name__ == "__main__":
    main(Path(sys.argv[1]), os.environ["VITRAEL_TEST_MARK"])
