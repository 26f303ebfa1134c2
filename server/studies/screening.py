"""Screening in rounds: what is shown to every site, what all of them kept, and of whom.

A round is a stage of its own, persisted and asked once. Its document says ``keep``, the rows that
every site kept that voted; ``kept``, how many each of them did; and how many rows are
``unscreened`` because not every site could judge them: those stay in a rehearsal, and the gate on
``screening.done`` refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from vitrael.core.data.conditions import unscale_conditions
from vitrael.core.data.synthetic import synthetic_set
from vitrael.core.digest import Digest
from vitrael.core.errors import WeightsError
from vitrael.core.geometry import centered_affine
from vitrael.core.messages import StageName
from vitrael.core.protocols import COVARIATES, Data
from vitrael.core.records import Samples
from vitrael.core.weights import Tensors
from vitrael.privacy.audit.arms import measure_acceptance
from vitrael.privacy.audit.power import Tally
from vitrael.privacy.audit.tallies import check_drops, check_vote
from vitrael.privacy.distill import Phase
from vitrael.privacy.evidence import Measurement
from vitrael.privacy.release.bundle import image_files
from vitrael.server.studies.correspondence import Answer, ask_sites, usable_tally
from vitrael.server.studies.run import StageResult, StudyRun

DRAWN_IN: Final[Mapping[Phase, str]] = {"candidates": "candidates", "samples": "samples"}
"""The stage in which the images of a phase are drawn."""
JUDGED_IN: Final[Mapping[Phase, StageName]] = {
    "candidates": "screening",
    "samples": "rescreening",
}
_AGES: Final = ((40, "under 40"), (60, "40 to 59"), (80, "60 to 79"), (np.inf, "80 or older"))
"""Years below which a band ends, and its name."""


def screen_candidates(
    run: StudyRun, *, candidates: Mapping[str, Any], calibration: Mapping[str, Any], number: int = 0
) -> dict[str, Any]:
    """Stage ``screening``: every site votes on a round of candidates."""

    def bring() -> Mapping[str, Tensors]:
        return {"candidates": run.objects.get_tensors(Digest(candidates["images"]))}

    return _screen(run, "candidates", candidates, bring, calibration=calibration, number=number)


def screen_samples(
    run: StudyRun,
    *,
    samples: Mapping[str, Any],
    student: Digest,
    calibration: Mapping[str, Any],
    number: int = 0,
) -> dict[str, Any]:
    """Stage ``rescreening``: every site votes on a round of samples, as they would be released.

    They are sent as the very files of a release: what these lose, the votes are given without. A
    site judges them in the order of their names, so each is named by its row.
    """

    def bring() -> Mapping[str, Tensors]:
        files = sample_files(run, samples, student=student)
        named = {f"{row:09d}": files[path] for row, path in enumerate(files)}
        return {"samples": {name: np.frombuffer(data, np.uint8) for name, data in named.items()}}

    return _screen(run, "samples", samples, bring, calibration=calibration, number=number)


def sample_files(run: StudyRun, samples: Mapping[str, Any], *, student: Digest) -> dict[str, bytes]:
    """Return a round's samples as image files, in their order."""
    data = run.study.synthesis.data
    drawn = Samples(
        run.objects.get_tensors(Digest(samples["images"]))["image"],
        run.objects.get_tensors(Digest(samples["conditions"]))["condition"],
        centered_affine(data.grid_vox, spacing=data.spacing_mm),
    )
    return image_files(
        synthetic_set(
            drawn, seed=samples["seed"], generator=student, data=data, first=samples["first"]
        )
    )


