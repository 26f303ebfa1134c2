"""Ceilings of ``[limits]`` in site.toml, which override any study.

They are held twice: against the study before its consent is signed, and against every task. The
outbox holds ``parcel_bytes`` and ``study_bytes`` once more, against the very bytes that are about
to go.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Final

from vitrael.client.site.settings import Limits
from vitrael.core.errors import ConsentError, DataError
from vitrael.core.messages import IN_VOTES, Consent, Task, stages_of
from vitrael.core.protocols import SynthesisProtocol
from vitrael.core.study import Study

_FLOAT_BYTES: Final = 4
_ARMS: Final = 3
"""Sets of samples that come down at once where they are compared."""


def check_study(
    consent: Consent,
    study: Study,
    limits: Limits,
    *,
    left_bytes: int,
    others: Collection[Consent] = (),
) -> None:
    """Raise ConsentError, which names the ceiling, when a study asks for more than the site gives.

    ``left_bytes`` have left for its protocol so far; ``others`` are the site's consents to other
    protocols, whose privacy budgets count together with this one's.
    """
    most = limits.rounds
    if most is not None and consent.max_rounds > most:
        raise _too_much(
            "rounds",
            f"the study asks for {consent.max_rounds} rounds of a stage and {most} are allowed",
            fix=f"run `vitrael site consent STUDY --rounds {most}`, which ends it there, or raise",
        )
    wanted = stages_of(study.protocol)
    given = wanted if limits.stages is None else limits.stages
    if missing := sorted(set(wanted) - set(given)):
        raise _too_much(
            "stages", f"the study asks for {', '.join(missing)} as well", fix="add them to"
        )
    _check_whole(consent, study, limits, left_bytes=left_bytes, others=others)


def check_task(
    task: Task,
    study: Study,
    limits: Limits,
    *,
    consent: Consent,
    left_bytes: int,
    others: Collection[Consent] = (),
) -> None:
    """Raise ConsentError, which names the ceiling, for a task beyond what the site gives.

    ``consent`` is the one that covers the task; the others are as ``check_study`` takes them. A
    stage that this study does not have is refused as well.
    """
    if task.stage not in stages_of(study.protocol):
        arms = task.stage == "arms" and isinstance(study.protocol, SynthesisProtocol)
        raise ConsentError(
            f"the study that was consented to has no stage {task.stage}",
            why="it compares no arms" if arms else f"its aim is {study.protocol.aim}",
            fix="ask for a stage of the study",
        )
    if limits.stages is not None and task.stage not in limits.stages:
        raise _too_much("stages", f"{task.stage} is not among them", fix="add it to")
    counted = task.stage not in IN_VOTES
    if counted and limits.rounds is not None and task.round >= limits.rounds:
        raise _too_much(
            "rounds", f"round {task.round + 1} of {task.stage} is more than {limits.rounds}"
        )
    _check_whole(consent, study, limits, left_bytes=left_bytes, others=others)


def _check_whole(
    consent: Consent,
    study: Study,
    limits: Limits,
    *,
    left_bytes: int,
    others: Collection[Consent],
) -> None:
    """Hold the ceilings that are the same at the consent and at each task."""
    check_roster(study, limits)
    if isinstance(study.protocol, SynthesisProtocol):
        _check_candidates(study.protocol, limits)
    check_left(limits, left_bytes=left_bytes)
    check_epsilon(consent, limits, others=others)


def check_votes(task: Task, study: Study, *, asked: int | None, given: int) -> None:
    """Raise DataError for a task that would cost more votes than the study may have of a site.

    ``asked`` images are to be judged, None in a stage without votes; on ``given`` a vote was given
    for this protocol before, in all rounds of the stage and with all rosters.
    """
    if asked is None:
        return
    most = study.synthesis.distillation.most_votes[task.stage]
    if asked < 1 or given + asked > most:
        raise DataError(
            f"the task asks for more votes than the study has: {task.stage}",
            why=f"{asked} after {given}, of at most {most} of this site",
            fix="start a fresh study, with a teacher that copies less",
        )


def _check_candidates(protocol: SynthesisProtocol, limits: Limits) -> None:
    wanted = protocol.distillation
    candidates = max(wanted.target, wanted.released, _ARMS * wanted.compared)
    parcel = candidates * math.prod(protocol.data.grid_vox) * _FLOAT_BYTES
    if parcel > limits.parcel_bytes:
        raise _too_much(
            "parcel_bytes",
            f"the study sends {parcel} bytes of candidates and {limits.parcel_bytes} are allowed",
        )


def check_roster(study: Study, limits: Limits) -> None:
    """Raise ConsentError when too few sites take part: one of few is easily told apart."""
    sites = len(study.roster.sites)
    if sites < limits.smallest_roster:
        raise _too_much(
            "smallest_roster",
            f"the study has {sites} sites and {limits.smallest_roster} must be",
            fix="lower",
        )


def check_left(limits: Limits, *, left_bytes: int, more_bytes: int = 1) -> None:
    """Raise ConsentError when more would leave for a protocol than may."""
    most = limits.study_bytes
    if most is not None and left_bytes + more_bytes > most:
        raise _too_much(
            "study_bytes",
            f"{left_bytes} bytes have left for it, {more_bytes} more would, and {most} may",
        )


def check_epsilon(consent: Consent, limits: Limits, *, others: Collection[Consent]) -> None:
    """Raise ConsentError when a dp study would exceed the privacy budget of this site.

    One whose budget is not told exceeds every ceiling, this one's or an earlier one's.
    """
    if limits.epsilon is None or consent.privacy.path != "dp":
        return
    asked = consent.privacy.epsilon
    given = [other.privacy.epsilon for other in others if other.privacy.path == "dp"]
    spent = math.inf if None in given else sum(budget or 0 for budget in given)
    if asked is None or spent + asked > limits.epsilon:
        told = "an epsilon that is not told" if asked is None else f"epsilon {asked:g}"
        raise _too_much(
            "epsilon", f"the study asks for {told}, {spent:g} of {limits.epsilon:g} are given away"
        )


def _too_much(ceiling: str, why: str, *, fix: str = "raise") -> ConsentError:
    return ConsentError(
        f"the study asks for more than this site allows: limits.{ceiling} in site.toml",
        why=why,
        fix=f"{fix} limits.{ceiling} if this site's operator intends it",
    )
