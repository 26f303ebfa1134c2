"""What an audit found in plain words, what it could not estimate, and what it never claims."""

from __future__ import annotations

from collections import Counter
from typing import Final

from vitrael.privacy.audit_folder.findings import CHANCE, Findings

NOT_CLAIMED: Final = (
    (
        "Nothing here makes a dataset anonymous, or shows that it is. Whether one is, is a "
        "question of law and of all that is published beside it."
    ),
    (
        "An audit finds copies of the kinds that it plants. A model can give away that a patient "
        "was in its training, or what is told of the patient, without one image that resembles a "
        "scan; other attacks ask for that, and none is made here."
    ),
    (
        "Distances to the nearest real image prove nothing by themselves: datasets that passed "
        "every such test were attacked with success. They may raise a suspicion and can remove "
        "none."
    ),
    (
        "The audit has looked at the real images. To audit a dataset, remove what was found and "
        "audit it again tells more of the patients each time: publish no dataset that was shaped "
        "so."
    ),
)


def tell_found(findings: Findings) -> tuple[str, ...]:
    """Return the sentences of what was found, the gravest first."""
    return tuple(
        sentence
        for sentence in (
            _tell_same(findings),
            _tell_patients(findings),
            _tell_conspicuous(findings),
            _tell_power(findings),
            _tell_negatives(findings),
            _tell_neighbors(findings),
        )
        if sentence
    )


def tell_not_estimated(findings: Findings) -> tuple[str, ...]:
    """Return the sentences of what could not be estimated; none of it counts as passed."""
    told = []
    if not findings.filter.calibrated:
        told.append(
            f"Disguised copies could not be looked for: {findings.filter.reason}. Only files with "
            "equal bytes or equal content were found for sure, if there are any."
        )
        return tuple(told)
    few = [one.name for one in findings.certificate.plants if one.outcome == "not estimable"]
    if few:
        told.append(
            "Whether the filter catches as much as is demanded of it cannot be told of "
            f"{len(few)} classes of planted copies, for want of patients: {', '.join(few)}."
        )
    for reason, names in findings.certificate.not_made.items():
        if names:
            told.append(f"Not planted, since {reason}: {', '.join(names)}.")
    agreement = findings.certificate.agreement
    if agreement.value is None:
        told.append(f"Votes in mixtures of 1 % and 40 % plants: {agreement.reason}.")
    unknown = [one.says for one in findings.certificate.negatives if one.outcome == "not estimable"]
    if unknown:
        told.append(f"How often the filter drops what is nobody's copy: {', '.join(unknown)}.")
    small = [one.name for one in findings.certificate.subgroups if one.caught.value is None]
    if small:
        told.append(f"Too few patients for a number of their own: {', '.join(small)}.")
    return tuple(told)


def _tell_same(findings: Findings) -> str:
    counts = Counter(one.how for one in findings.same_files)
    if not counts:
        return "No synthetic file is a real one, by its bytes or by its decoded values."
    return (
        f"COPIES: {counts['bytes']} synthetic files are real ones byte for byte, and "
        f"{counts['content']} more hold exactly the values of a real one."
    )


def _tell_patients(findings: Findings) -> str:
    if not findings.shared_patients:
        return ""
    return f"Patients who are named in both folders: {findings.shared_patients}."


def _tell_conspicuous(findings: Findings) -> str:
    share = findings.conspicuous_share
    if share.value is None or findings.chance is None:
        return ""
    count = len(findings.conspicuous)
    told = (
        f"{count} of {share.n} synthetic images come nearer to a real patient than the filter "
        f"allows ({share.value:.1%}, bounds {share.low:.1%} to {share.high:.1%}); of images of "
        f"strangers about {findings.filter.rate:.1%} would."
    )
    if findings.chance <= CHANCE:
        return f"COPIES: {told} Chance gives as many with probability {findings.chance:.2g}."
    if count:
        return f"{told} That is no more than chance explains; look at each of them all the same."
    return told


def _tell_power(findings: Findings) -> str:
    if not findings.filter.calibrated:
        return ""
    counts = Counter(one.outcome for one in findings.certificate.plants if one.demanded is not None)
    missed = [one.name for one in findings.certificate.plants if one.outcome == "not reached"]
    told = (
        f"Of {sum(counts.values())} classes of planted copies the filter is shown to catch as many "
        f"as is demanded in {counts['reached']}; in {counts['not reached']} it misses that, or is "
        f"not shown to reach it, and of {counts['not estimable']} there are too few plants or "
        "patients to tell."
    )
    return f"{told} Copies of these kinds may have passed: {', '.join(missed)}." if missed else told


def _tell_negatives(findings: Findings) -> str:
    above = [one for one in findings.certificate.negatives if one.outcome == "above"]
    if not above:
        return ""
    names = ", ".join(f"{one.says} ({one.dropped.value:.1%})" for one in above)
    return f"The filter drops more than {above[0].most:.0%} of what is nobody's copy: {names}."


def _tell_neighbors(findings: Findings) -> str:
    neighbors = findings.neighbors
    if neighbors is None:
        return ""
    return (
        "A synthetic image lies nearer to its nearest real patient than a stranger does in "
        f"{neighbors.nearer_share:.0%} of all pairs (50 %: neither nearer nor farther). That "
        "proves nothing by itself."
    )
