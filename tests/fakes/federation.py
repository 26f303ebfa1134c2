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

    def send(
        self, parcels: Mapping[str, Parcel], *, deadline_s: float
    ) -> Iterator[tuple[str, Parcel | str]]:
        assert deadline_s > 0
        for site, parcel in parcels.items():
            self.sent.append((site, parcel))
            if site in self.sites:
                yield site, self.sites[site](parcel)
            else:
                yield site, f"site {site} is not connected, waited 90 s"
