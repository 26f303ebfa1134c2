"""One network for the views of all sites: what experts are held against.

In rounds it is averaged; or it goes from site to site, and forgets.
"""

from __future__ import annotations

from collections.abc import Mapping

from vitrael.client.site.checkpoints import open_checkpoints
from vitrael.client.site.tasks import SiteContext, TaskResult
from vitrael.client.site.tasks.networks import site_compute
from vitrael.client.site.tasks.views import build_common, read_learnable, train_views
from vitrael.core.messages import Task
from vitrael.core.weights import Tensors, load_weights, module_tensors


def run(task: Task, inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:
    """Return the ``common`` tensors after this round, and the loss curve."""
    compute = site_compute(context)
    own = read_learnable(context)
    net = build_common(context)
    load_weights(net, inputs["common"])
    net.to(compute.device)
    curve = train_views(
        net,
        own,
        own.view_B,
        context,
        task=task,
        training=context.study.experts.trained[task.stage],
        compute=compute,
        checkpoints=open_checkpoints(task, context, compute),
    )
    return TaskResult(
        body={"curve_images": curve.images, "curve_loss": curve.losses["cross_entropy"]},
        tensors={"common": module_tensors(net)},
        num_examples=len(own),
    )
