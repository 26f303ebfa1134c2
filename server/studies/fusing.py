"""The coordinator's part of a study of experts: their fusion, what it is held against, the panel.

No image is here: fusion learns from what sites tell of their pictures on the whole, or of each of
them where a consent names that. Axes: M methods, V views.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vitrael.core.digest import Digest
from vitrael.core.errors import DataError, QuorumError
from vitrael.core.rng import stream, torch_stream
from vitrael.core.weights import Tensors, check_like, module_tensors
from vitrael.server.studies.absences import find_barred
from vitrael.server.studies.comparing import (
    empty_table,
    read_counts,
    sum_up_counts,
    with_absences,
)
from vitrael.server.studies.correspondence import Answer, ask_sites
from vitrael.server.studies.experts import (
    ExpertRecord,
    expert_attachments,
    in_order,
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
    """Stage ``fusion``: the head over all experts, and one in which all weigh the same.

    Of what was told of others, who are no experts any more, nothing is used.
    """
    from vitrael.core.training.compute import prepare_compute  # noqa: PLC0415 - torch

    experts, names_of = in_order(experts), {record.site for record in experts}
    outlooks = {
        site: {expert: told for expert, told in sorted(each.items()) if expert in names_of}
        for site, each in sorted(outlooks.items())
    }

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

    The one is averaged over all sites in rounds, the other goes from each site to the next. One for
    which too few sites were there is missing; when the experts were compared it is not tried again.
    """
    protocol = run.study.experts
    wanted = [name for name in ("averaged", "relay") if name in protocol.trained]
    done = run.document("comparison")
    if done is not None:
        wanted = [name for name in wanted if name in done.get("rivals", wanted)]
    rivals: dict[str, Digest] = {}
    if not wanted:
        return rivals
    from vitrael.core.models.view_expert import build_view_net  # noqa: PLC0415 - torch

    net = build_view_net(protocol.expert, len(protocol.data.views), seed=protocol.seed)
    start = run.objects.put_tensors(module_tensors(net))
    for name in wanted:
        with contextlib.suppress(QuorumError):  # the ledger keeps who was absent, and why
            rivals[name] = (
                train_rounds(run, "averaged", "common", start, protocol.trained["averaged"])
                if name == "averaged"
                else _relay(run, start)
            )
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
    once for a roster: where an expert was dropped since, the table is empty, and a site that
    counted for one before is absent. It is empty too, and ``why`` says so, where fewer sites than
    the quorum can count.
    """
    experts = in_order(experts)
    known = {record.site: record.weights for record in experts}
    head = Digest(fusion["fusion"])
    done = run.document("comparison")
    if done is not None:
        if (done["experts"], done.get("of", head)) == (known, head):
            run.tell("comparison", 0, "kept")
            return done
        return empty_table(known, "the experts were compared before one of them was dropped")
    networks = {"fusion": head, "unweighted": Digest(fusion["unweighted"]), **rivals}

    def work() -> StageResult:
        brought: dict[str, Tensors] = {
            **expert_attachments(run, experts),
            **{name: run.objects.get_tensors(digest) for name, digest in networks.items()},
        }
        read = partial(read_counts, run, experts)
        answers = ask_sites(run, "comparison", brought, check=read, quorum=0)
        told = {"of": head, "rivals": sorted(rivals)}
        details = with_absences(run, rivals, answers.details)
        there, needed = answers.by_site, run.study.protocol.federation.quorum
        if len(there) < needed:
            why = f"{len(there)} of {len(run.members)} sites could compare, {needed} are needed"
            return StageResult(empty_table(known, why) | told, details, tuple(there))
        document = {**sum_up_counts(run, experts, answers), "experts": known, **told}
        return StageResult(document, details, tuple(there))

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

    protocol, experts = run.study.experts, in_order(experts)

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
        told = {record.site: record.weights for record in experts}
        return StageResult({"panel": digest, "folder": folder.name, "experts": told})

    inputs = {"experts": {r.site: r.document for r in experts}, "fusion": fusion["fusion"]}
    document = run.stage("panel", inputs, work)
    if not (run.home / "panels" / document["folder"]).exists():
        work()  # the ledger keeps no folder
    return document


def _gather(
    run: StudyRun, opened: list[ViewExpert], outlooks: Outlooks
) -> tuple[Readings, list[str]]:
    """Return readings to learn from, and the view of each: drawn, or those of single pictures.

    Raises DataError where a site did not tell of the same pictures for every expert.
    """
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
    for site, each in told.items():
        _demand_same(site, each)
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


def _demand_same(site: str, each: Mapping[str, Tensors]) -> None:
    first = next(iter(each.values()))
    for tensors in each.values():
        same = all(
            np.array_equal(first[name], tensors[name])
            for name in ("images", "view")
            if name in first or name in tensors
        )
        if not same or len(first.get("seen", ())) != len(tensors.get("seen", ())):
            raise DataError(
                f"{site} told of other pictures for one expert than for another",
                why="its scans were another version in between",
                fix="amend the roster, and let the site consent again: it is then asked anew",
            )


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
    withdrew is gone on from, since nobody trains a round twice. Members come by name: a roster that
    comes back in another order goes on with what it has.
    """
    members = sorted(run.members)
    gone, quorum = find_barred(run, "relay"), run.study.protocol.federation.quorum
    done = {record.key.round for record in run.finished() if record.key.stage == "relay"}
    there = [p for p, site in enumerate(members) if site not in gone or p in done]
    labels, trained = run.study.roster.labels, 0
    for number, place in enumerate(there):
        spare = trained + len(there) - number - 1 >= quorum
        before, site = weights, members[place]
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
