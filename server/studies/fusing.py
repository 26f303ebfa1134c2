"""The coordinator's part of a study of experts: their fusion, what it is held against, the panel.

No image is here: fusion learns from what sites tell of their pictures on the whole, or of each of
them where a consent names that. Axes: M methods, V views.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vitrael.core.digest import Digest
from vitrael.core.errors import DataError
from vitrael.core.metrics.comparison import ViewCounts, compare_methods
from vitrael.core.rng import stream, torch_stream
from vitrael.core.weights import Tensors, check_like, module_tensors
from vitrael.server.studies.absences import find_barred
from vitrael.server.studies.correspondence import Answer, ask_sites
from vitrael.server.studies.experts import (
    ExpertRecord,
    expert_attachments,
    most_images,
    open_expert_of,
)
from vitrael.server.studies.federated import read_curve, train_rounds
from vitrael.server.studies.run import StageResult, StudyRun

if TYPE_CHECKING:
    from vitrael.core.models.score_fusion import Readings, ScoreFusion
    from vitrael.core.models.view_expert import ViewExpert

_MOST_DRAWS: Final = 16
"""Times as many rows as there are pictures are drawn, so that few are seen twice."""

Outlooks = Mapping[str, Mapping[str, Digest]]
"""Site -> expert -> what the site told of it."""


def train_fusions(
    run: StudyRun, experts: tuple[ExpertRecord, ...], outlooks: Outlooks
) -> dict[str, Any]:
    """Stage ``fusion``: the head over all experts, and one in which all weigh the same."""
    from vitrael.core.training.compute import prepare_compute  # noqa: PLC0415 - torch

    def work() -> StageResult:
        performance = run.study.performance
        prepare_compute(
            device="cpu", threads=performance.coordinator_threads, bf16="off", vram_frac=None
        )
        opened = [open_expert_of(run, record) for record in experts]
        readings, names = _known_alone(*_gather(run, opened, outlooks), opened)
        heads = {
            name: _train(run, opened, readings, names, weighted=weighted)
            for name, weighted in (("fusion", True), ("unweighted", False))
        }
        stored = {name: run.objects.put_tensors(module_tensors(h)) for name, h in heads.items()}
        classes = list(heads["fusion"].classes)
        return StageResult({**stored, "classes": classes}, {"rows": len(names)})

    inputs = {"experts": {r.site: r.document for r in experts}, "outlooks": outlooks}
    return run.stage("fusion", inputs, work)


def train_rivals(run: StudyRun) -> dict[str, Digest]:
    """Stages ``averaged`` and ``relay``: return the networks that experts are held against.

    The one is averaged over all sites in rounds, the other goes from each site to the next.
    """
    protocol = run.study.experts
    rivals: dict[str, Digest] = {}
    if not protocol.trained.keys() & {"averaged", "relay"}:
        return rivals
    from vitrael.core.models.view_expert import build_view_net  # noqa: PLC0415 - torch

    net = build_view_net(protocol.expert, len(protocol.data.views), seed=protocol.seed)
    start = run.objects.put_tensors(module_tensors(net))
    if "averaged" in protocol.trained:
        config = protocol.trained["averaged"]
        rivals["averaged"] = train_rounds(run, "averaged", "common", start, config)
    if "relay" in protocol.trained:
        rivals["relay"] = _relay(run, start)
    return rivals


def compare(
    run: StudyRun,
    experts: tuple[ExpertRecord, ...],
    fusion: Mapping[str, Any],
    rivals: Mapping[str, Digest],
) -> dict[str, Any]:
    """Stage ``comparison``: how often each way is right on pictures that nobody has learned from.

    The document holds the ``table``, one row for each method, and for each site the share of its
    pictures in which its own expert weighs most, and the mean weight of every expert. A site counts
    once for a roster: where an expert was dropped since, the table is empty.
    """
    known = {record.site: record.weights for record in experts}
    done = run.document("comparison")
    if done is not None and done["experts"] != known:
        return {"table": [], "sites": {}, "experts": known}
    heads = {name: Digest(fusion[name]) for name in ("fusion", "unweighted")}
    networks = {**heads, **rivals}
    views = run.study.experts.data.views

    def work() -> StageResult:
        brought: dict[str, Tensors] = {
            **expert_attachments(run, experts),
            **{name: run.objects.get_tensors(digest) for name, digest in networks.items()},
        }
        read = partial(_read_counts, run, experts)
        answers = ask_sites(run, "comparison", brought, check=read)
        counts = {site: read(answer) for site, answer in answers.by_site.items()}
        document = {
            "experts": known,
            "table": [asdict(row) for row in compare_methods(counts, views=views)],
            "sites": {
                site: {
                    "images": int(one.images_V.sum()),
                    "heaviest": float(one.heaviest_V.sum() / one.images_V.sum()),
                    "weights": _weights(answers.by_site[site], experts),
                }
                for site, one in counts.items()
            },
        }
        return StageResult(document, answers.details, tuple(answers.by_site))

    inputs = {"experts": known, "networks": networks}
    return run.stage("comparison", inputs, work)


def assemble(
    run: StudyRun, experts: tuple[ExpertRecord, ...], fusion: Mapping[str, Any]
) -> dict[str, Any]:
    """Stage ``panel``: experts and fusion as one Predictor, in a folder below the home.

    A folder that is gone is written again.
    """
    from vitrael.core.data.recipes import recipe_of_study  # noqa: PLC0415 - torch
    from vitrael.core.models.panel_folder import save_panel  # noqa: PLC0415
    from vitrael.core.models.score_fusion import build_fusion  # noqa: PLC0415
    from vitrael.core.models.view_panel import assemble_panel, shape_of  # noqa: PLC0415
    from vitrael.core.weights import load_weights  # noqa: PLC0415

    protocol = run.study.experts

    def work() -> StageResult:
        opened = [open_expert_of(run, record) for record in experts]
        head = build_fusion([*map(shape_of, opened)], seed=0, hidden=protocol.fusion.hidden)
        load_weights(head, run.objects.get_tensors(Digest(fusion["fusion"])))
        cohorts = {record.site: record.cohort for record in experts if record.cohort is not None}
        panel = assemble_panel(
            opened,
            head,
            protocol.expert,
            recipe=recipe_of_study(protocol.data),
            cohorts=cohorts,
        )
        digest = panel.document.digest
        folder = run.home / "panels" / digest.removeprefix("sha256:")[:16]
        if not folder.exists():
            save_panel(panel, folder)
        return StageResult({"panel": digest, "folder": folder.name})

    inputs = {"experts": {r.site: r.document for r in experts}, "fusion": fusion["fusion"]}
    document = run.stage("panel", inputs, work)
    if not (run.home / "panels" / document["folder"]).exists():
        work()  # the ledger keeps no folder
    return document


def _gather(
    run: StudyRun, opened: list[ViewExpert], outlooks: Outlooks
) -> tuple[Readings, list[str]]:
    """Return readings to learn from, and the view of each: drawn, or those of single pictures."""
    from vitrael.core.models.fusion_learning import (  # noqa: PLC0415
        draw_readings,
        join_readings,
        stack_readings,
    )

    protocol = run.study.experts
    told = {
        site: {expert: run.objects.get_tensors(digest) for expert, digest in each.items()}
        for site, each in outlooks.items()
    }
    if protocol.told == "features":
        seen = [{expert: t["seen"] for expert, t in each.items()} for each in told.values()]
        places = [next(iter(each.values()))["view"] for each in told.values()]
        names = [protocol.data.views[place] for place in np.concatenate(places)]
        return join_readings(seen, opened), names
    sites = [_outlook(each, protocol.data.views) for each in told.values()]
    rng = stream(protocol.seed, "outlooks")
    drawn, names = draw_readings(sites, opened, rng=rng)
    more = min(_MOST_DRAWS, protocol.fusion.training.length_images // len(names)) - 1
    every = [drawn, *(draw_readings(sites, opened, rng=rng)[0] for _ in range(more))]
    return stack_readings(every), names * len(every)


def _known_alone(
    readings: Readings, names: list[str], opened: list[ViewExpert]
) -> tuple[Readings, list[str]]:
    """Return what can be learned from: no expert knows a view of a site whose own is missing.

    Raises DataError where nothing is left.
    """
    import torch  # noqa: PLC0415

    known = {label for expert in opened for label in expert.labels}
    rows = [row for row, name in enumerate(names) if name in known]
    if not rows:
        raise DataError(
            "there is nothing to learn fusion from",
            why="no site told of a view that an expert knows",
            fix="begin again when more sites are there",
        )
    return readings.rows(torch.tensor(rows)), [names[row] for row in rows]


def _outlook(each: Mapping[str, Tensors], views: tuple[str, ...]) -> Any:  # noqa: ANN401 - torch
    """Return the SiteOutlook of what a site told."""
    from vitrael.core.models.fusion_learning import Outlook, SiteOutlook  # noqa: PLC0415

    images_V = next(iter(each.values()))["images"]
    counted = {view: int(n) for view, n in zip(views, images_V, strict=True) if n}
    return SiteOutlook(
        counted,
        {
            expert: Outlook(
                {view: tensors["mean"][views.index(view)] for view in counted}, tensors["std"]
            )
            for expert, tensors in each.items()
        },
    )


def _train(
    run: StudyRun,
    opened: list[ViewExpert],
    readings: Readings,
    names: list[str],
    *,
    weighted: bool,
) -> ScoreFusion:
    import torch  # noqa: PLC0415

    from vitrael.core.models.fusion_learning import pick_readings  # noqa: PLC0415
    from vitrael.core.models.score_fusion import FusionObjective, build_fusion  # noqa: PLC0415
    from vitrael.core.models.view_panel import shape_of  # noqa: PLC0415
    from vitrael.core.training.loop import fit  # noqa: PLC0415

    protocol = run.study.experts
    config = protocol.fusion
    head = build_fusion(
        [*map(shape_of, opened)], seed=protocol.seed, hidden=config.hidden, weighted=weighted
    )
    label_B = torch.tensor([head.classes.index(name) for name in names])
    fit(
        head,
        FusionObjective(),
        pick_readings(readings, label_B),
        config.training,
        length_images=config.training.length_images,
        rng=torch_stream(protocol.seed, "fusion"),
        progress=lambda done, total: run.tell("fusion", 0, "progress", done=done, total=total),
    )
    return head.eval()


def _relay(run: StudyRun, weights: Digest) -> Digest:
    """Return one network that was trained at one member after the other.

    Who is absent is passed over while a quorum can still train it; what a site trained before it
    withdrew is gone on from, since nobody trains a round twice.
    """
    gone, quorum = find_barred(run, "relay"), run.study.protocol.federation.quorum
    done = {record.key.round for record in run.finished() if record.key.stage == "relay"}
    there = [p for p, site in enumerate(run.members) if site not in gone or p in done]
    labels, trained = run.study.roster.labels, 0
    for number, place in enumerate(there):
        spare = trained + len(there) - number - 1 >= quorum
        before, site = weights, list(run.members)[place]
        document = run.stage(
            "relay",
            {"weights": before, "site": site, "labels": labels.get(site, {})},
            partial(_relay_once, run, before, site, place=place, quorum=0 if spare else 1),
            round_index=place,
        )
        weights = Digest(document["common"])
        trained += weights != before
    return weights


def _relay_once(
    run: StudyRun, before: Digest, site: str, *, place: int, quorum: int
) -> StageResult:
    tensors = run.objects.get_tensors(before)

    def check(answer: Answer) -> None:
        check_like(answer.get_tensors("common"), tensors)
        read_curve(answer)

    answers = ask_sites(
        run,
        "relay",
        {"common": tensors},
        round_index=place,
        check=check,
        quorum=quorum,
        among=[site],
    )
    if site not in answers.by_site:
        return StageResult({"common": before}, answers.details)
    answer = answers.by_site[site]
    after = run.objects.put_tensors(answer.get_tensors("common"))
    return StageResult(
        {"common": after}, {**answers.details, "curves": {site: read_curve(answer)}}, (site,)
    )


def _read_counts(run: StudyRun, experts: tuple[ExpertRecord, ...], answer: Answer) -> ViewCounts:
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
