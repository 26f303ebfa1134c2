"""Phantom echo pictures by site: each with its machine, its views and its patients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from vitrael.core.data.phantoms.cues import CORNERS, Cue, conflicting_variant, draw_variant
from vitrael.core.data.phantoms.echo import draw_exam, render_echo
from vitrael.core.data.phantoms.echo_sites import ECHO_SITES
from vitrael.core.data.phantoms.echo_styles import EchoStyle
from vitrael.core.data.phantoms.heart import draw_heart
from vitrael.core.rng import stream

EDGE_PX = 48
SITES = ECHO_SITES
"""Six sites, in the order in which they join, with the views that they know."""


@dataclass(frozen=True)
class Views:
    """Pictures of one site, each of another patient."""

    image_BCHW: np.ndarray
    """float32 in [0, 1]."""
    label_B: np.ndarray
    """int64: index of the view among those of the site."""
    sector_BHW: np.ndarray
    """bool: the cone."""
    views: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.label_B)


def draw_views(
    seed: int,
    style: EchoStyle,
    views: Sequence[str],
    *,
    count: int,
    edge_px: int = EDGE_PX,
    cues: Sequence[Sequence[Cue]] | None = None,
) -> Views:
    """Return ``count`` pictures, the views in turn; ``cues`` has the marks of each."""
    images, sectors, labels = [], [], []
    for number in range(count):
        rng = stream(seed, style.name, number)
        label = number % len(views)
        clip, truth = render_echo(
            draw_heart(rng, population=style.population),
            replace(draw_exam(rng, style), start_phase=float(rng.uniform())),
            view=views[label],
            frames=1,
            edge_px=edge_px,
            rng=rng,
            cues=() if cues is None else cues[number],
        )
        images.append(clip.frames_THW)
        sectors.append(truth.sector_HW)
        labels.append(label)
    return Views(
        image_BCHW=np.stack(images).astype(np.float32) / np.float32(255),
        label_B=np.array(labels, np.int64),
        sector_BHW=np.stack(sectors),
        views=tuple(views),
    )


def follow_cues(seed: int, labels: Sequence[int], *, classes: int, rho: float) -> list[list[Cue]]:
    """Return a bar for each picture, in the corner of its own class with probability ``rho``."""
    rng = stream(seed, "cues")
    return [[Cue("bar", CORNERS[draw_variant(rng, own, count=classes, rho=rho)])] for own in labels]


def oppose_cues(seed: int, labels: Sequence[int], *, classes: int) -> list[list[Cue]]:
    """Return a bar for each picture, always in the corner of another class."""
    rng = stream(seed, "opposed cues")
    return [[Cue("bar", CORNERS[conflicting_variant(rng, own, count=classes)])] for own in labels]
