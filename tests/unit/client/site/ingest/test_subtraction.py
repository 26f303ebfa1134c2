"""Two summaries that have left are subtracted number by number, and nothing small comes out."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.factories.entries import item, manifest_of
from vitrael.client.site.ingest.findings import Finding
from vitrael.client.site.ingest.subtraction import silence, withhold
from vitrael.client.site.ingest.summary import SMALL, CohortSummary, Group, summarize
from vitrael.core.data.manifest import Item

PATIENT = st.tuples(
    st.sampled_from([None, 0.0, 1.0]),
    st.sampled_from([None, 45.0, 46.0, 95.0]),
    st.sampled_from([1, 1, 2]),
    st.sampled_from(["", "a", "b"]),
    st.booleans(),
)


def items_of(patient: int, known: tuple[Any, ...]) -> list[Item]:
    sex, age, visits, label, is_measured = known
    covariates = {n: v for n, v in (("sex", sex), ("age_years", age)) if v is not None}
    covariates |= {"brain_ml": 1200.0} if is_measured else {}
    labels = {"group": label} if label else {}
    return [item(patient, visit=v, covariates=covariates, labels=labels) for v in range(visits)]


def summary_of(patients: dict[int, tuple[Any, ...]], withdrawn: int) -> CohortSummary:
    items = [each for patient, known in patients.items() for each in items_of(patient, known)]
    odd = tuple(i for i, each in enumerate(items) if each.covariates.get("sex") == 1.0)
    finding = Finding(check="spacing", severity="note", count=1, sentence=".", items=odd)
    return summarize(manifest_of(items, withdrawn=withdrawn), findings=[finding])


def unions(table: list[Group]) -> dict[frozenset[str], int]:
    """Return every union of neighboring groups with its count: all that a reader can add up."""
    return {
        frozenset(cell for group in table[first:last] for cell in group.cells): sum(
            group.patients for group in table[first:last]
        )
        for first, last in combinations(range(len(table) + 1), 2)
    }


def numbers(summary: CohortSummary) -> Iterator[tuple[object, int]]:
    """Yield whatever can be read off or computed within one summary, with its name."""
    total = summary.patients
    tables = {"sex": summary.sex, "age": summary.age, "visits": summary.visits, **summary.labels}
    for name, table in tables.items():
        for group in table:  # unions are sums of groups, which are safe when these are
            yield (name, frozenset(group.cells)), group.patients
    for name, count in (("patients", total), ("withdrawn", summary.withdrawn)):
        if count is not None:
            yield name, count
    if summary.images is not None and total:
        yield "images", summary.images
        yield "images beyond the first", summary.images - total
    for kind, counts in (("have", summary.covariates), ("found", summary.findings)):
        for name, count in counts.items():
            if count is not None and total:
                yield (kind, name), count
                yield (kind, name, "not"), total - count


def small_differences(one: CohortSummary, other: CohortSummary) -> list[object]:
    mine, others = dict(numbers(one)), dict(numbers(other))
    for name in ("sex", "age", "visits"):
        for cells, count in unions(getattr(other, name)).items():
            others[name, cells] = count
    return [k for k in mine.keys() & others.keys() if 0 < abs(mine[k] - others[k]) < SMALL]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(PATIENT, min_size=20, max_size=45),
    st.lists(PATIENT, max_size=30),
    st.integers(0, 20),
    st.sampled_from([(0, 0), (0, 12), (12, 15), (12, 30)]),
)
def test_no_number_of_two_summaries_differs_by_a_few(
    first: list[Any], new: list[Any], gone: int, withdrawn: tuple[int, int]
) -> None:
    before = dict(enumerate(first))
    after = {i: known for i, known in before.items() if i >= gone} | dict(enumerate(new, 100))
    told = summary_of(before, withdrawn[0])
    fresh = summary_of(after, withdrawn[1])
    left = withhold(fresh, [told])
    assert (left is None) == (
        None not in (told.patients, fresh.patients) and 0 < abs(len(before) - len(after)) < SMALL
    )
    if left is not None:
        assert small_differences(left, told) == []


def cohort(women: int, men: int, age: float = 45.0) -> dict[int, tuple[Any, ...]]:
    sexes = [0.0] * women + [1.0] * men
    return {i: (sex, age, 1, "", True) for i, sex in enumerate(sexes)}


def test_control_small_differences_would_be_seen() -> None:
    told, fresh = summary_of(cohort(20, 20), 12), summary_of(cohort(23, 37), 15)
    found = {name if isinstance(name, str) else name[0] for name in small_differences(fresh, told)}
    assert found == {"sex", "withdrawn", "found"}


def test_only_what_tells_of_few_is_withheld() -> None:
    told, fresh = summary_of(cohort(20, 20), 0), summary_of(cohort(23, 37), 0)
    left = withhold(fresh, [told])
    assert left is not None
    assert [group.patients for group in left.sex] == [60]
    assert (left.patients, left.images, left.age, left.visits) == (60, 60, fresh.age, fresh.visits)
    assert (left.covariates, left.findings) == ({"brain_ml": 60}, {"spacing": None})
    assert withhold(fresh, []) == fresh
    assert withhold(summary_of(cohort(40, 40), 0), [told]) == summary_of(cohort(40, 40), 0)


def test_every_earlier_summary_binds_and_not_the_last_alone() -> None:
    first, second = summary_of(cohort(20, 20), 0), summary_of(cohort(23, 37), 0)
    softened = withhold(second, [first])
    assert softened is not None
    third = summary_of(cohort(22, 58), 0)
    for told in ([first, softened], [softened, first]):
        left = withhold(third, told)
        assert left is not None
        assert [group.patients for group in left.sex] == [80]


def test_label_that_gained_or_lost_a_value_is_not_told_again() -> None:
    def labeled(values: str) -> CohortSummary:
        return summary_of({i: (None, None, 1, v, False) for i, v in enumerate(values)}, 0)

    told = labeled("a" * 20 + "b" * 20)
    assert withhold(labeled("a" * 40 + "b" * 40), [told]) == labeled("a" * 40 + "b" * 40)
    for values in ("a" * 60, "a" * 22 + "b" * 40):
        left = withhold(labeled(values), [told])
        assert left is not None
        assert left.labels == {}


def test_silence_tells_no_number() -> None:
    silent = silence(summary_of(cohort(20, 20), 15))
    assert list(numbers(silent)) == []
    assert silent.left_out == {}


def test_few_more_images_of_the_same_patients_are_not_told() -> None:
    def pictured(twice: int) -> CohortSummary:
        items = [item(i, part=part) for i in range(40) for part in range(1 + (i < twice))]
        return summarize(manifest_of(items))

    told = pictured(20)
    assert told.images == 60
    for twice, images in ((20, 60), (23, None), (31, 71)):
        left = withhold(pictured(twice), [told])
        assert left is not None
        assert left.images == images


def test_few_more_who_lack_a_covariate_are_not_told() -> None:
    def measured(count: int, total: int) -> CohortSummary:
        return summary_of({i: (None, None, 1, "", i < count) for i in range(total)}, 0)

    told = measured(30, 50)
    for (count, total), kept in (((45, 70), None), ((42, 74), 42), ((50, 70), 50)):
        left = withhold(measured(count, total), [told])
        assert left is not None
        assert left.covariates == {"brain_ml": kept}


def test_cells_that_were_joined_before_are_added_up_before_they_are_compared() -> None:
    told = summary_of({**cohort(20, 20), **dict.fromkeys(range(90, 93), (None, 45.0, 1, "", 1))}, 0)
    assert [group.patients for group in told.sex] == [23, 20]
    for women, patients in ((26, [61]), (34, [0, 34, 35])):
        left = withhold(summary_of(cohort(women, 35), 0), [told])
        assert left is not None
        assert [group.patients for group in left.sex] == patients
