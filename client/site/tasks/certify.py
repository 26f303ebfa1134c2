"""Plant copies of the site's own patients and show them to the filter that has voted.

Plants live in this process for the length of one audit. What stays in the site's records is the
list of their salted digests, signed, and nothing on it may be in the release.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from vitrael.client.site.tasks import SiteContext
from vitrael.client.site.tasks.filtering import new_salt, study_round_trip
from vitrael.client.site.tasks.networks import load_codec, site_compute
from vitrael.client.site.tasks.screen import choose_filter
from vitrael.core.data.splits import Split
from vitrael.core.digest import write_atomically
from vitrael.core.geometry import centered_affine
from vitrael.core.models.brain_ldm import LatentGenerator, build_denoiser
from vitrael.core.models.nets.autoencoder import KLCodec
from vitrael.core.protocols import COVARIATES
from vitrael.core.records import PatientImages
from vitrael.core.rng import stream, stream_seed
from vitrael.core.weights import Tensors, load_weights
from vitrael.privacy.audit.certify import certify_filter
from vitrael.privacy.audit.planting import PlantList, demand_absent, sign_plants
from vitrael.privacy.audit.plants import VOLUME_PLANTS, Means, PlantClass, Sources, draw_sources
from vitrael.privacy.audit.plants.latent import blend_in, renoise_with
from vitrael.privacy.audit.plants.negatives import draw_negatives
from vitrael.privacy.audit.plants.overtrained import COURSE, Course, memorize
from vitrael.privacy.audit.power import Certificate, Tally, show_to_filter
from vitrael.privacy.evidence import NEGATIVE_KINDS
from vitrael.privacy.leakage import split_plants
from vitrael.privacy.reid.calibrate import first_visits
from vitrael.privacy.reid.roles import Keep
from vitrael.privacy.reid.screen import Screener
from vitrael.privacy.suite import LEAST_SOURCES

PLANTED: Final = "planted"
"""Name of the list of plants and of its signature among the records, without their suffixes."""
_AGE, _SEX = COVARIATES.index("age_years"), COVARIATES.index("sex")
_MIDDLE: Final = 0.5
"""Of a covariate on its range from 0 to 1."""


@dataclass(frozen=True, slots=True)
class Tested:
    """What came of the test of one filter."""

    certificate: Certificate
    fresh: Tally
    plants_absent: int
    """Distinct plants that were compared with the release; 0: nothing was planted."""


def certify(
    context: SiteContext,
    released_BCDHW: np.ndarray,
    *,
    codec: Tensors | None,
    denoiser: Tensors | None,
    told: Callable[[int, int], None],
) -> Tested:
    """Return what the site's filter, as it is configured, does with plants and fresh patients.

    A filter that should be on and could not be calibrated is shown nothing: its power is not
    known to be zero, it is not known. One that is off catches nothing. Raises VerificationError
    when a planted copy is among the released images.
    """
    keep, why = choose_filter(context)
    study = context.study
    if why and study.synthesis.screening.enabled:
        nothing = dict.fromkeys(VOLUME_PLANTS, Tally(0, 0))
        return Tested(Certificate(plants=nothing), Tally(0, 0), 0)
    training, fresh = (context.cohort.images(s) for s in (Split.TRAINING, Split.AUDIT))
    count = split_plants(study.synthesis.audit.plants_per_class, len(study.roster.sites))
    seed = stream_seed(study.protocol.seed, "audit", "plants", context.name)
    sources = draw_sources(training, count, rng=stream(seed, "sources"), strangers=fresh)
    negatives = draw_negatives(
        fresh, training, count, rng=stream(seed, "negatives"), categorical=(_SEX,)
    )
    # A candidate comes out of the autoencoder, and so do patients who are no plants; an average is
    # no patient, and is shown as it is.
    come = study_round_trip(context, codec) or np.asarray
    negatives = {
        kind: negatives[kind] if kind == "template" else come(negatives[kind])
        for kind in NEGATIVE_KINDS
    }
    firsts = come(fresh.image_BCDHW[first_visits(fresh)])
    certificate, planted = certify_filter(
        keep,
        sources,
        _means(context, sources, keep, codec=codec, denoiser=denoiser, seed=seed),
        table=_table(study.synthesis.audit.suite),
        keep_others=_without_visits(keep, sources, training),
        negatives=negatives,
        genuine_BCDHW=np.concatenate([released_BCDHW, firsts]),
        subgroup_PG=_subgroups(sources.condition_PK),
        salt=new_salt(),
        rng=stream(seed, "plants"),
        told=told,
    )
    seen = show_to_filter({"fresh": firsts}, keep)["fresh"]
    return Tested(certificate, seen, _prove_absence(planted, released_BCDHW, context))


def _table(suite: str) -> dict[str, PlantClass]:
    return {name: plant for name, plant in VOLUME_PLANTS.items() if suite == "all" or plant.must}


def _means(
    context: SiteContext,
    sources: Sources,
    keep: Keep,
    *,
    codec: Tensors | None,
    denoiser: Tensors | None,
    seed: int,
) -> Means:
    """Return the study's own autoencoder and teacher, and the encoder that steps are taken against.

    What is missing leaves classes unplanted; no second contrast is at hand, and there is no video.
    """
    # The coordinator has made this encoder: it is the one that an attacker can step against.
    embedder = keep.gallery.lens.encoders.patient if isinstance(keep, Screener) else None
    if codec is None:
        return Means(embedder=embedder)
    protocol, compute = context.study.synthesis, site_compute(context)
    network = load_codec(context, codec, compute.device)
    renoise = None
    if denoiser is not None:
        system, grid_vox = protocol.generator, protocol.data.grid_vox
        teacher = build_denoiser(system, system.teacher, seed=protocol.seed)
        load_weights(teacher, denoiser)
        generator = LatentGenerator(
            network,
            teacher.to(compute.device),
            system.teacher,
            grid_vox=grid_vox,
            affine=centered_affine(grid_vox, spacing=protocol.data.spacing_mm),
            bf16=compute.bf16,
        )
        renoise = renoise_with(generator, sources.condition_PK, seed=seed)
    return Means(
        round_trip=study_round_trip(context, codec),
        renoise=renoise,
        latent_blend=blend_in(network),
        memorized_BCDHW=_memorized(context, network, denoiser, seed=seed),
        embedder=embedder,
    )


def _memorized(
    context: SiteContext, codec: KLCodec, denoiser: Tensors | None, *, seed: int
) -> np.ndarray | None:
    """Return what an over-trained model has by heart of this site's share of patients, or None.

    All sites together plant samples of ``LEAST_SOURCES`` patients, or more.
    """
    study = context.study
    most_images = study.synthesis.audit.memorize_images
    if not most_images:
        return None
    wanted = split_plants(LEAST_SOURCES, len(study.roster.sites))
    course = Course(
        most_images=most_images,
        stretch_images=min(COURSE.stretch_images, most_images),
        patients=max(wanted, round(wanted * COURSE.patients / COURSE.wanted)),
        wanted=wanted,
    )
    harvest = memorize(
        context.cohort.images(Split.TRAINING),
        codec,
        study.synthesis.generator,
        seed=seed,
        weights=denoiser,
        course=course,
        device=site_compute(context).device,
        poll=context.report,
    )
    return harvest.image_MCDHW if harvest.sources else None


def _without_visits(keep: Keep, sources: Sources, training: PatientImages) -> Keep:
    """Return the filter whose gallery lacks, for each other visit, the very scan that it is."""
    rows_V = sources.visit_row_V
    if rows_V is None or not isinstance(keep, Screener):
        return keep

    def keep_others(image_VCDHW: np.ndarray) -> np.ndarray:
        # The gallery holds the training scans in order, once or, after the autoencoder, twice.
        scan_N = np.arange(len(keep.gallery.patient_N)) % len(training)
        return keep.keep_allowed(image_VCDHW, scan_N[None, :] != rows_V[:, None])

    return keep_others


def _subgroups(condition_PK: np.ndarray) -> np.ndarray:
    """Return ``[P, 2]``: sex and half of the study's ages, by name."""
    sex_P = np.where(condition_PK[:, _SEX] < _MIDDLE, "female", "male")
    age_P = np.where(condition_PK[:, _AGE] < _MIDDLE, "younger", "older")
    return np.stack([sex_P, age_P], axis=1)


def _prove_absence(planted: PlantList, released_BCDHW: np.ndarray, context: SiteContext) -> int:
    """Keep the signed list and return how many plants are on it; none is in the release."""
    if not planted.ids:
        return 0
    protocol = context.study.protocol.digest
    envelope = sign_plants(planted, context.keys.signing, site=context.name, protocol=protocol)
    write_atomically(context.records / f"{PLANTED}.json", planted.to_bytes())
    write_atomically(context.records / f"{PLANTED}.sig", envelope)
    return demand_absent(planted, released_BCDHW).plants
