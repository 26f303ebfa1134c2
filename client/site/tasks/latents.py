"""Sums over the site's latents and covariates, from which the coordinator scales and asks.

The latents stay at the site; what leaves are sums over its patients, and covariates and volumes
only when there are enough of them (``privacy.leakage``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from vitrael.client.site.tasks import SiteContext, TaskResult
from vitrael.client.site.tasks.networks import (
    encode_images,
    load_codec,
    reconstruct_images,
    site_compute,
    split_images,
)
from vitrael.core.data.measure import measure_volumes
from vitrael.core.data.splits import Split
from vitrael.core.geometry import centered_affine
from vitrael.core.messages import Task
from vitrael.core.metrics.moments import moments_of
from vitrael.core.records import PatientImages
from vitrael.core.weights import Tensors
from vitrael.privacy.leakage import SMALLEST_COUNT

if TYPE_CHECKING:
    from vitrael.core.models.nets.autoencoder import KLCodec

_TOLD = (Split.TRAINING, Split.FILTER, Split.CALIBRATION)
"""Not those that what is made from the moments is later held against."""


def run(task: Task, inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:  # noqa: ARG001 - every task is called alike
    """Return ``moments``: float64 sums over latents, covariates, and the codec's own error.

    ``latent``: over elements of T's latents by channel. ``condition``: over the first visits
    of all patients but those of A and U. ``ceiling``: ventricle volume before and after the
    codec, over F and U, whose images the codec has not learned from. Of covariates and
    volumes, sums over too few patients are sent as zeros; those over the latents tell less than
    the codec's own weights.
    """
    compute = site_compute(context)
    codec = load_codec(context, inputs["codec"], compute.device)
    training = split_images(context, Split.TRAINING)
    latent = encode_images(codec, training, compute.device)
    elements = latent.movedim(1, -1).reshape(-1, latent.shape[1]).double().numpy()
    context.report(1, 3)
    told = [context.cohort.images(split) for split in _TOLD]
    condition = np.concatenate([part.condition_BK[part.visit_B == 0] for part in told])
    context.report(2, 3)
    unseen = [context.cohort.images(split) for split in (Split.FILTER, Split.UTILITY)]
    pairs = np.concatenate(
        [_before_and_after(part, codec, compute.device, context) for part in unseen]
    )
    context.report(3, 3)
    sums = {
        "latent": moments_of(elements),
        "condition": moments_of(condition if len(condition) >= SMALLEST_COUNT else condition[:0]),
        "ceiling": moments_of(pairs if len(pairs) >= SMALLEST_COUNT else pairs[:0]),
    }
    tensors = {f"{name}.{part}": array for name, m in sums.items() for part, array in m.items()}
    return TaskResult(tensors={"moments": tensors}, num_examples=len(training))


def _before_and_after(
    images: PatientImages, codec: KLCodec, device: str, context: SiteContext
) -> np.ndarray:
    """Return ventricle volumes ``[P, 2]`` in ml of first visits and of their reconstructions."""
    first = images.image_BCDHW[images.visit_B == 0]
    if len(first) == 0:
        return np.zeros((0, 2))
    data = context.study.synthesis.data
    affine = centered_affine(data.grid_vox, spacing=data.spacing_mm)
    decoded = reconstruct_images(codec, first, device)
    before, _ = measure_volumes(first, affine)
    after, _ = measure_volumes(decoded, affine)
    return np.stack([before, after], axis=1)
