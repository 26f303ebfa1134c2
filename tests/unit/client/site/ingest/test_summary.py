"""What a coordinator may be told of a cohort, and that no small count can be had from it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.factories.entries import item, manifest_of
from vitrael.client.site.ingest.findings import Finding
from vitrael.client.site.ingest.reasons import class_of_reason
from vitrael.client.site.ingest.summary import (
    OTHER,
    SEVERAL,
    SMALL,
    CohortSummary,
    Group,
    join_cells,
    least_joined,
    summarize,
    told_images,
)
from vitrael.core.data.manifest import Item
from vitrael.core.data.sources import LeftOut
from vitrael.privacy.leakage import SMALLEST_COUNT

ALONE = [(0, 1), (1, 2), (2, 3)]


def people(count: int, first: int = 0, **known: Any) -> list[Item]:
    return [item(first + i, **known) for i in range(count)]


def cohort(women: int, men: int, unknown: int = 0) -> list[Item]:
    return [
        *people(women, covariates={"sex": 0.0, "age_years": 34.0}),
        *people(men, women, covariates={"sex": 1.0, "age_years": 71.0}),
        *people(unknown, women + men),
    ]


def table(groups: Sequence[Any]) -> dict[str, int]:
    return {group.name: group.patients for group in groups}


def numbers(value: object) -> Iterator[int]:
    """Yield every number of a JSON document."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from numbers(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from numbers(inner)
    elif isinstance(value, int):
        yield value


def test_summary_counts_patients_by_sex_age_and_visits() -> None:
    items = [*cohort(20, 15), *(item(i, visit=1) for i in range(12))]
    summary = summarize(manifest_of(items))
    assert (summary.patients, summary.images, summary.withdrawn) == (35, 47, 0)
    assert table(summary.sex) == {"unknown": 0, "female": 20, "male": 15}
    assert {k: n for k, n in table(summary.age).items() if n} == {"30-39": 20, "70-79": 15}
    assert table(summary.visits) == {"1": 23, "2": 12, "3": 0, "4 or more": 0}
    assert summary.recipe == "brain-t1"
    assert summary.cohort == manifest_of(items).digest


def test_age_is_that_of_the_first_visit_and_sex_must_be_one() -> None:
    items = []
    for i in range(20):
        items.append(item(i, covariates={"age_years": 29.9, "sex": 1.0}))
        items.append(item(i, visit=1, covariates={"age_years": 31.0, "sex": float(i < 12)}))
    summary = summarize(manifest_of(items))
    assert table(summary.age)["20-29"] == 20
    assert table(summary.sex) == {"unknown or female or male": 20}  # 8 contradict themselves
    old = summarize(manifest_of(people(11, covariates={"age_years": 90.0})))
    assert table(old.age)["90 or older"] == 11


# the law


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([None, 0.0, 1.0]),
            st.sampled_from([None, 5.0, 45.0, 46.0, 95.0]),
            st.sampled_from([1, 1, 2, 3]),
            st.sampled_from(["", "a", "b", "c"]),
        ),
        max_size=45,
    ),
    st.integers(0, 30),
)
def test_a_count_below_eleven_never_leaves(
    patients: list[tuple[float | None, float | None, int, str]], few: int
) -> None:
    items = []
    for i, (sex, age, visits, label) in enumerate(patients):
        known = {name: v for name, v in (("sex", sex), ("age_years", age)) if v is not None}
        labels = {"group": label} if label else {}
        items += [item(i, visit=v, covariates=known, labels=labels) for v in range(visits)]
    left = [LeftOut((Path("/x"),) * few, "it cannot be read")]
    finding = Finding(
        check="spacing",
        severity="note",
        count=1,
        sentence=".",
        items=tuple(range(min(few, len(items)))),
    )
    summary = summarize(manifest_of(items, withdrawn=few), left_out=left, findings=[finding])
    document = summary.model_dump(mode="json")
    del document["recipe_version"]
    assert [number for number in numbers(document) if 0 < number < SMALL] == []
    if summary.patients is not None and summary.images is not None:
        assert not 0 < summary.images - summary.patients < SMALL
    assert CohortSummary.model_validate(summary.model_dump(mode="json"))


