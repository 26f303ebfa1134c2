"""Weights come back as they went, match by name and shape, and nothing else is accepted."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from vitrael.core.errors import WeightsError
from vitrael.core.weights import (
    check_like,
    load_weights,
    module_tensors,
    pack_tensors,
    unpack_tensors,
)

DTYPES = [np.float16, np.float32, np.float64, np.int8, np.uint8, np.int64, np.bool_]
TENSORS = st.dictionaries(
    st.text("abcxyz._0", min_size=1, max_size=8),
    arrays.arrays(st.sampled_from(DTYPES), arrays.array_shapes(min_dims=0, max_dims=3, max_side=3)),
    max_size=4,
)


@given(TENSORS)
def test_tensors_come_back_as_they_went(tensors: dict[str, np.ndarray]) -> None:
    back = unpack_tensors(pack_tensors(tensors))
    assert back.keys() == tensors.keys()
    for name, array in tensors.items():
        assert back[name].dtype == array.dtype
        assert back[name].shape == array.shape
        assert back[name].tobytes() == array.tobytes()


def test_turned_array_comes_back_by_value() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    assert np.array_equal(unpack_tensors(pack_tensors({"a": array}))["a"], array)


@given(st.binary(max_size=64))
def test_bytes_that_are_no_tensors_are_refused(data: bytes) -> None:
    with pytest.raises(WeightsError):
        unpack_tensors(data)


@pytest.mark.parametrize("kept", [0, 7, 20, -1])
def test_cut_file_is_refused(kept: int) -> None:
    data = pack_tensors({"a": np.ones(8, np.float32)})
    with pytest.raises(WeightsError, match="not a whole safetensors file"):
        unpack_tensors(data[:kept])


def test_numpy_file_with_objects_is_refused() -> None:
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(WeightsError):
        unpack_tensors(file.getvalue())


EXPECTED: dict[str, np.ndarray] = {"a": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.int64)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": None}, "tensor a is missing"),
        ({"c": np.zeros(1)}, "tensor c is not expected"),
        ({"a": np.zeros((3, 2), np.float32)}, r"tensor a is float32\[3, 2\]"),
        ({"a": np.zeros((2, 3), np.float64)}, "tensor a is float64"),
        ({"a": np.full((2, 3), np.nan, np.float32)}, "tensor a holds values"),
        ({"a": np.full((2, 3), np.inf, np.float32)}, "tensor a holds values"),
    ],
    ids=["missing", "extra", "shape", "dtype", "nan", "infinity"],
)
def test_difference_is_refused_by_name(change: dict[str, np.ndarray | None], message: str) -> None:
    tensors = {name: a for name, a in {**EXPECTED, **change}.items() if a is not None}
    with pytest.raises(WeightsError, match=message):
        check_like(tensors, EXPECTED)


def test_like_tensors_are_accepted() -> None:
    check_like({name: array + 1 for name, array in EXPECTED.items()}, EXPECTED)


def test_module_takes_its_own_weights_back_with_scalar_buffers() -> None:
    torch = pytest.importorskip("torch")
    one = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    other = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    load_weights(other, unpack_tensors(pack_tensors(module_tensors(one))))
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])


def test_module_refuses_weights_of_another_shape_and_keeps_its_own() -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.Linear(3, 2)
    before = module_tensors(module)
    with pytest.raises(WeightsError, match="tensor weight"):
        load_weights(module, module_tensors(torch.nn.Linear(2, 2)))
    check_like(module_tensors(module), before)
    assert np.array_equal(module_tensors(module)["weight"], before["weight"])


def test_copy_of_a_module_does_not_follow_its_training() -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.Linear(2, 1)
    before = module_tensors(module)
    kept = before["weight"].copy()
    with torch.no_grad():
        module.weight += 1
    assert np.array_equal(before["weight"], kept)
