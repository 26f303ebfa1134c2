"""A phantom site whose filter is certified: its splits, its study's models, and its filter.

Codec and denoisers are those of the preset ``cpu-3d``, with lengths of their own. All is made once
a process, by whoever asks first.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from tests.factories.filter_power import Hospital
from tests.factories.trained import VOLUME_RANGES, VOLUME_SPACING_MM, Trained, begin
from vitrael.core.configs import BrainLDMConfig
from vitrael.core.data.measure import measure_volumes
from vitrael.core.data.phantoms.cohorts import draw_scan
from vitrael.core.models import SYSTEMS
from vitrael.core.models.brain_ldm import build_denoiser, draw_latents
from vitrael.core.records import PatientImages, SampleRequest
from vitrael.core.rng import stream, torch_stream
from vitrael.core.training.loop import fit
from vitrael.core.weights import module_tensors
from vitrael.privacy.audit.plants import Sources, draw_sources
from vitrael.privacy.audit.plants.overtrained import Overtrained, overtrain
from vitrael.privacy.reid.screen import Screener

EDGE_VOX = 24
SEED = 31
_TRAINING, _VISITS = 300, 2
_LEARNING, _CALIBRATION, _STRANGERS, _FRESH, _OTHERS = 32, 52, 150, 300, 300
_CODEC_IMAGES, _ENCODER_IMAGES, _TEACHER_IMAGES = 8_000, 3_000, 10_000
_CHUNK = 64


def draw_conditioned(name: str, count: int, *, visits: int, seed: int = 7) -> PatientImages:
    """Return phantom patients at 24 cubed with their conditions: measured, and in [0, 1]."""
    grid = (EDGE_VOX, EDGE_VOX, EDGE_VOX)
    images, facts = [], []
    for patient in range(count):
        for visit in range(visits):
            scan, age, sex = draw_scan(
                seed, name, patient, visit, grid_vox=grid, spacing_mm=VOLUME_SPACING_MM
            )
            image = np.clip(scan.image_CDHW, 0, 1)
            ventricle_ml, brain_ml = measure_volumes(image[None], scan.affine)
            images.append(image)
            facts.append((age, sex, ventricle_ml[0], brain_ml[0]))
    low, high = VOLUME_RANGES.T
    condition = np.clip((np.array(facts) - low) / (high - low), 0, 1).astype(np.float32)
    return PatientImages(
        np.stack(images),
        condition,
        np.repeat(np.arange(count), visits),
        np.tile(np.arange(visits), count),
    )


def rows_of(images: PatientImages, rows: np.ndarray) -> PatientImages:
    """Return some of the images."""
    return PatientImages(
        images.image_BCDHW[rows],
        images.condition_BK[rows],
        images.patient_B[rows],
        images.visit_B[rows],
    )


def learn_codec(image_BCDHW: np.ndarray, *, seed: int, length_images: int) -> Trained:
    """Return a model whose codec has learned; its denoiser has not."""
    edges = (EDGE_VOX, EDGE_VOX, EDGE_VOX)
    model = begin("cpu-3d", edges, VOLUME_SPACING_MM, VOLUME_RANGES, seed=seed)
    shown, codec = torch.from_numpy(image_BCDHW), model.codec
    part = model.config.codec.training.model_copy(update={"length_images": length_images})

    def draw(count: int, rng: torch.Generator) -> torch.Tensor:
        return shown[torch.randint(len(shown), (count,), generator=rng)]

    objective = SYSTEMS[model.config.kind].objective(model.config, "codec")
    rng = torch_stream(seed, "codec training")
    fit(codec, objective, draw, part, length_images=length_images, rng=rng)
    with torch.no_grad():
        mean = torch.cat([codec.posterior(part)[0] for part in shown.split(_CHUNK)])
        codec.latent_mean.copy_(mean.mean((0, 2, 3, 4)))
        codec.latent_std.copy_(mean.std((0, 2, 3, 4)))
    return model


def learn_denoiser(
    model: Trained,
    image_BCDHW: np.ndarray,
    condition_BK: np.ndarray,
    *,
    seed: int,
    length_images: int,
    by_heart: bool = False,
) -> Trained:
    """Return the model with a denoiser that learned from these images, from fresh weights.

    ``by_heart`` is without what keeps a network from learning images by heart.
    """
    config = _by_heart(model.config, length_images) if by_heart else model.config
    with torch.no_grad():
        parts = torch.from_numpy(image_BCDHW).split(_CHUNK)
        latents = torch.cat([model.codec.encode(part) for part in parts])
    denoiser = build_denoiser(config, config.teacher, seed=seed)
    part = config.teacher.training.model_copy(update={"length_images": length_images})
    fit(
        denoiser,
        SYSTEMS[config.kind].objective(config, "teacher"),
        draw_latents(latents, torch.from_numpy(condition_BK)),
        part,
        length_images=length_images,
        rng=torch_stream(seed, "denoiser training"),
    )
    return dataclasses.replace(model, config=config, denoiser=denoiser)


def _by_heart(config: BrainLDMConfig, length_images: int) -> BrainLDMConfig:
    """Return the config with smaller steps, and so more, every condition told, no long average."""
    little = length_images // 20
    settled = {"batch_images": 8, "warmup_images": little, "ema_halflife_images": little}
    training = config.teacher.training.model_copy(update=settled)
    part = config.teacher.model_copy(update={"training": training, "condition_dropout": 0.0})
    return config.model_copy(update={"teacher": part})


def sample_of(model: Trained, condition_BK: np.ndarray, *, seed: int) -> np.ndarray:
    """Return one sample for each condition."""
    return model.generator().sample(SampleRequest(condition_BK, seed=seed)).image_BCDHW


@dataclass(frozen=True)
class Certified:
    """A site, the models of its study, and its filter."""

    hospital: Hospital
    """Its training split is the gallery: one scan of each patient."""
    sources: Sources
    """Every patient of the gallery by the scan that is in it; the other visit is not."""
    others: PatientImages
    """Patients of another site, from whom the codec has learned as well."""
    model: Trained
    """With a denoiser that learned from the gallery."""
    screener: Screener


@cache
def certified_site() -> Certified:
    """Return the site; its filter was frozen before any plant was made."""
    both = draw_conditioned("T", _TRAINING, visits=_VISITS)
    strangers = draw_conditioned("S", _STRANGERS, visits=1)
    sources = draw_sources(both, _TRAINING, rng=stream(SEED, "sources"), strangers=strangers)
    assert sources.visit_row_V is not None
    gallery = rows_of(both, np.setdiff1d(np.arange(len(both)), sources.visit_row_V))
    hospital = Hospital(
        training=gallery,
        learning=draw_conditioned("F", _LEARNING, visits=2),
        calibration=draw_conditioned("C", _CALIBRATION, visits=1),
        strangers=strangers,
        fresh=draw_conditioned("A", _FRESH, visits=1),
    )
    others = draw_conditioned("O", _OTHERS, visits=1)
    shown = np.concatenate([gallery.image_BCDHW, others.image_BCDHW])
    blank = learn_codec(shown, seed=SEED, length_images=_CODEC_IMAGES)

    encoders = hospital.encoders(_ENCODER_IMAGES, seed=SEED)
    return Certified(
        hospital=hospital,
        sources=sources,
        others=others,
        model=_learn(blank, gallery, seed=SEED),
        screener=hospital.screener(encoders, round_trip=blank.reconstruct, encode=blank.encode),
    )


@cache
def disjoint_model() -> Trained:
    """Return the site's model with a denoiser that learned from patients of another site alone."""
    site = certified_site()
    return _learn(site.model, site.others, seed=SEED + 1)


@cache
def knows_by_heart() -> Overtrained:
    """Return a network that knows patients of the site's gallery by heart: the teacher, gone on."""
    site = certified_site()
    return overtrain(
        site.hospital.training,
        site.model.codec,
        site.model.config,
        seed=SEED,
        weights=module_tensors(site.model.denoiser),
    )


def _learn(model: Trained, images: PatientImages, *, seed: int) -> Trained:
    return learn_denoiser(
        model, images.image_BCDHW, images.condition_BK, seed=seed, length_images=_TEACHER_IMAGES
    )
