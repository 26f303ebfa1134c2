"""The stages of a study of experts: each site's own, and what every expert sees at every site.

An expert is trained once and kept: a roster that is amended asks only who joined, and everybody
once for what the new expert sees. Axes: N experts, V views of the study, E features, L layers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vitrael.core.digest import Digest, digest_json
from vitrael.core.errors import DataError, QuorumError
from vitrael.core.weights import Tensors
from vitrael.server.studies.absences import Absence, find_barred
from vitrael.server.studies.correspondence import Answer, Answers, ask_sites, demand_quorum
from vitrael.server.studies.federated import read_curve
from vitrael.server.studies.outlooks import Told, find_kept, find_risks, keep_told, read_told
from vitrael.server.studies.run import StageResult, StudyRun

if TYPE_CHECKING:
    from vitrael.core.models.view_expert import ViewExpert

KNOWN: Final = "known"
_FEATURES_BYTES: Final = 1 << 30
"""How much more may be told where single pictures are told of."""


@dataclass(frozen=True, slots=True)
class ExpertRecord:
    """What is known of one site's expert; its weights lie in the store."""

    site: str
    weights: Digest
    labels: tuple[str, ...]
    """In the study's words, in the order of its logits."""
    words: Mapping[str, str]
    """The site's own word -> the study's."""
    calibrated: bool
    """Whether its scores were put on the scale of pictures that it has not learned from."""
    cohort: Digest | None
    """Version of the scans that it learned from."""

    @classmethod
    def of(cls, site: str, document: Mapping[str, Any]) -> ExpertRecord:
        """Return the record that a stage's document holds of a site."""
        return cls(
            site,
            Digest(document["weights"]),
            tuple(document["labels"]),
            dict(document["words"]),
            bool(document["calibrated"]),
            document["cohort"],
        )

    @property
    def document(self) -> dict[str, Any]:
        """The record as JSON, to stand under its site's name."""
        return {
            "weights": self.weights,
            "labels": list(self.labels),
            "words": dict(self.words),
            "calibrated": self.calibrated,
            "cohort": self.cohort,
        }


def train_experts(run: StudyRun) -> tuple[ExpertRecord, ...]:
    """Stage ``expert``: return the experts of all members that take part, in the roster's order.

    Who has one from the roster which this one amends is not asked again, and nobody is where this
    one has been trained with before. A site that withdrew since has none. Where the protocol says
    so, all begin with the weights of the first, which is then trained before the others: ``first``
    names it, also when it is gone, and ``start`` for each of the others whose weights it began
    with. Raises QuorumError when fewer than the quorum have one.
    """
    earlier = (run.earlier_document("expert") or {}).get("experts", {})
    kept = {
        site: earlier[site]
        for site in run.members
        if site in earlier and _means_the_same(run, site, earlier[site]["words"])
    }

    def work() -> StageResult:
        every, curves, barred = dict(kept), {}, find_barred(run, "expert")
        together = Answers(absences=_absences(barred))
        waves = _waves(run, {*kept, *barred}, begun=bool(kept.keys() - barred.keys()))
        for sites in waves:
            answers = ask_sites(
                run,
                "expert",
                _start(run, {site: every[site] for site in every if site not in barred}),
                check=partial(_read_expert, run),
                quorum=1 if sites is not waves[-1] else 0,  # nobody may begin without the first
                among=sites,
                more_bytes=_expert_bytes(run),
            )
            for site, answer in answers.by_site.items():
                every[site] = _keep_expert(run, answer)
                curves[site] = read_curve(answer)
            together.by_site |= answers.by_site
            together.absences |= answers.absences
        quorum = run.study.protocol.federation.quorum - len(kept)
        demand_quorum(run, "expert", together, quorum=quorum)
        there = [site for site in run.members if site in every]
        document = {"experts": {site: every[site] for site in there}, **_tell_first(run, every)}
        details = {**together.details, "curves": curves, "experts_kept": sorted(kept)}
        return StageResult(document, details, tuple(there))

    # A roster that comes back finds its own experts, whoever the one between has kept.
    document = run.document("expert") or run.stage("expert", {"kept": kept}, work)
    gone = find_barred(run, "expert")
    there = [site for site in run.members if site in document["experts"] and site not in gone]
    _demand_left(run, there, gone, what="an expert")
    return tuple(ExpertRecord.of(site, document["experts"][site]) for site in there)


def open_expert_of(run: StudyRun, record: ExpertRecord) -> ViewExpert:
    """Return the network of a record; WeightsError for tensors of another."""
    from vitrael.core.models.view_expert import open_expert  # noqa: PLC0415 - torch

    config = run.study.experts.expert
    tensors = run.objects.get_tensors(record.weights)
    return open_expert(tensors, config, name=record.site, labels=record.labels)


