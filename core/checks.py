"""Checks whose message names the argument: ``finite(images=...)``."""

from __future__ import annotations

import numpy as np

from vitrael.core.errors import DataError


def finite(**arrays: np.ndarray) -> None:
    """Raise DataError if an array holds NaN or infinity; no value is printed."""
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise DataError(f"{name} holds values that are not finite")
