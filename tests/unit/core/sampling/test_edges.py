"""One distance of edges for codec, inversion and scorer: equal where they say the same thing."""

from __future__ import annotations

import pytest
import torch

from vitrael.core.rng import torch_stream
from vitrael.core.sampling.edges import edge_distance, halvings, slopes
from vitrael.core.sampling.search import GradientDistance
from vitrael.core.scoring.features import gradient_error
from vitrael.core.training.perceptual import GradientPerceptual


def image(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(shape, generator=torch_stream(seed, "edges"))


@pytest.mark.parametrize("shape", [(2, 1, 32, 40), (2, 1, 16, 32, 16)])
def test_three_users_compare_by_one_distance(shape: tuple[int, ...]) -> None:
    one, two = image(*shape), image(*shape, seed=2)
    found = edge_distance(one - two)
    assert found.shape == (2,)
    scales = len(list(halvings(one)))
    torch.testing.assert_close(GradientPerceptual()(one, two), found.mean())
    torch.testing.assert_close(GradientDistance(scales=scales)(one, two), found)
    squares = [
        sum(slope.square().flatten(1).mean(1) for slope in slopes(scale))
        for scale in halvings(one - two)
    ]
    torch.testing.assert_close(gradient_error(one - two), sum(squares) / scales)


def test_halves_end_at_eight_voxels_or_at_the_count() -> None:
    assert [x.shape[2:] for x in halvings(image(1, 1, 35, 70))] == [(35, 70), (17, 35), (8, 17)]
    assert [x.shape[2:] for x in halvings(image(1, 1, 15, 15))] == [(15, 15)]
    assert [x.shape[2:] for x in halvings(image(1, 1, 3, 2, 1), scales=3)] == [
        (3, 2, 1),
        (1, 1, 1),
        (1, 1, 1),
    ]


def test_a_level_is_no_edge_and_a_step_is() -> None:
    level, step = torch.full((1, 1, 16, 16), 0.3), torch.zeros(1, 1, 16, 16)
    step[..., 8:] = 0.3
    assert edge_distance(level).item() == 0
    by_hand = (0.3 / 15 + 0.3 / 7) / 4  # along one axis of two, at two scales
    assert edge_distance(step).item() == pytest.approx(by_hand)


def test_a_single_voxel_has_no_edges() -> None:
    assert edge_distance(image(2, 1, 1, 1), scales=2).tolist() == [0, 0]
