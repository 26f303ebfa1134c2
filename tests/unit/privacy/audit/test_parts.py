from __future__ import annotations

import pytest

from tests.unit.privacy.audit.conftest import make_tally
from vitrael.core.errors import DataError
from vitrael.privacy.audit.pooling import (
    audit_measurements,
    screening_measurement,
    verification_measurement,
)
from vitrael.privacy.audit.tallies import TALLY_STAGES, check_tally


@pytest.mark.parametrize(
    ("section", "label", "wrong"),
    [
        ("counts", "copies.hits", -50),
        ("counts", "copies.hits", 97),
        ("counts", "copies.control_hits", -1),
        ("counts", "copies.control_hits", 97),
        ("counts", "copies.planted_hits", 21),
        ("counts", "copies.samples", 96.5),
        pytest.param("counts", "copies.samples", 10**400, id="huge count"),
        pytest.param("metrics", "copies.scale", 10**400, id="huge scale"),
        ("counts", "copies.planted", True),
        ("counts", "copies.hits", None),
        ("metrics", "copies.scale", -2.5),
        ("metrics", "copies.scale", float("inf")),
        ("counts", "plants.exact.dropped", 21),
        ("counts", "plants.flip_x.shown", -1),
        ("counts", "fresh.dropped", -1),
        ("metrics", "closeness.share", 1.01),
        ("metrics", "closeness.share", "0.5"),
        ("metrics", "closeness.error", -0.01),
        ("counts", "closeness.patients", 0),
        ("metrics", "membership.attack", -0.01),
        ("metrics", "membership.attack_error", float("nan")),
        ("metrics", "membership.placebo", 1.5),
        ("metrics", "membership.control", None),
        ("counts", "membership.others", 0),
    ],
)
def test_tally_out_of_range_is_refused_and_names_the_part(
    section: str, label: str, wrong: object
) -> None:
    tally = make_tally()
    spoiled = {**tally, section: {**tally[section], label: wrong}}  # type: ignore[dict-item]
    with pytest.raises(DataError, match=label):
        audit_measurements([tally, spoiled])
    audit_measurements([tally, tally])  # the control


def test_calibration_and_votes_out_of_range_are_refused() -> None:
    verified = {"metrics": {"verification.wins": 12.0}, "counts": {"verification.patients": 11}}
    with pytest.raises(DataError, match=r"verification\.wins"):
        verification_measurement([verified])
    for votes in ({"candidates": -5}, {"candidates": 0}, {}):
        tally = {"estimable": True, "counts": votes, "metrics": {}}
        with pytest.raises(DataError, match="candidates"):
            screening_measurement([[tally]])
    with pytest.raises(DataError, match="estimable"):
        screening_measurement([[{"estimable": "no", "counts": {"candidates": 8}}]])
    with pytest.raises(DataError, match="counts"):
        audit_measurements([{"metrics": {}}])


@pytest.mark.parametrize("stage", TALLY_STAGES)
def test_answer_that_tells_nothing_is_refused(stage: str) -> None:
    with pytest.raises(DataError, match="empty"):
        check_tally(stage, {})
