"""The comparison of three arms for people: one row an arm, and what follows from them."""

from __future__ import annotations

from typing import Final

from vitrael.core.configs import Section
from vitrael.privacy.audit.arms import LARGEST_RATIO, Comparison, Fall
from vitrael.privacy.evidence import Measurement

_ROWS: Final = (
    ("teacher", "Teacher, unfiltered"),
    ("random", "Student of as many candidates drawn at random"),
    ("student", "Student of the candidates that the filter kept"),
    ("held_out", "Real patients whom nobody learned from"),
)
_VERDICTS: Final = {
    "falls": "The student is re-identified less often than its teacher, and less often than with a "
    "random filter of the same size.",
    "does not fall": "No fall is shown: the student is not proven to be re-identified less often "
    f"than its teacher, by a ratio of at most {LARGEST_RATIO:g}.",
    "not estimable": "Whether the filter brings a fall could not be told",
}


class ArmRow(Section):
    """One arm: how often it is re-identified, and how that stands to the teacher."""

    title: str
    share: Measurement
    fall: Fall | None
    """None of the teacher itself and of strangers."""


class ArmsReading(Section):
    """The whole comparison."""

    sentence: str
    rows: tuple[ArmRow, ...]
    worst_site: Measurement | None


def read_arms(comparison: Comparison) -> ArmsReading:
    """Return the comparison in rows and one sentence."""
    found = {one.name: one for one in comparison.measurements}
    falls = {"random": comparison.random_filter, "student": comparison.student}
    rows = tuple(
        ArmRow(title=title, share=found[f"arms.{arm}.reidentified"], fall=falls.get(arm))
        for arm, title in _ROWS
    )
    sentence = _VERDICTS[comparison.verdict]
    if comparison.verdict == "not estimable":
        sentence = f"{sentence}: {comparison.reason}."
    return ArmsReading(sentence=sentence, rows=rows, worst_site=found.get("arms.worst_site.ratio"))
