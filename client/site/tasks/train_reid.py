"""One federated round of the filter's patient encoder on the site's scans of F."""

from __future__ import annotations

from collections.abc import Mapping

from vitrael.client.site.checkpoints import open_checkpoints
from vitrael.client.site.tasks import SiteContext, TaskResult
from vitrael.client.site.tasks.filtering import see_learning
from vitrael.client.site.tasks.networks import site_compute
from vitrael.core.data.splits import Split
from vitrael.core.messages import Task
from vitrael.core.models.reid import build_reid_encoder
from vitrael.core.rng import torch_stream
from vitrael.core.weights import Tensors, load_weights, module_tensors
from vitrael.privacy.reid.encoders import FEWEST_PATIENTS, count_patients, train_encoder


def run(task: Task, inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:
    """Return the ``encoder`` tensors after this round, and the loss curve.

    They count as many examples as the site has patients in F. A site with fewer than two of them
    has nobody to tell apart: it gives the weights back as they came, with no example and no curve.
    Patients who were scanned once are paired with distortions of that scan.
    """
    protocol, compute = context.study.synthesis, site_compute(context)
    patients = count_patients(context.cohort.images(Split.FILTER))
    if patients < FEWEST_PATIENTS:
        return TaskResult(tensors={"encoder": inputs["encoder"]})
    config = protocol.reid
    encoder = build_reid_encoder(config, seed=protocol.seed, learns="visits")
    load_weights(encoder, inputs["encoder"])
    encoder.to(compute.device)
    length = -(-config.training.length_images // config.training.rounds)
    rng = torch_stream(protocol.seed, "reid", task.round, context.name, device=compute.device)
    curve = train_encoder(
        encoder,
        see_learning(task, inputs, context).laid,
        config,
        learns="visits",
        rng=rng,
        length_images=length,
        start_images=task.round * length,
        device=compute.device,
        poll=context.report,
        checkpoints=open_checkpoints(task, context, compute),
    )
    return TaskResult(
        body={"curve_images": curve.images, "curve_loss": curve.losses["total"]},
        tensors={"encoder": module_tensors(encoder)},
        num_examples=patients,
    )
