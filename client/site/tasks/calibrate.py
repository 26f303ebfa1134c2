"""Train the filter's copy encoder on F and freeze the filter's operating point.

The patient encoder comes with the task: the sites have trained it together. No candidate exists yet
when this runs. The thresholds stay at the site; their salted digest leaves, so that it can be shown
later that they were not moved.
"""

from __future__ import annotations

from collections.abc import Mapping

from vitrael.client.site.checkpoints import open_checkpoints
from vitrael.client.site.tasks import SiteContext, TaskResult
from vitrael.client.site.tasks.filtering import (
    Learning,
    forget_filter,
    forget_learning,
    join_encoders,
    lay_images,
    name_made_with,
    new_salt,
    save_filter,
    see_learning,
    study_encode,
    study_round_trip,
)
from vitrael.client.site.tasks.networks import site_compute
from vitrael.core.data.splits import Split
from vitrael.core.messages import Task
from vitrael.core.models.reid import Learns, ReidEncoder, build_reid_encoder
from vitrael.core.rng import torch_stream
from vitrael.core.training.compute import Compute
from vitrael.core.weights import Tensors, load_weights
from vitrael.privacy.leakage import SMALLEST_COUNT, bucket_of
from vitrael.privacy.reid.calibrate import (
    OperatingPoint,
    Verification,
    freeze,
    least_null_patients,
    null_matches,
    verify_encoder,
)
from vitrael.privacy.reid.encoders import FEWEST_PATIENTS, count_patients, train_encoder
from vitrael.privacy.reid.gallery import build_gallery, with_round_trips
from vitrael.privacy.reid.lens import fit_lens


def run(task: Task, inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:
    """Return counts and how well patients are known again; ``estimable``: there is a filter.

    Too few patients to learn from, or for the asked rate, leave no operating point; the reason
    says so, and candidates will be marked unscreened. ``commitment`` names the operating point by
    its salted digest and is empty without one.
    ``encoder`` among the inputs is the patient encoder that the sites have trained; with ``codec``
    the filter also knows scans after the autoencoder's round trip.
    """
    protocol, compute = context.study.synthesis, site_compute(context)
    device = compute.device
    training, learning, calibration = (
        context.cohort.images(split) for split in (Split.TRAINING, Split.FILTER, Split.CALIBRATION)
    )
    forget_filter(context)
    counts = {"patients.training": bucket_of(count_patients(training)).least}
    if count_patients(learning) < FEWEST_PATIENTS or not len(training):
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
    seen = see_learning(task, inputs, context)
    encoders: dict[Learns, ReidEncoder] = {
        "visits": _load_patient_encoder(inputs["encoder"], context, compute),
        "copies": _train_copy_encoder(task, seen, context, compute),
    }
    forget_learning(context)
    laid = lay_images(calibration, seen.template)
    verification = verify_encoder(laid, encoders["visits"], device=device)
    lens = fit_lens(
        seen.forms,
        join_encoders(encoders),
        seen.template,
        encode=study_encode(context, codec),
        device=device,
    )
    gallery = build_gallery(with_round_trips(training, round_trip), lens)
    null = null_matches(training, calibration, gallery, round_trip=round_trip)
    point = freeze(
        null,
        false_match_rate=protocol.screening.false_match_rate,
        gallery_patients=gallery.patients,
        made_with=name_made_with(context, encoders, codec),
        salt=new_salt(),
    )
    if point is not None:
        save_filter(context, encoders, gallery, point, codec=codec)
    rate = protocol.screening.false_match_rate
    patients = 0 if null is None else len(null)
    return TaskResult(body=_body(point, verification, patients, rate, counts))


def _load_patient_encoder(tensors: Tensors, context: SiteContext, compute: Compute) -> ReidEncoder:
    protocol = context.study.synthesis
    encoder = build_reid_encoder(protocol.reid, seed=protocol.seed, learns="visits")
    load_weights(encoder, tensors)
    return encoder.to(compute.device)


def _train_copy_encoder(
    task: Task, seen: Learning, context: SiteContext, compute: Compute
) -> ReidEncoder:
    protocol = context.study.synthesis
    encoder = build_reid_encoder(protocol.reid, seed=protocol.seed, learns="copies")
    encoder.to(compute.device)
    train_encoder(
        encoder,
        seen.laid,
        protocol.reid,
        learns="copies",
        rng=torch_stream(protocol.seed, "reid", "copies", context.name, device=compute.device),
        device=compute.device,
        poll=context.report,
        checkpoints=open_checkpoints(task, context, compute),
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
