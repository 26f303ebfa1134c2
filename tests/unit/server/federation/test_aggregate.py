"""Laws of aggregation: order, weights, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrael.core.errors import WeightsError
from vitrael.core.weights import Tensors, pack_tensors
from vitrael.server.federation.aggregate import weighted_mean


def _file(folder: Path, name: str, tensors: Tensors) -> Path:
    path = folder / name
    path.write_bytes(pack_tensors(tensors))
    return path


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
    updates = [
        (_file(folder, str(i), {"w": value}), count)
        for i, (value, count) in enumerate(zip(values, counts, strict=True))
    ]
    expected = np.average(values.astype(np.float64), axis=0, weights=counts)
    np.testing.assert_allclose(weighted_mean(updates)["w"], expected, rtol=1e-6, atol=1e-7)


def test_equal_updates_aggregate_to_themselves(tmp_path: Path) -> None:
    tensors = {"w": np.float32([0.1, 0.2]), "steps": np.int64([3])}
    updates = [(_file(tmp_path, str(i), tensors), i + 1) for i in range(3)]
    mean = weighted_mean(updates)
    np.testing.assert_allclose(mean["w"], tensors["w"], rtol=1e-7)
    assert mean["steps"].dtype == np.int64


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"v": np.ones(2, np.float32)}, "different tensors"),
        ({"w": np.ones(3, np.float32)}, "two forms"),
        ({"w": np.array([1, np.nan], np.float32)}, "not finite"),
    ],
)
def test_update_of_another_form_is_refused(tmp_path: Path, second: Tensors, message: str) -> None:
    first = _file(tmp_path, "a", {"w": np.ones(2, np.float32)})
    with pytest.raises(WeightsError, match=message):
        weighted_mean([(first, 1), (_file(tmp_path, "b", second), 1)])


def test_integer_tensor_that_differs_is_refused(tmp_path: Path) -> None:
    one = _file(tmp_path, "a", {"steps": np.int64([1])})
    two = _file(tmp_path, "b", {"steps": np.int64([2])})
    with pytest.raises(WeightsError, match="differs between sites"):
        weighted_mean([(one, 1), (two, 1)])


def test_nothing_to_aggregate_is_refused() -> None:
    with pytest.raises(WeightsError, match="nothing to aggregate"):
        weighted_mean([])


def test_damaged_update_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"not safetensors")
    with pytest.raises(WeightsError, match="cannot be read"):
        weighted_mean([(path, 1)])
