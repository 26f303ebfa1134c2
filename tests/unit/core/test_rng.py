"""Streams are named: equal names draw equally, whatever else is drawn and in which order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vitrael.core.rng import (
    layers_draw_from,
    seeded_initialization,
    stream,
    stream_seed,
    torch_stream,
)

SEEDS = st.integers(min_value=0, max_value=2**63 - 1)
NAMES = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.integers(0, 10**9),
    max_size=3,
)


@given(SEEDS, NAMES)
def test_equal_names_draw_equally(seed: int, name: list[str | int]) -> None:
    assert np.array_equal(stream(seed, *name).random(4), stream(seed, *name).random(4))


@given(SEEDS, NAMES, NAMES)
def test_different_names_have_different_seeds(
    seed: int, one: list[str | int], other: list[str | int]
) -> None:
    assume(one != other)
    assert stream_seed(seed, *one) != stream_seed(seed, *other)


@given(SEEDS, SEEDS)
def test_different_seeds_draw_differently(one: int, other: int) -> None:
    assume(one != other)
    assert stream_seed(one, "noise") != stream_seed(other, "noise")


@given(SEEDS, NAMES)
def test_seed_fits_both_libraries(seed: int, name: list[str | int]) -> None:
    assert 0 <= stream_seed(seed, *name) < 2**63


def test_name_is_a_path_and_not_its_concatenation() -> None:
    seeds = {stream_seed(7, "ab"), stream_seed(7, "a", "b"), stream_seed(7, "a", "b", "")}
    assert len(seeds) == 3


def test_word_and_number_differ() -> None:
    assert stream_seed(7, "1") != stream_seed(7, 1)


def test_order_of_use_does_not_change_a_stream() -> None:
    alone = stream(7, "split").random(8)
    other = stream(7, "noise")
    other.random(1000)
    again = stream(7, "split")
    interleaved = []
    for _ in range(8):
        other.random()
        interleaved.append(again.random())
    assert np.array_equal(alone, interleaved)


def test_draws_do_not_change_between_machines() -> None:
    assert stream_seed(7, "split", "north") == 6180097934691280521
    assert stream(7, "split", "north").integers(0, 1000, 4).tolist() == [921, 263, 278, 761]


def test_neighboring_streams_are_uncorrelated() -> None:
    draws = np.stack([stream(7, "sample", i).standard_normal(2000) for i in range(8)])
    correlation = np.corrcoef(draws) - np.diag(np.ones(8))
    assert np.abs(correlation).max() < 0.1


def test_torch_streams_leave_the_global_generator_alone() -> None:
    torch = pytest.importorskip("torch")
    before = torch.get_rng_state()
    one = torch.rand(4, generator=torch_stream(7, "noise"))
    other = torch.rand(4, generator=torch_stream(7, "noise"))
    assert torch.equal(one, other)
    assert torch.equal(before, torch.get_rng_state())


def test_layers_start_alike_and_the_global_generator_is_put_back() -> None:
    torch = pytest.importorskip("torch")
    before = torch.get_rng_state()
    weights = []
    for name in ("teacher", "teacher", "student"):
        with seeded_initialization(7, name):
            weights.append(torch.nn.Linear(3, 3).weight.detach())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(before, torch.get_rng_state())


def test_layers_draw_from_a_generator_and_the_global_one_is_put_back_after_an_error_too() -> None:
    torch = pytest.importorskip("torch")
    dropout, ones, cpu = torch.nn.Dropout(0.5), torch.ones(64), torch.device("cpu")
    before = torch.get_rng_state()
    dropped = []
    for name in ("north", "north", "south"):
        with layers_draw_from(torch_stream(7, name), device=cpu):
            dropped.append(dropout(ones))
    assert torch.equal(dropped[0], dropped[1])
    assert not torch.equal(dropped[0], dropped[2])
    with pytest.raises(RuntimeError), layers_draw_from(torch_stream(7, "north"), device=cpu):
        torch.rand(-1)
    assert torch.equal(before, torch.get_rng_state())
    with torch.random.fork_rng(devices=[]):
        dropout(ones)
        assert not torch.equal(before, torch.get_rng_state())  # control: it draws from there


def test_layers_draw_anew_at_each_turn_and_go_on_from_the_state_of_the_generator() -> None:
    torch = pytest.importorskip("torch")
    rng, cpu = torch_stream(7, "noise"), torch.device("cpu")

    def draw() -> list[float]:
        with layers_draw_from(rng, device=cpu):
            drawn: list[float] = torch.rand(4).tolist()
        return drawn

    first, state = draw(), rng.get_state()
    second = draw()
    assert second != first
    rng.set_state(state)
    assert draw() == second


@pytest.mark.gpu
def test_layers_on_a_gpu_draw_from_a_generator_and_its_own_is_put_back() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device here")
    device = torch.device("cuda", 0)
    dropout, ones = torch.nn.Dropout(0.5), torch.ones(64, device=device)
    before = torch.get_rng_state(), torch.cuda.get_rng_state(device)
    dropped = []
    for name in ("north", "north", "south"):
        with layers_draw_from(torch_stream(7, name), device=device):
            dropped.append(dropout(ones))
    assert torch.equal(dropped[0], dropped[1])
    assert not torch.equal(dropped[0], dropped[2])
    assert torch.equal(before[0], torch.get_rng_state())
    assert torch.equal(before[1], torch.cuda.get_rng_state(device))
