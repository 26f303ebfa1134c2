"""Count whom an attacker of the site's own knows again among samples of the three arms.

It is a network of another shape than the filter's, trained for this task and forgotten after it.
Which samples it takes for a patient stays here; counts leave, once a protocol and roster.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vitrael.client.site.checkpoints import open_checkpoints
from vitrael.client.site.tasks import SiteContext, TaskResult
from vitrael.client.site.tasks.filtering import (
    demand_same_codec,
    name_members,
    study_round_trip,
)
from vitrael.client.site.tasks.networks import site_compute
from vitrael.client.site.tasks.screen import read_images
from vitrael.core.data.splits import Split
from vitrael.core.errors import DataError
from vitrael.core.messages import Task
from vitrael.core.models.reid import ReidEncoder, build_reid_encoder
from vitrael.core.records import PatientImages
from vitrael.core.rng import stream_seed, torch_stream
from vitrael.core.weights import Tensors
from vitrael.privacy.audit.arm_counts import ArmCounts, count_arms, write_counts
from vitrael.privacy.audit.arms import ARMS, Arms
from vitrael.privacy.audit.attacker import (
    arm_attacker,
    as_drawn,
    attacker_config,
    join_strangers,
    name_network,
)
from vitrael.privacy.leakage import SMALLEST_COUNT
from vitrael.privacy.reid.encoders import FEWEST_PATIENTS, count_patients, train_encoder
from vitrael.privacy.reid.gallery import with_round_trips
from vitrael.privacy.reid.roles import RoundTrip

_STRANGERS = (Split.CALIBRATION, Split.UTILITY)
"""Patients whom neither generator nor attacker has learned from."""
_FEW = f"under {SMALLEST_COUNT} training or sealed patients, or too few to train an attacker"
_NO_POINT = "too few patients for an attacker's operating point at the asked rate"


def run(task: Task, inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:
    """Return counts over the samples of ``arms``, and over the site's sealed patients.

    ``estimable`` is false, and nothing is counted, where too few patients are there to learn from,
    to be known or to be strangers. The attacker learns from F and knows T; strangers of C and U say
    from where on it is sure, and those of A, whom nobody has met, how often it errs then.

    Raises DataError for another number of samples than the study compares, for arms that are not
    paired, and for another codec than the one of the calibration: nothing is told of them.
    """
    arms = _read_arms(inputs["arms"], context)
    demand_same_codec(context, inputs.get("codec"))
    round_trip = study_round_trip(context, inputs.get("codec"))
    counts, why = _count(task, arms, round_trip, context)
    return TaskResult(body=write_counts(counts, reason=why))


def _read_arms(tensors: Tensors, context: SiteContext) -> Arms:
    if tensors.keys() != set(ARMS):
        raise DataError("the task does not bring three arms", why=f"these are {', '.join(ARMS)}")
    images = [read_images({"image": tensors[arm]}, context) for arm in ARMS]
    asked = context.study.synthesis.distillation.compared
    if any(len(one) != asked for one in images):
        raise DataError(
            "the task brings another number of samples than the study compares",
            why=f"{asked} of each arm are compared",
            fix="send as many of each",
        )
    return Arms(*(np.clip(one, 0, 1) for one in images))


def _count(
    task: Task, arms: Arms, round_trip: RoundTrip | None, context: SiteContext
) -> tuple[ArmCounts | None, str]:
    """Return what is counted, or nothing and why."""
    cohort, protocol = context.cohort, context.study.synthesis
    learning, training, sealed = (
        cohort.images(split) for split in (Split.FILTER, Split.TRAINING, Split.AUDIT)
    )
    few = min(count_patients(training), count_patients(sealed)) < SMALLEST_COUNT
    if few or count_patients(learning) < FEWEST_PATIENTS:
        return None, _FEW
    encoder = _train(task, with_round_trips(learning, round_trip), context)
    attacker = arm_attacker(
        encoder,
        training,
        join_strangers([cohort.images(split) for split in _STRANGERS]),
        rate=protocol.screening.false_match_rate,
        round_trip=round_trip,
        device=site_compute(context).device,
    )
    if attacker is None:
        return None, _NO_POINT
    counts = count_arms(
        arms,
        attacker,
        held_out=as_drawn(sealed, round_trip),
        attacker=name_network(encoder),
        members=name_members(context),
    )
    return counts, ""


def _train(task: Task, forms: PatientImages, context: SiteContext) -> ReidEncoder:
    protocol, compute = context.study.synthesis, site_compute(context)
    config = attacker_config(protocol.reid)
    encoder = build_reid_encoder(config, seed=stream_seed(protocol.seed, "arms", context.name))
    encoder.to(compute.device)
    train_encoder(
        encoder,
        forms,
        config,
        learns="visits",
        rng=torch_stream(protocol.seed, "arms", context.name, device=compute.device),
        device=compute.device,
        poll=context.report,
        checkpoints=open_checkpoints(task, context, compute),
    )
    return encoder
