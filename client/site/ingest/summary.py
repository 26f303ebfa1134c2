"""The counts of a cohort that its coordinator may see, and how small ones are kept back.

``CohortSummary`` refuses to exist unless the first two rules hold, wherever it was made:

* **No count from 1 to 10.** A single count below ``SMALL`` is None, shown as ``<11``.
* **No count that can be computed from others.** The cells of a table add up to the number of
  patients, so to blank one cell would hide nothing. Cells are joined with their neighbors instead,
  see ``join_cells``: for each cell of a joined group at least ten values remain possible. The
  tests list all tables that look the same to find that out. No two tables are crossed. (A site
  whose label repeats another column in other words should leave it out: together they could tell
  more. The cell of what is unknown comes first in all tables, so that a mere repetition does not.)
* **No name that few share.** Values of a label are told by name when ``SMALL`` patients have them.

Two summaries of one cohort could be subtracted from each other: ``told`` sees to that.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, model_validator

from vitrael.client.site.ingest.findings import Check, Finding
from vitrael.client.site.ingest.reasons import ReasonClass, class_of_reason
from vitrael.core.configs import Positive, Section
from vitrael.core.data.manifest import COVARIATE_BOUNDS, Item, Manifest, Word
from vitrael.core.data.recipes import RecipeName
from vitrael.core.data.sources import LeftOut
from vitrael.core.messages import DigestField
from vitrael.privacy.leakage import SMALLEST_COUNT, told_count

SMALL: Final = SMALLEST_COUNT
"""Counts from 1 up to this less one do not leave."""

UNKNOWN: Final = "unknown"
SEXES: Final = (UNKNOWN, "female", "male")
AGES: Final = (UNKNOWN, *(f"{low}-{low + 9}" for low in range(0, 90, 10)), "90 or older")
"""In years, at the first visit at which the age is known."""
VISITS: Final = ("1", "2", "3", "4 or more")
OTHER: Final = "(other)"
"""Without the label, or with a value that too few share. No value can be called so."""
SEVERAL: Final = "(several)"
"""With more than one value of the label."""

_TABLED: Final = frozenset({"missing-covariates"})
"""Findings whose counts the tables give already, there joined with others where they are small."""
_MOST = 10_000_000
_MOST_LABELS = 16
_MOST_VALUES = 32
_GREATEST_AGE = 90


def _not_small(count: int | None) -> int | None:
    if count is not None and told_count(count) is None:
        msg = f"a count from 1 to {SMALL - 1} does not leave"
        raise ValueError(msg)
    return count


Count = Annotated[int | None, Field(ge=0, le=_MOST), AfterValidator(_not_small)]
"""Exact; None for one that is too small to be told."""


class _Told(Section):
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, strict=True, hide_input_in_errors=True
    )


class Group(_Told):
    """Cells of a table that are told together, and how many patients fall into them."""

    cells: Annotated[
        list[Annotated[str, StringConstraints(max_length=64)]],
        Field(min_length=1, max_length=_MOST_VALUES + 2),
    ]
    patients: Annotated[int, Field(ge=0, le=_MOST), AfterValidator(_not_small)]

    @property
    def name(self) -> str:
        """Return what the group is called in a table."""
        apart = (UNKNOWN, OTHER, SEVERAL)
        first = [cell for cell in self.cells if cell in apart]
        rest = [cell for cell in self.cells if cell not in apart]
        return " or ".join([*first, *(rest if len(rest) < 3 else [f"{rest[0]} to {rest[-1]}"])])  # noqa: PLR2004 - a range has two ends


Table = Annotated[list[Group], Field(max_length=_MOST_VALUES + 2)]
"""In the fixed order of its cells; empty when there are too few patients to tell of."""


class CohortSummary(_Told):
    """Counts of a cohort, of patients unless it is said otherwise."""

    format: Literal["vitrael/cohort-summary/1"] = "vitrael/cohort-summary/1"
    recipe: RecipeName
    recipe_version: Positive
    cohort: DigestField
    """The version of the cohort, by its content."""
    patients: Count
    images: Count
    """None also when they are 1 to 10 more than the patients or than their visits, and beside
    joined visits: together they would tell how many patients came once."""
    sex: Table
    age: Table
    visits: Table
    labels: Annotated[dict[Word, Table], Field(max_length=_MOST_LABELS)]
    covariates: dict[str, Count]
    """Who has a value; None when few have one, or have none, or have another and not this one."""
    withdrawn: Count
    left_out: dict[ReasonClass, Count]
    """Of files."""
    findings: dict[Check, Count]
    """Whom a check names; None when it names few, all but few, or the cohort as a whole."""

    @model_validator(mode="after")
    def _nothing_follows(self) -> Self:
        """Raise ValueError when a small count could be computed, or a table is none of ours."""
        total = self.patients
        fixed = ((self.sex, SEXES), (self.age, AGES), (self.visits, VISITS))
        for table, cells in fixed:
            _check_table(table, total, cells)
        for table in self.labels.values():
            names = [cell for group in table for cell in group.cells]
            _check_table(table, total, [OTHER, SEVERAL, *sorted({*names} - {OTHER, SEVERAL})])
            if not _has_room(table):
                msg = "a label's values are told of too few patients"
                raise ValueError(msg)
        if {*self.covariates} - {*COVARIATE_BOUNDS}:
            msg = "a covariate is unknown"
            raise ValueError(msg)
        if _lie_close(self.covariates.values()):
            msg = "two covariates tell how few have one and not the other"
            raise ValueError(msg)
        counts = [*self.covariates.values(), *self.findings.values()]
        known = [count for count in counts if count is not None]
        if not total and (self.images or self.labels or any(known)):
            msg = f"of fewer than {SMALL} patients nothing is told"
            raise ValueError(msg)
        rests = [(total or 0) - count for count in known]
        if self.images is not None and is_joined(self.visits):
            msg = "the number of images tells joined visits apart"
            raise ValueError(msg)
        if self.images is not None:
            rests += [self.images - (total or 0), self.images - least_visits(self.visits)]
        if any(rest < 0 or told_count(rest) is None for rest in rests):
            msg = "a small count could be computed from others"
            raise ValueError(msg)
        return self


def summarize(
    manifest: Manifest, *, left_out: Iterable[LeftOut] = (), findings: Iterable[Finding] = ()
) -> CohortSummary:
    """Return the counts of a cohort as they may be told.

    ``findings`` are those on the items of this manifest. Of fewer than ``SMALL`` patients only
    the classes of what was left out and the names of findings remain.
    """
    patients = _by_patient(manifest.items)
    total = told_count(len(patients))
    reasons = Counter[ReasonClass]()
    for each in left_out:
        reasons[class_of_reason(each)] += len(each.paths)
    del reasons["withdrawn"]  # the patients are counted above; their files would tell of one
    named: dict[Check, set[str]] = defaultdict(set)
    for finding in findings:
        named[finding.check] |= {manifest.items[place].subject for place in finding.items}
    told = patients if total else {}
    return CohortSummary(
        recipe=manifest.recipe.name,
        recipe_version=manifest.recipe.version,
        cohort=manifest.digest,
        patients=total,
        images=told_images(manifest),
        sex=_tabulate((sex_of(items) for items in told.values()), SEXES),
        age=_tabulate((_age_of(items) for items in told.values()), AGES),
        visits=_tabulate((_visits_of(items) for items in told.values()), VISITS),
        labels=_count_labels(told),
        covariates=_count_covariates(told),
        withdrawn=told_count(manifest.withdrawn),
        left_out={reason: told_count(count) for reason, count in sorted(reasons.items())},
        findings={
            check: _told_share(0 if check in _TABLED else len(subjects), total)
            for check, subjects in sorted(named.items())
        },
    )


def join_cells(
    counts: Sequence[int], floors: Sequence[int] | None = None, *, small: int = SMALL
) -> list[tuple[int, int]]:
    """Return which neighboring cells are told together, as (first, one after the last).

    From the left: a cell that is 0 or at least ``small`` is told alone. A smaller one is joined
    with those after it until they count ``least_joined``. What is left at the end is joined with
    the groups before it until that is so, or until all cells are one group. ``floors`` are what
    anybody knows that each cell counts at least, such as ``small`` for a value told by name.

    So a small cell of a joined group may have any size from 1 to ``small`` - 1: the others take up
    the difference. That holds for one group of all cells too, unless floors leave no room in it.
    """
    known = floors or [0] * len(counts)
    bounds: list[tuple[int, int]] = []
    first = 0
    for cell in range(len(counts)):
        count, least = sum(counts[first : cell + 1]), least_joined(known[first : cell + 1], small)
        alone = first == cell and (count == 0 or count >= small)
        if alone or count >= least:
            bounds.append((first, cell + 1))
            first = cell + 1
    while (
        first < len(counts) and bounds and sum(counts[first:]) < least_joined(known[first:], small)
    ):
        first, _ = bounds.pop()
    return bounds if first == len(counts) else [*bounds, (first, len(counts))]


def least_joined(floors: Iterable[int], small: int = SMALL) -> int:
    """Return how many patients a joined group counts at least, so that its cells have room."""
    return small + max(small, sum(floors))


def told_images(manifest: Manifest) -> int | None:
    """Return the number of images as it may be told beside patients and their visits.

    What is more than the patients, or than the visits that a reader can add up, tells who has
    more than one image: 1 to 10 of them are hidden. Beside joined visits none are told: where a
    visit has one image, their number is a second equation for two unknown cells.
    """
    images, patients = len(manifest.items), _by_patient(manifest.items)
    if told_count(len(patients)) is None:
        return None
    table = _tabulate((_visits_of(items) for items in patients.values()), VISITS)
    visits = len({(item.subject, item.visit) for item in manifest.items})
    rests = (images - len(patients), images - visits, images - least_visits(table))
    return None if is_joined(table) or None in map(told_count, rests) else images


def _by_patient(items: Iterable[Item]) -> dict[str, list[Item]]:
    patients: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        patients[item.subject].append(item)
    for own in patients.values():
        own.sort(key=lambda item: (item.visit, item.part))
    return patients


def sex_of(items: Sequence[Item]) -> str:
    """Return the cell of ``SEXES`` into which the items of a patient put it."""
    known = {item.covariates["sex"] for item in items if "sex" in item.covariates}
    if len(known) != 1:
        return UNKNOWN
    return "male" if known == {1.0} else "female"


def _age_of(items: Sequence[Item]) -> str:
    known = [item.covariates["age_years"] for item in items if "age_years" in item.covariates]
    if not known:
        return UNKNOWN
    return AGES[1 + int(min(known[0], _GREATEST_AGE) // 10)]


def _visits_of(items: Sequence[Item]) -> str:
    return VISITS[min(len({item.visit for item in items}), len(VISITS)) - 1]


def _tabulate(
    cell_of_patients: Iterable[str], cells: Sequence[str], floors: Sequence[int] | None = None
) -> list[Group]:
    found = Counter(cell_of_patients)
    if not found:
        return []
    counts = [found[cell] for cell in cells]
    return [
        Group(cells=list(cells[first:last]), patients=sum(counts[first:last]))
        for first, last in join_cells(counts, floors)
    ]


def _count_labels(patients: Mapping[str, Sequence[Item]]) -> dict[str, list[Group]]:
    """Return the table of each label that has a value which many share, by the label's name."""
    tables: dict[str, list[Group]] = {}
    for label in sorted({name for items in patients.values() for i in items for name in i.labels}):
        own = [{i.labels[label] for i in items if label in i.labels} for items in patients.values()]
        single = Counter(next(iter(values)) for values in own if len(values) == 1)
        named = sorted(v for v, n in single.most_common(_MOST_VALUES) if n >= SMALL)
        cells = [OTHER, SEVERAL, *named]
        table = _tabulate((_label_cell(values, named) for values in own), cells, _floors(cells))
        if named and _has_room(table) and len(tables) < _MOST_LABELS:
            tables[label] = table
    return tables


