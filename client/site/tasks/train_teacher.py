"""One federated round of the teacher's denoiser on the latents of the site's training scans."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from vitrael.client.site.tasks import SiteContext, TaskResult
from vitrael.client.site.tasks.networks import encode_images, load_codec, site_compute, split_images
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
    protocol = context.study.protocol
    system = protocol.generator
    part = system.teacher
    latents, condition = _latent_cache(task, inputs, context)
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
        progress=context.report,
        bf16=compute.bf16,
    )
    return TaskResult(
        body={"curve_images": curve.images, "curve_loss": curve.losses["total"]},
        tensors={"denoiser": module_tensors(denoiser)},
        num_examples=len(latents) // 2,
    )


def _latent_cache(
    task: Task, inputs: Mapping[str, Tensors], context: SiteContext
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scaled latents and conditions of T, each scan also mirrored left to right.

    They are computed once for each codec and kept warm. With mirror images there is twice as much
    to learn from, so that less of one patient is learned by heart.
    """
    key = f"latents {task.inputs['codec']}"
    if key not in context.warm:
        compute = site_compute(context)
        codec = load_codec(context, inputs["codec"], compute.device)
        images = split_images(context, Split.TRAINING)
        both = torch.cat([images, images.flip(2)])
        means = encode_images(codec, both, compute.device)
        condition = torch.from_numpy(context.cohort.images(Split.TRAINING).condition_BK)
        context.warm[key] = (codec.cpu().scale(means), condition.repeat(2, 1))
    latents, condition = context.warm[key]
    return latents, condition
