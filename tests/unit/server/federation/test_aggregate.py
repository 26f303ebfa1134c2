"""Laws of aggregation: order, weights, robustness, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrael.core.errors import WeightsError
from vitrael.core.rounds import Federation
from vitrael.core.weights import Tensors, pack_tensors
from vitrael.server.federation import aggregate as aggregation
from vitrael.server.federation.aggregate import (
    SiteUpdate,
    aggregate,
    bounded_weights,
    distance,
    median,
    norm_limit,
    trimmed_mean,
    weighted_mean,
)

Rule = Callable[[Sequence[SiteUpdate]], dict[str, np.ndarray]]


def trim_a_fifth(updates: Sequence[SiteUpdate]) -> dict[str, np.ndarray]:
    return trimmed_mean(updates, trim_frac=0.2)


RULES: tuple[Rule, ...] = (weighted_mean, trim_a_fifth, median)


def file(folder: Path, name: str, tensors: Tensors) -> Path:
    path = folder / name
    path.write_bytes(pack_tensors(tensors))
    return path


def updates_of(folder: Path, *tensors: Tensors, counts: Sequence[int] = ()) -> list[SiteUpdate]:
    """Return updates on disk, each of one example unless counts are given."""
    weights = counts or [1] * len(tensors)
    return [
        SiteUpdate(file(folder, str(number), arrays), weight)
        for number, (arrays, weight) in enumerate(zip(tensors, weights, strict=True))
    ]


def draw(count: int, *, seed: int) -> list[dict[str, np.ndarray]]:
    """Return updates with a matrix, a vector, a number without an axis, and a count of steps."""
    rng = np.random.default_rng(seed)
    return [
        {
            "matrix": rng.normal(size=(7, 3)).astype(np.float32),
            "vector": rng.normal(size=5),
            "number": np.asarray(rng.normal(), np.float32),
            "steps": np.int64([4]),
        }
        for _ in range(count)
    ]


@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(st.integers(1, 1000), min_size=1, max_size=5),
    seed=st.integers(0, 2**16),
)
def test_mean_is_weighted_by_examples(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("updates")
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(len(counts), 2, 3)).astype(np.float32)
    mean = weighted_mean(updates_of(folder, *({"w": value} for value in values), counts=counts))
    expected = np.average(values.astype(np.float64), axis=0, weights=counts)
    np.testing.assert_allclose(mean["w"], expected, rtol=1e-6, atol=1e-7)


def test_weighted_mean_is_bit_for_bit_the_sum_in_float64_in_order(tmp_path: Path) -> None:
    drawn, counts = draw(3, seed=1), (3, 5, 11)
    mean = weighted_mean(updates_of(tmp_path, *drawn, counts=counts))
    for name in ("matrix", "vector", "number"):
        total = np.zeros(drawn[0][name].shape, np.float64)
        for update, count in zip(drawn, counts, strict=True):
            total += update[name].astype(np.float64) * (count / 19)
        assert np.array_equal(mean[name], total.astype(drawn[0][name].dtype))


@pytest.mark.parametrize("sites", [1, 2, 3, 4, 5, 10])
@pytest.mark.parametrize("piece_bytes", [1, 1 << 20])
def test_robust_means_are_those_of_whole_arrays(
    sites: int, piece_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aggregation, "PIECE_BYTES", piece_bytes)
    drawn = draw(sites, seed=sites)
    updates = updates_of(tmp_path, *drawn)
    left_out = {1: 0, 2: 0, 3: 1, 4: 1, 5: 1, 10: 2}[sites]
    for name in ("matrix", "vector", "number"):
        stack = np.stack([update[name] for update in drawn]).astype(np.float64)
        np.testing.assert_allclose(median(updates)[name], np.median(stack, axis=0), rtol=1e-6)
        middle = np.sort(stack, axis=0)[left_out : sites - left_out].mean(axis=0)
        np.testing.assert_allclose(trim_a_fifth(updates)[name], middle, rtol=1e-6)
        assert median(updates)[name].dtype == drawn[0][name].dtype
    assert median(updates)["steps"] == 4


@pytest.mark.parametrize("hostile", [1e6, -20.0], ids=["huge", "sign-flipped"])
def test_one_hostile_site_of_five_moves_the_weighted_mean_and_no_robust_one(
    hostile: float, tmp_path: Path
) -> None:
    rng = np.random.default_rng(3)
    honest = [{"w": (1 + 0.1 * rng.normal(size=50)).astype(np.float32)} for _ in range(4)]
    expected = np.mean([update["w"] for update in honest], axis=0)
    updates = updates_of(tmp_path, *honest, {"w": (expected * hostile).astype(np.float32)})
    assert np.abs(median(updates)["w"] - expected).max() < 0.3
    assert np.abs(trim_a_fifth(updates)["w"] - expected).max() < 0.3
    assert np.abs(weighted_mean(updates)["w"] - expected).min() > 3  # the control


def test_bounded_update_counts_as_one_that_went_less_far(tmp_path: Path) -> None:
    start = file(tmp_path, "start", {"w": np.full(4, 2.0, np.float32)})
    near, far = {"w": np.full(4, 3.0, np.float32)}, {"w": np.full(4, 102.0, np.float32)}
    plain, strange = updates_of(tmp_path, near, far)
    assert (distance(plain.path, start), distance(strange.path, start)) == (2.0, 200.0)
    bounded = [plain, SiteUpdate(strange.path, 1, scale=0.01)]
    for rule in (weighted_mean, median):
        assert rule(bounded, start=start)["w"] == pytest.approx(np.full(4, 3.0))
        with pytest.raises(WeightsError, match="where the round began is not known"):
            rule(bounded)
    assert weighted_mean([plain, strange])["w"] == pytest.approx(np.full(4, 52.5))  # the control


def test_distance_that_no_number_holds_is_infinite(tmp_path: Path) -> None:
    start = file(tmp_path, "start", {"w": np.zeros(2)})
    (huge,) = updates_of(tmp_path, {"w": np.full(2, 1e300)})
    assert distance(huge.path, start) == np.inf
    bounded = SiteUpdate(huge.path, 1, scale=0.0)
    assert weighted_mean([bounded], start=start)["w"] == pytest.approx(np.zeros(2))


def test_limit_is_a_multiple_of_the_median_distance() -> None:
    assert norm_limit({"north": 1.0, "harbour": 2.0, "valley": 900.0}, times=10) == 20.0
    assert norm_limit({}, times=10) == np.inf


def test_of_two_updates_the_farther_one_is_held_to_the_nearer() -> None:
    assert norm_limit({"north": 1.0, "valley": 900.0}, times=10) == 10.0
    assert (
        norm_limit({"north": 1.0, "south": 2.0, "harbour": 800.0, "valley": 900.0}, times=10) == 20
    )
    assert norm_limit({"north": 1.0, "valley": 9.0}, times=10) > 9.0  # the control


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        ((60, 30, 10), 1.0, (60, 30, 10)),
        ((60, 30, 10), 0.5, (40, 30, 10)),
        ((1000, 500, 10), 0.4, (20, 20, 10)),
        ((1000, 1, 1), 0.1, (1, 1, 1)),  # not to be had with three: all alike
        ((7, 0, 0), 0.5, (1, 0, 0)),
    ],
)
def test_no_site_weighs_more_than_its_share(
    counts: tuple[int, ...], share: float, expected: tuple[float, ...]
) -> None:
    sites = dict(zip("abc", counts, strict=True))
    weights = bounded_weights(sites, most_share=share)
    assert tuple(weights.values()) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "expected"), [("weighted_mean", 4.0), ("trimmed_mean", 2.0), ("median", 2.0)]
)
def test_the_study_chooses_the_rule(name: str, expected: float, tmp_path: Path) -> None:
    values = [{"w": np.float32([value])} for value in (1.0, 2.0, 9.0)]
    federation = Federation(quorum=3, aggregation=name)  # type: ignore[arg-type]
    assert aggregate(updates_of(tmp_path, *values), federation)["w"] == pytest.approx([expected])


@pytest.mark.parametrize("rule", RULES)
def test_equal_updates_aggregate_to_themselves(rule: Rule, tmp_path: Path) -> None:
    tensors = {"w": np.float32([0.1, 0.2]), "steps": np.int64([3])}
    mean = rule(updates_of(tmp_path, tensors, tensors, tensors, counts=(1, 2, 3)))
    np.testing.assert_allclose(mean["w"], tensors["w"], rtol=1e-7)
    assert mean["steps"].dtype == np.int64


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"v": np.ones(2, np.float32)}, "different tensors"),
        ({"w": np.ones(3, np.float32)}, "two forms"),
        ({"w": np.ones(2, np.float64)}, "two forms"),
        ({"w": np.array([1, np.nan], np.float32)}, "not finite"),
        ({"w": np.array([1, -np.inf], np.float32)}, "not finite"),
    ],
)
def test_update_of_another_form_is_refused(
    rule: Rule, second: Tensors, message: str, tmp_path: Path
) -> None:
    good = {"w": np.ones(2, np.float32)}
    with pytest.raises(WeightsError, match=message):
        rule(updates_of(tmp_path, good, second, good))


@pytest.mark.parametrize("rule", RULES)
def test_integer_tensor_that_differs_is_refused(rule: Rule, tmp_path: Path) -> None:
    updates = updates_of(tmp_path, {"steps": np.int64([1])}, {"steps": np.int64([2])})
    with pytest.raises(WeightsError, match="differs between sites"):
        rule(updates)


@pytest.mark.parametrize("rule", RULES)
def test_nothing_to_aggregate_is_refused(rule: Rule) -> None:
    with pytest.raises(WeightsError, match="nothing to aggregate"):
        rule([])


@pytest.mark.parametrize("rule", RULES)
def test_damaged_update_is_refused(rule: Rule, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"not safetensors")
    with pytest.raises(WeightsError, match="cannot be read"):
        rule([SiteUpdate(path, 1)])
