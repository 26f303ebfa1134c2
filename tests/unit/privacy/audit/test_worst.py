from __future__ import annotations

import pytest

from tests.unit.privacy.audit.conftest import closed_gates, make_tally, named
from vitrael.core.metrics.intervals import Estimate
from vitrael.privacy.audit.closeness import Closeness
from vitrael.privacy.audit.copies import Copies
from vitrael.privacy.audit.membership import Membership
from vitrael.privacy.evidence import Measurement


@pytest.mark.parametrize("control_hits", [0, 20, 96])
def test_copies_at_one_site_are_not_cancelled_by_another(control_hits: int) -> None:
    copied, control = Copies(96, 30, 0, 2.5, 20, 20), Copies(96, 0, control_hits, 2.5, 20, 20)
    told = named(make_tally(copies=copied), make_tally(copies=control))
    excess = told["copies.excess_share"]
    assert excess.value == pytest.approx(30 / 96)
    assert excess.high is not None
    assert excess.high > 0.3
    assert set(closed_gates(told, "copies.")) == {"copies.excess_share", "copies.worst_site"}
    # The control: without the copies the same controls pass.
    assert (
        closed_gates(named(make_tally(copies=control), make_tally(copies=control)), "copies.") == []
    )


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize("leak", ["closeness", "membership"])
def test_leak_of_one_hospital_is_not_averaged_away(leak: str, side: int) -> None:
    def told(area: float, others: float) -> dict[str, Measurement]:
        areas = (0.5 + side * (area - 0.5), *[0.5 + side * (others - 0.5)] * 2)
        if leak == "closeness":
            return named(*(make_tally(closeness=Closeness(a, 0.06, 22)) for a in areas))
        control = Estimate(0.8, 0.04)
        return named(
            *(
                make_tally(
                    membership=Membership(
                        Estimate(a, 0.06), Estimate(0.5, 0.05), control, members=55, others=22
                    )
                )
                for a in areas
            )
        )

    worst = f"{leak}.worst_site"
    measured = told(0.85, 0.5)
    assert measured[worst].value == pytest.approx(0.5 + side * 0.35)
    assert closed_gates(measured, leak) == [worst]
    # The controls: what is no further off than chance allows passes, and so do equal sites.
    assert closed_gates(told(0.65, 0.5), leak) == []
    assert closed_gates(told(0.5, 0.5), leak) == []


def test_worst_of_many_sites_has_wider_bounds() -> None:
    one, five = (named(*[make_tally()] * sites)["membership.worst_site"] for sites in (1, 5))
    assert one.value == five.value == 0.5
    assert one.low is not None
    assert five.low is not None
    assert one.low == pytest.approx(0.5 - 1.645 * 0.06, abs=1e-3)
    assert five.low == pytest.approx(0.5 - 2.326 * 0.06, abs=1e-3)
    assert (one.n, five.n) == (22, 22)


@pytest.mark.parametrize("controls", [(0, 2, 5), (2, 5, 0), (5, 0, 2)])
def test_worst_site_does_not_depend_on_the_order_of_the_sites(
    controls: tuple[int, int, int],
) -> None:
    parts = [Copies(96, 0, count, 2.5, 20, 20) for count in controls]
    told = named(*(make_tally(copies=part) for part in parts))["copies.worst_site"]
    tied = named(*(make_tally(copies=part) for part in sorted(parts, key=lambda p: p.control_hits)))
    assert told == tied["copies.worst_site"]
