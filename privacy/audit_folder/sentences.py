"""What an audit found in plain words, what it could not estimate, and what it never claims."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from vitrael.privacy.audit_folder.certificate import most_shown
from vitrael.privacy.audit_folder.findings import CHANCE, Findings
from vitrael.privacy.suite import PICTURE_SUITE, VOLUME_SUITE

_MOST_LISTED: Final = 6
"""Classes that a sentence names; the table has all."""
_MEMBERS: Final[Mapping[str, str]] = {
    "copy": "copy encoder",
    "patient": "patient encoder",
    "registered": "registered similarity",
    "regions": "regions",
}

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
        "Plain distances between images prove nothing by themselves: datasets that passed "
        "every such test were attacked with success. They may raise a suspicion and can remove "
        "none."
    ),
    (
        "The audit has looked at the real images. To audit a dataset, remove what was found and "
        "audit it again tells more of the patients each time: publish no dataset that was shaped "
        "so."
    ),
)


def tell_members(names: Iterable[str]) -> str:
    """Return which members of the filter said so, in words."""
    return ", ".join(_MEMBERS.get(name, name) for name in names)


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
            "equal bytes or equal values are found for sure, if there are any."
        )
        return tuple(told)
    few = [one.says for one in findings.certificate.plants if one.outcome == "not estimable"]
    if few:
        told.append(
            "Whether the filter catches as much as is demanded of it cannot be told of "
            f"{_count(len(few), 'class')} of planted copies: {_list(few)}."
        )
        told.append(_tell_limit(findings))
    suite = PICTURE_SUITE if findings.kind == "picture" else VOLUME_SUITE
    for reason, names in findings.certificate.not_made.items():
        if names:
            says = [suite[name].says if name in suite else name for name in names]
            told.append(f"Not planted, since {reason}: {'; '.join(says)}.")
    agreement = findings.certificate.agreement
    if agreement.value is None:
        told.append(
            "Whether the filter votes alike among 1 % and among 40 % of planted copies was not "
            f"tried: {agreement.reason}."
        )
    unknown = [one.says for one in findings.certificate.negatives if one.outcome == "not estimable"]
    if unknown:
        told.append(
            "How often the filter drops these, which are nobody's copies, could not be measured: "
            f"{', '.join(unknown)}."
        )
    small = [one.name for one in findings.certificate.subgroups if one.caught.value is None]
    if small:
        told.append(f"Too few patients for a number of their own: {', '.join(small)}.")
    return tuple(one for one in told if one)


def _tell_limit(findings: Findings) -> str:
    """Return what so few plants can show at best, and how many more would show the demand."""
    open_ = [one for one in findings.certificate.plants if one.outcome == "not estimable"]
    shown = max((one.caught.n for one in findings.certificate.plants), default=0)
    wanted = {
        (one.takes, one.demanded)
        for one in open_
        if one.takes and one.demanded and one.takes > shown and one.demanded < 1
    }
    if not wanted or not shown:
        return ""
    takes = ", ".join(f"{demanded:.0%} takes {count}" for count, demanded in sorted(wanted))
    asked = "" if findings.plants is None else f" ({findings.plants})"
    return (
        f"{_count(shown, 'plant')} of a class, one of each patient, show at most "
        f"{most_shown(shown):.1%} even when all are caught; to show {takes}. There are as many as "
        f"--plants{asked} and the patients of the real folder "
        f"({findings.real.patients}) allow."
    )


def _list(says: Sequence[str]) -> str:
    more = len(says) - _MOST_LISTED
    told = "; ".join(says[:_MOST_LISTED])
    return f"{told}; and {more} more, in the table" if more > 0 else told


def _count(number: int, noun: str) -> str:
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def _tell_same(findings: Findings) -> str:
    counts = Counter(one.how for one in findings.same_files)
    if not counts:
        return "No synthetic file is a real one, by its bytes or by its decoded values."
    told = []
    if counts["bytes"]:
        told.append(
            f"{_count(counts['bytes'], 'synthetic file')} equal to a real one byte for byte"
        )
    if counts["content"]:
        values = "with exactly the values of a real one, written anew"
        told.append(f"{_count(counts['content'], 'synthetic file')} {values}")
    return f"COPIES: {'; '.join(told)}."


def _tell_patients(findings: Findings) -> str:
    if not findings.shared_patients:
        return ""
    return f"Patients who are named in both folders: {findings.shared_patients}. Ask how that came."


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
        return f"CONSPICUOUS: {told} Chance gives as many with probability {findings.chance:.2g}."
    if count:
        return f"{told} That is no more than chance explains; look at each of them all the same."
    return told


def _tell_power(findings: Findings) -> str:
    if not findings.filter.calibrated:
        return ""
    counts = Counter(one.outcome for one in findings.certificate.plants if one.demanded is not None)
    plants = sorted(findings.certificate.plants, key=lambda one: not one.must)
    missed = [one.says for one in plants if one.outcome == "not reached"]
    told = (
        f"Of {sum(counts.values())} classes of planted copies the filter is shown to catch as many "
        f"as is demanded in {counts['reached']}; in {counts['not reached']} it misses that, or is "
        f"not shown to reach it, and of {counts['not estimable']} there are too few plants to tell."
    )
    return f"{told} Copies of these kinds may have passed: {_list(missed)}." if missed else told


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
        "By plain distance a synthetic image lies nearer to a real patient than a stranger does in "
        f"{neighbors.nearer_share:.0%} of all pairs (50 %: neither nearer nor farther). That "
        "proves nothing by itself."
    )
