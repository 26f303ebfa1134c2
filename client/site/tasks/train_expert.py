"""The site's expert: trained here alone, on the views that the site has, and never again."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vitrael.client.site.checkpoints import open_checkpoints
from vitrael.client.site.tasks import SiteContext, TaskResult
from vitrael.client.site.tasks.networks import site_compute
from vitrael.client.site.tasks.views import read_learnable, read_views, train_views
from vitrael.core.data.splits import Split
from vitrael.core.messages import Task
from vitrael.core.models.fusion_learning import SMALLEST_CLASS
from vitrael.core.models.view_expert import (
    build_view_net,
    complete_expert,
    weights_to_begin_with,
)
from vitrael.core.rng import stream_seed
from vitrael.core.weights import Tensors


def run(task: Task, inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:
    """Return ``expert``: weights, and mean and spread of the layers' activity and of the scores.

    ``words`` are the site's own words for the views that it tells apart. ``calibrated`` says
    whether eleven patients were held out, by whom it is told which pictures are foreign.
    """
    compute = site_compute(context)
    protocol = context.study.experts
    own = read_learnable(context)
    net = build_view_net(
        protocol.expert,
        len(own.views),
        seed=stream_seed(protocol.seed, "expert", context.name),
        start=weights_to_begin_with(inputs["start"]) if "start" in inputs else None,
    ).to(compute.device)
    places = [protocol.data.views.index(view) for view in own.views]
    curve = train_views(
        net,
        own,
        np.searchsorted(places, own.view_B),
        context,
        task=task,
        training=protocol.expert.training,
        compute=compute,
        checkpoints=open_checkpoints(task, context, compute),
    )
    held_out = read_views(context, Split.CALIBRATION, views=own.views)
    is_told = len(np.unique(held_out.patient_B)) >= SMALLEST_CLASS
    expert = complete_expert(
        net,
        own.images,
        name=context.name,
        labels=own.views,
        held_out_BCHW=held_out.images if is_told else None,
    )
    return TaskResult(
        body={
            "curve_images": curve.images,
            "curve_loss": curve.losses["cross_entropy"],
            "words": dict(own.words),
            "calibrated": is_told,
        },
        tensors={"expert": expert.tensors()},
        num_examples=len(own),
    )
