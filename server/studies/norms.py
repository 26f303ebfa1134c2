"""What one site's update may weigh in a round: by how far it goes, and by what the site told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vitrael.core.digest import Digest
from vitrael.server.federation.aggregate import (
    SiteUpdate,
    bounded_weights,
    distance,
    norm_limit,
)
from vitrael.server.studies.correspondence import Answer
from vitrael.server.studies.run import StudyRun


@dataclass(slots=True)
class UpdateNorms:
    """Holds the updates of one round to the study's bounds, and remembers what was done.

    An update whose distance from the round's start is more than ``norm_bound`` times the median of
    all, of two the smaller, is drawn back to that distance, or refused. Its weight is the number of
    examples that the site tells, and no more than the scans of its signed consent, and than the
    study's share of the whole.
    """

    run: StudyRun
    part: str
    """Name of the attachment that holds the weights."""
    start: Digest
    """Of the weights with which the round began."""
    distances: dict[str, float] = field(default_factory=dict)
    limit: float = float("inf")
    weights: dict[str, float] = field(default_factory=dict)

    def refuse_outliers(self, answers: Mapping[str, Answer]) -> dict[str, str]:
        """Measure every update; return those to refuse, with the reason, if the study refuses."""
        start = self.run.objects.path(self.start)
        self.distances = {
            site: distance(answer.path(self.part), start) for site, answer in answers.items()
        }
        federation = self.run.study.protocol.federation
        self.limit = norm_limit(self.distances, times=federation.norm_bound)
        if federation.outliers == "bound":
            return {}
        return {
            site: f"its update goes {far:.4g} from the start, more than {self.limit:.4g}, which is "
            f"{federation.norm_bound:g} times the median"
            for site, far in self.distances.items()
            if far > self.limit
        }

    def weigh(self, answers: Mapping[str, Answer]) -> dict[str, SiteUpdate]:
        """Return each site's update as it counts; of ``refuse_outliers`` none is among them."""
        counts = {site: self._count(site, answer) for site, answer in answers.items()}
        share = self.run.study.protocol.federation.most_weight
        self.weights = bounded_weights(counts, most_share=share)
        return {
            site: SiteUpdate(answer.path(self.part), self.weights[site], self._scale(site))
            for site, answer in answers.items()
        }

    @property
    def details(self) -> dict[str, Any]:
        """What the participation record keeps; a distance beyond all numbers is left out."""
        outliers = {
            site: {"action": self.run.study.protocol.federation.outliers}
            | ({"distance": far} if far < float("inf") else {})
            for site, far in self.distances.items()
            if far > self.limit
        }
        total = sum(self.weights.values())
        weighted = self.run.study.protocol.federation.aggregation == "weighted_mean"
        shares = {
            site: round(weight / total if weighted else 1 / len(self.weights), 4)
            for site, weight in self.weights.items()
            if total > 0
        }
        return {"weights": shares, **({"outliers": outliers} if outliers else {})}

    def _scale(self, site: str) -> float:
        far = self.distances.get(site, 0.0)
        return self.limit / far if far > self.limit else 1.0

    def _count(self, site: str, answer: Answer) -> int:
        """Return an update's examples as far as the site's consent bears them out.

        A site that keeps its own number back counts no more than the largest that another tells.
        """
        consents = (self.run.document("consent") or {}).get("consents", {})
        told = {who: consent["cohort"].get("scans") for who, consent in consents.items()}
        known = [scans for scans in told.values() if scans is not None]
        most = told.get(site)
        if most is None:
            most = max(known, default=answer.reply.num_examples)
        return min(answer.reply.num_examples, int(most))