def test_control_a_count_below_eleven_would_be_seen() -> None:
    assert [n for n in numbers({"a": [{"b": 3}], "c": 11, "d": None}) if 0 < n < SMALL] == [3]
    assert SMALL == SMALLEST_COUNT == 11


def narrowest(
    floors: Sequence[int],
    most: int,
    small: int,
    *,
    hide: Callable[[Sequence[int]], list[tuple[int, int]]],
    needs_room: bool = True,
) -> int:
    """Return to how few values an attacker can narrow any small cell that was kept back.

    The attacker knows the total, all that was told, how it was decided what to tell, and what
    each cell counts at least; and lists every table that would have looked the same.
    """
    alike: dict[object, list[tuple[int, ...]]] = defaultdict(list)
    for counts in product(*(range(floor, most + 1) for floor in floors)):
        bounds = hide(counts)
        sums = tuple(sum(counts[a:b]) for a, b in bounds)
        if sum(counts) < small or max(sums) > most:
            continue
        joined = [(a, b, n) for (a, b), n in zip(bounds, sums, strict=True) if b - a > 1]
        if needs_room and any(n < least_joined(floors[a:b], small) for a, b, n in joined):
            continue  # the whole table is not told
        alike[tuple(bounds), sums].append(counts)
    fewest = most
    for (bounds, _), tables in alike.items():
        for cell in (cell for a, b in bounds if b - a > 1 for cell in range(a, b)):
            values = {counts[cell] for counts in tables}
            if any(0 < value < small for value in values):
                fewest = min(fewest, len(values))
    return fewest


@pytest.mark.parametrize(
    ("cells", "most", "small"), [(2, 60, 11), (3, 28, 11), (3, 20, 4), (4, 11, 4), (5, 7, 3)]
)
def test_a_small_cell_cannot_be_computed_from_what_is_told(
    cells: int, most: int, small: int
) -> None:
    hide = partial(join_cells, small=small)
    assert narrowest([0] * cells, most, small, hide=hide, needs_room=False) >= small - 1


@pytest.mark.parametrize(("named", "most", "small"), [(1, 28, 11), (2, 15, 4), (3, 12, 3)])
def test_a_label_with_names_does_not_give_its_small_cells_away(
    named: int, most: int, small: int
) -> None:
    floors = [0, 0, *[small] * named]
    assert narrowest(floors, most, small, hide=partial(join_cells, floors=floors, small=small)) >= (
        small - 1
    )


def test_control_joining_two_cells_however_few_they_count_gives_them_away() -> None:
    def join_first(counts: Sequence[int]) -> list[tuple[int, int]]:
        return [(0, 2), (2, 3)] if 0 < min(counts[:2]) < 4 else ALONE

    assert narrowest([0] * 3, 20, 4, hide=join_first, needs_room=False) == 1


def test_control_names_without_room_give_small_cells_away() -> None:
    hide = partial(join_cells, small=4)
    assert narrowest([0, 0, 4, 4], 15, 4, hide=hide, needs_room=False) == 1


def test_cells_are_joined_from_the_left_and_the_rest_to_what_came_before() -> None:
    assert join_cells([20, 15, 0]) == ALONE
    assert join_cells([3, 40, 50]) == [(0, 2), (2, 3)]
    assert join_cells([3, 4, 50]) == [(0, 3)]
    assert join_cells([50, 40, 3]) == [(0, 1), (1, 3)]
    assert join_cells([50, 11, 1]) == [(0, 3)]  # 12 would tell 11 and 1
    assert join_cells([5, 0, 7]) == [(0, 3)]
    assert join_cells([]) == []


def test_of_fewer_than_eleven_patients_nothing_is_told() -> None:
    summary = summarize(manifest_of(cohort(6, 4)))
    assert summary.patients is None
    assert summary.images is None
    assert (summary.sex, summary.age, summary.visits, summary.labels) == ([], [], [], {})
    assert summarize(manifest_of(cohort(6, 5))).patients == 11
    assert summarize(manifest_of([])).patients == 0


