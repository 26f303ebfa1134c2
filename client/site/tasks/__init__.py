"""What a site does for a study: one module a stage, one literal table, loaded when asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vitrael.client.site.settings import SiteSettings
from vitrael.core.messages import StageName, Task
from vitrael.core.study import Performance, Study
from vitrael.core.weights import Tensors
from vitrael.privacy.keys import KeyPair, PublicKeys

if TYPE_CHECKING:
    from vitrael.core.data.cohort import Cohort


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What a task wants to send; the outbox decides whether it leaves."""

    body: Mapping[str, Any] = field(default_factory=dict)
    """JSON values; the outbox names the fields that a stage may have."""
    tensors: Mapping[str, Tensors] = field(default_factory=dict)
    """Attachments of the reply by name."""
    num_examples: int = 0


@dataclass(slots=True, repr=False)
class SiteContext:
    """What a task may use at a site; lives as long as the steward serves one consent."""

    settings: SiteSettings
    study: Study
    """As it was read when the site consented."""
    members: Mapping[str, PublicKeys]
    """Of the roster that was consented to, this site among them."""
    consent: bytes
    """The signed envelope of the consent that covers the task."""
    keys: KeyPair
    records: Path
    """Folder for what a later stage needs and nothing can make again, one for each consent."""
    load_cohort: Callable[[SiteSettings, Study], Cohort]
    report: Callable[[int, int], None]
    """Called with what is done and what there is to do; counts only."""
    warm: dict[str, Any] = field(default_factory=dict)
    """Models, latents and thresholds that a later task of the same study uses again."""
    _cohort: Cohort | None = None

    def __repr__(self) -> str:
        """Show nothing that is private."""
        return f"SiteContext({self.settings.name})"

    @property
    def name(self) -> str:
        """The site's name."""
        return self.settings.name

    @property
    def cohort(self) -> Cohort:
        """The site's private scans, read once."""
        if self._cohort is None:
            self._cohort = self.load_cohort(self.settings, self.study)
        return self._cohort

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda``: the site's own choice before the study's."""
        return self._performance.device

    @property
    def threads(self) -> int:
        """How many torch threads a task may use."""
        return self._performance.threads

    @property
    def vram_frac(self) -> float | None:
        """Which share of a GPU's memory a task may use; None: all."""
        return self._performance.vram_frac

    @property
    def bf16(self) -> str:
        """``auto`` or ``off``."""
        return self._performance.bf16

    @property
    def _performance(self) -> Performance:
        own = self.settings.document.performance or Performance()
        return self.study.performance.model_copy(update=own.model_dump(exclude_unset=True))


def study_layouts(study: Study) -> Mapping[str, Tensors]:
    """Return, for each attachment of weights, arrays like those that the study trains."""
    from vitrael.client.site.tasks import layouts  # noqa: PLC0415 - needs torch

    return layouts.study_layouts(study)


TaskRunner = Callable[[Task, Mapping[str, Tensors], SiteContext], TaskResult]


def _consent(task: Task, inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:
    from vitrael.client.site.tasks.consent import run  # noqa: PLC0415

    return run(task, inputs, context)


def _canary(task: Task, inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:
    from vitrael.client.site.tasks.canary import run  # noqa: PLC0415

    return run(task, inputs, context)


def _codec(task: Task, inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:
    from vitrael.client.site.tasks.train_codec import run  # noqa: PLC0415

    return run(task, inputs, context)


def _latents(task: Task, inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:
    from vitrael.client.site.tasks.latents import run  # noqa: PLC0415

    return run(task, inputs, context)


def _reid(task: Task, inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:
    from vitrael.client.site.tasks.train_reid import run  # noqa: PLC0415

    return run(task, inputs, context)


def _calibration(task: Task, inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:
    from vitrael.client.site.tasks.calibrate import run  # noqa: PLC0415

    return run(task, inputs, context)


def _teacher(task: Task, inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:
    from vitrael.client.site.tasks.train_teacher import run  # noqa: PLC0415

    return run(task, inputs, context)


def _screening(task: Task, inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:
    from vitrael.client.site.tasks.screen import run  # noqa: PLC0415

    return run(task, inputs, context)


def _rescreening(task: Task, inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:
    from vitrael.client.site.tasks.screen import rescreen  # noqa: PLC0415

    return rescreen(task, inputs, context)


def _audit(task: Task, inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:
    from vitrael.client.site.tasks.audit import run  # noqa: PLC0415

    return run(task, inputs, context)


def _arms(task: Task, inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:
    from vitrael.client.site.tasks.arms import run  # noqa: PLC0415

    return run(task, inputs, context)


def _signing(task: Task, inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:
    from vitrael.client.site.tasks.sign_release import run  # noqa: PLC0415

    return run(task, inputs, context)


def _expert(task: Task, inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:
    from vitrael.client.site.tasks.train_expert import run  # noqa: PLC0415

    return run(task, inputs, context)


def _outlooks(task: Task, inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:
    from vitrael.client.site.tasks.tell_outlooks import run  # noqa: PLC0415

    return run(task, inputs, context)


def _common(task: Task, inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:
    from vitrael.client.site.tasks.train_common import run  # noqa: PLC0415

    return run(task, inputs, context)


def _comparison(task: Task, inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:
    from vitrael.client.site.tasks.compare import run  # noqa: PLC0415

    return run(task, inputs, context)


# Each entry imports its module when it is called: the steward starts without torch.
TASKS: Final[Mapping[StageName, TaskRunner]] = {
    "consent": _consent,
    "canary": _canary,
    "codec": _codec,
    "latents": _latents,
    "reid": _reid,
    "calibration": _calibration,
    "teacher": _teacher,
    "screening": _screening,
    "rescreening": _rescreening,
    "audit": _audit,
    "arms": _arms,
    "signing": _signing,
    "expert": _expert,
    "outlooks": _outlooks,
    "averaged": _common,
    "relay": _common,
    "comparison": _comparison,
}
"""What this site can be asked for; nothing else can be ordered."""
