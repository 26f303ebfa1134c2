"""Vote on candidates against the site's own scans; the candidates are not kept."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vitrael.client.site.tasks import SiteContext, TaskResult
from vitrael.client.site.tasks.filtering import load_screener
from vitrael.core.errors import DataError
from vitrael.core.messages import Task
from vitrael.core.weights import Tensors
from vitrael.privacy.reid.roles import Keep, keep_all
from vitrael.privacy.reid.screen import Screener

_CHUNK = 32
_IMAGE_AXES = 5


def run(task: Task, inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:  # noqa: ARG001 - every task is called alike
    """Return the votes on ``candidates``; DataError unless they are all that the study has."""
    image = read_images(inputs["candidates"], context)
    asked = context.study.synthesis.distillation.candidates
    if len(image) != asked:
        raise DataError(
            "the task brings another number of candidates than the study",
            why=f"{len(image)} instead of {asked}",
            fix="send all candidates of the study, and no others",
        )
    return judge(image, context)


def judge(image: np.ndarray, context: SiteContext) -> TaskResult:
    """Return ``votes``: ``keep`` uint8 ``[B]``, one for each row of ``image`` ``[B, 1, D, H, W]``.

    ``estimable`` is false, and every vote a yes, when screening is off in the study or no
    operating point could be calibrated: the candidates count as unscreened. No score leaves.
    ``commitment`` names the operating point that voted, empty when there is none.
    """
    keep, why = choose_filter(context)
    rows = []
    for at in range(0, len(image), _CHUNK):
        rows.append(keep(image[at : at + _CHUNK]))
        context.report(min(at + _CHUNK, len(image)), len(image))
    votes = np.concatenate(rows).astype(np.uint8)
    return TaskResult(
        body={
            "estimable": not why,
            "reason": why,
            "commitment": commitment_of(keep),
            "metrics": {},
            "counts": {"candidates": len(votes), "kept": int(votes.sum())},
        },
        tensors={"votes": {"keep": votes}},
        num_examples=len(votes),
    )


def choose_filter(context: SiteContext) -> tuple[Keep, str]:
    """Return the filter as it is configured, and why it is none (empty when it is one)."""
    if not context.study.synthesis.screening.enabled:
        return keep_all, "screening is off in the study"
    screener = load_screener(context)
    if screener is None:
        return keep_all, "unscreened: no operating point could be calibrated"
    return screener, ""


def commitment_of(keep: Keep) -> str:
    """Return the name of the operating point that a filter judges by; empty when it has none."""
    return keep.point.commitment if isinstance(keep, Screener) else ""


def read_images(tensors: Tensors, context: SiteContext) -> np.ndarray:
    """Return float32 images ``[B, 1, D, H, W]``; raise DataError for anything else."""
    image = np.asarray(tensors["image"])
    grid = (1, *context.study.synthesis.data.grid_vox)
    if image.ndim != _IMAGE_AXES or image.shape[1:] != grid or not len(image):
        raise DataError("the images to judge are not on the study's grid", why=f"not [B, {grid}]")
    if not np.isfinite(image).all():
        raise DataError("the images to judge hold values that are not finite")
    return image.astype(np.float32)
