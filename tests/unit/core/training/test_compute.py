"""A device that is not there is refused; bfloat16 only where it is faster."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from vitrael.core.errors import ConfigError
from vitrael.core.training.compute import Compute, prepare_compute


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_cuda_that_is_absent_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no CUDA device") as caught:
        prepare_compute(device="cuda", threads=1, bf16="auto")
    assert 'performance.device = "cpu"' in caught.value.fix
    assert "--device cpu" in caught.value.fix


@pytest.mark.parametrize(
    ("features", "bf16", "used"),
    [
        ({"avx512_bf16": True, "amx_bf16": True}, "auto", True),
        ({"avx512_bf16": True}, "auto", False),
        ({"amx_bf16": True}, "off", False),
        ({"avx2": True, "avx512_bf16": False}, "auto", False),
        ({}, "auto", False),
    ],
)
def test_bf16_is_used_where_the_processor_is_faster_at_it(
    features: dict[str, bool], bf16: str, used: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    compute = prepare_compute(device="cpu", threads=1, bf16=bf16)
    assert (compute, compute.bf16) == (Compute("cpu", bf16=compute.bf16), used)


def test_share_of_the_gpu_does_not_outlast_the_study_that_set_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[float] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", asked.append)
    for vram_frac in (None, 0.5, None):
        prepare_compute(device="cuda", threads=1, bf16="auto", vram_frac=vram_frac)
    assert asked == [1.0, 0.5, 1.0]


def test_threads_are_set() -> None:
    for threads in (2, 1):
        prepare_compute(device="cpu", threads=threads, bf16="off")
        assert torch.get_num_threads() == threads
