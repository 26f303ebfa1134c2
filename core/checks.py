"""Checks whose message names the argument: ``positive(spacing_mm=...)``."""

from __future__ import annotations

import math

import numpy as np

from vitrael.core.errors import DataError


def positive(**values: float) -> None:
    """Raise DataError unless every value is finite and above zero."""
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise DataError(f"{name} is {value}", why="it must be finite and above zero")


def fraction(**values: float) -> None:
    """Raise DataError unless every value lies in [0, 1]."""
    for name, value in values.items():
        if not (math.isfinite(value) and 0 <= value <= 1):
            raise DataError(f"{name} is {value}", why="it must lie between 0 and 1")


def finite(**arrays: np.ndarray) -> None:
    """Raise DataError if an array holds NaN or infinity; no value is printed."""
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise DataError(f"{name} holds values that are not finite")