def _floors(cells: Sequence[str]) -> list[int]:
    """Return what is known of a label's cells: a value that has a name is not small."""
    return [0 if cell in (OTHER, SEVERAL) else SMALL for cell in cells]


def _has_room(table: Sequence[Group]) -> bool:
    """Return whether the small cells of a label's joined groups could have any size."""
    joined = [group for group in table if len(group.cells) > 1]
    return all(group.patients >= least_joined(_floors(group.cells)) for group in joined)


def _label_cell(values: Collection[str], named: Collection[str]) -> str:
    if len(values) > 1:
        return SEVERAL
    return next((value for value in values if value in named), OTHER)


def _count_covariates(patients: Mapping[str, Sequence[Item]]) -> dict[str, int | None]:
    """Return who has a value of each covariate that anybody has; sex and age have their tables.

    Who has one often has another too, such as the volumes that an ejection fraction comes from: of
    counts that differ by few the first alone is told.
    """
    counts = Counter(
        name
        for items in patients.values()
        for name in {name for item in items for name in item.covariates}
    )
    told: dict[str, int | None] = {}
    for name in COVARIATE_BOUNDS:
        if name in counts and name not in ("sex", "age_years"):
            share = _told_share(counts[name], len(patients))
            told[name] = None if share is None or _lie_close([share, *told.values()]) else share
    return told


