"""Planted copies: real scans of the gallery, disguised, that a filter with power must catch."""

from __future__ import annotations

from vitrael.privacy.audit.plants.classes import (
    PlantClass,
    each_plant,
    found_groups,
    make_plants,
    why_empty,
)
from vitrael.privacy.audit.plants.clips import CLIP_PLANTS
from vitrael.privacy.audit.plants.geometry import bend_affinely
from vitrael.privacy.audit.plants.sources import Means, Sources, draw_sources
from vitrael.privacy.audit.plants.volumes import VOLUME_PLANTS

__all__ = [
    "CLIP_PLANTS",
    "VOLUME_PLANTS",
    "Means",
    "PlantClass",
    "Sources",
    "bend_affinely",
    "draw_sources",
    "each_plant",
    "found_groups",
    "make_plants",
    "why_empty",
]
