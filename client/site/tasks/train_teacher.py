"""One federated round of the teacher's denoiser on the latents of the site's training scans."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from vitrael.client.site.checkpoints import open_checkpoints
from vitrael.client.site.tasks import SiteContext, TaskResult
from vitrael.client.site.tasks.networks import encode_images, load_codec, site_compute
from vitrael.core.data.latent_cache import View, encode_cached
from vitrael.core.data.splits import Split
from vitrael.core.errors import CohortError
from vitrael.core.messages import Task
from vitrael.core.models import SYSTEMS
from vitrael.core.models.brain_ldm import build_denoiser, draw_latents
from vitrael.core.rng import torch_stream
from vitrael.core.training.loop import fit
from vitrael.core.weights import Tensors, load_weights, module_tensors


def run(task: Task, inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:
    """Return the ``denoiser`` tensors after this round, and the loss curve."""
    compute = site_compute(context)
    protocol = context.study.synthesis
    system = protocol.generator
    part = system.teacher
    latents, condition = _latents(task, inputs, context)
    if len(latents) == 0:
        raise CohortError("no patient of this site falls into the training split")
    denoiser = build_denoiser(system, part, seed=protocol.seed)
    load_weights(denoiser, inputs["denoiser"])
    denoiser.to(compute.device)
    length = -(-part.training.length_images // part.training.rounds)
    curve = fit(
        denoiser,
        SYSTEMS[system.kind].objective(system, "teacher"),
        draw_latents(latents.to(compute.device), condition.to(compute.device)),
        part.training,
        length_images=length,
        start_images=task.round * length,
        rng=torch_stream(protocol.seed, "teacher", task.round, context.name),
        poll=context.report,
        checkpoints=open_checkpoints(task, context, compute),
        bf16=compute.bf16,
    )
    return TaskResult(
        body={"curve_images": curve.images, "curve_loss": curve.losses["total"]},
        tensors={"denoiser": module_tensors(denoiser)},
        num_examples=len(latents) // 2,
    )


def _latents(
    task: Task, inputs: Mapping[str, Tensors], context: SiteContext
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scaled latents and conditions of T, each scan also mirrored left to right.

    They are computed once for each codec, kept beside the scans, and kept warm. With mirror images
    there is twice as much to learn from, so that less of one patient is learned by heart.
    """
    key = f"latents {task.inputs['codec']}"
    if key not in context.warm:
        compute = site_compute(context)
        codec = load_codec(context, inputs["codec"], compute.device)
        training = context.cohort.images(Split.TRAINING)

        def encode(image_BCDHW: np.ndarray) -> np.ndarray:
            image = torch.from_numpy(image_BCDHW)
            return encode_images(codec, image, compute.device).numpy()

        views: tuple[View, ...] = ("plain", "mirrored")
        both = [
            encode_cached(
                context.cohort.latents,
                [item.digest for item in context.cohort.items(Split.TRAINING)],
                codec=task.inputs["codec"],
                read=lambda rows: training.image_BCDHW[list(rows)],
                encode=encode,
                view=view,
            )
            for view in views
        ]
        means = torch.from_numpy(np.concatenate(both))
        condition = torch.from_numpy(training.condition_BK)
        context.warm[key] = (codec.cpu().scale(means), condition.repeat(2, 1))
    latents, condition = context.warm[key]
    return latents, condition