def test_images_are_not_told_when_few_patients_have_two() -> None:
    once = people(40)
    assert told_images(manifest_of(once)) == 40
    assert told_images(manifest_of([*once, item(3, visit=1)])) is None
    assert told_images(manifest_of([*once, *(item(i, visit=1) for i in range(11))])) == 51
    parts = [item(i, visit=v) for i in range(40) for v in (0, 1)]
    assert told_images(manifest_of([*parts, item(0, part=1)])) is None
    assert summarize(manifest_of([*once, item(3, visit=1)])).images is None


def test_images_beside_joined_visits_are_not_told() -> None:
    """Of 23 patients with 43 images, one a visit, it would follow that 3 came once and 20 twice."""
    items = [*people(23), *(item(i, visit=1) for i in range(20))]
    summary = summarize(manifest_of(items))
    assert table(summary.visits) == {"1 or 2": 23, "3": 0, "4 or more": 0}
    assert summary.images is None
    with pytest.raises(ValidationError, match="tells joined visits apart"):
        CohortSummary.model_validate({**summary.model_dump(mode="json"), "images": 43})


def test_group_is_called_by_all_its_cells() -> None:
    group = Group(cells=["asthma", "unknown"], patients=20)
    assert group.name == "unknown or asthma"
    assert Group(cells=[OTHER, SEVERAL, "a", "b", "c"], patients=20).name == (
        "(other) or (several) or a to c"
    )


def test_rare_value_of_a_label_loses_its_name() -> None:
    items = [
        *people(30, labels={"finding": "none"}),
        *people(20, 30, labels={"finding": "stroke"}),
        *people(2, 50, labels={"finding": "Doe John 1950"}),
    ]
    summary = summarize(manifest_of(items))
    text = summary.model_dump_json()
    assert "Doe" not in text
    assert table(summary.labels["finding"]) == {"(other) or (several) or none": 32, "stroke": 20}
    common = [*people(30, labels={"finding": "none"}), *people(20, 30, labels={"finding": "x"})]
    assert table(summarize(manifest_of(common)).labels["finding"]) == {
        OTHER: 0,
        SEVERAL: 0,
        "none": 30,
        "x": 20,
    }


def test_label_that_names_each_patient_does_not_leave() -> None:
    items = [item(i, labels={"name": f"patient {i}", "view": "apical"}) for i in range(40)]
    summary = summarize(manifest_of(items))
    assert set(summary.labels) == {"view"}


def test_patients_with_several_values_are_counted_apart() -> None:
    items = [item(i, part=p, labels={"view": v}) for i in range(20) for p, v in enumerate("ab")]
    items += people(20, 20, labels={"view": "a"})
    assert table(summarize(manifest_of(items)).labels["view"]) == {OTHER: 0, SEVERAL: 20, "a": 20}


def test_covariate_is_told_unless_few_have_it_or_few_have_not() -> None:
    def told(have: int) -> dict[str, int | None]:
        items = [*people(have, covariates={"brain_ml": 1200.0}), *people(50 - have, have)]
        return dict(summarize(manifest_of(items)).covariates)

    assert told(30) == {"brain_ml": 30}
    assert told(50) == {"brain_ml": 50}
    assert told(5) == {"brain_ml": None}
    assert told(45) == {"brain_ml": None}
    assert told(0) == {}


def test_of_two_covariates_nobody_learns_how_few_have_one_alone() -> None:
    both = {"ef_frac": 0.5, "edv_ml": 100.0, "esv_ml": 50.0}
    items = [*people(57, covariates=both), *people(3, 57, covariates={"ef_frac": 0.5})]
    items += people(20, 60)
    summary = summarize(manifest_of(items))
    assert summary.covariates == {"ef_frac": 60, "esv_ml": None, "edv_ml": None}
    with pytest.raises(ValidationError, match="one and not the other"):
        CohortSummary.model_validate(
            {**summary.model_dump(mode="json"), "covariates": {"ef_frac": 60, "esv_ml": 57}}
        )


def test_findings_leave_as_classes_and_patients_never_as_sentences() -> None:
    items = people(60)
    many = Finding(check="spacing", severity="note", count=20, sentence="x", items=range(20))
    few = Finding(check="extent", severity="note", count=3, sentence="x", items=(1, 2, 3))
    whole = Finding(check="few-patients", severity="note", count=60, sentence="x")
    summary = summarize(manifest_of(items), findings=[many, few, whole])
    assert summary.findings == {"spacing": 20, "extent": None, "few-patients": None}


