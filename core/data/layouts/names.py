"""What a file's name and its folders say: BIDS entities, and the habits of those who have none.

``sub-01/ses-2/anat/sub-01_ses-2_space-MNI_T1w.nii.gz`` says all; ``p7_T1POST.nii`` says a little.
"""

from __future__ import annotations

import os
import re
import unicodedata
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePath
from typing import NamedTuple
from urllib.parse import quote

from vitrael.core.data.layouts.facts import is_said
from vitrael.core.data.layouts.kinds import image_stem

ENHANCED = "T1w-enhanced"
"""A T1-weighted image after contrast agent, which no recipe takes for a plain one."""
OTHER_MASK = "other"
UNCLEAR_NAME = "its folder and its name do not tell one subject and session as BIDS writes them"

_SUBJECT = re.compile(r"(?:^|[_/-])sub-([A-Za-z0-9]+)")
_SESSION = re.compile(r"(?:^|[_/-])ses-([A-Za-z0-9]+)")
_TORN = re.compile(
    r"(?:^|[_/-])(?:(?:sub|ses)-[A-Za-z0-9]*[^A-Za-z0-9_/]|sub-[A-Za-z0-9]+_\d+(?=[_/]|$))"
)
"""A name that goes on where BIDS ends it: those that differ only behind it would be merged."""
_SPACE = re.compile(r"(?:^|_)space-([A-Za-z0-9]+)")
_RUN = re.compile(r"(?:^|_)run-?(\d+)(?=_|$)")
_DERIVED = re.compile(r"(^|/)derivatives/|(^|_)(desc|space|res)-[^/]*$")
_VISIT_WORD = re.compile(
    r"(?:^|[_-])(?:ses-[A-Za-z0-9]+|(?:ses|session|visit|timepoint|tp)[-_]?\d+)", re.IGNORECASE
)
# What stands in names beside the contrast and could be taken for it.
_ENTITIES = re.compile(
    r"(?:^|(?<=[_/-]))(?:sub|ses|space|task|dir)-[A-Za-z0-9]+|_to_.*$", re.IGNORECASE
)
_PARTING = re.compile(r"[_\-. ]+")
_SIZE = re.compile(r"\d+mm|raw|iso")

_CONTRASTS = {
    **dict.fromkeys(("t1", "t1w", "t1wi", "t1weighted", "mprage", "t1mprage"), "T1w"),
    **dict.fromkeys(("t2", "t2w", "t2wi", "t2weighted"), "T2w"),
    **dict.fromkeys(("flair", "t2flair", "flairw"), "FLAIR"),
    **dict.fromkeys(("t1post", "t1gd", "t1ce", "t1c", "t1km", "t1wgd", "t1wce"), ENHANCED),
}
_AGENTS = {"gd", "gad", "gado", "gadolinium", "post", "postgd", "postcontrast", "ce", "km"}
_ELSE = re.compile(
    r"t2star\w*|pdw?|t[12]map|t[12]rho|inplanet[12]|bold|sbref|dwi|dti|adc|epi|asl|cbf|pet|angio"
    r"|mra|swi|ct|phase\w*|magnitude\d?|fieldmap|mp2rage|unit1|pdt2|mtr|mtsat"
)
_NO_IMAGE = re.compile(
    r"mask|label|lesion|dseg|probseg|aseg|aparc|transform|(^|[_-])seg|seg([_-]|$)|_roi$"
)
_LESION = {"lesion", "lesions", "lesionmask", "lesionsmask", "lesionseg"}
_UNNAMED = "unnamed"
_ASIDE = re.compile(
    r"(?:^|[_\-. ]+)(?:"
    + "|".join([*_CONTRASTS, *_LESION, "(?:desc-)?brain_?mask", "(?:label-lesion_)?mask"])
    + r"|run-?\d+|\d+mm)(?=[_\-. ]|$)",
    re.IGNORECASE,
)
"""What a name says beside the patient."""


@dataclass(frozen=True, slots=True, repr=False)
class Name:
    """What the name of one NIfTI file says; empty where it does not."""

    contrast: str
    """``T1w``, ``T2w``, ``FLAIR``, ``ENHANCED``, ``else``, or empty when nothing tells."""
    mask: str
    """``brain``, ``lesion``, ``OTHER_MASK`` for other masks and label maps; empty for images."""
    subject: str
    is_named: bool
    """Whether a BIDS name tells the subject; otherwise it is what the file's name leaves."""
    is_clear: bool
    """False where the path tells two subjects or sessions, or none that BIDS allows."""
    session: str
    space: str
    run: str
    is_derived: bool
    """Whether it lies among derivatives or its name tells that it was processed."""
    place: tuple[str, ...]
    """The folders it lies in, without one that only names the contrast."""
    tells_visit: bool
    """Whether a name that is not BIDS's seems to tell a visit."""


