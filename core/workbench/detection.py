"""What a model's scorer notices: scans that were changed in known ways, beside the same scans.

Axes: B images, C D H W.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from vitrael.core.metrics.measured import Measured
from vitrael.core.metrics.ood import Detection, detect
from vitrael.core.rng import torch_stream
from vitrael.core.scoring.shifts import (
    add_noise,
    remove_chunk,
    rotate_right_angle,
    smooth,
    squeeze_contrast,
)
from vitrael.core.workbench.evaluation import Line
from vitrael.core.workbench.progress import Tell, silent

if TYPE_CHECKING:
    from vitrael.core.scoring.scorer import ReconstructionScorer
    from vitrael.core.workbench.intake import Rows

MOST_PATIENTS: Final = 100
"""One scan of each is scored as it is and after every change."""
_BATCH_IMAGES: Final = 4
_KIND: Final = "two_sided"
_HALVES: Final = "halves of the scans"

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
    scorer: ReconstructionScorer, rows: Rows, *, seed: int, tell: Tell = silent
) -> list[Line]:
    """Return how well scans that were changed are told from the same scans as they are.

    A number for each change: the area under the ROC curve, 1 where all are found and 0.5 where
    none is. Beside it stands that of one half of the unchanged scans against the other, which
    should be 0.5. Of the first hundred patients one scan each is taken. Raises DataError for fewer
    than two.
    """
    numbers = _one_each(rows)
    parts = [numbers[at : at + _BATCH_IMAGES] for at in range(0, len(numbers), _BATCH_IMAGES)]
    names = [name for name in CHANGES if name != "turned" or _is_square(rows)]
    total, done = len(parts) * (1 + len(names)), 0
    found: dict[str, np.ndarray] = {}
    for name in ("", *names):
        scores = []
        for part in parts:
            image = torch.from_numpy(rows.images.batch(part))
            if name:
                image = CHANGES[name](image, torch_stream(seed, name, part[0]))
            scores.append(scorer.score_parts(image).score_B[_KIND].numpy())
            done += 1
            tell("score changed scans", done, total)
        found[name] = np.concatenate(scores)
    half = len(numbers) // 2
    control = _measured("halves", detect(found[""][:half], found[""][half : 2 * half]))
    return [
        Line(_measured(name, detect(found[name], found[""])), control, "1", _HALVES)
        for name in names
    ]


def _measured(name: str, found: Detection) -> Measured:
    return Measured(
        name=f"scorer_{name}_auroc",
        value=found.auroc,
        low=found.interval.low,
        high=found.interval.high,
        n=min(found.foreign_images, found.familiar_images),
        unit="images",
        method=f"area under the ROC curve of the {_KIND} score",
    )


def _is_square(rows: Rows) -> bool:
    *_, height, width = rows.images.batch([0]).shape
    return bool(height == width)


def _one_each(rows: Rows) -> list[int]:
    """Return the first scan of each patient: intervals count patients."""
    first: dict[str, int] = {}
    for number, item in enumerate(rows.items):
        first.setdefault(item.subject, number)
    return list(first.values())[:MOST_PATIENTS]
