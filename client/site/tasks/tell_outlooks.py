"""The site runs every expert once on its own pictures, and tells what they see on the whole."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch

from vitrael.client.site.tasks import SiteContext, TaskResult
from vitrael.client.site.tasks.networks import site_compute
from vitrael.client.site.tasks.views import OwnViews, open_experts, read_learnable, read_views
from vitrael.core.data.splits import Split
from vitrael.core.messages import Task
from vitrael.core.models.fusion_learning import SiteOutlook, read_all, tell_site
from vitrael.core.models.score_fusion import Readings
from vitrael.core.models.view_expert import ViewExpert
from vitrael.core.rng import stream
from vitrael.core.weights import Tensors
from vitrael.privacy.audit.expert_attacks import Seen
from vitrael.privacy.audit.expert_risk import measure_inversion, measure_members

_NOISE_DOMAIN: Final = b"vitrael/outlook-noise/1\0"


def run(task: Task, inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:  # noqa: ARG001 - every task is called alike
    """Return ``outlooks``: what each expert sees in each view of enough patients, and its spread.

    ``images`` int64 ``[V]`` counts the pictures of each view of the study; ``mean`` is float32
    ``[N, V, E + L]``, ``std`` ``[N, E + L]``, experts in the order of the members. Where the study
    asks for them, and only there, the numbers of every single picture go too: ``view`` ``[B]`` and
    ``seen`` ``[N, B, E + L]``. The document says how much of this could be held against the
    patients: how well they are known by it, and their pictures rebuilt from it.
    """
    compute = site_compute(context)
    protocol = context.study.experts
    own = read_learnable(context)
    experts = open_experts(inputs, context, device=compute.device)
    readings = read_all(experts, own.images)
    names = [protocol.data.views[place] for place in own.view_B]
    told = tell_site(
        readings,
        names,
        own.patient_B.tolist(),
        noise_frac=protocol.noise_frac,
        rng=stream(_secret_of(context), "outlooks"),
    )
    tensors = _stack(told, protocol.data.views)
    single = protocol.told == "features"
    if single:
        tensors |= {"view": own.view_B, "seen": _every(readings)}
    body = _measure_risk(readings if single else told, own, readings, experts, context)
    return TaskResult(
        body={**body, **({"pictures": len(own)} if single else {})},
        tensors={"outlooks": tensors},
        num_examples=len(own),
    )


def _secret_of(context: SiteContext) -> int:
    """Return a number that nobody else knows: who knew the noise could take it off again."""
    key = context.settings.read_split_key()
    return int.from_bytes(hmac.new(key, _NOISE_DOMAIN, hashlib.sha256).digest()[:8], "big") >> 1


def _measure_risk(
    told: SiteOutlook | Readings,
    own: OwnViews,
    readings: Readings,
    experts: tuple[ViewExpert, ...],
    context: SiteContext,
) -> dict[str, Any]:
    """Return what an attacker makes of what is told, who also has other pictures of the site."""
    views = context.study.experts.data.views
    others = read_views(context, Split.CALIBRATION, views=own.views)
    if not len(others):
        return {"estimable": False, "reason": "nobody was held out to compare with"}
    strangers = read_all(experts, others.images)
    first = int(own.patient_B.max()) + 1  # numbers of one split mean nothing in another
    known, strange = (
        Seen(seen, [views[place] for place in part.view_B], part_patients)
        for seen, part, part_patients in (
            (readings, own, own.patient_B.tolist()),
            (strangers, others, (others.patient_B + first).tolist()),
        )
    )
    noise_frac = context.study.experts.noise_frac
    members = measure_members(told, known=known, strange=strange, noise_frac=noise_frac)
    rebuilt = measure_inversion(
        told,
        known=known,
        strange=strange,
        images=(own.image_BCHW, others.image_BCHW),
        rng=stream(context.study.protocol.seed, "inversion", context.name),
    )
    measured = [one for one in (*members, *rebuilt) if one.value is not None]
    reasons = {one.reason for one in (*members, *rebuilt) if one.value is None}
    metrics = {
        f"{one.name}{suffix}": float(value)
        for one in measured
        for suffix, value in (("", one.value), (".low", one.low), (".high", one.high))
        if value is not None
    }
    return {
        "estimable": bool(measured),
        "reason": "; ".join(sorted(reasons)),
        "metrics": metrics,
        "counts": {f"{one.name}.n": one.n for one in measured},
    }


def _stack(told: SiteOutlook, views: tuple[str, ...]) -> dict[str, np.ndarray]:
    outlooks = list(told.experts.values())
    mean_NVW = np.zeros((len(outlooks), len(views), len(outlooks[0].std)), dtype=np.float32)
    for number, outlook in enumerate(outlooks):
        for view, mean_W in outlook.mean.items():
            mean_NVW[number, views.index(view)] = mean_W
    return {
        "images": np.array([told.images.get(view, 0) for view in views], dtype=np.int64),
        "mean": mean_NVW,
        "std": np.stack([outlook.std for outlook in outlooks]).astype(np.float32),
    }


def _every(readings: Readings) -> np.ndarray:
    """Return ``[N, B, E + L]``: what each expert sees in each picture."""
    return torch.stack(
        [
            torch.cat([readings.features[name], readings.discrepancy[name]], dim=1)
            for name in readings.features
        ]
    ).numpy()
