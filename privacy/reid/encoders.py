"""How the encoders of a filter learn, wherever a filter is made: at a site, or over two folders.

They see images as they will judge them, laid onto a template (``template.lay_onto``). The
*patient* encoder learns which visits are of one patient, the *copy* encoder which disguises are of
one scan. What two views of an identity may differ in follows from the axes: volumes are turned and
mirrored as heads are, and of pictures, which have one voxel along D, gray values differ more than
poses do. Frames of a clip are disguised alike, and then its time is.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from vitrael.core.models import SYSTEMS
from vitrael.core.training.contrastive import Pair, VisitPairs
from vitrael.core.training.copy_pairs import CopyPairs, Disguise, as_channels, disguise, retime
from vitrael.core.training.loop import Draw, Progress, fit
from vitrael.core.training.state import Checkpoints, Curve
from vitrael.core.training.warps import Along

if TYPE_CHECKING:
    from vitrael.core.configs import ReidEncoderConfig
    from vitrael.core.models.reid import Learns, ReidEncoder
    from vitrael.core.records import PatientImages

FEWEST_PATIENTS: Final = 2
"""Without whom there is nobody to tell apart."""
OTHER_PICTURE: Final = Disguise(blend=0.25, replaced_share=0.0, cut_share=0.0, noise=0.04)
"""Nothing is cut out: two pictures of a patient both show the whole."""


def train_encoder(
    encoder: ReidEncoder,
    laid: PatientImages,
    config: ReidEncoderConfig,
    *,
    learns: Learns,
    rng: torch.Generator,
    length_images: int | None = None,
    start_images: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
    poll: Progress | None = None,
    checkpoints: Checkpoints | None = None,
) -> Curve:
    """Train an encoder in place on laid images and return the loss curve.

    The encoder is on the device, and ``rng`` as well. ``length_images`` is that of this part of the
    training, which begins after ``start_images``: all that the config says unless it is given.

    Raises DataError for fewer than two patients where it learns visits, and fewer than two scans
    where it learns copies.
    """
    with warnings.catch_warnings():
        # A picture has one voxel along D, where an affine grid has nothing to choose.
        warnings.filterwarnings("ignore", message=".*affine_grid.*", category=UserWarning)
        return fit(
            encoder,
            SYSTEMS[config.kind].objective(config, "encoder"),
            pairs_of(laid, learns=learns, along=encoder.along, device=device),
            config.training,
            length_images=config.training.length_images if length_images is None else length_images,
            start_images=start_images,
            rng=rng,
            progress=progress,
            poll=poll,
            checkpoints=checkpoints,
        )


def pairs_of(
    laid: PatientImages, *, learns: Learns, along: Along = "space", device: str = "cpu"
) -> Draw[Pair]:
    """Return a function that draws pairs of views of one identity.

    A patient who was scanned once is paired with distortions of that one volume. Of one picture
    that would teach nothing but the disguises that the copy encoder learns, so that pictures of
    patients who have a single one are left out.
    """
    if learns == "copies":
        return CopyPairs(laid, along=along, device=device)
    if along == "time":
        pictures = as_channels(torch.from_numpy(laid.image_BCDHW)).numpy()
        return VisitPairs(replace(laid, image_BCDHW=pictures), view=_other_clip, device=device)
    if laid.image_BCDHW.shape[2] > 1:
        return VisitPairs(laid, device=device)
    return VisitPairs(_seen_again(laid), view=_other_picture, device=device)


def count_patients(images: PatientImages) -> int:
    """Return how many patients there are."""
    return len(np.unique(images.patient_B))


def _other_picture(image: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    return disguise(image, OTHER_PICTURE, rng)


def _other_clip(image: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    return as_channels(retime(disguise(image, OTHER_PICTURE, rng), rng))


def _seen_again(images: PatientImages) -> PatientImages:
    """Return the images of those who have several."""
    _, own_B, count_P = np.unique(images.patient_B, return_inverse=True, return_counts=True)
    rows = np.flatnonzero(count_P[own_B] > 1)
    return replace(
        images,
        image_BCDHW=images.image_BCDHW[rows],
        condition_BK=images.condition_BK[rows],
        patient_B=images.patient_B[rows],
        visit_B=images.visit_B[rows],
    )
