"""The first stage: the site's signed yes, as its operator gave it."""

from __future__ import annotations

from collections.abc import Mapping

from vitrael.client.site.tasks import SiteContext, TaskResult
from vitrael.core.messages import Task
from vitrael.core.weights import Tensors


def run(task: Task, inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:  # noqa: ARG001 - every task is called alike
    """Return the consent's envelope as the text ``consent``; whoever has the key may check it."""
    return TaskResult(body={"consent": context.consent.decode()})
