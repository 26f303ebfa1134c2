"""Checks over what ingest prepared: what a data steward should know before a study begins.

No check stops an intake. Each finding is one sentence: what there is, and what to do.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from vitrael.client.site.ingest.findings import (
    COVARIATE_WORDS,
    Entry,
    Finding,
    Severity,
    list_words,
    number_of,
    say_lack,
)
from vitrael.client.site.ingest.outliers import (
    check_extent,
    check_grid,
    check_intensity,
    check_orientation,
    check_spacing,
)
from vitrael.client.site.ingest.resemblance import check_copies, check_likeness
from vitrael.core.data.manifest import Item
from vitrael.core.data.splits import Split, split_subjects
from vitrael.core.protocols import Splits, ViewSplits
from vitrael.privacy.leakage import SMALLEST_COUNT

__all__ = ["LEAST_TO_CALIBRATE", "Entry", "Finding", "check_cohort"]

LEAST_TO_CALIBRATE: Final = 39
"""Patients of the splits T and C that a filter with a false match rate of 5 % takes."""

_ORDER: Final[tuple[Severity, ...]] = ("problem", "warning", "note")
_ADVICE: Final = {
    "ef_frac": (
        "of videos, give it in the column ef of the table that names them; DICOM files have it in "
        "no header and no table speaks of them, so such clips can get it as videos alone"
    ),
    "lesion_ml": (
        "give each visit a lesion mask, an empty one where there is no lesion, or a column "
        "lesion_ml in the table; DICOM series can get neither, so bring them as NIfTI"
    ),
}
"""Where a covariate can come from, by the kind of the source."""
_USUAL_ADVICE: Final = (
    "give it in the patients' table, or for DICOM files, of which no table speaks, in the header"
)
_YEARS_OFF = 1.5
_VOLUME_RATIO = 1.15


def check_cohort(
    entries: Sequence[Entry],
    *,
    expected: Sequence[str] = (),
    splits: Splits | ViewSplits | None = None,
    key: bytes = b"",
    shared: Sequence[int] = (),
) -> list[Finding]:
    """Return all findings, problems first.

    ``expected`` are the covariates that the recipe asks for. With ``splits`` and the site's
    ``key``, a study's splits are checked too. ``shared`` are the places of items whose very
    image was left out under another patient. An empty cohort has one finding.
    """
    findings = [*_check_patients(entries, splits, key)]
    if entries:
        for check in _CHECKS:
            findings += check(entries)
        findings += _check_covariates(entries, expected)
    findings += check_copies(entries, shared=shared)
    return sorted(findings, key=lambda finding: _ORDER.index(finding.severity))


def _check_patients(
    entries: Sequence[Entry], splits: Splits | ViewSplits | None, key: bytes
) -> Iterable[Finding]:
    subjects = {item.subject for item, _ in entries}
    count = len(subjects)
    if count < SMALLEST_COUNT:
        text = (
            f"{number_of(count, 'patient')} in all: of fewer than {SMALLEST_COUNT} nothing is "
            "told, so no measurement of an audit can be made; take in more patients"
        )
        yield Finding(check="few-patients", severity="problem", count=count, sentence=text)
    calibrating = subjects
    if splits is not None:
        parted = split_subjects(subjects, splits, key=key)
        if isinstance(splits, ViewSplits):
            yield from _check_views(entries, parted)
            return
        calibrating = {*parted[Split.TRAINING], *parted[Split.CALIBRATION]}
        if empty := [split.value for split, members in parted.items() if not members]:
            text = (
                f"No patient falls into {list_words(empty)} of the study's five splits, so what "
                "they are for cannot be done here; take in more patients"
            )
            yield Finding(check="empty-splits", severity="problem", count=len(empty), sentence=text)
    if count >= SMALLEST_COUNT and len(calibrating) < LEAST_TO_CALIBRATE:
        where = "" if splits is None else " in the splits T and C"
        text = (
            f"{number_of(len(calibrating), 'patient')}{where}: a filter with a false match rate of "
            f"5 % takes {LEAST_TO_CALIBRATE} in the splits for training (T) and calibration (C) "
            "alone; with fewer, candidates stay unscreened and nothing can be published; take in "
            "more patients"
        )
        yield Finding(
            check="few-patients", severity="warning", count=len(calibrating), sentence=text
        )


def _check_views(
    entries: Sequence[Entry], parted: Mapping[Split, Sequence[str]]
) -> Iterable[Finding]:
    """Return whether an expert can learn from the training split: two views of eleven patients."""
    training, patients = set(parted[Split.TRAINING]), defaultdict(set)
    for item, _ in entries:
        if item.subject in training:
            word = item.labels.get("view") or item.labels.get("label", "")
            patients[word].add(item.subject)
    enough = [word for word, own in patients.items() if word and len(own) >= SMALLEST_COUNT]
    if len(enough) < 2:  # noqa: PLR2004 - nothing to tell apart
        told = "; ".join(
            f"{word or 'no word for its view'}: {number_of(len(own), 'patient')}"
            for word, own in sorted(patients.items())
        )
        text = (
            f"An expert learns from two views of {SMALLEST_COUNT} patients each, and here of those "
            f"that it would learn from there are {told or 'none'}; take more pictures in, with a "
            "table that has a column view"
        )
        yield Finding(check="few-patients", severity="problem", count=len(patients), sentence=text)


def _check_covariates(entries: Sequence[Entry], expected: Sequence[str]) -> Iterable[Finding]:
    for name in expected:
        absent = [i for i, (item, _) in enumerate(entries) if name not in item.covariates]
        if absent:
            word = COVARIATE_WORDS.get(name, name)
            text = (
                f"{say_lack(absent, entries, what=f'known {word}')}; a study that asks for it "
                f"cannot learn from what lacks it; {_ADVICE.get(name, _USUAL_ADVICE)}; then take "
                "the images in again"
            )
            yield Finding(
                check="missing-covariates",
                severity="warning",
                count=len(absent),
                sentence=text,
                items=tuple(absent),
            )


def _check_changes(entries: Sequence[Entry]) -> Iterable[Finding]:
    visits_of: dict[str, list[int]] = defaultdict(list)
    for i, (item, _) in enumerate(entries):
        visits_of[item.subject].append(i)
    changed: set[int] = set()
    for visits in visits_of.values():
        changed |= _find_contradictions([(i, entries[i][0]) for i in visits])
    if changed:
        text = (
            f"Sex, age or brain volume of a patient do not fit together over "
            f"{number_of(len(changed), 'image')}; look whether two patients share one name, or the "
            "table is wrong"
        )
        items = tuple(sorted(changed))
        yield Finding(
            check="changed-facts", severity="problem", count=len(items), sentence=text, items=items
        )


def _find_contradictions(visits: Sequence[tuple[int, Item]]) -> set[int]:
    """Return the places of one patient's items of which two cannot both be right."""
    found: set[int] = set()
    ordered = sorted(visits, key=lambda visit: (visit[1].visit, visit[1].part))
    for (i, first), (j, second) in itertools.pairwise(ordered):
        one, two = first.covariates, second.covariates
        wrong = "sex" in one and "sex" in two and one["sex"] != two["sex"]
        if "age_years" in one and "age_years" in two:
            aged = two["age_years"] - one["age_years"]
            years = max(aged, 0)
            if first.days is not None and second.days is not None:
                years = (second.days - first.days) / 365.25
            wrong |= abs(aged - years) > _YEARS_OFF
        if one.get("brain_ml") and two.get("brain_ml"):
            small, large = sorted((one["brain_ml"], two["brain_ml"]))
            wrong |= large > _VOLUME_RATIO * small
        if wrong:
            found |= {i, j}
    return found


_CHECKS: tuple[Callable[[Sequence[Entry]], Iterable[Finding]], ...] = (
    check_grid,
    check_spacing,
    check_orientation,
    check_extent,
    check_intensity,
    _check_changes,
    check_likeness,
)
