"""What two summaries tell together: nothing of few patients by their difference.

Of two summaries that count much the same patients, one can be subtracted from the other, and the
difference counts those who came, who left, or whose data were corrected. So a number leaves only
where it differs by 0 or at least ``SMALL`` from the same number of each such summary that has left
before; where it does not, it is told with less detail or not at all. What a table or a count
leaves over (patients without a value, images beyond the first of a patient) is a number as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise

from vitrael.client.site.ingest.summary import (
    CohortSummary,
    Group,
    is_joined,
    least_visits,
)
from vitrael.privacy.leakage import told_count


def withhold(summary: CohortSummary, told: Sequence[CohortSummary]) -> CohortSummary | None:
    """Return a summary without what tells of few beside those that have left.

    A table is told as one group, or a label's not at all; a count is None. None in place of the
    summary when the number of patients itself would tell of few.
    """
    if any(_is_few(summary.patients, each.patients) for each in told):
        return None
    visits = _keep_table(summary.visits, [each.visits for each in told])
    tells_images = not is_joined(visits) and not any(_images_tell(summary, each) for each in told)
    return CohortSummary(
        recipe=summary.recipe,
        recipe_version=summary.recipe_version,
        cohort=summary.cohort,
        patients=summary.patients,
        images=summary.images if tells_images else None,
        sex=_keep_table(summary.sex, [each.sex for each in told]),
        age=_keep_table(summary.age, [each.age for each in told]),
        visits=visits,
        labels={
            name: table
            for name, table in summary.labels.items()
            if not any(_label_tells(table, each.labels.get(name)) for each in told)
        },
        covariates={
            name: _keep_share(
                (count, summary.patients), [(e.covariates.get(name, 0), e.patients) for e in told]
            )
            for name, count in summary.covariates.items()
        },
        withdrawn=_keep(summary.withdrawn, [each.withdrawn for each in told]),
        left_out={
            reason: _keep(count, [each.left_out.get(reason, 0) for each in told])
            for reason, count in summary.left_out.items()
        },
        findings={
            check: _keep_share(
                (count, summary.patients), [(e.findings.get(check, 0), e.patients) for e in told]
            )
            for check, count in summary.findings.items()
        },
    )


def silence(summary: CohortSummary) -> CohortSummary:
    """Return a summary that tells its recipe and its version by their names, and no number."""
    return CohortSummary(
        recipe=summary.recipe,
        recipe_version=summary.recipe_version,
        cohort=summary.cohort,
        patients=None,
        images=None,
        sex=[],
        age=[],
        visits=[],
        labels={},
        covariates={},
        withdrawn=None,
        left_out={},
        findings={},
    )


def _is_few(one: int | None, other: int | None) -> bool:
    return one is not None and other is not None and told_count(abs(one - other)) is None


def _keep(count: int | None, told: Iterable[int | None]) -> int | None:
    return None if any(_is_few(count, other) for other in told) else count


def _keep_share(
    own: tuple[int | None, int | None], told: Iterable[tuple[int | None, int | None]]
) -> int | None:
    """Return a count of some of all patients, unless it or the rest tells of few."""
    count, total = own
    for other, all_others in told:
        rests = (_difference(total, count), _difference(all_others, other))
        if _is_few(count, other) or _is_few(*rests):
            return None
    return count


def _difference(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one - other


def _keep_table(table: list[Group], told: Iterable[list[Group]]) -> list[Group]:
    """Return a table, or its one group of all cells where the finer ones tell of few."""
    if not any(_tells_few(table, other) for other in told):
        return table
    cells = [cell for group in table for cell in group.cells]
    return [Group(cells=cells, patients=sum(group.patients for group in table))]


def _tells_few(one: Sequence[Group], other: Sequence[Group]) -> bool:
    """Return whether cells that both tables tell apart differ by few.

    Groups are runs of the same cells in one order, so what both tell lies between common ends.
    """
    ends = [_sums_by_end(table) for table in (one, other)]
    common = [0, *sorted(ends[0].keys() & ends[1].keys())]
    steps = [
        [sums[last] - sums[first] for first, last in pairwise(common)]
        for sums in ({0: 0, **each} for each in ends)
    ]
    return any(_is_few(mine, others) for mine, others in zip(*steps, strict=True))


def _sums_by_end(table: Sequence[Group]) -> dict[int, int]:
    """Return how many patients all cells before a group's end count, by the place of the end."""
    ends = accumulate(len(group.cells) for group in table)
    return dict(zip(ends, accumulate(group.patients for group in table), strict=True))


def _label_tells(table: Sequence[Group], other: Sequence[Group] | None) -> bool:
    if other is None:
        return False
    names = [[cell for group in each for cell in group.cells] for each in (table, other)]
    return names[0] != names[1] or _tells_few(table, other)


def _images_tell(one: CohortSummary, other: CohortSummary) -> bool:
    """Return whether the images of two summaries, or what they leave over, differ by few."""
    counts = [
        (each.images, each.images - (each.patients or 0), each.images - least_visits(each.visits))
        for each in (one, other)
        if each.images is not None
    ]
    return len(counts) == 2 and any(map(_is_few, *counts))  # noqa: PLR2004 - both
