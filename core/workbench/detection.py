"""What a model's scorer notices: scans that were changed in known ways, beside others as they are.

Axes: B images, C D H W.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from vitrael.core.metrics.measured import Measured
from vitrael.core.metrics.ood import Detection, detect
from vitrael.core.rng import stream, torch_stream
from vitrael.core.scoring.shifts import (
    add_noise,
    remove_chunk,
    rotate_right_angle,
    smooth,
    squeeze_contrast,
)
from vitrael.core.workbench.evaluation import FEWEST, Line
from vitrael.core.workbench.progress import Tell, silent

if TYPE_CHECKING:
    from vitrael.core.workbench.intake import Rows
    from vitrael.core.workbench.scoring import FrugalScorer

MOST_PATIENTS: Final = 60
"""One scan of each is scored; half of them after every change as well."""
_BATCH_IMAGES: Final = 4
_KIND: Final = "two_sided"
_OTHERS: Final = "the same scans unchanged"

Change = Callable[[torch.Tensor, torch.Generator], torch.Tensor]
CHANGES: Final[Mapping[str, Change]] = {
    "noise": add_noise,
    "missing_chunk": remove_chunk,
    "turned": lambda x, _: rotate_right_angle(x),
    "flat_contrast": lambda x, _: squeeze_contrast(x),
    "smooth": lambda x, _: smooth(x),
}
"""What is done to scans; ``turned`` asks for two equal axes."""


def evaluate_scorer(
    scorer: FrugalScorer, rows: Rows, *, seed: int, tell: Tell = silent
) -> list[Line]:
    """Return how well scans that were changed are told from those of other patients as they are.

    A number for each change: the area under the ROC curve, 1 where all are found and 0.5 where
    none is. Beside it stands that of the same scans before they were changed, which should be 0.5.
    One scan of each patient is taken, sixty at most, and parted in two halves at random: no
    patient stands on both sides. None for fewer than twelve patients, and ``turned`` only on a
    grid with two equal axes.
    """
    numbers = _one_each(rows, seed)
    if len(numbers) < FEWEST:
        return []
    half = len(numbers) // 2
    changed, others = numbers[:half], numbers[half : 2 * half]
    names = [name for name in CHANGES if name != "turned" or _has_equal_axes(rows)]
    total = len(_batches(others)) + len(_batches(changed)) * (1 + len(names))
    done = 0

    def score(part: Sequence[int], name: str | None) -> np.ndarray:
        nonlocal done
        image = torch.from_numpy(rows.images.batch(part))
        if name is not None:
            each = zip(image.split(1), part, strict=True)
            image = torch.cat([CHANGES[name](x, torch_stream(seed, name, at)) for x, at in each])
        done += 1
        tell("score changed scans", done, total)
        return scorer.judge(image, maps=False)[0].score_B[_KIND].numpy()

    def score_all(which: Sequence[int], name: str | None = None) -> np.ndarray:
        return np.concatenate([score(part, name) for part in _batches(which)])

    familiar = score_all(others)
    control = _measured("unchanged", detect(score_all(changed), familiar))
    return [
        Line(_measured(name, detect(score_all(changed, name), familiar)), control, "1", _OTHERS)
        for name in names
    ]


def _measured(name: str, found: Detection) -> Measured:
    return Measured(
        name=f"scorer_{name}_auroc",
        value=found.auroc,
        low=found.interval.low,
        high=found.interval.high,
        n=found.foreign_images,
        unit="images",
        method=f"area under the ROC curve of the {_KIND} score, against as many other patients",
    )


def _one_each(rows: Rows, seed: int) -> list[int]:
    """Return the first scan of each patient in random order: intervals count patients."""
    first: dict[str, int] = {}
    for number, item in enumerate(rows.items):
        first.setdefault(item.subject, number)
    numbers = list(first.values())
    order = stream(seed, "patients").permutation(len(numbers))
    return [numbers[place] for place in order[:MOST_PATIENTS]]


def _has_equal_axes(rows: Rows) -> bool:
    *_, depth, height, width = rows.images.batch([0]).shape
    return len({depth, height, width}) < 3  # noqa: PLR2004 - axes of space


def _batches(numbers: Sequence[int]) -> list[Sequence[int]]:
    return [numbers[at : at + _BATCH_IMAGES] for at in range(0, len(numbers), _BATCH_IMAGES)]
