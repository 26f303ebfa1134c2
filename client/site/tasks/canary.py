"""A small piece of the real work before the long run: can this site load, train and answer?

The site loads its cohort and trains codec, patient encoder and teacher for a few batches of the
study's own size, each from fresh weights that are thrown away. What leaves are seconds and numbers
of images that the study fixes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch

from vitrael.client.site.tasks import SiteContext, TaskResult
from vitrael.client.site.tasks.networks import (
    draw_images,
    encode_images,
    site_compute,
    split_images,
)
from vitrael.client.site.tasks.views import build_common, learn_own, read_learnable
from vitrael.core.data.splits import Split
from vitrael.core.errors import CohortError, TaskStopped
from vitrael.core.messages import Task
from vitrael.core.models import SYSTEMS
from vitrael.core.models.brain_ldm import build_codec, build_denoiser, draw_latents
from vitrael.core.models.reid import build_reid_encoder
from vitrael.core.protocols import ExpertsProtocol, SynthesisProtocol
from vitrael.core.records import PatientImages
from vitrael.core.rng import torch_stream
from vitrael.core.training.loop import Draw, fit
from vitrael.core.training.objectives import companion_of
from vitrael.core.weights import Tensors
from vitrael.privacy.reid.calibrate import first_visits
from vitrael.privacy.reid.encoders import FEWEST_PATIENTS, count_patients, pairs_of

if TYPE_CHECKING:
    from torch import nn

    from vitrael.core.configs import TrainingConfig
    from vitrael.core.interfaces import Objective

STEPS: Final = 3
"""Of each network: the first prepares the processor and is not counted."""
LONGEST_S: Final = 120.0
"""After so many seconds of one network's training no further step is begun."""
MOST_IMAGES: Final = 8
"""Training scans that are learned from, again and again."""


class _EnoughError(TaskStopped):
    """Ends a training from inside: it has shown what it can."""


@dataclass(slots=True)
class _Stopwatch:
    """Counts images and seconds of the steps after the first."""

    clock: Callable[[], float]
    report: Callable[[], None]
    batch_images: int
    began: float = 0.0
    first: float | None = None
    steps: int = 0
    seconds: float = 0.0

    def start(self) -> None:
        """Begin to count."""
        self.began = self.clock()

    def note(self, _done: int, _length: int) -> None:
        """Count a step that is done; end the training when it takes too long.

        Who waits for the process to end is heard after every step.
        """
        now = self.clock()
        self.steps += 1
        if self.first is None:
            self.first, self.seconds = now, now - self.began
        else:
            self.seconds = now - self.first
        self.report()
        if now - self.began > LONGEST_S:
            raise _EnoughError("the canary has seen enough")

    @property
    def images(self) -> int:
        """Images of the seconds that count: of the first step alone when there was no other."""
        return self.batch_images * max(1, self.steps - 1)


def run(
    task: Task,  # noqa: ARG001 - every task is called alike
    inputs: Mapping[str, Tensors],  # noqa: ARG001
    context: SiteContext,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> TaskResult:
    """Return how many images each network learned from, and in how many seconds.

    A site with fewer than two patients of F trains no patient encoder, in no time. Raises
    CohortError when no patient of the site falls into the training split, and DataError when the
    site can train no expert where one is wanted.
    """
    if isinstance(context.study.protocol, ExpertsProtocol):
        return _try_expert(context.study.protocol, context, clock=clock)
    compute = site_compute(context)
    protocol = context.study.synthesis
    system = protocol.generator
    images = split_images(context, Split.TRAINING)[:MOST_IMAGES]
    if len(images) == 0:
        raise CohortError("no patient of this site falls into the training split")
    condition = torch.from_numpy(context.cohort.images(Split.TRAINING).condition_BK[:MOST_IMAGES])
    codec = build_codec(system, seed=protocol.seed).to(compute.device)
    context.report(0, 3)
    codec_watch = _train(
        codec,
        SYSTEMS[system.kind].objective(system, "codec"),
        draw_images(images, compute.device),
        system.codec.training,
        rng=torch_stream(protocol.seed, "canary", context.name),
        bf16=compute.bf16,
        clock=clock,
        report=partial(context.report, 0, 3),
    )
    context.report(1, 3)
    codec.eval()
    latents = encode_images(codec, images, compute.device).to(compute.device)
    reid_told = _try_reid(protocol, context, clock=clock)
    context.report(2, 3)
    denoiser = build_denoiser(system, system.teacher, seed=protocol.seed).to(compute.device)
    teacher_watch = _train(
        denoiser,
        SYSTEMS[system.kind].objective(system, "teacher"),
        draw_latents(latents, condition.to(compute.device)),
        system.teacher.training,
        rng=torch_stream(protocol.seed, "canary", context.name),
        bf16=compute.bf16,
        clock=clock,
        report=partial(context.report, 2, 3),
    )
    context.report(3, 3)
    return TaskResult(
        body={
            "codec_images": codec_watch.images,
            "codec_s": round(codec_watch.seconds, 3),
            **reid_told,
            "teacher_images": teacher_watch.images,
            "teacher_s": round(teacher_watch.seconds, 3),
        }
    )


def _try_reid(
    protocol: SynthesisProtocol, context: SiteContext, *, clock: Callable[[], float]
) -> dict[str, float]:
    learning = context.cohort.images(Split.FILTER)
    if count_patients(learning) < FEWEST_PATIENTS:
        return {"reid_images": 1, "reid_s": 0.0}
    config, device = protocol.reid, site_compute(context).device
    rows = first_visits(learning)[:MOST_IMAGES]
    few = PatientImages(
        learning.image_BCDHW[rows],
        learning.condition_BK[rows],
        learning.patient_B[rows],
        learning.visit_B[rows],
    )
    watch = _train(
        build_reid_encoder(config, seed=protocol.seed).to(device),
        SYSTEMS[config.kind].objective(config, "encoder"),
        pairs_of(few, learns="visits", device=device),
        config.training,
        rng=torch_stream(protocol.seed, "canary", context.name, device=device),
        bf16=False,
        clock=clock,
        report=partial(context.report, 1, 3),
    )
    return {"reid_images": watch.images, "reid_s": round(watch.seconds, 3)}


def _try_expert(
    protocol: ExpertsProtocol, context: SiteContext, *, clock: Callable[[], float]
) -> TaskResult:
    compute = site_compute(context)
    own = read_learnable(context)
    net = build_common(context).to(compute.device)
    learning = learn_own(net, own, own.view_B, context, "canary", device=compute.device)
    context.report(0, 1)
    watch = _train(
        net,
        learning.objective,
        learning.draw,
        protocol.expert.training,
        rng=torch_stream(protocol.seed, "canary", context.name),
        bf16=compute.bf16,
        clock=clock,
        report=partial(context.report, 0, 1),
    )
    context.report(1, 1)
    return TaskResult(body={"expert_images": watch.images, "expert_s": round(watch.seconds, 3)})


def _train(
    network: nn.Module,
    objective: Objective,
    draw: Draw[Any],  # images, or latents with conditions
    config: TrainingConfig,
    *,
    rng: torch.Generator,
    bf16: bool,
    clock: Callable[[], float],
    report: Callable[[], None],
) -> _Stopwatch:
    watch = _Stopwatch(clock, report, config.step_images)
    watch.start()
    length = STEPS * config.step_images
    with contextlib.suppress(_EnoughError):
        fit(
            network,
            objective,
            draw,
            config,
            length_images=length,
            rng=rng,
            bf16=bf16,
            progress=watch.note,
            companion=companion_of(objective),
        )
    return watch
