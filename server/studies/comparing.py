"""What sites counted of experts and their rivals: how it is read, summed up, or said to be missing.

Axes: N experts, V views.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from vitrael.core.digest import Digest
from vitrael.core.metrics.comparison import ViewCounts, compare_methods
from vitrael.server.studies.correspondence import Answer, Answers
from vitrael.server.studies.experts import ExpertRecord
from vitrael.server.studies.outlooks import most_images
from vitrael.server.studies.run import StudyRun


def empty_table(known: Mapping[str, Digest], why: str) -> dict[str, Any]:
    """Return a comparison that has nothing to show, and why."""
    return {"table": [], "sites": {}, "experts": dict(known), "why": why}


def sum_up_counts(
    run: StudyRun, experts: tuple[ExpertRecord, ...], answers: Answers
) -> dict[str, Any]:
    """Return ``table`` and ``sites`` of what was counted."""
    counts = {site: read_counts(run, experts, answers.by_site[site]) for site in answers.by_site}
    rows = compare_methods(counts, views=run.study.experts.data.views)
    return {
        "table": [asdict(row) for row in rows],
        "sites": {
            site: {
                "images": int(one.images_V.sum()),
                "heaviest": float(one.heaviest_V.sum() / one.images_V.sum()),
                "weights": _weights(answers.by_site[site], experts),
            }
            for site, one in counts.items()
        },
    }


def with_absences(
    run: StudyRun, rivals: Mapping[str, Digest], details: Mapping[str, Any]
) -> dict[str, Any]:
    """Return details with who was absent from a rival that there is none of: it stays recorded."""
    lost = [
        record
        for record in run.history()
        if record.status == "failed"
        and record.key.stage in {"averaged", "relay"} - rivals.keys()
        and record.details.get("absent")
    ]
    parts = [*(record.details for record in lost), details]
    absent, kinds = (
        {site: said for part in parts for site, said in part.get(name, {}).items()}
        for name in ("absent", "kinds")
    )
    return {**details, **({"absent": absent, "kinds": kinds} if absent else {})}


def read_counts(run: StudyRun, experts: tuple[ExpertRecord, ...], answer: Answer) -> ViewCounts:
    """Return what a site counted; raise DataError or ValueError for what cannot be counts."""
    sent, views = answer.get_tensors("counts"), run.study.experts.data.views
    images_V, weight_N = sent["images"], sent["weight"]
    if weight_N.shape != (len(experts),) or (weight_N < 0).any() or abs(weight_N.sum() - 1) > 1e-3:  # noqa: PLR2004 - rounding
        msg = "the weights of the experts do not add up to one"
        raise ValueError(msg)
    if images_V.shape != (len(views),) or images_V.sum() > most_images(run, answer.reply.site):
        msg = "other views were counted than the study has, or more pictures than were consented to"
        raise ValueError(msg)
    return ViewCounts(images_V, sent["right"], sent["heaviest"])


def _weights(answer: Answer, experts: tuple[ExpertRecord, ...]) -> dict[str, float]:
    weight_N = answer.get_tensors("counts")["weight"].tolist()
    return {record.site: float(w) for record, w in zip(experts, weight_N, strict=True)}
