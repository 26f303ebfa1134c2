"""Three arms compared: the teacher, a random filter of the same size, and the filter.

What retraining alone does to re-identification, a student shows that learned from as many
candidates drawn blindly among all that were drawn. The arms are asked for the same conditions with
the same seeds, none of which any candidate or released sample had, and are screened by nobody; at
every site an attacker who is no member of the filter counts whom it knows again. It is told with
the release, and no gate asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from vitrael.core.digest import Digest, digest_json
from vitrael.core.records import SampleRequest
from vitrael.core.rng import stream, stream_seed
from vitrael.privacy.audit.arm_counts import pool_arms, read_counts
from vitrael.privacy.audit.arms import ARMS, random_subset
from vitrael.privacy.distill import Distilled, demand_images
from vitrael.server.studies.correspondence import Answer, ask_sites
from vitrael.server.studies.distillation import (
    Rounds,
    draw_conditions,
    open_generator,
    train_student,
)
from vitrael.server.studies.run import StageResult, StudyRun


def compare_arms_of(
    run: StudyRun,
    *,
    codec: Digest,
    teacher: Digest,
    condition: Mapping[str, Any] | None,
    distilled: Distilled[dict[str, Any], Digest],
) -> dict[str, Any] | None:
    """Return the document of stage ``arms``, or None in a study that compares none."""
    if not run.study.synthesis.distillation.compare:
        return None
    blind = train_student(
        run,
        codec=codec,
        teacher=teacher,
        rounds=keep_at_random(distilled.candidates, seed=run.study.protocol.seed),
        stage="random student",
    )
    weights = dict(zip(ARMS, (teacher, blind, distilled.student), strict=True))
    drawn = {
        arm: draw_arm(run, arm, codec=codec, weights=weights[arm], condition=condition)
        for arm in ARMS
    }
    return ask_attackers(run, codec=codec, drawn=drawn)


def keep_at_random(rounds: Rounds, *, seed: int) -> Rounds:
    """Return the rounds with as many rows kept in all as were, drawn at random among all rows."""
    keep_B = np.concatenate([one.keep_B for one in rounds])
    chosen = random_subset(len(keep_B), int(keep_B.sum()), rng=stream(seed, "random filter"))
    blind_B = np.isin(np.arange(len(keep_B)), chosen)
    ends = np.cumsum([len(one.keep_B) for one in rounds])[:-1]
    parts = np.split(blind_B, ends)
    return tuple(replace(one, keep_B=part) for one, part in zip(rounds, parts, strict=True))


def draw_arm(
    run: StudyRun,
    arm: str,
    *,
    codec: Digest,
    weights: Digest,
    condition: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Stage ``arm samples``, a round for each arm: float16, row for row with the others' seeds."""
    protocol = run.study.synthesis
    system, count = protocol.generator, protocol.distillation.compared
    inputs = {"arm": arm, "codec": codec, "denoiser": weights, "condition": condition}

    def work() -> StageResult:
        part = system.teacher if arm == "teacher" else system.student
        generator = open_generator(run, part, codec=codec, weights=weights)
        condition_BK = draw_conditions(condition, count, stream(protocol.seed, "arm conditions"))
        request = SampleRequest(condition_BK, seed=stream_seed(protocol.seed, "arms"))
        image_BCDHW = generator.sample(request).image_BCDHW.astype(np.float16)
        demand_images(image_BCDHW, count)
        document = {"images": run.objects.put_tensors({"image": image_BCDHW}), "count": count}
        return StageResult(document, {"count": count, "arm": arm})

    return run.stage("arm samples", inputs, work, round_index=ARMS.index(arm))


def ask_attackers(
    run: StudyRun, *, codec: Digest, drawn: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Stage ``arms``: every site counts, and what follows from all that they told.

    A site of the roster that is absent makes it not estimable: its patients would go unseen.
    """
    samples = run.study.synthesis.distillation.compared

    def check(answer: Answer) -> None:
        read_counts(answer.reply.body, samples=samples)

    def work() -> StageResult:
        images = {arm: run.objects.get_tensors(Digest(drawn[arm]["images"])) for arm in ARMS}
        attachments = {
            "arms": {arm: tensors["image"] for arm, tensors in images.items()},
            "codec": run.objects.get_tensors(codec),
        }
        answers = ask_sites(run, "arms", attachments, check=check)
        sites = answers.bodies
        comparison = pool_arms(
            [read_counts(sites.get(site, {}), samples=samples) for site in run.members],
            rng=stream(run.study.protocol.seed, "arms pooled"),
            confidence=run.study.synthesis.audit.confidence,
            inputs=(digest_json([sites.get(site, {}) for site in run.members]),),
        )
        document = {
            "sites": sites,
            "envelopes": answers.envelopes,
            "comparison": comparison.model_dump(mode="json"),
        }
        details = {**answers.details, "verdict": comparison.verdict}
        return StageResult(document, details, tuple(answers.by_site))

    inputs = {"codec": codec, "drawn": {arm: dict(one) for arm, one in drawn.items()}}
    return run.stage("arms", inputs, work)
