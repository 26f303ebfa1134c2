"""Whether a whole folder of synthetic images lies turned or mirrored against the real ones.

A header cannot be asked: generators write any. A set that was trained on arrays with other axes
holds no image that looks like a real one voxel by voxel, and every copy in it would be missed. The
mean of the real images tells, since all images of a folder have the same axes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations, product
from typing import Final

import numpy as np

from vitrael.privacy.audit_folder.images import FolderImages

_SURE: Final = 3.0
"""Standard errors by which another position must fit better; 48 are tried."""
_LEAST_IMAGES: Final = 8
_MOST_IMAGES: Final = 400
"""More make it surer of smaller differences, and no difference to a user."""


@dataclass(frozen=True, slots=True)
class Turn:
    """How images are to be turned: first the axes change places, then some are mirrored."""

    axes: tuple[int, ...] = (0, 1, 2)
    """Of D, H, W: which one becomes the first, the second and the third."""
    mirrored: tuple[bool, ...] = (False, False, False)

    def apply(self, image_BCDHW: np.ndarray) -> np.ndarray:
        """Return images that are turned; a view."""
        turned = image_BCDHW.transpose(0, 1, *(axis + 2 for axis in self.axes))
        mirrored = tuple(axis + 2 for axis, each in enumerate(self.mirrored) if each)
        return np.flip(turned, mirrored)


AS_IT_IS: Final = Turn()


def find_turn(real: FolderImages, synthetic: FolderImages) -> Turn:
    """Return the turn after which the synthetic images fit the mean of the real ones best.

    ``AS_IT_IS`` unless another one fits better by at least three standard errors of the mean over
    at least 8 images. Volumes may be turned in any way in which the grid fits itself, the planes of
    pictures and clips within themselves. Left and right of a body that is nearly symmetric take
    many images to tell apart.
    """
    if len(synthetic) < _LEAST_IMAGES:
        return AS_IT_IS
    mean_CDHW = real.image_BCDHW.mean(axis=0, dtype=np.float64)
    images = synthetic.image_BCDHW[:: 1 + len(synthetic) // _MOST_IMAGES]
    if real.kind == "clip":  # no frame is a plane of space
        mean_CDHW, images = mean_CDHW.mean(1, keepdims=True), images.mean(2, keepdims=True)
    template_N = _standard(mean_CDHW[None])[0]
    fits = {
        turn: _standard(turn.apply(images)) @ template_N / len(template_N)
        for turn in _turns(is_volume=real.kind == "volume")
    }
    best = max(fits, key=lambda turn: float(fits[turn].mean()))
    gain_B = fits[best] - fits[AS_IT_IS]
    error = float(gain_B.std(ddof=1)) / len(gain_B) ** 0.5
    return best if float(gain_B.mean()) > _SURE * error else AS_IT_IS


def _turns(*, is_volume: bool) -> Iterator[Turn]:
    for axes in permutations(range(3)):
        for mirrored in product((False, True), repeat=3):
            if is_volume or (axes[0] == 0 and not mirrored[0]):
                yield Turn(axes, mirrored)


def _standard(image_BCDHW: np.ndarray) -> np.ndarray:
    """Return ``[B, N]`` with mean 0 and deviation 1 in each image."""
    values_BN = image_BCDHW.reshape(len(image_BCDHW), -1)
    spread_B1 = np.maximum(values_BN.std(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return np.asarray((values_BN - values_BN.mean(axis=1, keepdims=True)) / spread_B1)
