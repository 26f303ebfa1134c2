"""The canary: one small exchange with every named site before the long run, and what it tells.

It proves that each can load its scans, train and answer. From how long that took follows how long
each site is waited for in the rounds.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any, Final

from vitrael.core.configs import TrainingConfig
from vitrael.core.errors import DataError
from vitrael.core.protocols import SynthesisProtocol
from vitrael.server.studies.correspondence import Answer, ask_sites
from vitrael.server.studies.run import StageResult, StudyRun

FACTOR: Final = 5.0
"""A site may be slower than its canary told by so much: other work, a busy disk, a warm room."""
MARGIN_S: Final = 120.0
FLOOR_S: Final = 300.0
"""Below this a deadline tells of the network and not of the site."""


def try_sites(run: StudyRun) -> dict[str, Any]:
    """Stage ``canary``: every named site does a bounded piece of the real work.

    A study of experts goes on without those that cannot, as long as its quorum can.

    The document holds each site's ``deadlines`` for the rounds, and the seconds that one round is
    ``predicted`` to take at the slowest site. Raises QuorumError with each
    site's reason unless all of them answer: the coordinator mends what is named, or takes a site
    off the roster.
    """
    protocol = run.study.protocol

    def work() -> StageResult:
        everybody = len(run.members) if isinstance(protocol, SynthesisProtocol) else None
        speeds = partial(_speeds, stages=protocol.trained)
        answers = ask_sites(run, "canary", {}, check=speeds, quorum=everybody)
        deadlines: dict[str, dict[str, float]] = {}
        for stage, config in protocol.trained.items():
            deadlines[stage] = {
                site: derive_deadline(
                    config,
                    seconds_an_image=speeds(answer)[stage],
                    answered_s=answer.seconds,
                    longest_s=protocol.federation.deadline_s,
                )
                for site, answer in answers.by_site.items()
            }
        predicted = {
            stage: max(
                predict_round(config, speeds(answer)[stage], answered_s=answer.seconds)
                for answer in answers.by_site.values()
            )
            for stage, config in protocol.trained.items()
        }
        document = {"sites": answers.bodies, "deadlines": deadlines, "predicted": predicted}
        return StageResult(document, answers.details, tuple(answers.by_site))

    return run.stage("canary", {}, work)


def derive_deadline(
    config: TrainingConfig, *, seconds_an_image: float, answered_s: float, longest_s: float
) -> float:
    """Return how many seconds a site has for one round.

    Predicted are the canary's own way there and back, with the loading of the scans, and the
    round's images at the canary's speed; several times that and a margin are given, never less
    than a floor and never more than the study's longest.
    """
    predicted_s = predict_round(config, seconds_an_image, answered_s=answered_s)
    return round(min(longest_s, max(FLOOR_S, FACTOR * predicted_s + MARGIN_S)), 1)


def predict_round(config: TrainingConfig, seconds_an_image: float, *, answered_s: float) -> float:
    """Return how many seconds one round may take: the canary's way, and the round's images."""
    images = math.ceil(config.length_images / config.rounds)
    return answered_s + images * seconds_an_image


def _speeds(answer: Answer, *, stages: Collection[str]) -> dict[str, float]:
    """Return seconds an image by stage; raise DataError for what no training can have taken.

    An expert and what it is held against are one network: one piece of work tells of them all.
    """
    body: Mapping[str, Any] = answer.reply.body
    own = {"codec", "reid", "teacher"}
    parts = {stage: stage if stage in own else "expert" for stage in stages}
    speeds = {
        stage: float(body[f"{part}_s"]) / int(body[f"{part}_images"])
        for stage, part in parts.items()
    }
    if not all(math.isfinite(speed) and speed >= 0 for speed in speeds.values()):
        raise DataError(f"the canary of {answer.reply.site} tells no time")
    return speeds
