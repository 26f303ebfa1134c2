"""Train the encoders of the filter on F and freeze the filter's operating point.

No candidate exists yet when this runs. The thresholds stay at the site; their salted digest
leaves, so that it can be shown later that they were not moved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import numpy as np

from vitrael.client.site.checkpoints import open_checkpoints
from vitrael.client.site.tasks import SiteContext, TaskResult
from vitrael.client.site.tasks.filtering import (
    LEARNS,
    forget_filter,
    join_encoders,
    new_salt,
    save_filter,
    site_template,
    study_round_trip,
)
from vitrael.client.site.tasks.networks import site_compute
from vitrael.core.data.splits import Split
from vitrael.core.messages import Task
from vitrael.core.models import SYSTEMS
from vitrael.core.models.reid import Learns, ReidEncoder, build_reid_encoder
from vitrael.core.records import PatientImages
from vitrael.core.rng import torch_stream
from vitrael.core.training.compute import Compute
from vitrael.core.training.contrastive import VisitPairs
from vitrael.core.training.copy_pairs import CopyPairs
from vitrael.core.training.loop import fit
from vitrael.core.weights import Tensors
from vitrael.privacy.leakage import SMALLEST_COUNT, bucket_of
from vitrael.privacy.reid.calibrate import (
    OperatingPoint,
    Verification,
    freeze,
    least_null_patients,
    null_matches,
    verify_encoder,
)
from vitrael.privacy.reid.gallery import build_gallery, with_round_trips
from vitrael.privacy.reid.lens import fit_lens
from vitrael.privacy.reid.template import Template, lay_onto

LEAST_TO_LEARN: Final = 2
"""Patients of F without whom there is nobody to tell apart."""


def run(task: Task, inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:
    """Return counts and how well patients are known again; ``estimable``: there is a filter.

    Too few patients to learn from, or for the asked rate, leave no operating point; the reason
    says so, and candidates will be marked unscreened. ``commitment`` names the operating point by
    its salted digest and is empty without one.
    With ``codec`` among the inputs the filter also knows scans after the autoencoder's round trip.
    """
    protocol, compute = context.study.synthesis, site_compute(context)
    device = compute.device
    training, learning, calibration = (
        context.cohort.images(split) for split in (Split.TRAINING, Split.FILTER, Split.CALIBRATION)
    )
    forget_filter(context)
    counts = {"patients.training": bucket_of(_patients(training)).least}
    if _patients(learning) < LEAST_TO_LEARN or not len(training):
        why = "too few patients in the splits for training and filter"
        body = {
            "estimable": False,
            "reason": why,
            "commitment": "",
            "metrics": {},
            "counts": counts,
        }
        return TaskResult(body=body)
    codec = inputs.get("codec")
    round_trip = study_round_trip(context, codec)
    template = site_template(learning, device=device)
    forms = with_round_trips(learning, round_trip)
    laid = _lay(forms, template)
    encoders = {learns: _train(task, learns, laid, context, compute) for learns in LEARNS}
    verification = verify_encoder(_lay(calibration, template), encoders["visits"], device=device)
    lens = fit_lens(forms, join_encoders(encoders), template, device=device)
    gallery = build_gallery(with_round_trips(training, round_trip), lens)
    null = null_matches(training, calibration, gallery, round_trip=round_trip)
    point = freeze(
        null,
        false_match_rate=protocol.screening.false_match_rate,
        gallery_patients=gallery.patients,
        salt=new_salt(),
    )
    if point is not None:
        save_filter(context, encoders, gallery, point, codec=codec)
    rate = protocol.screening.false_match_rate
    patients = 0 if null is None else len(null)
    return TaskResult(body=_body(point, verification, patients, rate, counts))


def _lay(images: PatientImages, template: Template) -> PatientImages:
    """Return images as the encoders see all images."""
    if not len(images):
        return images
    return replace(images, image_BCDHW=lay_onto(images.image_BCDHW, template))


def _train(
    task: Task, learns: Learns, laid: PatientImages, context: SiteContext, compute: Compute
) -> ReidEncoder:
    protocol = context.study.synthesis
    config = protocol.reid
    encoder = build_reid_encoder(config, seed=protocol.seed, learns=learns).to(compute.device)
    pairs = VisitPairs if learns == "visits" else CopyPairs
    fit(
        encoder,
        SYSTEMS[config.kind].objective(config, "encoder"),
        pairs(laid, device=compute.device),
        config.training,
        length_images=config.training.length_images,
        rng=torch_stream(protocol.seed, "reid", learns, context.name, device=compute.device),
        poll=context.report,
        checkpoints=open_checkpoints(task, context, compute, part=learns),
    )
    return encoder


def _body(
    point: OperatingPoint | None,
    verification: Verification,
    null_patients: int,
    rate: float,
    counts: Mapping[str, int],
) -> dict[str, object]:
    if point is None:
        least = least_null_patients(rate)
        few = str(null_patients) if null_patients >= SMALLEST_COUNT else f"under {SMALLEST_COUNT}"
        reason = f"{few} patients are too few for a rate of {rate:g}, it takes {least}"
    else:
        reason = "the operating point is frozen"
    return {
        "estimable": point is not None,
        "reason": reason,
        "commitment": "" if point is None else point.commitment,
        "metrics": {"verification.wins": round(verification.wins, 6)},
        "counts": {**counts, "verification.patients": verification.patients},
    }


def _patients(images: PatientImages) -> int:
    return len(np.unique(images.patient_B))
