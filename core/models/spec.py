"""What a system is to the rest of the house: five fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from vitrael.core.configs import Section
from vitrael.core.interfaces import Objective

Parts = Mapping[str, nn.Module]
"""The networks of a system by name."""


@dataclass(frozen=True, slots=True)
class SystemSpec:
    """One entry of ``SYSTEMS``; ``Any`` stands for the system's own Config."""

    kind: str
    config: type[Section]
    build: Callable[[Any, int], Parts]
    """``(config, seed)`` to networks whose first weights come from streams of the seed."""
    objective: Callable[[Any, str], Objective]
    """``(config, part)`` to what that part is trained with."""
    roles: Mapping[type, Callable[[Parts, Any], object]]
    """Protocol to the object that plays it, given the networks and the config."""
