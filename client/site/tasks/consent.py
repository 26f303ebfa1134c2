"""The first stage: the site's signed yes, as its operator gave it."""

from __future__ import annotations

from collections.abc import Mapping

from vitrael.client.site.ingest.told import tell_summary
from vitrael.client.site.tasks import SiteContext, TaskResult
from vitrael.core.data.cohort import find_cohort
from vitrael.core.messages import Task
from vitrael.core.weights import Tensors
from vitrael.privacy.envelope import open_consent


def run(task: Task, inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:  # noqa: ARG001 - every task is called alike
    """Return the consent's envelope as the text ``consent``; whoever has the key may check it.

    With it goes ``summary``, the counts of the site's cohort, noted as told. Raises ConsentError
    when the consent names other counts.
    """
    settings = context.settings
    wanted = context.study.protocol.data
    folder = find_cohort(settings.cohorts, wanted, name=settings.document.cohort)
    signed = open_consent(context.consent, context.keys.public).cohort
    summary = tell_summary(folder, patients=signed.patients, images=signed.scans)
    body = {"consent": context.consent.decode(), "summary": summary.model_dump(mode="json")}
    return TaskResult(body=body)
