"""The federated stages: consent, codec and its scale, patient encoder, calibration, teacher."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import Any, Final

import numpy as np

from vitrael.core.configs import TrainingConfig
from vitrael.core.digest import Digest
from vitrael.core.errors import ConsentError, DataError
from vitrael.core.messages import StageName
from vitrael.core.metrics.moments import (
    Moments,
    add_moments,
    check_moments,
    correlation,
    mean_and_covariance,
)
from vitrael.core.protocols import COVARIATES, SynthesisProtocol
from vitrael.core.weights import Tensors, check_like, module_tensors
from vitrael.privacy.envelope import attachment_digests, open_consent
from vitrael.server.federation.aggregate import SiteUpdate, aggregate
from vitrael.server.studies.correspondence import (
    Answer,
    ask_sites,
    demand_admitted,
    usable_tally,
)
from vitrael.server.studies.norms import UpdateNorms
from vitrael.server.studies.run import StageResult, StudyRun

_MOST_POINTS: Final = 200
_LARGEST: Final = 1e12
"""Of what a loss curve may hold: it is drawn."""


def collect_consents(run: StudyRun) -> dict[str, Any]:
    """Stage ``consent``: every site's signed yes to this protocol with this roster.

    A run is bound to sites that said yes: without that of every named one it does not begin, and
    the coordinator may take who is missing off the roster.
    """

    def work() -> StageResult:
        everybody = len(run.members)
        answers = ask_sites(
            run, "consent", {}, check=lambda answer: _consent(run, answer), quorum=everybody
        )
        consents = {site: _consent(run, answer) for site, answer in answers.by_site.items()}
        return StageResult({"consents": consents}, answers.details, tuple(consents))

    return run.stage("consent", {}, work)


def _consent(run: StudyRun, answer: Answer) -> dict[str, Any]:
    """Return what a site consented to.

    Raises ConsentError when it is another study, when the site's version of the package may take no
    part, and when the site has taken its yes back since.
    """
    envelope = str(answer.reply.body["consent"])
    consent = open_consent(envelope.encode(), run.members[answer.reply.site])
    if (consent.protocol, consent.roster) != (run.study.protocol.digest, run.roster):
        raise ConsentError(
            f"the consent of {answer.reply.site} is for another study",
            why="its protocol or roster differs",
            fix="let the site consent to this study",
        )
    site = answer.reply.site
    demand_admitted(run, site, consent.package_version)
    withdrawn = run.standings.find_withdrawn(run.study.protocol.digest).get(site)
    if withdrawn is not None and datetime.fromisoformat(consent.given_utc) <= withdrawn:
        raise ConsentError(
            f"{site} withdrew its consent", why="it has not given another since", fix="ask the site"
        )
    counts = answer.reply.body.get("summary")
    return {"envelope": envelope, "summary": counts, **consent.model_dump(mode="json")}


def train_codec(run: StudyRun) -> Digest:
    """Stage ``codec``: federated averaging of the autoencoder; return its weights' digest."""
    from vitrael.core.models.brain_ldm import build_codec  # noqa: PLC0415 - torch

    protocol = run.study.synthesis
    start = module_tensors(build_codec(protocol.generator, seed=protocol.seed))
    config = protocol.generator.codec.training
    return train_rounds(run, "codec", "codec", run.objects.put_tensors(start), config)


def scale_latents(run: StudyRun, codec: Digest) -> dict[str, Any]:
    """Stage ``latents``: set the codec's latent scale; pool covariates and the codec's ceiling.

    The document holds the scaled ``codec``, mean and covariance of the ``condition`` (None when
    no site had enough patients to tell), and the ``ceiling``: r and n of ventricle volume before
    and after the codec. Raises DataError when the latents of all sites together have no spread.
    """

    def work() -> StageResult:
        brought = {"codec": run.objects.get_tensors(codec)}
        read = partial(_read_moments, protocol=run.study.synthesis)
        answers = ask_sites(run, "latents", brought, check=read)
        parts = [read(answer) for answer in answers.by_site.values()]
        sums = {name: add_moments([part[name] for part in parts]) for name in parts[0]}
        tensors = run.objects.get_tensors(codec)
        tensors["latent_mean"], tensors["latent_std"] = _spread(sums["latent"])
        ceiling = correlation(sums["ceiling"])
        document = {
            "codec": run.objects.put_tensors(tensors),
            "condition": _condition(sums["condition"]),
            "ceiling": {
                "r": ceiling if math.isfinite(ceiling) else None,
                "n": int(sums["ceiling"]["count"][0]),
            },
        }
        return StageResult(document, answers.details, tuple(answers.by_site))

    return run.stage("latents", {"codec": codec}, work)


def train_patient_encoder(run: StudyRun, codec: Digest) -> Digest:
    """Stage ``reid``: federated averaging of the patient encoder; return its weights' digest.

    A site with too few patients of F counts no example and is in no mean.
    """
    from vitrael.core.models.reid import build_reid_encoder  # noqa: PLC0415 - torch

    protocol = run.study.synthesis
    start = module_tensors(build_reid_encoder(protocol.reid, seed=protocol.seed, learns="visits"))
    return train_rounds(
        run,
        "reid",
        "encoder",
        run.objects.put_tensors(start),
        protocol.reid.training,
        beside={"codec": run.objects.get_tensors(codec)},
        may_pass=True,
    )


