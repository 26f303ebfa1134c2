"""What a study asks of its sites and what comes of it, in rows for people."""

from __future__ import annotations

import math
from typing import Final

from vitrael.core.protocols import MOST_VOTES, ExpertsProtocol, SynthesisProtocol
from vitrael.core.study import Study
from vitrael.privacy.gates import POLICIES
from vitrael.privacy.gates import find_shortfalls as shortfalls_of
from vitrael.privacy.leakage import SMALLEST_COUNT, split_plants
from vitrael.privacy.suite import LEAST_SOURCES, MEMORIZE_IMAGES

_ARM_COUNTS: Final = 5
"""That a site tells of samples: three of arms, two of pairs."""


def explain_study(study: Study) -> str:
    """Return the study in rows of a name and a sentence."""
    protocol = study.protocol
    own = (
        _explain_synthesis(study, protocol)
        if isinstance(protocol, SynthesisProtocol)
        else _explain_experts(study, protocol)
    )
    rows = {
        "study": f"{protocol.name} {protocol.version}, {study.digest}",
        "protocol": f"{protocol.digest}, which sites consent to",
        "purpose": protocol.purpose,
        "sites": f"{', '.join(study.roster.sites)} (quorum {protocol.federation.quorum})",
        **own,
    }
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows.items())


def find_shortfalls(study: Study) -> dict[str, int]:
    """Return the keys that are too small for the gates of the policy, with what these need."""
    protocol, sites = study.protocol, len(study.roster.sites)
    if isinstance(protocol, ExpertsProtocol):
        return {}
    keys = {
        "filter.power": "protocol.audit.plants_per_class",
        "filter.power.memorized": "protocol.audit.memorize_images",
        "copies.excess_share": "protocol.distillation.released",
    }
    planned = {
        "filter.power": split_plants(protocol.audit.plants_per_class, sites) * sites,
        "filter.power.memorized": LEAST_SOURCES if protocol.audit.memorize_images else 0,
        "copies.excess_share": protocol.distillation.released,
    }
    short = shortfalls_of(POLICIES[protocol.policy], planned)
    # Memorized samples are counted by patients, and asked for by how long a model learns.
    if "filter.power.memorized" in short:
        short["filter.power.memorized"] = MEMORIZE_IMAGES
    return {keys[name]: least for name, least in short.items()}


def _explain_synthesis(study: Study, protocol: SynthesisProtocol) -> dict[str, str]:
    generator = protocol.generator
    grid = "x".join(map(str, protocol.data.grid_vox))
    screening = (
        f"each site drops what comes closer to its patients than "
        f"{protocol.screening.false_match_rate:.0%} of held-out patients do, and "
        f"{protocol.screening.extra_rejections:.0%} more by chance, so that a single drop proves "
        "nothing; drops of several like images together do"
        if protocol.screening.enabled
        else "OFF: no candidate is judged, and the gates will refuse"
    )
    below = [f"{key} to {least:,} or more" for key, least in find_shortfalls(study).items()]
    wrong = [f"raise {', '.join(below)}"] if below else []
    wrong += [] if protocol.screening.enabled else ["set protocol.screening.enabled to true"]
    short = " and ".join(wrong)
    compared = protocol.distillation.compared
    return {
        "license": protocol.license,
        "path": f"{protocol.path}, judged by the policy {protocol.policy}",
        "scans": f"recipe {protocol.data.recipe}, {grid} voxels of {protocol.data.spacing_mm:g} mm",
        "codec": _training(generator.codec.training.rounds, generator.codec.training.length_images),
        "teacher": _training(
            generator.teacher.training.rounds, generator.teacher.training.length_images
        ),
        "patient encoder": _training(
            protocol.reid.training.rounds, protocol.reid.training.length_images
        ),
        "leaves a site": "weights, sums over its patients, one vote a candidate or sample, counted "
        "evidence",
        "comes down": "weights of codec, patient encoder and teacher, unscreened candidates "
        "and samples, samples to audit",
        "screening": screening,
        "released": f"{protocol.distillation.released} samples of a student that learned from "
        f"{protocol.distillation.target} kept candidates; each site gives at most {MOST_VOTES} "
        "votes for each",
        **({"arms": _explain_arms(compared)} if compared else {}),
        "gates": f"WILL REFUSE, whatever is measured: {short}"
        if short
        else "no number of this document is too small for them; what is measured decides",
    }


def _explain_arms(compared: int) -> str:
    answers = math.floor(_ARM_COUNTS * math.log2(compared + 1))
    return (
        f"of {compared:,} samples each of teacher, random filter and student, counts that no cap "
        f"on votes covers; up to {answers} single answers for a protocol and roster"
    )


def _explain_experts(study: Study, protocol: ExpertsProtocol) -> dict[str, str]:
    edge = protocol.data.edge_px
    words = [
        f"{word} of {site} is {view}"
        for site, own in study.roster.labels.items()
        for word, view in own.items()
    ]
    told = (
        f"means by view, of views with {SMALLEST_COUNT} patients or more, with noise of "
        f"{protocol.noise_frac:g} spreads"
        if protocol.told == "means"
        else "THE FEATURES OF EVERY SINGLE PICTURE, as each expert sees it"
    )
    rivals = [
        name
        for name, asked in (
            (
                f"averaged over the sites in {protocol.baselines.averaged_rounds} rounds",
                protocol.baselines.averaged_rounds > 0,
            ),
            ("trained at one site after the other", protocol.baselines.in_turn),
        )
        if asked
    ]
    return {
        "path": f"{protocol.path}; nothing is released, so no gate is asked",
        "pictures": f"recipe {protocol.data.recipe}, {edge}x{edge} pixels",
        "views": ", ".join(protocol.data.views),
        "words": "; ".join(words) or "every site uses those of the study",
        "expert": _training(1, protocol.expert.training.length_images)
        + {
            "fresh": "",
            "first": f", from the weights of the first: {study.roster.sites[0]} stays in all",
            "given": f", from weights that the coordinator gives: {protocol.weights}",
        }[protocol.begin],
        "told": told,
        "leaves a site": "the weights of its expert, its words for views, what experts see of its "
        "views and what could be held against patients of that, counts of its cohort and of what "
        "is named rightly, loss curves, its speed, weights of what experts are held against",
        "comes down": "every expert, their fusion, and what they are held against",
        "held against": " and ".join(["experts without fusion", *rivals]),
    }


def _training(rounds: int, length_images: int) -> str:
    return f"{length_images:,} images a site in {rounds} round{'s' if rounds > 1 else ''}"
