"""How a network learns views: which pictures it is shown, and what it minimizes.

Axes: N all pictures, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vitrael.core.configs import ViewExpertConfig
from vitrael.core.data.augment import BackMix, MovedViews, ViewBatch, choose_sectors
from vitrael.core.training.loop import Draw
from vitrael.core.training.objectives import ClassifierObjective


@dataclass(frozen=True, slots=True, eq=False)
class ViewLearning:
    """What the loop needs beside the network."""

    objective: ClassifierObjective
    draw: Draw[ViewBatch]


def view_learning(
    config: ViewExpertConfig,
    image_NCHW: np.ndarray,
    label_N: np.ndarray,
    *,
    classes: int,
    sector_NHW: np.ndarray | None,
    rng: np.random.Generator,
    device: str,
) -> ViewLearning:
    """Return objective and pictures of a training, with BackMix where the config asks for it.

    ``rng`` chooses whose sectors are used where not all are. Raises DataError where BackMix is
    asked for and no picture has a sector, and as ``MovedViews`` and ``ClassifierObjective``.
    """
    if config.backmix is None:
        moved = MovedViews(image_NCHW, label_N, classes=classes, device=device)
        return ViewLearning(ClassifierObjective(classes=classes), moved)
    everywhere: list[np.ndarray | None] = (
        [None] * len(image_NCHW) if sector_NHW is None else list(sector_NHW)
    )
    share = config.backmix.sectors_frac
    sectors = choose_sectors(everywhere, share_frac=share, rng=rng)
    mixed = BackMix(image_NCHW, label_N, sectors=sectors, classes=classes, device=device)
    objective = ClassifierObjective(
        classes=classes, emphasis=config.backmix.emphasis, mixed_frac=mixed.mixed_frac
    )
    return ViewLearning(objective, mixed)
