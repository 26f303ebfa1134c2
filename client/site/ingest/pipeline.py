"""The intake: find, read headers, prepare in parallel, assemble, check, and only then replace.

Everything that a killed intake had prepared lies in the index and the shards; the manifest is
replaced last and in one step. So an intake that is run again ends where an undisturbed one would.
"""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from vitrael.client.site.ingest.assemble import Assembled, Candidate, assemble
from vitrael.client.site.ingest.facts import ItemFacts
from vitrael.client.site.ingest.findings import Entry, number_of
from vitrael.client.site.ingest.index import Index, Stored, peek_root
from vitrael.client.site.ingest.keeping import leave_nothing_begun, sweep_orphans
from vitrael.client.site.ingest.outcome import IngestReport
from vitrael.client.site.ingest.places import CohortPlace, Home, code_of, demand_apart, only_one
from vitrael.client.site.ingest.plan import Choices, Plan, Progress, Work, demand_mask, find_work
from vitrael.client.site.ingest.pool import Lost, Pool
from vitrael.client.site.ingest.preflight import check_cohort
from vitrael.client.site.ingest.prepare import Outcome, PrepareJob, prepare_source, unsettled
from vitrael.client.site.ingest.report import write_report
from vitrael.client.site.ingest.summary import summarize
from vitrael.client.site.ingest.told import save_summary
from vitrael.client.site.ingest.versions import note_versions
from vitrael.client.site.ingest.withdraw import finish_withdrawals
from vitrael.core.data.manifest import Item, Manifest, write_manifest
from vitrael.core.data.recipes import RECIPES, RecipeSettings
from vitrael.core.data.sources import LeftOut
from vitrael.core.digest import Digest
from vitrael.core.errors import CohortError, UsageError

__all__ = ["Choices", "Progress", "Taken", "conclude", "foresee_folder", "ingest_folder", "take"]

WITHDRAWN = "the patient was withdrawn"


@dataclass(slots=True, repr=False)
class Taken:
    """What the preparation of all sources gave."""

    candidates: list[Candidate] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    anew: int = 0
    """How many sources were read, and not known from before."""


def ingest_folder(
    root: Path,
    home: Home,
    name: str,
    *,
    choices: Choices,
    tell: Progress,
    now: datetime,
    may_replace: bool = False,
) -> IngestReport:
    """Take what lies below a folder into a cohort of this site; nothing in the folder is changed.

    The cohort then holds what the folder holds: what is gone from there is gone from the next
    version. Raises CohortError when the folder cannot be read or has nothing for the recipe;
    StorageError when the disk is full, another process changes the cohort or a steward runs;
    UsageError when the home is used for something else or lies in the folder. Unless the cohort may
    be replaced: UsageError when it came from another folder, and CohortError when items would go
    while a part of the folder could not be read.
    """
    demand_apart(root, home.folder, "the site's home")
    key, place = home.key(), home.cohort(name)
    demand_mask(choices)
    place.read()  # a damaged manifest is told before the work, not after it
    with (
        home.without_steward(),
        only_one(place),
        leave_nothing_begun(place),
        closing(Index(place.index)) as index,
    ):
        folder = code_of("folder", os.path.realpath(root), key=key)
        _demand_same(folder, index.read_root(), name, may_replace=may_replace)
        withdrawn = home.read_withdrawn()
        finish_withdrawals(place, withdrawn)
        plan = find_work(
            root, choices=choices, key=key, index=index, tell=tell, withdrawn=withdrawn
        )
        if plan.unseen and not may_replace:
            known = index.find_outcomes([each.code for each in plan.work]).values()
            digests = {stored.outcome.get("digest") for stored in known}
            _demand_seen(plan, sum(item.digest not in digests for item in _held(place)))
        if not plan.work:
            raise CohortError(
                f"the folder has nothing for the recipe {choices.settings.name}",
                why=_commonest(plan.left_out),
                fix="see what was found with --dry-run --paths; the cohort is as it was before",
            )
        taken = take(plan.work, place, index, choices=choices, withdrawn=withdrawn, tell=tell)
        withdrawn = home.read_withdrawn()  # whoever was withdrawn meanwhile must not come in
        finish_withdrawals(place, withdrawn)
        _leave_withdrawn(plan, taken, withdrawn)
        if taken.candidates:
            index.save_root(folder)
        report = conclude(name, place, plan, taken, choices=choices, key=key, now=now)
        if taken.candidates:  # only now: until here the cohort is as it was before
            still = (each.code for each in plan.work if each.subject not in withdrawn)
            index.forget_others(sources=still, files=plan.headers)
            sweep_orphans(place, keep={Digest(c.outcome["digest"]) for c in taken.candidates})
        return report


