"""Over-training: a small generator is made to know a few patients by heart, to be harvested.

What a model has memorized looks like no disguise that one could write down, so a filter has to be
shown the real thing: the study's own denoiser is trained on one scan of each of up to a hundred
patients until it gives them back under their own conditions. Nothing of it is ever released.

The learning rate falls over each stretch and starts afresh in the next (warm restarts, Loshchilov
and Hutter 2017), so that every look is at a network that has settled, and a harvest that is rich
enough ends the training early. No sample is sharper than its codec: a patient is given back by
what is near to the scan, or to the scan after the codec. Axes: N patients, P of them learned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from vitrael.core.configs import BrainLDMConfig
from vitrael.core.errors import DataError
from vitrael.core.geometry import centered_affine
from vitrael.core.models import SYSTEMS
from vitrael.core.models.brain_ldm import LatentGenerator, build_denoiser, draw_latents
from vitrael.core.models.nets.autoencoder import KLCodec
from vitrael.core.models.nets.unet import HybridUNet
from vitrael.core.records import PatientImages, SampleRequest
from vitrael.core.rng import stream, stream_seed, torch_stream
from vitrael.core.training.loop import fit
from vitrael.core.weights import Tensors, load_weights
from vitrael.privacy.audit.plants.harvest import Harvest, harvest_memorized
from vitrael.privacy.leakage import SMALLEST_COUNT
from vitrael.privacy.reid.calibrate import first_visits
from vitrael.privacy.suite import LEAST_SOURCES, MEMORIZE_IMAGES, MOST_LEARNED

_CHUNK: Final = 64
_NEIGHBORHOOD: Final = 300
"""Patients, learned or not, among whom a sample has to be near to one: of those learned alone the
nearest fifty are nearly all, and what is hardly a copy would count."""

Poll = Callable[[int, int], None]
"""Called after every step with the images learned and the most there may be; it may raise."""


@dataclass(frozen=True, slots=True)
class Course:
    """How long is learned, and how often is looked. Raises DataError for what is no course."""

    most_images: int = MEMORIZE_IMAGES
    stretch_images: int = 16_000
    """Between two looks."""
    samples: int = 4
    """Of each patient at a look."""
    patients: int = 72
    """Who are learned, of those there are."""
    wanted: int = LEAST_SOURCES
    """Distinct patients of whom a sample was found, that end the training."""

    @property
    def fewest(self) -> int:
        """Patients without whom nothing is learned: a relative distance needs a neighborhood."""
        return max(self.wanted, SMALLEST_COUNT)

    def __post_init__(self) -> None:
        if min(self.most_images, self.stretch_images, self.samples, self.wanted) < 1:
            raise DataError("a course of over-training needs images, samples and a goal above none")
        if not self.wanted <= self.patients <= MOST_LEARNED:
            raise DataError(
                f"{self.patients} patients cannot be learned by heart",
                why=f"{self.wanted} are wanted of them, and {MOST_LEARNED} are the most",
                fix=f"choose from {self.wanted} to {MOST_LEARNED}",
            )


COURSE: Final = Course()


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Overtrained:
    """Private: a network that knows patients by heart, and what it gave back of them."""

    denoiser: HybridUNet
    harvest: Harvest
    learned_images: int
    """Until enough was harvested, or as many as there may be."""

    def __repr__(self) -> str:
        """Show nothing of a patient."""
        return "Overtrained(private)"


def memorize(
    images: PatientImages,
    codec: KLCodec,
    config: BrainLDMConfig,
    *,
    seed: int,
    weights: Tensors | None = None,
    course: Course = COURSE,
    device: str = "cpu",
    poll: Poll | None = None,
) -> Harvest:
    """Return samples that an over-trained model has by heart, at most one for each patient.

    As ``overtrain``. Of fewer patients than ``course.fewest`` nothing is learned and nothing
    harvested, since it could not suffice; ``why_too_few`` says so.
    """
    if len(first_visits(images)) < course.fewest:
        return _nothing(images)
    trained = overtrain(
        images, codec, config, seed=seed, weights=weights, course=course, device=device, poll=poll
    )
    return trained.harvest


def overtrain(
    images: PatientImages,
    codec: KLCodec,
    config: BrainLDMConfig,
    *,
    seed: int,
    weights: Tensors | None = None,
    course: Course = COURSE,
    device: str = "cpu",
    poll: Poll | None = None,
) -> Overtrained:
    """Return a network that has learned the first visits of a few patients by heart.

    ``codec`` is the study's and lives on ``device``; the network is that of ``config``'s teacher,
    with ``weights`` to begin with or fresh ones. Up to ``course.patients`` patients are drawn by
    ``seed``. Equal inputs give equal samples. The harvest may hold fewer than ``course.wanted``:
    ``why_too_few`` says why. Raises DataError for what ``harvest_memorized`` refuses.
    """
    order = stream(seed, "memorize", "patients").permutation(first_visits(images))
    learned_rows = np.sort(order[: max(course.patients, course.fewest)])
    rows = np.concatenate([learned_rows, order[len(learned_rows) : _NEIGHBORHOOD]])
    image_NCDHW = np.ascontiguousarray(images.image_BCDHW[rows], dtype=np.float32)
    latents_N, after_NCDHW = _round_trip(image_NCDHW, codec, device=device)
    known, owner = np.concatenate([image_NCDHW, after_NCDHW]), np.tile(images.patient_B[rows], 2)
    latents = latents_N[: len(learned_rows)]
    condition_PK = images.condition_BK[learned_rows].astype(np.float32)
    told = torch.from_numpy(condition_PK).to(device)
    config = _by_heart(config, course)
    denoiser = build_denoiser(config, config.teacher, seed=stream_seed(seed, "memorize"))
    if weights is not None:
        load_weights(denoiser, weights)
    denoiser.to(device)
    harvest, learned = _nothing(images), 0
    for start in range(0, course.most_images, course.stretch_images):
        length = min(course.stretch_images, course.most_images - start)
        part = config.teacher.training.model_copy(update={"length_images": length})
        fit(
            denoiser,
            SYSTEMS[config.kind].objective(config, "teacher"),
            draw_latents(latents, told),
            part,
            length_images=length,
            rng=torch_stream(seed, "memorize", start),
            poll=_later(poll, start, course.most_images),
        )
        learned = start + length
        drawn = _sample(
            codec,
            denoiser,
            config,
            np.repeat(condition_PK, course.samples, axis=0),
            grid_vox=image_NCDHW.shape[2:],
            seed=stream_seed(seed, "memorize", "look", start),
        )
        seen = np.concatenate([harvest.image_MCDHW, _usable(drawn)])
        harvest = _of_learned(
            harvest_memorized(seen, known, patient_N=owner), images.patient_B[learned_rows]
        )
        if harvest.sources >= course.wanted:
            break
    return Overtrained(denoiser, harvest, learned)


def why_too_few(harvest: Harvest, images: PatientImages, *, course: Course = COURSE) -> str:
    """Return in one clause why a harvest from these images does not suffice, or an empty text."""
    if harvest.sources >= course.wanted:
        return ""
    if len(first_visits(images)) < course.fewest:
        return f"there are fewer than the {course.fewest} patients that this takes"
    return (
        f"after {course.most_images} images the over-trained model gave back fewer than "
        f"{course.wanted} of its patients"
    )


def _of_learned(harvest: Harvest, patient_P: np.ndarray) -> Harvest:
    """Return what was learned: a sample near to another patient is no memory of his."""
    learned_M = np.isin(harvest.patient_M, patient_P)
    return Harvest(
        harvest.image_MCDHW[learned_M],
        harvest.patient_M[learned_M],
        harvest.ratio_M[learned_M],
    )


def _later(poll: Poll | None, start: int, most: int) -> Poll | None:
    """Return a poll that counts the images of earlier stretches too."""
    return None if poll is None else lambda done, _: poll(start + done, most)


@torch.no_grad()
def _round_trip(
    image_PCDHW: np.ndarray, codec: KLCodec, *, device: str
) -> tuple[torch.Tensor, np.ndarray]:
    """Return the latents of images, and what is left of the images after them."""
    parts = torch.from_numpy(image_PCDHW).split(_CHUNK)
    latents = torch.cat([codec.encode(part.to(device)) for part in parts])
    return latents, codec.decode_in_parts(latents).float().cpu().numpy()


def _by_heart(config: BrainLDMConfig, course: Course) -> BrainLDMConfig:
    """Return the config without what keeps a network from learning images by heart.

    Warm-up and moving average are of a small part of a stretch at most.
    """
    training, little = config.teacher.training, course.stretch_images // 16
    settled = {
        "rounds": 1,
        "warmup_images": min(training.warmup_images, little),
        "ema_halflife_images": min(training.ema_halflife_images, little),
    }
    part = config.teacher.model_copy(
        update={"training": training.model_copy(update=settled), "condition_dropout": 0.0}
    )
    return config.model_copy(update={"teacher": part})


def _usable(sample_BCDHW: np.ndarray) -> np.ndarray:
    """Return the samples that are finite and not blank: a bad one is no reason to end an audit."""
    flat = sample_BCDHW.reshape(len(sample_BCDHW), -1)
    good = np.isfinite(flat).all(1) & (flat.min(1) < flat.max(1))
    return np.asarray(sample_BCDHW[good])


def _nothing(images: PatientImages) -> Harvest:
    return Harvest(images.image_BCDHW[:0], images.patient_B[:0], np.empty(0))


def _sample(
    codec: KLCodec,
    denoiser: HybridUNet,
    config: BrainLDMConfig,
    condition_BK: np.ndarray,
    *,
    grid_vox: tuple[int, ...],
    seed: int,
) -> np.ndarray:
    """Return one sample of each condition."""
    generator = LatentGenerator(
        codec,
        denoiser,
        config.teacher,
        grid_vox=grid_vox,
        affine=centered_affine((1, 1, 1), spacing=1.0),  # nobody asks where the voxels lie
    )
    return generator.sample(SampleRequest(condition_BK, seed=seed)).image_BCDHW
