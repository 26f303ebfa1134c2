"""A site that votes by no filter drops too little, and is found out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.factories.federation import STUDY, federation, prepare_homes
from tests.unit.server.studies.test_screening import CALIBRATION, put_candidates, votes
from vitrael.core.errors import VerificationError
from vitrael.privacy.audit.power import Tally
from vitrael.privacy.audit.tallies import check_drops
from vitrael.server.studies.screening import screen_candidates


@pytest.mark.parametrize(("shown", "dropped"), [(227, 0), (400, 2), (3_000, 60)])
def test_fewer_drops_than_chance_makes_are_no_votes(shown: int, dropped: int) -> None:
    with pytest.raises(VerificationError, match=f"it dropped {dropped} of {shown} images"):
        check_drops("north", Tally(shown, dropped), chance=0.03)


@pytest.mark.parametrize(("shown", "dropped"), [(226, 0), (400, 4), (3_000, 90), (3_000, 3_000)])
def test_drops_that_chance_may_leave_are_votes(shown: int, dropped: int) -> None:
    check_drops("north", Tally(shown, dropped), chance=0.03)


def test_site_that_is_proven_to_drop_less_than_chance_votes_by_no_filter(tmp_path: Path) -> None:
    home = prepare_homes(tmp_path, STUDY.replace("target = 16", "target = 60"))
    count = 120
    everything, few = np.ones(count, bool), np.arange(count) >= 2
    tasks = {"north": everything, "harbour": few, "valley": few}
    with federation(home, tasks={s: {"screening": votes(keep)} for s, keep in tasks.items()}) as t:
        run = t.run()
        first, second = (
            screen_candidates(
                run,
                candidates=put_candidates(run, seed=number, count=count),
                calibration=CALIBRATION,
                number=number,
            )
            for number in range(2)
        )
        record = run.ledger.history(run.study.protocol.digest)[-1]
    assert "north" in first["sites"]  # the control: chance keeps 120 of 120 once in 39
    assert list(record.details["absent"]) == ["north"]
    assert "0 of 240 images, and 3% of all are dropped by chance" in str(record.details["absent"])
    assert second["unscreened"] == count
