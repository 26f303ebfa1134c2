"""A site votes in rounds, hides a few votes behind chance, and says which frozen point voted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

from vitrael.client.site.tasks import SiteContext
from vitrael.client.site.tasks.filtering import load_screener
from vitrael.client.site.tasks.screen import (
    choose_filter,
    read_kept,
    rejected_by_chance,
    rescreen,
    rounds_voted,
    run,
)
from vitrael.core.data.nifti import decode_nifti
from vitrael.core.data.synthetic import synthetic_set
from vitrael.core.digest import digest_bytes
from vitrael.core.errors import DataError, ScanError
from vitrael.core.geometry import centered_affine
from vitrael.core.records import Samples
from vitrael.privacy.reid.calibrate import OperatingPoint, Scale
from vitrael.privacy.reid.screen import Screener
from vitrael.privacy.release.bundle import image_files

if TYPE_CHECKING:
    from tests.unit.client.site.conftest import Home

SCALE = Scale(mean=(0.0,), spread=(1.0,))
POINT = OperatingPoint(
    made_with="",
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
    return home.context(records=tmp_path / "records", load_cohort=cast("Any", None))


def images(home: Home, count: int, *, seed: int = 1) -> np.ndarray:
    shape = (count, 1, *home.study.synthesis.data.grid_vox)
    return np.random.default_rng(seed).random(shape).astype(np.float16).astype(np.float32)


def candidates(home: Home, count: int) -> dict[str, dict[str, np.ndarray]]:
    return {"candidates": {"image": images(home, count)}}


def files_of(home: Home, image: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """Return images as a release stores them."""
    data = home.study.synthesis.data
    affine = centered_affine(data.grid_vox, spacing=data.spacing_mm)
    drawn = Samples(image, np.full((len(image), 4), 0.5, np.float32), affine)
    files = image_files(synthetic_set(drawn, seed=1, generator=digest_bytes(b"w"), data=data))
    return {"samples": {name: np.frombuffer(data, np.uint8) for name, data in files.items()}}


def calibrated(context: SiteContext, screener: type[Screener] = DropFirst) -> SiteContext:
    context.warm["reid.screener"] = screener(cast("Any", None), POINT)
    return context


def test_votes_name_the_point_that_gave_them(home: Home, context: SiteContext) -> None:
    asked = candidates(home, 9)
    assert load_screener(context) is None
    body = run(home.task(stage="screening"), asked, context).body
    assert (body["estimable"], body["commitment"]) == (False, "")
    result = run(home.task(stage="screening"), asked, calibrated(context))
    assert (result.body["estimable"], result.body["commitment"]) == (True, POINT.commitment)
    assert result.tensors["votes"]["keep"][0] == 0
    assert str(POINT.threshold) not in str(result.body)


def test_nothing_but_the_votes_says_how_many_were_kept(home: Home, context: SiteContext) -> None:
    """Other sites get what a site signs: of a round of one image a count would be its vote."""
    result = run(home.task(stage="screening"), candidates(home, 1), calibrated(context))
    assert result.body["counts"] == {"candidates": 1}
    assert result.num_examples == 1


@pytest.mark.parametrize("value", [0.0, 0.5, np.nan, np.inf])
def test_image_that_no_filter_can_judge_is_refused(
    home: Home, context: SiteContext, value: float
) -> None:
    asked = candidates(home, 3)
    run(home.task(stage="screening"), asked, context)  # the control
    asked["candidates"]["image"][1] = value
    with pytest.raises(DataError, match=r"constant|not finite"):
        run(home.task(stage="screening"), asked, context)


# What chance rejects


def test_chance_rejects_its_share_by_the_images_and_the_sites_secret(home: Home) -> None:
    image = images(home, 400)
    dropped = rejected_by_chance(image, 0.05, key=b"own")
    assert 8 <= dropped.sum() <= 34
    assert np.array_equal(dropped, rejected_by_chance(image, 0.05, key=b"own"))
    turned = rejected_by_chance(image[::-1], 0.05, key=b"own")[::-1]
    assert np.array_equal(dropped, turned)  # whatever comes beside it, at whatever place
    assert (dropped & ~rejected_by_chance(image, 0.01, key=b"own")).any()
    assert not np.array_equal(dropped, rejected_by_chance(image, 0.05, key=b"another site's"))


def test_sign_of_zero_gives_no_second_chance(home: Home) -> None:
    image = images(home, 400)
    image[:, :, :8] = 0.0
    signed = image.copy()
    signed[:, :, :8] = -0.0
    first, again = (rejected_by_chance(one, 0.05, key=b"own") for one in (image, signed))
    assert first.any()
    assert np.array_equal(first, again)


def test_votes_hold_what_chance_rejects_and_nothing_tells_it_apart(
    home: Home, context: SiteContext
) -> None:
    image = images(home, 96)
    share = home.study.synthesis.screening.extra_rejections
    chance = rejected_by_chance(image, share, key=home.settings.read_split_key())
    assert chance[1:].any()
    asked = {"candidates": {"image": image}}
    task = home.task(stage="screening")
    votes = run(task, asked, calibrated(context)).tensors["votes"]["keep"]
    assert np.array_equal(votes == 1, (np.arange(96) % 32 > 0) & ~chance)
    assert np.array_equal(votes, run(task, asked, context).tensors["votes"]["keep"])
    # The controls: neither the audit's plants nor a site without a filter know of it.
    keep, _ = choose_filter(context)
    assert np.array_equal(keep(image), np.arange(96) > 0)
    context.warm.clear()
    assert run(task, asked, context).tensors["votes"]["keep"].all()


# Samples, as they would be released


def test_samples_are_judged_as_their_files_show_them(home: Home, context: SiteContext) -> None:
    seen: list[np.ndarray] = []

    class Watch(Screener):
        def __call__(self, image_BCDHW: np.ndarray) -> np.ndarray:
            seen.append(image_BCDHW)
            return np.ones(len(image_BCDHW), dtype=bool)

    drawn = np.random.default_rng(3).random((5, 1, *home.study.synthesis.data.grid_vox))
    drawn = drawn.astype(np.float32)
    asked = files_of(home, drawn)
    rescreen(home.task(stage="rescreening"), asked, calibrated(context, Watch))
    (shown,) = seen
    files = {name: array.tobytes() for name, array in asked["samples"].items()}
    stored = [decode_nifti(files[name], label="x").image_CDHW for name in sorted(files)]
    assert np.array_equal(shown, np.clip(np.stack(stored), 0, 1))
    assert 0 < np.abs(shown - drawn).max() < 1e-4  # the control: the files lose something


def test_files_that_were_kept_are_noted_and_no_others(home: Home, context: SiteContext) -> None:
    asked = files_of(home, images(home, 6))
    task = home.task(stage="rescreening")
    votes = rescreen(task, asked, calibrated(context)).tensors["votes"]["keep"]
    names = sorted(asked["samples"])
    digests = [digest_bytes(asked["samples"][name].tobytes()) for name in names]
    assert votes[0] == 0
    assert read_kept(context) == {d for d, vote in zip(digests, votes, strict=True) if vote}
    assert rounds_voted(context) == {"rescreening": 1, "screening": 0}
    more = files_of(home, images(home, 4, seed=2))
    rescreen(home.task(stage="rescreening", round=1), more, context)
    run(home.task(stage="screening"), candidates(home, 2), context)
    assert rounds_voted(context) == {"rescreening": 2, "screening": 1}
    assert len(read_kept(context)) > 5


def test_what_is_no_image_is_not_judged(home: Home, context: SiteContext) -> None:
    asked = files_of(home, images(home, 2))
    first = min(asked["samples"])
    asked["samples"][first] = asked["samples"][first][:-9]
    with pytest.raises(ScanError):
        rescreen(home.task(stage="rescreening"), asked, context)
    assert rounds_voted(context)["rescreening"] == 0