def _demand_same(folder: str, before: str | None, name: str, *, may_replace: bool) -> None:
    """Raise UsageError when a cohort came from another folder; both are given by their codes."""
    if before not in {None, folder} and not may_replace:
        raise UsageError(
            f"cohort {name} was taken in from another folder",
            why="a cohort holds what its folder holds, and that would be gone",
            fix="give another name with --cohort, or --replace if that is intended",
        )


def _held(place: CohortPlace) -> tuple[Item, ...]:
    manifest = place.read()
    return manifest.items if manifest else ()


def _demand_seen(plan: Plan, gone: int) -> None:
    """Raise CohortError when items would go, and nobody knows whether their files are there."""
    if gone:
        raise CohortError(
            "a part of the folder may not be read, and items of the cohort would be gone",
            why=f"files or folders closed to this user: {plan.unseen}; items of the present "
            f"version that were not found: {gone}",
            fix="let this user read them (--dry-run --paths names them), or give --replace if the "
            "items are to go; the cohort is as it was before",
        )


def _leave_withdrawn(plan: Plan, taken: Taken, withdrawn: frozenset[str]) -> None:
    files = {each.code: each.source.files for each in plan.work}
    gone = [each for each in taken.candidates if each.subject in withdrawn]
    taken.left_out += [LeftOut(files[each.source], WITHDRAWN, expected=True) for each in gone]
    taken.candidates = [each for each in taken.candidates if each.subject not in withdrawn]


def _commonest(left_out: Sequence[LeftOut]) -> str:
    """Return why most files were left out."""
    counts = Counter({left.reason: 0 for left in left_out})
    for left in left_out:
        counts[left.reason] += len(left.paths)
    if not counts:
        return "it is empty"
    ((reason, count),) = counts.most_common(1)
    return f"of {number_of(counts.total(), 'file')}, {count:,} are left out because: {reason}"


def foresee_folder(
    root: Path,
    home: Home,
    name: str,
    *,
    choices: Choices,
    tell: Progress,
    may_replace: bool = False,
) -> IngestReport:
    """Return what an intake would find: headers and tables are read, and nothing is written.

    What an intake would refuse before it reads images is refused, but for a folder with nothing
    for the recipe: that is told with its reasons. Where a part of the folder could not be read,
    patients are missed who would go, but not single items of a patient.
    """
    demand_apart(root, home.folder, "the site's home")
    known, place = home.find_key(), home.cohort(name)
    demand_mask(choices)
    place.read()
    key, withdrawn = known or secrets.token_bytes(32), home.read_withdrawn()
    folder = code_of("folder", os.path.realpath(root), key=key)
    _demand_same(folder, peek_root(place.index), name, may_replace=may_replace)
    plan = find_work(root, choices=choices, key=key, index=None, tell=tell)
    there = withdrawn.union(each.subject for each in plan.work)
    if plan.unseen and not may_replace:
        _demand_seen(plan, sum(item.subject not in there for item in _held(place)))
    work = [each for each in plan.work if each.subject not in withdrawn]
    gone = [each.source.files for each in plan.work if each.subject in withdrawn]
    return IngestReport(
        cohort=name,
        settings=choices.settings,
        files=len(plan.numbers),
        sources=len(plan.work),
        items=len(work),
        patients=len({each.subject for each in work}),
        anew=0,
        left_out=(*plan.left_out, *(LeftOut(files, WITHDRAWN, expected=True) for files in gone)),
        numbers=plan.numbers,
        notes=plan.notes,
        is_foreseen=True,
    )


