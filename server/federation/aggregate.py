"""Updates of several sites to one set of weights: pure functions, one tensor at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from vitrael.core.errors import WeightsError


def weighted_mean(updates: Sequence[tuple[Path, int]]) -> dict[str, np.ndarray]:
    """Return the mean of tensors on disk, weighted by each update's number of examples.

    ``updates`` are safetensors files in a fixed order (of the roster), so that the floating-point
    sum, made in float64, is the same in every run (McMahan et al. 2017, algorithm 1). Integer
    tensors must agree. Names, shapes and dtypes must agree; a mean that is not finite is refused.

    Raises WeightsError when there is no update, no example, or when two updates differ in form.
    """
    total = sum(count for _, count in updates)
    if not updates or total < 1 or min(count for _, count in updates) < 0:
        raise WeightsError("there is nothing to aggregate", why="no update counts an example")
    names = _names(updates[0][0])
    for path, _ in updates[1:]:
        if _names(path) != names:
            raise WeightsError("two updates name different tensors")
    return {name: _mean(name, updates, total) for name in names}


def _mean(name: str, updates: Sequence[tuple[Path, int]], total: int) -> np.ndarray:
    first = _read(updates[0][0], name)
    if not np.issubdtype(first.dtype, np.floating):
        if any(not np.array_equal(_read(path, name), first) for path, _ in updates[1:]):
            raise WeightsError(
                f"tensor {name} differs between sites",
                why="it is not a floating-point tensor, which a mean could be taken of",
            )
        return first
    mean = np.zeros(first.shape, np.float64)
    for path, count in updates:
        tensor = _read(path, name)
        if tensor.shape != first.shape or tensor.dtype != first.dtype:
            raise WeightsError(f"tensor {name} has two forms among the updates")
        mean += tensor.astype(np.float64) * (count / total)
    if not np.isfinite(mean).all():
        raise WeightsError(f"tensor {name} holds values that are not finite after aggregation")
    return mean.astype(first.dtype)


def _names(path: Path) -> list[str]:
    try:
        with safe_open(path, framework="numpy") as file:
            return sorted(file.keys())
    except (SafetensorError, OSError) as error:
        raise WeightsError("an update on disk cannot be read", fix="run the round again") from error


def _read(path: Path, name: str) -> np.ndarray:
    with safe_open(path, framework="numpy") as file:
        return np.asarray(file.get_tensor(name))
