"""What weighting an MR image has, and whether an agent was given, guessed from its header.

A guess, not a measurement: the site's own table goes before it. The name of the series is looked
at and not kept.
"""

from __future__ import annotations

import re
from typing import Literal

from vitrael.core.data.dicom.elements import Elements

Contrast = Literal["T1w", "T2w", "FLAIR"]

_ACQUISITION_CONTRASTS: dict[str, Contrast] = {
    "T1": "T1w",
    "T2": "T2w",
    "FLUID_ATTENUATED": "FLAIR",
}
"""The words of Acquisition Contrast (0008,9209), which enhanced images carry."""

_NO_ANATOMY = re.compile(
    r"local[iy]|scout|survey|calib|diff|trace|bold|func|perf|angio|field ?map|\bmap\b|t[12] ?map"
    r"|phase|spectro|t2 ?\*|t2[ _-]?star|t[12][ _-]?images"
    r"|(?<![a-z])(?:adc|asl|b[01]|dti|dwi|epi|fmri|inv[ _-]?[12]|mip|mra|mrs|swi|tof)(?![a-z])"
)
_NO_MAGNITUDE = frozenset(
    """
    P PHASE PHASE_MAP I IMAGINARY R REAL VELOCITY ADC FA TRACEW MIP PROJECTION SUBTRACT T1_MAP
    T2_MAP R2_MAP
    """.split()  # noqa: SIM905 - shorter than a line for each
)
"""Words of Image Type or Frame Type, spaces written as ``_``: of maps, parts of numbers, sums."""
_FLAIR = re.compile(r"flair|dark[ _-]?fluid|fluid[ _-]?atten")
_T1 = re.compile(r"(?<![a-z0-9])t1|mp2?[ _-]?rage|spgr|bravo|tfl3d|ir[ _-]?fspgr")
_T2 = re.compile(r"(?<![a-z0-9])t2")

_NO_AGENT = frozenset({"", "NO", "NONE", "N"})
_AGENT = re.compile(
    r"(?<![a-z])(?:(?:post[ _-]?)?(?:gd|gad|gado[a-z]*)|post(?:[ _-]?contrast)?|ce|km)(?![a-z])"
    r"|\+ ?(?:c|gd|gad|km)(?![a-z])"
)
_NO_AGENT_YET = re.compile(
    r"(?<![a-z])(?:w/?o|without|ohne|no|non|vor|pre)(?![a-z])|post[ _-]?(?:op|pro)"
)


def names_agent(elements: Elements) -> bool:
    """Say whether an image was taken after a contrast agent, by the header's words for it.

    By the elements that are for it; where they are empty, which is common, by how the series is
    called, unless that also says such as *without*, *pre* or *post-op*.
    """
    if elements.text("ContrastBolusAgent").upper() not in _NO_AGENT:
        return True
    if elements.items("ContrastBolusAgentSequence"):
        return True
    named = _name(elements)
    return bool(_AGENT.search(named)) and not _NO_AGENT_YET.search(named)


def guess_contrast(elements: Elements) -> Contrast | None:
    """Return the weighting of an MR image; None when the header does not say or contradicts itself.

    Timing, in milliseconds, after the usual clinical ranges: inversion recovery with an inversion
    time of 1500 and more is FLAIR, with less and a short echo T1w; a spin echo with a repetition
    time under 1000 and an echo time under 30 is T1w, from 1800 and 70 on T2w; a gradient echo
    with a repetition time under 60, an echo time under 10 and a flip angle of at least 9 degrees
    T1w. Echo-planar images have none of the three, nor have maps and phase images, which Image Type
    tells.
    """
    if "EP" in elements.words("ScanningSequence"):
        return None
    named = _name(elements)
    kinds = {word.replace(" ", "_") for word in elements.words("ImageType")}
    if _NO_ANATOMY.search(named) or kinds & _NO_MAGNITUDE:
        return None
    word = elements.text("AcquisitionContrast").upper()
    guesses = {
        guess
        for guess in (_ACQUISITION_CONTRASTS.get(word), _by_timing(elements), _by_name(named))
        if guess is not None
    }
    return guesses.pop() if len(guesses) == 1 else None


def _name(elements: Elements) -> str:
    return f"{elements.text('SeriesDescription')} {elements.text('ProtocolName')}".lower()


def _by_name(named: str) -> Contrast | None:
    if _FLAIR.search(named):
        return None if _T1.search(named) else "FLAIR"  # a T1 FLAIR is told by its timing alone
    t1, t2 = _T1.search(named), _T2.search(named)
    if bool(t1) == bool(t2):
        return None
    return "T1w" if t1 else "T2w"


def _by_timing(elements: Elements) -> Contrast | None:
    sequences = elements.words("ScanningSequence")
    echo_ms, repetition_ms = elements.decimal("EchoTime"), elements.decimal("RepetitionTime")
    inversion_ms = elements.decimal("InversionTime") or 0.0
    if echo_ms is None or repetition_ms is None:
        return None
    flair = t1 = t2 = False
    if "IR" in sequences or inversion_ms > 0:
        flair = inversion_ms >= 1500 and echo_ms >= 60  # noqa: PLR2004 - milliseconds, see above
        t1 = 400 <= inversion_ms < 1500 and echo_ms < 30  # noqa: PLR2004
    elif "SE" in sequences:
        t1 = repetition_ms < 1000 and echo_ms < 30  # noqa: PLR2004
        t2 = repetition_ms >= 1800 and echo_ms >= 70  # noqa: PLR2004
    elif "GR" in sequences:
        flip = elements.decimal("FlipAngle") or 0.0
        t1 = repetition_ms < 60 and echo_ms < 10 and flip >= 9  # noqa: PLR2004
    return "FLAIR" if flair else "T1w" if t1 else "T2w" if t2 else None
