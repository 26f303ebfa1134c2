"""A real steward whose training is a sum: ``tiny_steward.py --home HOME``.

All else is as in production: envelopes, consent, journal, outbox, store. How long the sum took goes
to ``trained.jsonl`` in the home, a line a round.
"""

from __future__ import annotations

import json
import sys
import time
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


def train(task: Task, inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:
    """Add the site's own number to every weight, as the peer's descent along a slope does."""
    began = time.perf_counter()
    slope = float((context.settings.home / "slope").read_text(encoding="ascii"))
    tensors = {name: array + array.dtype.type(slope) for name, array in inputs["codec"].items()}
    line = {"round": task.round, "seconds": time.perf_counter() - began}
    with (context.settings.home / "trained.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    body = {"curve_images": [1], "curve_loss": [0.0]}
    return TaskResult(body=body, tensors={"codec": tensors}, num_examples=10)


def main(home: Path) -> None:
    """Serve until SIGTERM."""
    stop = Stop()
    settings = load_settings(home)
    steward = Steward(settings, clock=utc_now, tasks={"codec": train}, layouts=None, stopping=stop)
    with stop.listening():
        serve(settings, steward.answer, ready=lambda _: None, stopping=stop)
    steward.close()


if __name__ == "__main__":
    main(Path(sys.argv[sys.argv.index("--home") + 1]))
