"""Updates of several sites to one set of weights: pure functions, one piece of a tensor at a time.

Memory holds a few pieces of every update, never a whole one, whatever their number. Updates are
safetensors files in a fixed order (of the roster), so that floating-point sums are the same in
every run. Integer tensors must agree. Names, shapes and dtypes must agree, and what is not finite
is refused.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from safetensors import SafetensorError, safe_open

from vitrael.core.errors import WeightsError
from vitrael.core.rounds import Federation

PIECE_BYTES: Final = 32 << 20
"""Of all updates together, in float64, that a robust mean holds at once."""


@dataclass(frozen=True, slots=True)
class SiteUpdate:
    """One site's update on disk, and what it counts."""

    path: Path
    weight: float
    """Its number of examples; the robust means weigh all alike."""
    scale: float = 1.0
    """What is left of its distance from the start of the round: 1 for one that is not bounded."""


def aggregate(
    updates: Sequence[SiteUpdate], federation: Federation, *, start: Path | None = None
) -> dict[str, np.ndarray]:
    """Return one set of weights in the way that a study asks for; raises as ``weighted_mean``."""
    if federation.aggregation == "median":
        return median(updates, start=start)
    if federation.aggregation == "trimmed_mean":
        return trimmed_mean(updates, trim_frac=federation.trim_frac, start=start)
    return weighted_mean(updates, start=start)


def weighted_mean(
    updates: Sequence[SiteUpdate], *, start: Path | None = None
) -> dict[str, np.ndarray]:
    """Return the mean of tensors on disk, weighted by each update's number of examples.

    The sum is made in float64 (McMahan et al. 2017, algorithm 1). ``start`` is where the round
    began; it is needed when an update is bounded.

    Raises WeightsError when there is no update, no example, or when two updates differ in form.
    """
    total = sum(update.weight for update in updates)
    if not updates or total <= 0 or min(update.weight for update in updates) < 0:
        raise WeightsError("there is nothing to aggregate", why="no update counts an example")
    names = _common_names(updates)
    return {name: _mean(name, updates, total, start) for name in names}


