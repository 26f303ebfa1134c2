"""What sites told of experts: what of it still holds, and what an answer must look like.

Axes: V views of the study.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vitrael.core.digest import Digest
from vitrael.core.weights import Tensors
from vitrael.server.studies.correspondence import Answer
from vitrael.server.studies.expert_risks import check_risk
from vitrael.server.studies.run import StudyRun

if TYPE_CHECKING:
    from vitrael.server.studies.experts import ExpertRecord

_MOST_IMAGES: Final = 10_000_000
"""Of a site whose number of scans is not told."""


@dataclass(frozen=True, slots=True)
class Told:
    """What one site told of one expert."""

    tensors: Digest
    cohort: Digest | None
    """Version of the scans that it was told of."""


Kept = Mapping[str, Mapping[str, Told]]
"""Site -> expert -> what the site told of it."""


def find_kept(run: StudyRun, wanted: Mapping[str, ExpertRecord]) -> dict[str, dict[str, Told]]:
    """Return for every member what it told before of experts that are still the same.

    Whose words are mapped otherwise now has told nothing: its pictures are of other views. Nor has
    who consents with another version of its scans: two experts are laid beside each other on one.
    """
    labels = run.study.roster.labels
    kept: dict[str, dict[str, Told]] = {site: {} for site in run.members}
    for document in _documents(run):
        known, told, meant = document["experts"], document["outlooks"], document["labels"]
        same = [site for site, record in wanted.items() if known.get(site) == record.weights]
        for site, own in kept.items():
            if site not in told or meant[site] != labels.get(site, {}):
                continue
            version, cohorts = _version_of(run, site), document.get("cohorts", {}).get(site, {})
            own |= {
                expert: Told(Digest(told[site][expert]), cohorts.get(expert))
                for expert in same
                if version in {None, cohorts.get(expert)}
            }
    return kept


def find_risks(run: StudyRun) -> dict[str, list[dict[str, Any]]]:
    """Return what members measured before, an entry for each set of experts they were asked of."""
    risks: dict[str, list[dict[str, Any]]] = {}
    for document in _documents(run):
        for site, told in document["risks"].items():
            every = risks.setdefault(site, [])
            every += [one for one in told if one not in every]
    return {site: told for site, told in risks.items() if site in run.members}


def _documents(run: StudyRun) -> list[dict[str, Any]]:
    """Return what ``outlooks`` left with the roster which this one amends, and with this one."""
    documents = (run.earlier_document("outlooks"), run.document("outlooks"))
    return [document for document in documents if document is not None]


def _version_of(run: StudyRun, site: str) -> Digest | None:
    """Return the version of a site's scans that its present consent names, if it names one."""
    consent = (run.document("consent") or {}).get("consents", {}).get(site, {})
    cohort = consent.get("cohort")
    return Digest(cohort["digest"]) if cohort and cohort.get("digest") else None


def read_told(
    run: StudyRun, lacking: tuple[str, ...], kept: Kept, answer: Answer
) -> dict[str, Tensors]:
    """Return what a site told, expert by expert; raise ValueError for what cannot be meant.

    What is kept of the site must be of the same pictures: fusion lays one beside the other.
    """
    protocol = run.study.experts
    check_risk(answer.reply.body)
    sent = answer.get_tensors("outlooks")
    single = ("view", "seen") if protocol.told == "features" else ()
    images_V, mean_NVW, std_NW = sent["images"], sent["mean"], sent["std"]
    views, experts, width = len(protocol.data.views), len(lacking), _width(run)
    whole = (
        sent.keys() == {"images", "mean", "std", *single}
        and images_V.shape == (views,)
        and mean_NVW.shape == (experts, views, width)
        and std_NW.shape == (experts, width)
        and bool((std_NW >= 0).all() and (images_V >= 0).all())
        and 0 < images_V.sum() <= most_images(run, answer.reply.site)
    )
    if whole and single:
        counted_V = np.bincount(sent["view"], minlength=views)
        pictures = (experts, images_V.sum(), width)
        whole = sent["seen"].shape == pictures and np.array_equal(counted_V, images_V)
    for old in list(kept.get(answer.reply.site, {}).values())[:1] if whole else ():
        known = run.objects.get_tensors(old.tensors)
        whole = all(np.array_equal(known[name], sent[name]) for name in ("images", *single[:1]))
    if not whole:
        msg = "what is told of experts has other sizes than was asked for"
        raise ValueError(msg)
    return {
        expert: {
            "images": images_V,
            "mean": mean_NVW[number],
            "std": std_NW[number],
            **({"view": sent["view"], "seen": sent["seen"][number]} if single else {}),
        }
        for number, expert in enumerate(lacking)
    }


def _width(run: StudyRun) -> int:
    """Return how many numbers tell what an expert sees in a picture: features, then layers."""
    from vitrael.core.models.view_expert import build_view_net  # noqa: PLC0415 - torch

    net = build_view_net(run.study.experts.expert, 2, seed=0)
    return net.features + len(net.layers)


def most_images(run: StudyRun, site: str) -> int:
    """Return how many pictures a site can tell of: as many as its consent counts, if it counts."""
    scans = (run.document("consent") or {})["consents"][site]["cohort"]["scans"]
    return _MOST_IMAGES if scans is None else int(scans)


def keep_told(
    run: StudyRun, lacking: tuple[str, ...], kept: Kept, answer: Answer
) -> dict[str, Told]:
    """Store what a site told; return it expert by expert."""
    told = read_told(run, lacking, kept, answer)
    return {
        expert: Told(run.objects.put_tensors(tensors), answer.reply.cohort)
        for expert, tensors in told.items()
    }