def read_name(inside: PurePath) -> Name:
    """Return what the path of a NIfTI file, as seen from the folder, says of it."""
    stem = image_stem(inside.name)
    path = f"{inside.parent.as_posix()}/{stem}".removeprefix("./")
    mask = _mask(stem)
    contrast = "" if mask else _contrast(stem)
    place = inside.parts[:-1]
    if place and place[-1].lower() in _CONTRASTS:
        contrast = contrast or ("" if mask else _CONTRASTS[place[-1].lower()])
        place = place[:-1]
    entities = _entities(path)
    space, run = _SPACE.search(stem), _RUN.search(stem)
    return Name(
        contrast=contrast,
        mask=mask,
        subject=entities.subject or plain_name(_without_contrast(stem)),
        is_named=bool(entities.subject),
        is_clear=entities.is_clear,
        session=entities.session,
        space=space[1] if space else "",
        run=run[1] if run else "",
        is_derived=_DERIVED.search(path) is not None,
        place=place,
        tells_visit=_VISIT_WORD.search(stem) is not None,
    )


class Entities(NamedTuple):
    """What BIDS names tell; empty where they do not."""

    subject: str
    """Such as ``sub-01``."""
    session: str
    """Such as ``2``."""
    is_clear: bool


def read_entities(inside: PurePath) -> Entities:
    """Return what the folders and the name of a file tell of subject and session."""
    return _entities(f"{inside.parent.as_posix()}/{image_stem(inside.name)}".removeprefix("./"))


def contrast_word(text: str) -> tuple[str, str]:
    """Return contrast and mask, as ``Name`` has them, that a table's cell tells.

    Both empty for a cell that says only *MR* or nothing.
    """
    word = re.sub(r"^mri?[-_ ]+", "", text.strip().lower())
    if word in {"", "mr", "mri"}:
        return "", ""
    kind = re.sub(r"[-_ ]+", "", word)
    if kind in {"maskbrain", "brainmask"}:
        return "", "brain"
    if kind in {"masklesion", "lesionmask"}:
        return "", "lesion"
    if _NO_IMAGE.search(word):
        return "", OTHER_MASK
    pieces = _PARTING.split(word)
    if kind in _CONTRASTS:
        return _CONTRASTS[kind], ""
    is_enhanced = pieces[0] in _CONTRASTS and len(_AGENTS.intersection(pieces)) > 0
    return (ENHANCED if is_enhanced and _CONTRASTS[pieces[0]] == "T1w" else "else"), ""


def plain_name(name: str) -> str:
    """Return a file's name as a text that a table may hold: composed, printable, no formula.

    Different names stay different, except for white space around them.
    """
    text = unicodedata.normalize("NFC", name).strip()
    plain = "".join(c if c.isprintable() and c != "%" else quote(os.fsencode(c)) for c in text)
    if plain[:1] in {"=", "+", "-", "@"}:
        plain = f"%{ord(plain[0]):02X}{plain[1:]}"
    return plain if is_said(plain) else f"{plain or _UNNAMED}%"


def _entities(path: str) -> Entities:
    subjects, sessions = _SUBJECT.findall(path), _SESSION.findall(path)
    session = next(filter(is_said, sessions), "")
    is_torn = len(set(subjects)) > 1 or len(set(sessions)) > 1 or _TORN.search(path) is not None
    return Entities(f"sub-{subjects[0]}" if subjects else "", session, not is_torn)


def _pieces(stem: str) -> list[str]:
    return [piece for piece in _PARTING.split(_ENTITIES.sub("", stem).lower()) if piece]


def _mask(stem: str) -> str:
    low = stem.lower()
    if not _NO_IMAGE.search(low):
        return ""
    pieces = _pieces(stem)
    if _LESION.intersection(pieces):
        return OTHER_MASK if "probseg" in pieces else "lesion"
    is_brain = any("brainmask" in piece for piece in pieces)
    is_brain = is_brain or ("brain", "mask") in pairwise(pieces)
    return "brain" if is_brain else OTHER_MASK


def _contrast(stem: str) -> str:
    pieces = [piece for piece in _pieces(stem) if not _SIZE.fullmatch(piece)]
    if pieces and _ELSE.fullmatch(pieces[-1]):
        return "else"
    told = [_CONTRASTS[piece] for piece in pieces if piece in _CONTRASTS]
    if not told:
        return ""
    if "FLAIR" in told and "T2w" in told:
        return "FLAIR"
    if told[-1] == "T1w" and _AGENTS.intersection(pieces):
        return ENHANCED
    return told[-1]


def _without_contrast(stem: str) -> str:
    """Return what is left of a name for the subject."""
    return _ASIDE.sub("", stem).strip("_-. ") or _UNNAMED
