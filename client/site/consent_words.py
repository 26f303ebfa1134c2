"""What a person reads before signing a consent, in words and with the digests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vitrael.client.site.consent import planned_rounds
from vitrael.core.data.manifest import MANIFEST_NAME, read_manifest
from vitrael.core.errors import ConsentError
from vitrael.core.messages import Consent
from vitrael.core.protocols import MOST_VOTES, ExpertsProtocol, SynthesisProtocol
from vitrael.core.study import Study
from vitrael.privacy.gates import POLICIES


def describe(
    consent: Consent, study: Study, *, coordinator: str, answered: Mapping[str, int]
) -> str:
    """Return what a person should read before signing.

    ``answered`` says how many rounds of each stage this site has finished for the protocol.
    """
    protocol, planned = study.protocol, planned_rounds(study)
    rounds = f"at most {consent.max_rounds} of a stage"
    if consent.max_rounds < planned:
        rounds += f", FEWER than the study's {planned}: it will stop"
    cohort = consent.cohort
    counts = ", ".join(
        f"{name} not told" if count is None else f"{count} {name}"
        for name, count in (("patients", cohort.patients), ("scans", cohort.scans))
    )
    aim = (
        _say_synthesis(consent, protocol)
        if isinstance(protocol, SynthesisProtocol)
        else _say_experts(consent, study, protocol)
    )
    rows = {
        "site": consent.site,
        "study": f"{protocol.name}, version {protocol.version}",
        "purpose": consent.purpose,
        "members": ", ".join(study.roster.sites),
        "coordinator": coordinator,
        **aim,
        "cohort": f"{cohort.name}, version {cohort.version}, and no other: {counts}",
        "rounds": rounds,
        "answered": ", ".join(f"{stage} {n}" for stage, n in answered.items()) or "nothing so far",
        "given": consent.given_utc,
        "expires": f"{consent.expires_utc}; `vitrael site stop` takes it back before",
        "software": f"vitrael {consent.package_version}, and no other version",
        "lock": f"{consent.lock}, of all that is installed with it",
        "protocol": consent.protocol,
        "roster": consent.roster,
        "amends": study.roster.predecessor or "no earlier roster",
    }
    return "\n".join(f"{name:<12} {value}" for name, value in rows.items())


def demand_known_words(cohort: Path, study: Study, *, site: str) -> None:
    """Raise ConsentError for a picture whose view the study does not map, before anything leaves.

    The words are shown to the operator alone. A study of a synthetic set asks for none.
    """
    if not isinstance(study.protocol, ExpertsProtocol):
        return
    known = {*study.protocol.data.views, *study.roster.labels.get(site, {})}
    items = read_manifest(cohort / MANIFEST_NAME).items
    words = {item.labels.get("view") or item.labels.get("label", "") for item in items}
    if strange := sorted(words - known):
        named = ", ".join(word or "no word at all" for word in strange)
        raise ConsentError(
            "the cohort has words for views that the study does not map",
            why=f"they are: {named}",
            fix="have them mapped in [roster.labels] of the study, or take the pictures in again "
            "without them",
        )


def _say_synthesis(consent: Consent, protocol: SynthesisProtocol) -> dict[str, str]:
    privacy = consent.privacy
    votes = (
        f"at most {privacy.votes:,} bits, one for each candidate and sample that you are shown: "
        f"{MOST_VOTES} for each of {protocol.distillation.target:,} candidates and "
        f"{protocol.distillation.released:,} samples that are wanted; about "
        f"{privacy.false_match_rate:.0%} of held-out patients would be dropped, and "
        f"{protocol.screening.extra_rejections:.0%} of all by chance"
    )
    epsilon = "no epsilon" if privacy.epsilon is None else f"epsilon {privacy.epsilon:g}"
    compared = protocol.distillation.compared
    return {
        "policy": f"{privacy.policy}. {POLICIES[protocol.policy].title}",
        "privacy": f"{privacy.path} path, {epsilon}",
        "license": f"{protocol.license}, if anything is released",
        "votes": votes if privacy.screening else "none: SCREENING IS OFF",
        "also leaves": "weights and loss curves of codec, patient encoder and teacher in the clear "
        "to the coordinator, how fast you train, sums over patients, counts and measurements of "
        "calibration, screening and audit, the counts below",
        **({"and": _say_arms(compared)} if compared else {}),
        "others see": "every site sees the common teacher, its unscreened candidates, the "
        "student's unscreened samples and the common patient encoder, which tells patients apart; "
        "by the size of a round how many of the last were dropped by anyone; and, to sign a "
        "release, the counts and measurements that you sent for calibration, screening and audit, "
        "with your signature; no votes",
        "summary": "counts of the cohort, none from 1 to 10, as its report.html shows them",
        "made public": "if released: your name and signature, the time of this consent, in which "
        "rounds you took part, how long your answers took and their bytes, your weight in tenths, "
        "why you were absent (in words of ours), the range of your number of training patients, "
        "loss curves, how many candidates and samples you kept, measurements over all sites (the "
        "Evidence); whoever has many samples knows the means and covariances of age, sex and "
        "volumes over all sites",
    }


def _say_arms(compared: int) -> str:
    return (
        f"of {compared:,} samples each of teacher, random filter and student, how many a network "
        "of yours takes for your patients, beyond the votes and without drops by chance; every "
        "site sees these samples"
    )


def _say_kept(protocol: ExpertsProtocol) -> str:
    kept = "experts are kept after the study; `vitrael site stop` lets yours be left out"
    if protocol.begin != "first":
        return kept
    first = "but all begin with the first one's weights: ITS PART IN THE OTHERS STAYS FOR EVER"
    return f"{kept}; {first}"


def _say_experts(consent: Consent, study: Study, protocol: ExpertsProtocol) -> dict[str, str]:
    words = study.roster.labels.get(consent.site, {})
    own = ", ".join(f"your {word} is its {view}" for word, view in words.items())
    single = (
        "; and THE NUMBERS THAT EACH EXPERT SEES IN EVERY SINGLE PICTURE, with its view: whoever "
        "holds them knows which pictures they are of"
        if consent.privacy.features
        else ""
    )
    passed_on = (
        ", and the network of all sites as the site before left it"
        if "relay" in protocol.trained
        else ""
    )
    rivals = [name for name in ("averaged", "relay") if name in protocol.trained]
    return {
        "views": f"{', '.join(protocol.data.views)}{f' ({own})' if own else ''}",
        "privacy": f"{consent.privacy.path} path, no epsilon",
        "released": "nothing: experts and their fusion stay with the coordinator and the sites",
        "also leaves": "the weights of your expert, with means and spreads of what its layers see "
        "in your pictures, your words for views, what every expert sees in your views on the whole "
        f"(means by view with noise of {protocol.noise_frac:g} spreads, one spread), how many "
        "pictures of each view you have and how many are named rightly; of a view with fewer than "
        "11 patients nothing; loss curves, how fast you train, how well an attacker would know "
        "your patients by what is told, the counts below"
        f"{single}",
        **(
            {"and": "weights of a network for all sites, which experts are held against"}
            if rivals
            else {}
        ),
        "others see": "every site gets every expert, to run it once and to be held against it, "
        f"and their fusion{passed_on}; no site sees what another tells of its pictures",
        "kept": _say_kept(protocol),
        "summary": "counts of the cohort, none from 1 to 10, as its report.html shows them",
    }
