"""What a system is to the rest of the house: five fields.

Most networks follow from their config alone. Two do not: the labels that a site's expert tells
apart and the experts that a fusion joins are data, known when sites have come. ``build``,
``objective`` and the roles of such a system take these data as one argument more, the last, of a
type of the system's own (``SiteViews``, ``JoinedExperts``). Nothing stands in for them: without
them the call fails. They may be private, so they are an argument of calls and no field of a config.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from vitrael.core.configs import Section
from vitrael.core.interfaces import Objective

Parts = Mapping[str, nn.Module]
"""The networks of a system by name."""


@dataclass(frozen=True, slots=True)
class SystemSpec:
    """One entry of ``SYSTEMS``; dots stand for arguments of the system's own types."""

    kind: str
    config: type[Section]
    build: Callable[..., Parts]
    """``(config, seed)`` to networks whose first weights come from streams of the seed."""
    objective: Callable[..., Objective]
    """``(config, part)`` to what that part is trained with."""
    roles: Mapping[type, Callable[..., object]]
    """Protocol to the object that plays it, given the networks and the config."""