def _screen(
    run: StudyRun,
    phase: Phase,
    drawn: Mapping[str, Any],
    bring: Callable[[], Mapping[str, Tensors]],
    *,
    calibration: Mapping[str, Any],
    number: int,
) -> dict[str, Any]:
    count, stage = int(drawn["count"]), JUDGED_IN[phase]

    def work() -> StageResult:
        frozen = calibration["sites"]

        def check(answer: Answer) -> None:
            usable_tally(answer)
            _votes(answer, count)
            site = answer.reply.site
            check_vote(site, answer.reply.body, frozen.get(site, {}))
            if answer.reply.body.get("estimable"):
                before = tally_votes(run.documents(stage)[:number]).get(site, Tally(0, 0))
                dropped = before.dropped + int((~_votes(answer, count)).sum())
                chance = run.study.synthesis.screening.extra_rejections
                check_drops(site, Tally(before.shown + count, dropped), chance=chance)

        answers = ask_sites(run, stage, bring(), round_index=number, check=check)
        keep = np.ones(count, dtype=bool)
        kept: dict[str, int] = {}
        for site, answer in answers.by_site.items():
            votes = _votes(answer, count)
            keep &= votes
            kept[site] = int(votes.sum())
        sites = answers.bodies
        judged = len(sites) == len(run.members) and all(s.get("estimable") for s in sites.values())
        document = {
            "keep": [int(i) for i in np.flatnonzero(keep)],
            "kept": kept,
            "sites": sites,
            "envelopes": answers.envelopes,
            "unscreened": 0 if judged else count,
            "count": count,
        }
        details = {**answers.details, "kept": int(keep.sum()), "of": count}
        return StageResult(document, details, tuple(sites))

    inputs = {phase: drawn, "calibration": calibration}
    return run.stage(stage, inputs, work, round_index=number)


def _votes(answer: Answer, count: int) -> np.ndarray:
    votes = answer.get_tensors("votes").get("keep")
    said = answer.reply.body["counts"]["candidates"]  # type: ignore[call-overload,index]
    if votes is None or votes.shape != (count,) or said != count:
        raise WeightsError(
            f"the votes of {answer.reply.site} are refused",
            why=f"there must be one for each of the {count} images",
        )
    return votes.astype(bool)


def keep_of(document: Mapping[str, Any]) -> np.ndarray:
    """Return ``[B]`` bool: the rows of a round that were kept."""
    keep = np.zeros(int(document["count"]), dtype=bool)
    keep[np.array(document["keep"], dtype=int)] = True
    return keep


def votes_before(run: StudyRun) -> dict[Phase, int]:
    """Return on how many images a site may have voted already, with rosters before this one."""
    given: dict[Phase, int] = {"candidates": 0, "samples": 0}
    for phase, stage in DRAWN_IN.items():
        for record in run.ledger.history(run.study.protocol.digest):
            other = record.details.get("roster") != run.roster
            if other and record.status == "finished" and record.key.stage == stage:
                given[phase] += int(record.details.get("count", 0))
    return given


def count_unscreened(run: StudyRun) -> int:
    """Return how many candidates and samples not every site could judge."""
    rounds = (one for stage in JUDGED_IN.values() for one in run.documents(stage))
    return sum(int(one["unscreened"]) for one in rounds)


def subgroups(condition_BK: np.ndarray, data: Data) -> np.ndarray:
    """Return ``[B, 2]`` names: the sex and the band of age that were asked for."""
    asked_BK = unscale_conditions(condition_BK, data)
    male = condition_BK[:, COVARIATES.index("sex")] > 0.5  # noqa: PLR2004 - 0 female, 1 male
    ends = np.array([end for end, _ in _AGES])
    band = np.searchsorted(ends, asked_BK[:, COVARIATES.index("age_years")], side="right")
    names = np.array([name for _, name in _AGES])
    return np.stack([np.where(male, "male", "female"), names[band]], axis=1)


def measure_kept(run: StudyRun, phase: Phase) -> tuple[Measurement, ...]:
    """Return what was kept of all that were drawn, by site and by subgroup, as shares."""
    drawn, judged = run.documents(DRAWN_IN[phase]), run.documents(JUDGED_IN[phase])
    pairs = list(zip(drawn, judged, strict=False))  # a round may still be waited for
    if not pairs:
        return ()
    condition_BK = np.concatenate([_conditions(run, one) for one, _ in pairs])
    return measure_acceptance(
        phase,
        np.concatenate([keep_of(votes) for _, votes in pairs]),
        subgroups(condition_BK, run.study.synthesis.data),
        votes=tally_votes(judged),
        confidence=run.study.synthesis.audit.confidence,
    )


def tally_votes(judged: Sequence[Mapping[str, Any]]) -> dict[str, Tally]:
    """Return for each site how many images it was shown, over all rounds, and how many dropped."""
    tallies: dict[str, Tally] = {}
    for one in judged:
        for site, kept in one["kept"].items():
            before = tallies.get(site, Tally(0, 0))
            count = int(one["count"])
            tallies[site] = Tally(before.shown + count, before.dropped + count - int(kept))
    return tallies


def _conditions(run: StudyRun, drawn: Mapping[str, Any]) -> np.ndarray:
    return np.asarray(run.objects.get_tensors(Digest(drawn["conditions"]))["condition"])
