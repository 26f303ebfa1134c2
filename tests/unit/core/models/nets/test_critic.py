"""Scores of patches: of one image by itself, on images large enough, in two dimensions or three."""

from __future__ import annotations

import pytest
import torch

from vitrael.core.configs import CriticConfig
from vitrael.core.errors import ConfigError
from vitrael.core.models.nets.critic import build_critic_network


def pictures(count: int, dimensions: int, edge: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(1)
    return torch.rand((count, 1, *[edge] * dimensions), generator=rng)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_score_of_an_image_does_not_depend_on_its_batch(dimensions: int) -> None:
    network = build_critic_network(
        CriticConfig(channels=4, layers=2), dimensions=dimensions, seed=1
    )
    image = pictures(3, dimensions, 16)
    network.train()
    both = network(image)
    assert both.shape[:2] == (3, 1)
    torch.testing.assert_close(torch.cat([network(one[None]) for one in image]), both)
    assert list(network.buffers()) == []


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_smallest_image_has_one_patch_and_a_smaller_one_is_refused(layers: int) -> None:
    network = build_critic_network(CriticConfig(channels=4, layers=layers), dimensions=2, seed=1)
    assert network(pictures(1, 2, network.least_vox)).shape == (1, 1, 1, 1)
    with pytest.raises(ConfigError, match=f"at least {network.least_vox} voxels"):
        network(pictures(1, 2, network.least_vox - 1))


def test_equal_seeds_give_equal_critics() -> None:
    config = CriticConfig(channels=4)
    weights = [
        torch.cat(
            [p.ravel() for p in build_critic_network(config, dimensions=2, seed=s).parameters()]
        )
        for s in (1, 1, 2)
    ]
    assert weights[0].equal(weights[1])
    assert not weights[0].equal(weights[2])
