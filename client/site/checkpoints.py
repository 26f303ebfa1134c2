"""Where a task that trains keeps how far it has come, until its result is finished.

Checkpoints hold what a network has learned from the site's own scans: they lie among the private
records, below ``training``, one folder for the one task that is in work.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vitrael.core.digest import Digest, digest_json
from vitrael.core.version import lock_digest

if TYPE_CHECKING:
    from vitrael.client.site.settings import SiteSettings
    from vitrael.client.site.tasks import SiteContext
    from vitrael.core.messages import Task
    from vitrael.core.training.checkpoints import FileCheckpoints
    from vitrael.core.training.compute import Compute

_FOLDER = "training"


def open_checkpoints(task: Task, context: SiteContext, compute: Compute) -> FileCheckpoints:
    """Return the checkpoints of a task's training; those of the study's other tasks are removed.

    They are gone on from only where all is the same that decides the result: the task's inputs,
    the version of the cohort, the installed software, device, threads and precision.
    """
    from vitrael.core.training.checkpoints import FileCheckpoints  # noqa: PLC0415 - torch

    code = task.input_digest.removeprefix("sha256:")[:16]
    folder = context.records / _FOLDER / f"{task.stage}-{task.round + 1}-{code}"
    for records in {context.records, *_records_of(context.settings, task.protocol)}:
        for other in (records / _FOLDER).glob("*"):
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)
    work = [task.protocol, str(task.stage), task.round, task.input_digest, context.cohort.version]
    machine = [lock_digest(), compute.device, compute.bf16, context.threads]
    return FileCheckpoints(folder, key=digest_json([*work, *machine]))


def forget_checkpoints(records: Path) -> None:
    """Remove what a training has left among the records of one consent."""
    shutil.rmtree(records / _FOLDER, ignore_errors=True)


def forget_checkpoints_of(settings: SiteSettings, protocol: Digest) -> None:
    """Remove what trainings for a protocol have left, whatever the roster."""
    for folder in _records_of(settings, protocol):
        forget_checkpoints(folder)


def forget_all_checkpoints(records: Path) -> None:
    """Remove what any training has left, given the folder of all records of a site."""
    for folder in records.glob("*"):
        forget_checkpoints(folder)


def _records_of(settings: SiteSettings, protocol: Digest) -> Iterator[Path]:
    """Yield the folders of a protocol's records, one for each roster."""
    every = settings.records_of(protocol=protocol, roster=Digest("*"))
    yield from every.parent.glob(every.name)
