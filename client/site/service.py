"""The steward as ``vitrael site run`` runs it: its log, its numbers and its ear, until SIGTERM."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

from vitrael.client.site.listener import serve
from vitrael.client.site.metrics import SiteMetrics
from vitrael.client.site.options import utc_now
from vitrael.client.site.outbox import Layouts
from vitrael.client.site.settings import SiteSettings
from vitrael.client.site.steward import Steward
from vitrael.client.site.stopping import Stop
from vitrael.client.site.tasks import TASKS, TaskRunner, study_layouts
from vitrael.core.logs import configure_logging
from vitrael.core.messages import StageName
from vitrael.privacy.keys import KeyPair


def run_steward(
    settings: SiteSettings,
    *,
    ready: Callable[[Path], object],
    tasks: Mapping[StageName, TaskRunner] = TASKS,
    layouts: Layouts | None = study_layouts,
    keys: KeyPair | None = None,
) -> None:
    """Answer parcels until SIGTERM; ``ready`` is called with the socket's path once it listens.

    ``layouts`` and ``keys`` as for ``Steward``. Raises what ``Steward`` and ``serve`` raise.
    """
    stop = Stop()
    with (
        stop.listening(),
        configure_logging(settings.log),
        closing(
            Steward(settings, clock=utc_now, tasks=tasks, layouts=layouts, stopping=stop, keys=keys)
        ) as steward,
    ):
        metrics = SiteMetrics(
            settings.metrics,
            journal=settings.journal,
            consents=steward.consent_ends,
            clock=utc_now,
        )
        metrics.write()
        serve(
            settings,
            metrics.meter(steward.answer),
            ready=ready,
            note=steward.note_refusal,
            stopping=stop,
            rest=steward.rest,
        )
