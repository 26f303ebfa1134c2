"""Ways of asking experts are compared over all sites, on the same pictures, or not at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vitrael.core.errors import DataError
from vitrael.core.metrics.comparison import METHODS, ViewCounts, compare_methods
from vitrael.core.metrics.intervals import clopper_pearson

VIEWS = ("A2C", "A4C", "PLAX")


def counted(
    images: tuple[int, ...], right: dict[str, tuple[int, ...]], **changes: Any
) -> ViewCounts:
    """Return the counts of a site that tried the methods that are named."""
    right_MV = np.full((len(METHODS), len(images)), -1, dtype=np.int64)
    for method, row in right.items():
        right_MV[METHODS.index(method)] = row
    parts = {"images_V": np.array(images), "right_MV": right_MV}
    heaviest = {"heaviest_V": np.zeros(len(images), dtype=np.int64)}
    return ViewCounts(**{**parts, **heaviest, **changes})


NORTH = counted((12, 11, 0), {"own expert": (12, 3, 0), "fusion": (10, 8, 0)})
VALLEY = counted((0, 20, 37), {"fusion": (0, 20, 30), "nearest expert": (0, 0, 37)})


def test_right_answers_of_all_sites_are_added_up() -> None:
    (row,) = compare_methods({"north": NORTH, "valley": VALLEY}, views=VIEWS)
    assert row.method == "fusion"
    assert row.images == 80
    assert row.accuracy == pytest.approx(68 / 80)
    assert row.interval == clopper_pearson(68, 80)
    assert row.interval.low < row.accuracy < row.interval.high
    assert row.sites == pytest.approx({"north": 18 / 23, "valley": 50 / 57})
    assert row.by_view == pytest.approx({"A2C": 10 / 12, "A4C": 28 / 31, "PLAX": 30 / 37})


def test_method_that_a_site_did_not_try_has_no_row() -> None:
    """It would be held to other pictures than the others."""
    both = compare_methods({"north": NORTH, "valley": VALLEY}, views=VIEWS)
    assert [row.method for row in both] == ["fusion"]
    alone = compare_methods({"north": NORTH}, views=VIEWS)  # the control
    assert [row.method for row in alone] == ["own expert", "fusion"]


def test_methods_stand_in_their_order() -> None:
    every = counted((12, 0, 0), dict.fromkeys(reversed(METHODS), (6, 0, 0)))
    assert tuple(row.method for row in compare_methods({"north": every}, views=VIEWS)) == METHODS


def test_view_that_nobody_was_shown_has_no_accuracy() -> None:
    row = compare_methods({"north": NORTH}, views=VIEWS)[0]
    assert set(row.by_view) == {"A2C", "A4C"}
    assert row.by_view["A2C"] == 1


def test_order_of_the_sites_does_not_matter() -> None:
    first = compare_methods({"north": NORTH, "valley": VALLEY}, views=VIEWS)
    assert compare_methods({"valley": VALLEY, "north": NORTH}, views=VIEWS) == first


def test_no_site_gives_no_row() -> None:
    assert compare_methods({}, views=VIEWS) == ()


def test_all_or_nothing_right_has_an_interval_of_its_own_side() -> None:
    counts = counted((30, 0, 0), {"fusion": (30, 0, 0), "nearest expert": (0, 0, 0)})
    none, every = compare_methods({"north": counts}, views=VIEWS)
    assert (none.accuracy, every.accuracy) == (0, 1)
    assert none.interval.low == 0 < none.interval.high < every.interval.low
    assert every.interval.high == 1


WRONG: dict[str, dict[str, Any]] = {
    "more right than there are": {"right": {"fusion": (13, 0, 0)}},
    "right of a view that was not shown": {"right": {"fusion": (12, 0, 1)}},
    "fewer than none": {"images": (12, -1, 0)},
    "no picture": {"images": (0, 0, 0), "right": {}},
    "tried and not tried": {"right": {"fusion": (3, -1, 0)}},
    "not tried, but otherwise": {"right": {"fusion": (-2, -2, -2)}},
    "more heavy than there are": {"heaviest_V": np.array([13, 0, 0])},
    "fewer heavy than none": {"heaviest_V": np.array([-1, 0, 0])},
    "another number of methods": {"right_MV": np.zeros((len(METHODS) - 1, 3), np.int64)},
    "another number of views": {"right_MV": np.zeros((len(METHODS), 4), np.int64)},
    "heaviest of other views": {"heaviest_V": np.zeros(4, np.int64)},
    "a table of images": {"images_V": np.array([[12, 11, 0]])},
    "not a number": {"images_V": np.array([12, np.nan, 0])},
}


@pytest.mark.parametrize("fault", list(WRONG))
def test_counts_that_cannot_be_of_pictures_are_refused(fault: str) -> None:
    changes = dict(WRONG[fault])
    images = changes.pop("images", (12, 11, 0))
    right = changes.pop("right", {"fusion": (12, 11, 0)})
    with pytest.raises(DataError, match="counted what cannot be counted"):
        counted(images, right, **changes)
    counted((12, 11, 0), {"fusion": (12, 11, 0)})  # the control
