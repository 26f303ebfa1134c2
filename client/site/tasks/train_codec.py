"""One federated round of the codec on the site's training scans."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from vitrael.client.site.checkpoints import open_checkpoints
from vitrael.client.site.tasks import SiteContext, TaskResult
from vitrael.client.site.tasks.networks import draw_images, load_codec, site_compute, split_images
from vitrael.core.data.splits import Split
from vitrael.core.errors import CohortError
from vitrael.core.messages import Task
from vitrael.core.models import SYSTEMS
from vitrael.core.rng import torch_stream
from vitrael.core.training.loop import fit
from vitrael.core.training.objectives import companion_of
from vitrael.core.weights import Tensors, module_tensors

logger = logging.getLogger(__name__)


def run(task: Task, inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:
    """Return the ``codec`` tensors after this round, and the loss curve."""
    compute = site_compute(context)
    system = context.study.synthesis.generator
    config = system.codec
    images = split_images(context, Split.TRAINING)
    if len(images) == 0:
        raise CohortError("no patient of this site falls into the training split")
    codec = load_codec(context, inputs["codec"], compute.device)
    logger.info(
        "the codec learns with perceptual weight %g (edges), critic weight %g",
        config.perceptual_weight,
        0.0 if config.critic is None else config.critic.weight,
        extra={"stage": task.stage, "round": task.round + 1},
    )
    objective = SYSTEMS[system.kind].objective(system, "codec")
    length = -(-config.training.length_images // config.training.rounds)
    curve = fit(
        codec,
        objective,
        draw_images(images, compute.device),
        config.training,
        length_images=length,
        start_images=task.round * length,
        rng=torch_stream(context.study.protocol.seed, "codec", task.round, context.name),
        poll=context.report,
        checkpoints=open_checkpoints(task, context, compute),
        bf16=compute.bf16,
        companion=companion_of(objective),
    )
    return TaskResult(
        body={"curve_images": curve.images, "curve_loss": curve.losses["l1"]},
        tensors={"codec": module_tensors(codec)},
        num_examples=len(images),
    )
