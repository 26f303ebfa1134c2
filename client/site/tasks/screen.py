"""Vote on candidates, and on a student's samples, against the site's own scans; none is kept.

A small share is rejected by chance. The chance is the site's: it follows from the image and from a
secret that never leaves, so that nobody else can tell a rejection from a vote, and the same image
asked again gets the same answer. The audit's plants are judged without it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Final

import numpy as np

from vitrael.client.site.tasks import SiteContext, TaskResult
from vitrael.client.site.tasks.filtering import load_screener
from vitrael.core.data.nifti import decode_nifti
from vitrael.core.digest import Digest, digest_bytes, write_atomically
from vitrael.core.errors import DataError
from vitrael.core.messages import IN_VOTES, Task
from vitrael.core.weights import Tensors
from vitrael.privacy.distill import demand_images
from vitrael.privacy.reid.roles import Keep, keep_all
from vitrael.privacy.reid.screen import Screener

_CHUNK = 32
_IMAGE_AXES = 5
_CHANCE_DOMAIN: Final = b"vitrael: candidates that chance rejects"
_VOTED: Final = "voted"
"""Folder among the records: for each round of a screening the digests of the files kept."""


def run(task: Task, inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:
    """Return the votes on one round of ``candidates``.

    The steward has counted them before: over the votes that a study has of a site nothing is
    judged.
    """
    result = judge(read_images(inputs["candidates"], context), context)
    note_round(task, context, kept=[])
    return result


def rescreen(task: Task, inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:
    """Return the votes on one round of the student's ``samples``, in the order of their names.

    They come as the image files that would be released, so that what is judged is what is left of
    them in those. The digests of those kept are noted: this site signs no others.
    """
    files = {name: np.asarray(a, np.uint8).tobytes() for name, a in inputs["samples"].items()}
    result = judge(decode_images(files, context), context)
    keep = result.tensors["votes"]["keep"]
    kept = [
        digest_bytes(files[name]) for name, vote in zip(sorted(files), keep, strict=True) if vote
    ]
    note_round(task, context, kept=kept)
    return result


def judge(image: np.ndarray, context: SiteContext) -> TaskResult:
    """Return ``votes``: ``keep`` uint8 ``[B]``, one for each row of ``image`` ``[B, 1, D, H, W]``.

    ``estimable`` is false, and every vote a yes, when screening is off in the study or no
    operating point could be calibrated: the candidates count as unscreened. No score leaves.
    ``commitment`` names the operating point that voted, empty when there is none. Raises DataError
    for an image that is constant.
    """
    demand_images(image, len(image))
    keep, why = choose_filter(context)
    rows = []
    for at in range(0, len(image), _CHUNK):
        rows.append(keep(image[at : at + _CHUNK]))
        context.report(min(at + _CHUNK, len(image)), len(image))
    votes = np.concatenate(rows).astype(bool)
    if not why:
        share = context.study.synthesis.screening.extra_rejections
        votes &= ~rejected_by_chance(image, share, key=context.settings.read_split_key())
    return TaskResult(
        body={
            "estimable": not why,
            "reason": why,
            "commitment": commitment_of(keep),
            "metrics": {},
            "counts": {"candidates": len(votes)},
        },
        tensors={"votes": {"keep": votes.astype(np.uint8)}},
        num_examples=len(votes),
    )


def rejected_by_chance(image: np.ndarray, share: float, *, key: bytes) -> np.ndarray:
    """Return ``[B]`` bool: true for the share that chance rejects, whatever the filter says.

    It follows from the voxels, in half precision as candidates travel, and from the site's secret.
    """
    half = image.astype(np.float16) + np.float16(0)  # zero has one sign only
    digests = [hmac.new(key, _CHANCE_DOMAIN + row.tobytes(), hashlib.sha256) for row in half]
    drawn = np.array([int.from_bytes(one.digest()[:7], "big") for one in digests]) / 2.0**56
    return np.asarray(drawn < share)


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


def decode_images(files: Mapping[str, bytes], context: SiteContext) -> np.ndarray:
    """Return the images of files of a release, in [0, 1], in the order of their names.

    Raises ScanError for a file that is no image, and DataError for images off the study's grid.
    """
    scans = [
        decode_nifti(files[name], label=f"image {number}")
        for number, name in enumerate(sorted(files), start=1)
    ]
    if len({scan.image_CDHW.shape for scan in scans}) != 1:
        raise DataError("the images to judge are not all of one shape, or there is none")
    images = read_images({"image": np.stack([scan.image_CDHW for scan in scans])}, context)
    return np.asarray(np.clip(images, 0, 1))


def read_kept(context: SiteContext) -> set[Digest]:
    """Return the digests of all image files that this site has voted to keep."""
    paths = (context.records / _VOTED).glob("rescreening-*.json")
    return {Digest(digest) for path in paths for digest in json.loads(path.read_bytes())}


def rounds_voted(context: SiteContext) -> dict[str, int]:
    """Return in how many rounds of each screening this site has voted."""
    folder = context.records / _VOTED
    return {stage: len(list(folder.glob(f"{stage}-*.json"))) for stage in sorted(IN_VOTES)}


def note_round(task: Task, context: SiteContext, *, kept: list[Digest]) -> None:
    """Write down that this site has voted in a round, and which image files it keeps."""
    folder = context.records / _VOTED
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(folder / f"{task.stage}-{task.round}.json", json.dumps(sorted(kept)).encode())
