"""What a cohort holds follows from its sources alone."""

from __future__ import annotations

from datetime import date
from typing import Any

import numpy as np

from vitrael.client.site.ingest.assemble import (
    ONE_A_VISIT,
    SAME_IMAGE,
    Candidate,
    assemble,
    natural_key,
)
from vitrael.core.rng import stream


def candidate(
    source: str,
    *,
    subject: str = "p-a",
    session: str = "1",
    part: str = "",
    taken: date | None = None,
    content: str | None = None,
    **covariates: float,
) -> Candidate:
    code = (content or source).encode().hex().ljust(64, "0")
    outcome: dict[str, Any] = {
        "shard": f"{code[:2]}/{code}.safetensors",
        "digest": f"sha256:{code}",
        "affine": np.eye(4).tolist(),
        "unit": "mm",
        "frame_s": None,
        "measured": {"brain_ml": 1200.0},
    }
    return Candidate(source, subject, session, part, taken, covariates, {}, 1, outcome)


def test_visits_are_ranked_by_date_before_name() -> None:
    late, early = date(2020, 3, 1), date(2019, 3, 2)
    made = assemble(
        [candidate("x", session="1", taken=late), candidate("y", session="2", taken=early)],
        one_a_visit=True,
    )
    assert [(item.visit, item.days) for item in made.items] == [(0, 0), (1, 365)]
    assert [c.source for c in made.chosen] == ["y", "x"]


def test_numbers_of_sessions_sort_as_numbers_where_a_date_is_missing() -> None:
    sessions = ["10", "9", "2"]
    found = [candidate(s, session=s) for s in sessions]
    found[0] = candidate("10", session="10", taken=date(2000, 1, 1))
    made = assemble(found, one_a_visit=True)
    assert [c.session for c in made.chosen] == ["2", "9", "10"]
    assert {item.days for item in made.items} == {None}
    assert natural_key("ses-007") == natural_key("ses-7")
    assert natural_key("9" * 5000) > natural_key("8" * 5000)


def test_order_of_the_sources_changes_nothing() -> None:
    found = [
        candidate(
            f"s{n}", subject=f"p-{n % 4}", session=str(n % 3), part=str(n), content=str(n % 9)
        )
        for n in range(20)
    ]
    expected = assemble(found, one_a_visit=False)
    for seed in range(5):
        order = stream(seed, "order").permutation(len(found))
        shuffled = [found[place] for place in order]
        again = assemble(shuffled, one_a_visit=False)
        assert again.items == expected.items
        assert sorted(c.source for c, _ in again.dropped) == sorted(
            c.source for c, _ in expected.dropped
        )
    # Control: another content is another cohort.
    assert assemble(found[1:], one_a_visit=False).items != expected.items


def test_one_image_of_two_patients_is_taken_once_and_counted() -> None:
    made = assemble(
        [
            candidate("x", subject="p-b", content="same"),
            candidate("y", subject="p-a", content="same"),
            candidate("z", subject="p-a", session="2", content="same"),
        ],
        one_a_visit=True,
    )
    assert [item.subject for item in made.items] == ["p-a"]
    assert [reason for _, reason in made.dropped] == [SAME_IMAGE, SAME_IMAGE]
    assert made.shared == (0,)


def test_a_visit_has_one_volume_and_several_pictures() -> None:
    found = [candidate("x", part="2"), candidate("y", part="10")]
    volumes = assemble(found, one_a_visit=True)
    assert [c.source for c in volumes.chosen] == ["x"]
    assert volumes.dropped[0][1] == ONE_A_VISIT
    pictures = assemble(found, one_a_visit=False)
    assert [item.part for item in pictures.items] == [0, 1]


def test_what_the_site_knows_goes_before_what_was_measured() -> None:
    made = assemble(
        [candidate("x", brain_ml=1300.0, age_years=40.0), candidate("y", session="2")],
        one_a_visit=True,
    )
    assert made.items[0].covariates == {"age_years": 40.0, "brain_ml": 1300.0}
    assert made.items[1].covariates == {"brain_ml": 1200.0}
