"""A row draws from its own generator, whoever its neighbors are."""

from __future__ import annotations

import torch

from vitrael.core.rng import torch_stream
from vitrael.core.sampling.noise import RowNoise


def draw(rows: list[int], times: int = 3, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    noise = RowNoise([torch_stream(1, "row", row) for row in rows], (2, 3, 3), dtype=dtype)
    return torch.stack([noise() for _ in range(times)])


def test_draw_of_a_row_depends_on_its_own_generator_alone() -> None:
    whole = draw([0, 1, 2, 3])
    assert whole.shape == (3, 4, 2, 3, 3)
    assert torch.equal(torch.cat([draw([0]), draw([1, 2]), draw([3])], dim=1), whole)
    assert torch.equal(draw([3, 1])[:, 1], whole[:, 1])
    shared = torch_stream(1, "row", 1)
    together = RowNoise([shared, shared], (2, 3, 3))()
    assert torch.equal(together[0], whole[0, 1])
    assert not torch.equal(together[1], whole[0, 1])  # the control: a generator for two rows


def test_each_draw_is_new_and_normal() -> None:
    many = draw(list(range(20)), times=200)
    assert len(many.flatten(1).unique(dim=0)) == 200
    assert many.mean().abs() < 0.02
    assert abs(many.std() - 1) < 0.02


def test_draws_have_the_dtype_that_is_asked_for() -> None:
    assert draw([0], dtype=torch.float64).dtype == torch.float64


def test_first_draw_is_what_the_generator_gives_by_itself() -> None:
    """The start of a sample stays the same whether or not its sampler draws again."""
    alone = torch.randn((2, 3, 3), generator=torch_stream(1, "row", 5))
    assert torch.equal(draw([5])[0, 0], alone)