def collect_outlooks(
    run: StudyRun, experts: tuple[ExpertRecord, ...]
) -> dict[str, dict[str, Digest]]:
    """Stage ``outlooks``: return for each site what every expert sees there, by the expert's site.

    What a site told of an expert before, with this roster or the one that it amends, is not asked
    again. A site answers for one set of experts alone: what was begun is asked of the same ones,
    and what is told of one that withdrew since is dropped. Of a site that withdrew nothing is
    returned. ``risks`` hold one entry for each set of experts that a site was asked about. Raises
    QuorumError when fewer sites than the quorum have told of all experts.
    """
    wanted = {record.site: record for record in experts}
    gone = find_barred(run, "outlooks")

    def work() -> StageResult:
        asked = _find_begun(run, wanted)
        kept = {s: told for s, told in find_kept(run, asked).items() if s not in gone}
        every = {site: dict(told) for site, told in kept.items()}
        risks = find_risks(run)
        together = Answers(absences=_absences(gone))
        for lacking, sites in _group_lacking(asked, wanted, kept).items():
            answers = ask_sites(
                run,
                "outlooks",
                expert_attachments(run, [asked[site] for site in lacking]),
                check=partial(read_told, run, lacking, kept),
                quorum=0,
                among=sites,
                more_bytes=_FEATURES_BYTES if run.study.experts.told == "features" else 0,
            )
            for site, answer in answers.by_site.items():
                every[site] |= keep_told(run, lacking, kept, answer)
                told = {"experts": list(lacking), **answer.reply.body}
                risks[site] = [*(one for one in risks.get(site, []) if one != told), told]
            together.by_site |= answers.by_site
            together.absences |= answers.absences
        whole = [site for site in run.members if every.get(site, {}).keys() >= wanted.keys()]
        silent = [site for site in whole if site not in together.by_site]
        demand_quorum(
            run,
            "outlooks",
            together,
            quorum=run.study.protocol.federation.quorum - len(silent),
        )
        document = {
            "outlooks": {s: {e: every[s][e].tensors for e in wanted} for s in whole},
            "cohorts": {s: {e: every[s][e].cohort for e in wanted} for s in whole},
            "labels": {site: run.study.roster.labels.get(site, {}) for site in whole},
            "experts": {site: record.weights for site, record in wanted.items()},
            "risks": risks,
        }
        return StageResult(document, together.details, tuple(whole))

    inputs = {"experts": {site: record.weights for site, record in wanted.items()}}
    told, gone = run.stage("outlooks", inputs, work)["outlooks"], find_barred(run, "outlooks")
    there = [site for site in run.members if site in told and site not in gone]
    _demand_left(run, there, gone, what="told of every expert")
    return {site: told[site] for site in there}


def expert_attachments(run: StudyRun, records: Iterable[ExpertRecord]) -> dict[str, Tensors]:
    """Return experts as a task brings them: each by its member's number, and what it knows.

    Members are numbered by name, since the parties to one roster need not know one order of it.
    """
    members, views = sorted(run.members), run.study.experts.data.views
    known_NV = np.zeros((len(members), len(views)), dtype=np.uint8)
    attachments: dict[str, Tensors] = {}
    for record in records:
        place = members.index(record.site)
        known_NV[place] = [view in record.labels for view in views]
        attachments[f"expert-{place}"] = run.objects.get_tensors(record.weights)
    return {**attachments, KNOWN: {KNOWN: known_NV}}


def in_order(records: Iterable[ExpertRecord]) -> tuple[ExpertRecord, ...]:
    """Return records as tasks bring them, sorted by name: a roster's digest knows no order."""
    return tuple(sorted(records, key=lambda record: record.site))


def _absences(barred: Mapping[str, str]) -> dict[str, Absence]:
    return {site: Absence("barred", why) for site, why in barred.items()}


def _demand_left(
    run: StudyRun, left: Collection[str], gone: Mapping[str, str], *, what: str
) -> None:
    """Raise QuorumError when too few sites are left since others were barred."""
    quorum, total = run.study.protocol.federation.quorum, len(run.members)
    if len(left) < quorum:
        raise QuorumError(
            f"{len(left)} of {total} sites are left that have {what}, {quorum} are needed",
            why="; ".join(f"{site}: {reason}" for site, reason in gone.items()),
            fix="go on with a roster on which enough sites stand that take part",
        )


def _waves(run: StudyRun, others: Collection[str], *, begun: bool) -> list[list[str]]:
    """Return who is asked together: all but the others at once, or the first before the rest."""
    lacking = [site for site in run.members if site not in others]
    if run.study.experts.begin != "first" or begun:
        return [lacking]
    return [lacking[:1], lacking[1:]]


def _start(run: StudyRun, every: Mapping[str, Mapping[str, Any]]) -> dict[str, Tensors]:
    """Return the weights with which experts begin: given ones, or the first's that there is."""
    protocol = run.study.experts
    if protocol.weights is not None:
        return {"start": run.objects.get_tensors(protocol.weights)}
    if protocol.begin == "fresh" or not every:
        return {}
    first = every[_find_first(run, every)]
    return {"start": run.objects.get_tensors(Digest(first["weights"]))}


