"""What the filter and its audit are handed: functions over batches of images, torch or not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Keep = Callable[[np.ndarray], np.ndarray]
"""From images ``[B, C, D, H, W]`` to ``[B]`` bool; the audit plants copies into this function."""

RoundTrip = Callable[[np.ndarray], np.ndarray]
"""The study's own autoencoder: from images to what is left of them after encoding."""


def keep_all(image_BCDHW: np.ndarray) -> np.ndarray:
    """Return a vote for every candidate: what a study without screening amounts to."""
    return np.ones(len(image_BCDHW), dtype=bool)