def conclude(
    name: str,
    place: CohortPlace,
    plan: Plan,
    taken: Taken,
    *,
    choices: Choices,
    key: bytes,
    now: datetime,
) -> IngestReport:
    """Replace the manifest by what was taken in, and write report and summary beside it."""
    recipe = RECIPES[choices.settings.name]
    made = assemble(taken.candidates, one_a_visit=recipe.takes == "volume")
    files = {each.code: each.source.files for each in plan.work}
    dropped = [LeftOut(files[c.source], reason, expected=True) for c, reason in made.dropped]
    left_out = (*plan.left_out, *taken.left_out, *dropped)
    before = place.read()
    manifest = _next_version(before, made, choices.settings)
    entries = [
        Entry(item, ItemFacts.model_validate(candidate.outcome["facts"]))
        for item, candidate in zip(made.items, made.chosen, strict=True)
    ]
    findings = check_cohort(
        entries,
        expected=recipe.covariates,
        splits=choices.splits,
        key=key,
        shared=made.shared,
    )
    report = IngestReport(
        cohort=name,
        settings=choices.settings,
        files=len(plan.numbers),
        sources=len(plan.work),
        items=len(manifest.items),
        patients=len({item.subject for item in manifest.items}),
        anew=taken.anew,
        left_out=left_out,
        numbers=plan.numbers,
        removed=sum((Counter(c.outcome["removed"]) for c in made.chosen), Counter()),
        findings=tuple(findings),
        notes=(*plan.notes, *_count_notes(made)),
        version=manifest.version,
        digest=manifest.digest,
        changed=before is None or before.digest != manifest.digest,
        report=place.report,
        origins=tuple(files[c.source] for c in made.chosen),
    )
    if not manifest.items:  # a wrong mask or a missing codec must not empty a cohort
        version, digest = (before.version, before.digest) if before else (0, "")
        return replace(report, version=version, digest=digest, changed=False, report=None)
    if report.changed:
        note_versions(place.folder, before, manifest)
        write_manifest(manifest, place.manifest)
    summary = summarize(manifest, left_out=left_out, findings=findings)
    leaving = save_summary(summary, manifest, place.folder)
    write_report(
        place.report,
        report,
        entries=entries,
        thumbnails=[candidate.thumbnail for candidate in made.chosen],
        summary=leaving,
        created_utc=now,
    )
    return report


def _count_notes(made: Assembled) -> list[str]:
    """Return what recipes did beside the usual, such as how a face was removed, with counts."""
    notes = Counter(note for chosen in made.chosen for note in chosen.outcome["notes"])
    return [f"{note}: {count}" for note, count in sorted(notes.items())]


def _next_version(before: Manifest | None, made: Assembled, settings: RecipeSettings) -> Manifest:
    fresh = Manifest(recipe=settings, items=made.items)
    if before is None:
        return fresh
    changed = before.digest != fresh.digest
    return fresh.model_copy(
        update={"version": before.version + changed, "withdrawn": before.withdrawn}
    )


def take(
    work: Sequence[Work],
    place: CohortPlace,
    index: Index,
    *,
    choices: Choices,
    withdrawn: frozenset[str],
    tell: Progress,
) -> Taken:
    """Prepare what is new or changed, and return the outcome of everything."""
    taken = Taken()
    known = index.find_outcomes([each.code for each in work])
    by_code = {each.code: each for each in work}
    todo: list[PrepareJob] = []
    for each in work:
        stored = known.get(each.code)
        if each.subject in withdrawn:
            taken.left_out.append(LeftOut(each.source.files, WITHDRAWN, expected=True))
        elif stored is not None and _still_holds(stored, each, place):
            _keep(each, stored.outcome, stored.thumbnail, taken)
        else:
            todo.append(_job(each, place, choices))
    processes = min(choices.workers, len(todo))
    pool: Pool[PrepareJob, Outcome] = Pool(prepare_source, processes=processes)
    if todo:
        tell("reading images", 0, len(todo))
    for job, result in pool.run(todo):
        outcome = unsettled(result.why) if isinstance(result, Lost) else result
        each = by_code[job.source]
        document = {"reason": outcome.reason, **outcome.taken}
        if outcome.settled:
            kept = Stored(each.stamp, each.subject, document, outcome.thumbnail)
            index.save_outcome(each.code, kept)
        _keep(each, document, outcome.thumbnail, taken)
        taken.anew += 1
        tell("reading images", taken.anew, len(todo))
    return taken


def _still_holds(stored: Stored, work: Work, place: CohortPlace) -> bool:
    if stored.stamp != work.stamp or stored.subject != work.subject:
        return False
    return bool(stored.outcome["reason"]) or (place.shards / stored.outcome["shard"]).is_file()


def _job(work: Work, place: CohortPlace, choices: Choices) -> PrepareJob:
    return PrepareJob(
        source=work.code,
        kind=work.source.kind,
        images=work.source.images,
        masks=work.source.masks,
        settings=choices.settings,
        shards=place.shards,
        pixel_mask=choices.pixel_mask,
        plans=work.plans,
        converter=choices.converter,
    )


def _keep(work: Work, outcome: Mapping[str, Any], thumbnail: bytes, taken: Taken) -> None:
    source = work.source
    if outcome["reason"]:
        taken.left_out.append(LeftOut(source.files, outcome["reason"]))
        return
    taken.candidates.append(
        Candidate(
            source=work.code,
            subject=work.subject,
            session=source.session,
            part=source.part,
            taken=source.taken,
            covariates=source.covariates,
            labels=source.labels,
            files=len(source.files),
            outcome=outcome,
            thumbnail=thumbnail,
        )
    )