def test_reasons_leave_as_classes_and_never_as_text() -> None:
    reasons = {
        "the patient was withdrawn": "withdrawn",
        "it is the same image as another item": "same image as another",
        "its visit has another image already": "another image of its visit",
        "slices are missing: 2 positions are absent": "parts missing",
        "text may be burned in: no region is given": "burned-in text",
        "its pixel data is cut short": "not readable",
        "the header names no patient": "no patient or visit known",
        "it cannot be read: unexpected ValueError": "not readable",
        "Doe, John: something new": "not usable",
    }
    left = [LeftOut((Path("/x"),) * 12, reason) for reason in reasons]
    assert [class_of_reason(each) for each in left] == list(reasons.values())
    summary = summarize(manifest_of(people(20)), left_out=left)
    assert "Doe" not in summary.model_dump_json()
    counts = {name: 12 * list(reasons.values()).count(name) for name in sorted(reasons.values())}
    assert summary.left_out == {name: n for name, n in counts.items() if name != "withdrawn"}
    assert class_of_reason(LeftOut((), "a license", expected=True)) == "not of this recipe"


# the door


def document(**changes: Any) -> dict[str, Any]:
    items = [*cohort(20, 15), *(item(i, visit=1) for i in range(12))]
    for i, each in enumerate(items):
        items[i] = each.model_copy(update={"labels": {"group": "ab"[int(each.subject[2:]) < 20]}})
    return {**summarize(manifest_of(items)).model_dump(mode="json"), **changes}


def groups(**patients: int) -> list[dict[str, Any]]:
    return [{"cells": name.split("_"), "patients": n} for name, n in patients.items()]


SMALL_WAYS: dict[str, dict[str, Any]] = {
    "a small count": {"withdrawn": 3},
    "a small group": {"sex": groups(unknown=3, female=20, male=12)},
    "a joined group without room": {"sex": groups(unknown_female=12, male=23)},
    "a table that does not add up": {"sex": groups(unknown=0, female=20, male=14)},
    "a cell too few": {"sex": groups(female=20, male=15)},
    "a table in another order": {"sex": groups(unknown=0, male=15, female=20)},
    "a cell of its own making": {"visits": groups(Doe=35)},
    "images that give a small count away": {"images": 36},
    "fewer images than patients": {"images": 20},
    "a covariate that few lack": {"covariates": {"brain_ml": 30}},
    "an unknown covariate": {"covariates": {"height": 30}},
    "a finding that few lack": {"findings": {"spacing": 30}},
    "an unknown finding": {"findings": {"Doe": 12}},
    "an unknown reason": {"left_out": {"Doe John": 12}},
    "counts of a few patients": {"patients": None, "images": 47},
    "a label without its other cells": {"labels": {"group": groups(a=20, b=15)}},
    "a fraction": {"patients": 35.0},
    "a field of its own making": {"note": "hello"},
    "a negative count": {"withdrawn": -1},
}


@pytest.mark.parametrize("way", SMALL_WAYS)
def test_summary_that_tells_too_much_is_refused(way: str) -> None:
    assert CohortSummary.model_validate(document())
    with pytest.raises(ValidationError) as caught:
        CohortSummary.model_validate(document(**SMALL_WAYS[way]))
    assert "Doe" not in str(caught.value).replace("findings.Doe", "").replace(
        "left_out.Doe John", ""
    )


def test_summary_refuses_names_that_leave_no_room() -> None:
    label = [
        {"cells": [OTHER], "patients": 0},
        {"cells": [SEVERAL, "a", "b"], "patients": 35},
    ]
    assert CohortSummary.model_validate(document(labels={"group": label}))
    label[1:] = [{"cells": [SEVERAL, "a"], "patients": 21}, {"cells": ["b"], "patients": 14}]
    with pytest.raises(ValidationError):
        CohortSummary.model_validate(document(labels={"group": label}))


def test_summary_survives_json() -> None:
    summary = CohortSummary.model_validate(document())
    assert CohortSummary.model_validate_json(summary.model_dump_json()) == summary
