"""A federation in one process: an Exchange whose sites are functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from vitrael.core.messages import MakeParcel, Parcel

SiteHandler = Callable[[Parcel], Parcel | str]
"""A site: answers a parcel, or says in a sentence why it does not."""


@dataclass
class HandlerExchange:
    """Satisfies ``vitrael.server.federation.exchange.Exchange`` by calling the given sites.

    As by a real one, all who are there are sent their parcels before the first answer is looked
    at; one who is not there is sent none, and yielded with the reason a real exchange gives.
    """

    sites: Mapping[str, SiteHandler]
    sent: list[tuple[str, Parcel]] = field(default_factory=list)
    """Every parcel that went to a site, in order."""
    deadlines: list[tuple[str, float]] = field(default_factory=list)
    """How many seconds each of them was given."""

    def send(
        self, parcels: Mapping[str, MakeParcel], *, deadline_s: float | Mapping[str, float]
    ) -> Iterator[tuple[str, Parcel | str]]:
        gone: dict[str, Parcel] = {}
        for site, make in parcels.items():
            seconds = deadline_s[site] if isinstance(deadline_s, Mapping) else deadline_s
            assert seconds > 0
            self.deadlines.append((site, seconds))
            if site in self.sites:
                gone[site] = make()
                self.sent.append((site, gone[site]))
        for site in parcels:
            if site in gone:
                yield site, self.sites[site](gone[site])
            else:
                yield site, f"site {site} is not connected, waited 90 s"
