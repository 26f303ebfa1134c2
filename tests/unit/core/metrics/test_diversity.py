from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pytest
import torch

from vitrael.core.errors import DataError
from vitrael.core.metrics.diversity import SIMILARITIES, _draw_pairs, diversity, pair_similarity
from vitrael.core.metrics.structure import ms_ssim
from vitrael.core.rng import stream, torch_stream

Sets = Mapping[str, torch.Tensor]


@pytest.mark.parametrize(("n", "pairs"), [(7, 1000), (8, 1000), (50, 30), (50, 200)])
def test_no_image_is_paired_with_itself_and_no_pair_comes_twice(n: int, pairs: int) -> None:
    first, second = _draw_pairs(n, pairs, stream(1, "pairs"))
    assert len(first) == min(pairs, n * (n - 1) // 2)
    assert (first != second).all()
    both = {frozenset(pair) for pair in zip(first.tolist(), second.tolist(), strict=True)}
    assert len(both) == len(first)
    used = np.bincount(np.concatenate([first, second]), minlength=n)
    assert np.ptp(used) <= 2


def test_all_pairs_give_the_mean_over_all(slice_sets: Sets) -> None:
    images = slice_sets["real"][:9]
    rows, columns = np.triu_indices(9, k=1)
    found = pair_similarity(images, measure="ms_ssim", rng=stream(1, "p"))
    assert found.value == pytest.approx(float(ms_ssim(images[rows], images[columns]).mean()))
    assert found.n == 9
    assert "36 random pairs" in found.method


def test_fewer_scales_are_said(slice_sets: Sets) -> None:
    found = pair_similarity(slice_sets["real"][:9], measure="ms_ssim", rng=stream(1, "p"))
    assert "2 of 5 scales (below 161 px), window 11 px" in found.method
    assert "32x32" in found.method
    large = torch.rand(4, 1, 161, 161)
    assert (
        "5 of 5 scales, window"
        in pair_similarity(large, measure="ms_ssim", rng=stream(1, "p"), pairs=2).method
    )


def test_the_interval_counts_images_and_not_pairs(slice_sets: Sets) -> None:
    few, many = (
        pair_similarity(slice_sets["real"][:20], measure="ms_ssim", rng=stream(1, "p"), pairs=p)
        for p in (95, 190)
    )
    assert (many.high - many.low) > 0.8 * (few.high - few.low)


@pytest.mark.parametrize("measure", sorted(SIMILARITIES))
def test_collapse_and_blur_are_seen_and_a_missing_part_of_the_population_is_not(
    slice_sets: Sets, measure: str
) -> None:
    real = slice_sets["real"]
    dust = 0.005 * torch.randn(real.shape, generator=torch_stream(1, "dust"))
    sets = {**slice_sets, "collapsed": slice_sets["second"][:1] + dust * (real[:1] > 0)}
    fresh, second, blurred, collapsed, quarter = (
        diversity(sets[name], real, measure=measure, rng=stream(0, "pairs"), pairs=400)
        for name in ("fresh", "second", "blurred", "collapsed", "quarter")
    )
    for one in (fresh, second):
        assert abs(one.difference.value) < 0.1
        assert one.difference.value == pytest.approx(one.synthetic.value - one.real.value)
        assert blurred.difference.low > one.difference.value
        assert collapsed.difference.above(one.difference)
    assert collapsed.difference.value > 0.2
    for one, other in itertools.permutations((fresh, second, quarter), 2):
        assert not one.difference.above(other.difference)


def test_what_has_no_diversity_is_refused(slice_sets: Sets) -> None:
    images = slice_sets["real"][:8]
    with pytest.raises(DataError, match="3 images have no diversity"):
        pair_similarity(images[:3], measure="ms_ssim", rng=stream(1, "p"))
    with pytest.raises(DataError, match="choose from 4_g_r_ssim, ms_ssim"):
        pair_similarity(images, measure="psnr", rng=stream(1, "p"))
    with pytest.raises(DataError, match="not finite"):
        pair_similarity(images * torch.nan, measure="ms_ssim", rng=stream(1, "p"))
    with pytest.raises(DataError, match="one grid"):
        diversity(images[..., :16], images, measure="ms_ssim", rng=stream(1, "p"))