def _find_first(run: StudyRun, every: Mapping[str, Mapping[str, Any]]) -> str:
    """Return with whose weights others begin: the first of all, or who is there in its place."""
    earlier = str((run.earlier_document("expert") or {}).get("first", ""))
    return next(site for site in (earlier, *run.members) if site in every)


def _tell_first(run: StudyRun, every: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return who was the first of all, the version of its scans, and who began with whom."""
    if run.study.experts.begin != "first":
        return {}
    earlier, leader = run.earlier_document("expert") or {}, _find_first(run, every)
    before = earlier.get("experts", {})
    kept = {s for s, told in every.items() if before.get(s, {}).get("weights") == told["weights"]}
    new = {site: leader for site in every if site not in {*kept, leader}}
    start = {**earlier.get("start", {}), **new}
    if earlier.get("first") and kept:
        own = {name: earlier.get(name) for name in ("first", "first_cohort")}
        return {**own, "start": start}
    return {"first": leader, "first_cohort": every[leader]["cohort"], "start": start}


def _expert_bytes(run: StudyRun) -> int:
    """Return what the weights of an expert take that knows every view."""
    from vitrael.core.models.view_expert import build_view_net  # noqa: PLC0415 - torch
    from vitrael.core.weights import module_tensors  # noqa: PLC0415

    protocol = run.study.experts
    net = build_view_net(protocol.expert, len(protocol.data.views), seed=protocol.seed)
    return sum(array.nbytes for array in module_tensors(net).values())


def _read_expert(run: StudyRun, answer: Answer) -> dict[str, str]:
    """Return the words of an expert that can be used.

    Raises DataError for words by which the site means other views than the study of this
    coordinator says, and WeightsError for another network.
    """
    from vitrael.core.models.view_expert import open_expert  # noqa: PLC0415 - torch

    site, protocol = answer.reply.site, run.study.experts
    told: Any = answer.reply.body["words"]
    words = {str(word): str(view) for word, view in told.items()}
    if not _means_the_same(run, site, words):
        raise DataError(
            f"{site} means other views by its words than the study says",
            why="it consented to another map of labels",
            fix="offer the study again, and let the site consent to it",
        )
    read_curve(answer)
    labels = _labels_of(run, words)
    open_expert(answer.get_tensors("expert"), protocol.expert, name=site, labels=labels)
    return words


def _means_the_same(run: StudyRun, site: str, words: Mapping[str, str]) -> bool:
    """Return whether a site's words are for the views that this study says."""
    mapped = run.study.roster.labels.get(site, {})
    return all(mapped.get(word, word) == view for word, view in words.items())


def _labels_of(run: StudyRun, words: Mapping[str, str]) -> tuple[str, ...]:
    views = run.study.experts.data.views
    if strange := sorted(set(words.values()) - set(views)):
        raise DataError("an expert knows a view that the study does not", why=f"it is {strange[0]}")
    return tuple(view for view in views if view in words.values())


def _keep_expert(run: StudyRun, answer: Answer) -> dict[str, Any]:
    words = _read_expert(run, answer)
    return ExpertRecord(
        site=answer.reply.site,
        weights=run.objects.put_tensors(answer.get_tensors("expert")),
        labels=_labels_of(run, words),
        words=words,
        calibrated=bool(answer.reply.body["calibrated"]),
        cohort=answer.reply.cohort,
    ).document


def _find_begun(run: StudyRun, wanted: Mapping[str, ExpertRecord]) -> dict[str, ExpertRecord]:
    """Return the experts with which ``outlooks`` was begun first with this roster, by name.

    Those that are wanted, and where the ledger names its inputs so, others that withdrew since.
    """
    experts = (run.document("expert") or {}).get("experts", {})
    every = {s: ExpertRecord.of(s, told) for s, told in experts.items()} | dict(wanted)
    begun = next((r.key for r in run.history() if r.key.stage == "outlooks"), None)
    more = sorted(every.keys() - wanted.keys())
    sets = (
        {site: every[site] for site in sorted({*wanted, *some})}
        for count in range(len(more) + 1)
        for some in combinations(more, count)
    )
    for asked in sets:
        inputs = {"experts": {site: record.weights for site, record in asked.items()}}
        if begun is not None and begun.input == digest_json([run.roster, inputs]):
            return asked
    return {site: wanted[site] for site in sorted(wanted)}


def _group_lacking(
    asked: Mapping[str, ExpertRecord],
    wanted: Collection[str],
    kept: Mapping[str, Mapping[str, Told]],
) -> dict[tuple[str, ...], list[str]]:
    """Return the experts that sites have not told of yet, with the sites that lack the same.

    A site that lacks none that is wanted is asked nothing.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for site, told in kept.items():
        if any(expert not in told for expert in wanted):
            lacking = tuple(expert for expert in asked if expert not in told)
            groups.setdefault(lacking, []).append(site)
    return groups
