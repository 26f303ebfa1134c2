"""A federation in one process: an Exchange whose sites are functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from vitrael.core.messages import Parcel

SiteHandler = Callable[[Parcel], Parcel | str]
"""A site: answers a parcel, or says in a sentence why it does not."""


@dataclass
class HandlerExchange:
    """Satisfies ``vitrael.server.federation.exchange.Exchange`` by calling the given sites.

    A site that is not there is yielded with the reason a real exchange gives.
    """

    sites: Mapping[str, SiteHandler]
    sent: list[tuple[str, Parcel]] = field(default_factory=list)
    """Every parcel that was addressed to a site, in order."""
    deadlines: list[tuple[str, float]] = field(default_factory=list)
    """How many seconds each of them was given."""

    def send(
        self, parcels: Mapping[str, Parcel], *, deadline_s: float | Mapping[str, float]
    ) -> Iterator[tuple[str, Parcel | str]]:
        for site, parcel in parcels.items():
            seconds = deadline_s[site] if isinstance(deadline_s, Mapping) else deadline_s
            assert seconds > 0
            self.deadlines.append((site, seconds))
            self.sent.append((site, parcel))
            if site in self.sites:
                yield site, self.sites[site](parcel)
            else:
                yield site, f"site {site} is not connected, waited 90 s"
