"""A site votes on all candidates of its study at once, and says which frozen point voted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

from vitrael.client.site.tasks import SiteContext
from vitrael.client.site.tasks.filtering import load_screener
from vitrael.client.site.tasks.screen import run
from vitrael.core.errors import DataError
from vitrael.privacy.reid.calibrate import OperatingPoint, Scale
from vitrael.privacy.reid.screen import Screener

if TYPE_CHECKING:
    from tests.unit.client.site.conftest import Home

SCALE = Scale(mean=(0.0,), spread=(1.0,))
POINT = OperatingPoint(
    best=SCALE,
    region=SCALE,
    regions=SCALE,
    threshold=2.718,
    false_match_rate=0.05,
    null_patients=40,
    gallery_patients=40,
    salt="0a" * 16,
)


class DropFirst(Screener):
    """Says no to the first of what it is shown."""

    def __call__(self, image_BCDHW: np.ndarray) -> np.ndarray:
        return np.arange(len(image_BCDHW)) > 0


@pytest.fixture
def context(home: Home, tmp_path: Path) -> SiteContext:
    return SiteContext(
        settings=home.settings,
        study=home.study,
        members={},
        consent=b"",
        keys=home.keys,
        records=tmp_path / "records",
        load_cohort=cast("Any", None),
        report=lambda _done, _total: None,
    )


def candidates(home: Home, count: int) -> dict[str, dict[str, np.ndarray]]:
    grid = home.study.protocol.data.grid_vox
    return {"candidates": {"image": np.zeros((count, 1, *grid), np.float32)}}


@pytest.mark.parametrize("change", [-1, 1])
def test_other_number_of_candidates_than_the_studys_is_refused(
    home: Home, context: SiteContext, change: int
) -> None:
    count = home.study.protocol.distillation.candidates
    result = run(home.task(), candidates(home, count), context)
    assert len(result.tensors["votes"]["keep"]) == count
    with pytest.raises(DataError, match=f"{count + change} instead of {count}"):
        run(home.task(), candidates(home, count + change), context)


def test_votes_name_the_point_that_gave_them(home: Home, context: SiteContext) -> None:
    asked = candidates(home, home.study.protocol.distillation.candidates)
    assert load_screener(context) is None
    body = run(home.task(), asked, context).body
    assert (body["estimable"], body["commitment"]) == (False, "")
    context.warm["reid.screener"] = DropFirst(cast("Any", None), POINT)
    result = run(home.task(), asked, context)
    assert (result.body["estimable"], result.body["commitment"]) == (True, POINT.commitment)
    assert result.tensors["votes"]["keep"][0] == 0
    assert str(POINT.threshold) not in str(result.body)