def calibrate_filters(run: StudyRun, codec: Digest, encoder: Digest) -> dict[str, Any]:
    """Stage ``calibration``: each site makes its filter and freezes its operating point.

    The patient encoder is that of all sites, the copy encoder the site's own. The filter also knows
    each training scan after the codec's round trip, as which a copy comes.
    """

    def work() -> StageResult:
        brought = {
            "codec": run.objects.get_tensors(codec),
            "encoder": run.objects.get_tensors(encoder),
        }
        answers = ask_sites(run, "calibration", brought, check=usable_tally)
        document = {"sites": answers.bodies, "envelopes": answers.envelopes}
        return StageResult(document, answers.details, tuple(answers.by_site))

    return run.stage("calibration", {"codec": codec, "encoder": encoder}, work)


def train_teacher(run: StudyRun, codec: Digest) -> Digest:
    """Stage ``teacher``: federated averaging of the denoiser; return its weights' digest."""
    from vitrael.core.models.brain_ldm import build_denoiser  # noqa: PLC0415 - torch

    protocol = run.study.synthesis
    part = protocol.generator.teacher
    start = module_tensors(build_denoiser(protocol.generator, part, seed=protocol.seed))
    return train_rounds(
        run,
        "teacher",
        "denoiser",
        run.objects.put_tensors(start),
        part.training,
        beside={"codec": run.objects.get_tensors(codec)},
    )


def train_rounds(
    run: StudyRun,
    stage: StageName,
    part: str,
    weights: Digest,
    config: TrainingConfig,
    *,
    beside: Mapping[str, Tensors] | None = None,
    may_pass: bool = False,
) -> Digest:
    """Average a network in rounds and return its weights' digest.

    ``part`` names it in tasks, replies and documents; ``beside`` goes down unchanged. With
    ``may_pass`` a site that counts no example takes part and learns nothing: what it sends is in no
    mean and in no median of distances, and where all pass the weights stay as they are.
    """
    for round_index in range(config.rounds):
        before = weights

        def work(before: Digest = before, round_index: int = round_index) -> StageResult:
            tensors = run.objects.get_tensors(before)
            attachments = {part: tensors, **(beside or {})}
            norms = UpdateNorms(run, part, before)

            def learned(arrived: Mapping[str, Answer]) -> dict[str, Answer]:
                """Return the answers that an update stands in."""
                return {s: a for s, a in arrived.items() if a.reply.num_examples or not may_pass}

            def check(answer: Answer) -> None:
                check_like(answer.get_tensors(part), tensors)
                read_curve(answer)

            answers = ask_sites(
                run,
                stage,
                attachments,
                round_index=round_index,
                check=check,
                compare=lambda arrived: norms.refuse_outliers(learned(arrived)),
            )
            updates = norms.weigh(learned(answers.by_site))
            passed = may_pass and not updates
            mean = tensors if passed else _average(run, updates, before)
            document = {part: run.objects.put_tensors(mean)}
            details = {
                **answers.details,
                **norms.details,
                "curves": {site: read_curve(answer) for site, answer in answers.by_site.items()},
            }
            return StageResult(document, details, tuple(answers.by_site))

        inputs = {"weights": before, "beside": attachment_digests(beside or {})}
        document = run.stage(stage, inputs, work, round_index=round_index)
        weights = Digest(document[part])
    return weights


def _average(run: StudyRun, updates: Mapping[str, SiteUpdate], start: Digest) -> Tensors:
    """Return one set of weights in the study's way; WeightsError when no update counts."""
    federation, path = run.study.protocol.federation, run.objects.path(start)
    return aggregate(list(updates.values()), federation, start=path)


def read_curve(answer: Answer) -> dict[str, list[float]]:
    """Return a site's loss curve; raise ValueError for one that cannot be kept and drawn."""
    body: Mapping[str, Any] = answer.reply.body
    curve = {name: list(body.get(f"curve_{name}", [])) for name in ("images", "loss")}
    if not (len(curve["images"]) == len(curve["loss"]) <= _MOST_POINTS):
        msg = "a curve has as many losses as places, and few of them"
        raise ValueError(msg)
    every = (*curve["images"], *curve["loss"])
    if not all(type(x) in (int, float) and abs(x) <= _LARGEST for x in every):
        msg = "a curve holds numbers that can be drawn"
        raise ValueError(msg)
    return {name: [float(x) for x in values] for name, values in curve.items()}


def _read_moments(answer: Answer, *, protocol: SynthesisProtocol) -> dict[str, Moments]:
    """Return the moments that a site sent; raise ValueError for what cannot be moments."""
    widths = {
        "latent": protocol.generator.codec.latent_channels,
        "condition": len(COVARIATES),
        "ceiling": 2,
    }
    sent = answer.get_tensors("moments")
    parts: dict[str, Moments] = {
        name: {key: sent.pop(f"{name}.{key}") for key in ("count", "sum", "square")}
        for name in widths
    }
    if sent:
        msg = "more was sent than the moments that were asked for"
        raise ValueError(msg)
    for name, part in parts.items():
        check_moments(part, widths[name])
    return parts


def _spread(moments: Moments) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each channel of the latents, float32."""
    if moments["count"][0]:
        mean, covariance = mean_and_covariance(moments)
        std_K = np.sqrt(np.diag(covariance).clip(min=0)).astype(np.float32)
        if (std_K > 0).all():
            return mean.astype(np.float32), std_K
    raise DataError(
        "the latents cannot be scaled",
        why="of all sites together a channel has no spread",
        fix="train the codec for longer",
    )


def _condition(moments: Moments) -> dict[str, Any] | None:
    if not moments["count"][0]:
        return None
    mean, covariance = mean_and_covariance(moments)
    return {"mean": mean.tolist(), "covariance": covariance.tolist()}