def _lie_close(counts: Iterable[int | None]) -> bool:
    """Return whether two of some counts differ by few."""
    known = [count for count in counts if count is not None]
    return any(told_count(abs(one - two)) is None for one, two in combinations(known, 2))


def _told_share(count: int, total: int | None) -> int | None:
    """Return a count of some of all patients, if neither it nor the rest is small; None for 0."""
    hidden = not total or not count or told_count(total - count) is None
    return None if hidden else told_count(count)


def is_joined(table: Iterable[Group]) -> bool:
    """Return whether some cells of a table are told together."""
    return any(len(group.cells) > 1 for group in table)


def least_visits(table: Sequence[Group]) -> int:
    """Return how many visits there are at least, as a reader of the table can tell."""
    return sum(group.patients * (VISITS.index(group.cells[0]) + 1) for group in table)


def _check_table(table: Sequence[Group], total: int | None, cells: Sequence[str]) -> None:
    """Raise ValueError unless a table adds up, is complete and joined as ``join_cells`` does."""
    if not total:
        if table:
            msg = f"of fewer than {SMALL} patients nothing is told"
            raise ValueError(msg)
        return
    if [cell for group in table for cell in group.cells] != list(cells):
        msg = "a table has not the cells that it should have"
        raise ValueError(msg)
    if sum(group.patients for group in table) != total:
        msg = "a table does not add up to the number of patients"
        raise ValueError(msg)
    joined = [group for group in table if len(group.cells) > 1]
    if len(table) > 1 and any(group.patients < least_joined([]) for group in joined):
        msg = "a joined group is too small"
        raise ValueError(msg)