def trimmed_mean(
    updates: Sequence[SiteUpdate], *, trim_frac: float, start: Path | None = None
) -> dict[str, np.ndarray]:
    """Return the coordinate-wise trimmed mean (Yin et al. 2018, definition 2).

    At each coordinate ``trim_frac`` of the values, rounded up, are left out at each end; at least
    one is left. All updates count alike: a number of examples is each site's own word.

    Raises WeightsError as ``weighted_mean``.
    """
    left_out = min(math.ceil(trim_frac * len(updates) - 1e-9), (len(updates) - 1) // 2)
    return _robust(updates, start, left_out=left_out)


def median(updates: Sequence[SiteUpdate], *, start: Path | None = None) -> dict[str, np.ndarray]:
    """Return the coordinate-wise median (Yin et al. 2018, definition 1).

    Of an even number it is the mean of the middle two. All updates count alike. Raises WeightsError
    as ``weighted_mean``.
    """
    return _robust(updates, start, left_out=(len(updates) - 1) // 2)


def distance(update: Path, start: Path) -> float:
    """Return the Euclidean distance of an update from the start, over its floating-point tensors.

    Infinite where it is too large for float64.
    """
    square = 0.0
    for name in _names(update):
        ours, theirs = _read(start, name), _read(update, name)
        if np.issubdtype(theirs.dtype, np.floating):
            with np.errstate(over="ignore"):
                step = theirs.astype(np.float64) - ours.astype(np.float64)
                square += float(np.dot(step.ravel(), step.ravel()))
    return math.sqrt(square)


def norm_limit(distances: Mapping[str, float], *, times: float) -> float:
    """Return how far an update may lie from the start: a multiple of the median distance.

    Of an even number it is the smaller of the middle two: of two, one must not stand for itself.
    """
    return times * statistics.median_low(distances.values()) if distances else math.inf


def bounded_weights(counts: Mapping[str, int], *, most_share: float) -> dict[str, float]:
    """Return what each site counts when none has more than ``most_share`` of the whole.

    Counts that respect it are returned as they are. Where too few sites have counted anything for
    that, these count alike.
    """
    largest = sorted(counts.values(), reverse=True)
    for capped, count in enumerate(largest):
        left = 1 - most_share * capped
        if left <= 0 or count == 0:
            break
        bound = most_share * sum(largest[capped:]) / left
        if count <= bound:
            return {site: min(own, bound) if capped else own for site, own in counts.items()}
    return {site: float(own > 0) for site, own in counts.items()}


def _mean(name: str, updates: Sequence[SiteUpdate], total: float, start: Path | None) -> np.ndarray:
    first = _read(updates[0].path, name)
    if not np.issubdtype(first.dtype, np.floating):
        return _agreed(name, first, updates)
    origin = _origin(name, updates, start)
    mean = np.zeros(first.shape, np.float64)
    for update in updates:
        tensor = _read(update.path, name)
        _demand_form(name, tensor, first)
        mean += _shortened(tensor, update, origin) * (update.weight / total)
    _demand_finite(name, mean)
    return mean.astype(first.dtype)


def _robust(
    updates: Sequence[SiteUpdate], start: Path | None, *, left_out: int
) -> dict[str, np.ndarray]:
    if not updates:
        raise WeightsError("there is nothing to aggregate", why="there is no update")
    combined: dict[str, np.ndarray] = {}
    for name in _common_names(updates):
        first = _read(updates[0].path, name)
        if not np.issubdtype(first.dtype, np.floating):
            combined[name] = _agreed(name, first, updates)
            continue
        if any(_shape(update.path, name) != first.shape for update in updates):
            raise WeightsError(f"tensor {name} has two forms among the updates")
        middle = np.empty(first.shape, first.dtype)
        for rows in _pieces(first, len(updates)):
            pieces = [_read(update.path, name, rows) for update in updates]
            for piece in pieces:
                _demand_form(name, piece, first[rows])
            origin = _origin(name, updates, start, rows)
            stack = np.stack(
                [_shortened(p, update, origin) for p, update in zip(pieces, updates, strict=True)]
            )
            _demand_finite(name, stack)  # sorted, a value that is none would only be left out
            stack.sort(axis=0)
            middle[rows] = stack[left_out : len(stack) - left_out].mean(axis=0)
        combined[name] = middle
    return combined


Rows = slice | tuple[()]
"""Of a tensor's first axis; the empty tuple is all of one that has no axis."""


def _pieces(tensor: np.ndarray, updates: int) -> Iterator[Rows]:
    """Yield the rows of a tensor in parts of which one for each update fits ``PIECE_BYTES``."""
    if tensor.ndim == 0:
        yield ()
        return
    bytes_a_row = max(1, tensor[:1].size * np.dtype(np.float64).itemsize * updates)
    count = max(1, PIECE_BYTES // bytes_a_row)
    for first in range(0, len(tensor), count):
        yield slice(first, min(first + count, len(tensor)))


def _origin(
    name: str, updates: Sequence[SiteUpdate], start: Path | None, rows: Rows = ()
) -> np.ndarray | None:
    """Return the start's tensor in float64, None when no update is bounded."""
    if all(update.scale == 1 for update in updates):
        return None
    if start is None:
        raise WeightsError("an update cannot be bounded", why="where the round began is not known")
    return _read(start, name, rows).astype(np.float64)


def _shortened(tensor: np.ndarray, update: SiteUpdate, origin: np.ndarray | None) -> np.ndarray:
    """Return an update's values in float64, moved toward the start where it is bounded."""
    value = tensor.astype(np.float64)
    if origin is None or update.scale == 1:
        return value
    moved: np.ndarray = origin + (value - origin) * update.scale
    return moved


def _agreed(name: str, first: np.ndarray, updates: Sequence[SiteUpdate]) -> np.ndarray:
    if any(not np.array_equal(_read(update.path, name), first) for update in updates[1:]):
        raise WeightsError(
            f"tensor {name} differs between sites",
            why="it is not a floating-point tensor, which a mean could be taken of",
        )
    return first


def _demand_form(name: str, tensor: np.ndarray, first: np.ndarray) -> None:
    if tensor.shape != first.shape or tensor.dtype != first.dtype:
        raise WeightsError(f"tensor {name} has two forms among the updates")


def _demand_finite(name: str, values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise WeightsError(f"tensor {name} holds values that are not finite after aggregation")


def _common_names(updates: Sequence[SiteUpdate]) -> list[str]:
    names = _names(updates[0].path)
    if any(_names(update.path) != names for update in updates[1:]):
        raise WeightsError("two updates name different tensors")
    return names


def _names(path: Path) -> list[str]:
    try:
        with safe_open(path, framework="numpy") as file:
            return sorted(file.keys())
    except (SafetensorError, OSError) as error:
        raise WeightsError("an update on disk cannot be read", fix="run the round again") from error


def _shape(path: Path, name: str) -> tuple[int, ...]:
    with safe_open(path, framework="numpy") as file:
        return tuple(file.get_slice(name).get_shape())


def _read(path: Path, name: str, rows: Rows = ()) -> np.ndarray:
    with safe_open(path, framework="numpy") as file:
        return np.asarray(file.get_slice(name)[rows] if rows else file.get_tensor(name))
