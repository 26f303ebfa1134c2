"""The journal as one page for the person who answers for the data: what left, whom it went to, why.

The page needs no network and asks for none. It shows what the journal holds, which is nothing of a
patient; whoever may read the journal may read the page.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import jinja2

from vitrael.privacy.journal import Fault, Line
from vitrael.privacy.journal_line import DEPARTURES

_NAMES: Final[Mapping[str, str]] = {
    "consent": "the signed consent",
    "summary": "counts of the cohort",
    "codec_images": "how fast this site trains",
    "codec_s": "how fast this site trains",
    "reid_images": "how fast this site trains",
    "reid_s": "how fast this site trains",
    "teacher_images": "how fast this site trains",
    "teacher_s": "how fast this site trains",
    "expert_images": "how fast this site trains",
    "expert_s": "how fast this site trains",
    "words": "this site's words for views",
    "calibrated": "whether the expert's scores have a scale",
    "pictures": "number of pictures that are told of one by one",
    "expert": "weights of this site's expert",
    "outlooks": "what experts see in this site's views",
    "common": "weights of the network for all sites",
    "curve_images": "loss curve",
    "curve_loss": "loss curve",
    "estimable": "whether numbers could be had",
    "reason": "why not",
    "metrics": "numbers over many patients",
    "counts": "counts",
    "commitment": "digest of the filter's operating point",
    "signature": "signature on the release",
    "num_examples": "number of training images",
    "codec": "weights of the codec",
    "encoder": "weights of the patient encoder",
    "denoiser": "weights of the teacher",
    "moments": "sums over patients",
    "votes": "one bit for each candidate or sample",
}
"""Field or attachment -> what it is, in words; another one is shown by its own name."""

_DECISIONS: Final[Mapping[str, str]] = {
    "consent": "consent given",
    "withdrawn": "consent taken back",
    "paused": "paused",
    "resumed": "resumed",
    "held": "message held back",
    "released": "message released",
    "rejected": "message rejected",
    "joined": "joined",
    "rotated": "keys changed",
    "left": "left the federation",
    "restored": "restored from a backup",
    "repaired": "unfinished step settled",
}
"""Events that tell what was decided here, in words."""

_WORDS: Final[Mapping[str, str]] = {
    "joined": "public keys, to join",
    "rotated": "new public keys",
    "standing": "question: how things stand, and what is offered",
    "withdraw": "word: a consent was taken back",
    "leave": "word: this site leaves",
}
"""What a site says of itself, outside of any task, in words."""

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")
_KIBI: Final = 1024


@dataclass(frozen=True, slots=True)
class Total:
    """Messages and bytes that have something in common."""

    name: tuple[str, ...]
    messages: int
    bytes: int
    last_utc: str
    share: float
    """Of the largest total beside it, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Departure:
    """One message that left, in words."""

    line: Line
    study: str
    what: tuple[str, ...]
    why: str


@dataclass(frozen=True, slots=True)
class JournalPage:
    """All that the page shows."""

    site: str
    created_utc: datetime
    lines: Sequence[Line]
    """Those that are shown, oldest first."""
    whole: int
    """How many lines the journal has."""
    last_hash: str
    faults: Sequence[Fault]
    limits: tuple[str, ...] = ()
    """What the page leaves out, in words."""
    consents: Sequence[Line] = ()
    """Every consent of the journal, shown or not."""
    studies: Mapping[str, str] | None = None
    """Digest of a protocol -> its name."""

    @property
    def departures(self) -> list[Departure]:
        """Results, refusals and failures, the newest first."""
        return [
            Departure(line, self.study_of(line), describe_message(line), self._explain(line))
            for line in reversed(list(self._left()))
            if not is_word(line)
        ]

    @property
    def words(self) -> list[tuple[Line, str, str, str]]:
        """What left outside of any task, the newest first: line, study, what it is, sentence."""
        return [
            (line, self.study_of(line), *describe_word(line))
            for line in reversed(list(self._left()))
            if is_word(line)
        ]

    @property
    def decisions(self) -> list[tuple[Line, str, str]]:
        """What was decided here, the newest first: the line, what it is, and the study."""
        return [
            (line, _DECISIONS[line.event], self.study_of(line))
            for line in reversed(self.lines)
            if line.event in _DECISIONS
        ]

    @property
    def sent(self) -> list[Line]:
        """Lines of results that left."""
        return [line for line in self.lines if line.event == "sent" and not is_word(line)]

    @property
    def refusals(self) -> list[Departure]:
        """Refusals and failures, the newest first: one sentence left at most."""
        return [one for one in self.departures if one.line.event != "sent"]

    @property
    def left_bytes(self) -> int:
        """Bytes that left in all: results, sentences, words and keys."""
        return sum(line.bytes for line in self._left())

    @property
    def receivers(self) -> list[str]:
        """Whom something went to."""
        return sorted({line.to for line in self._left() if line.to})

    @property
    def by_study(self) -> list[Total]:
        """Totals of each study and stage, in the order in which they began."""
        return _total((self.study_of(x), _stage_of(x), x) for x in self._left())

    @property
    def by_day(self) -> list[Total]:
        """Totals of each day, UTC."""
        return _total((x.utc[:10], x) for x in self._left())

    def study_of(self, line: Line) -> str:
        """Return the name of a line's study, else the beginning of its protocol's digest.

        Protocols that share a name are told apart by both.
        """
        short = line.protocol.removeprefix("sha256:")[:12]
        studies = self.studies or {}
        name = studies.get(line.protocol)
        if name is None:
            return short or "no study"
        return name if list(studies.values()).count(name) == 1 else f"{name} {short}"

    def _left(self) -> Iterable[Line]:
        return (line for line in self.lines if line.event in DEPARTURES)

    def _explain(self, line: Line) -> str:
        """Return why something left: the consent that covers it, or what was refused."""
        if line.event != "sent":
            return line.reason
        given = [
            one.utc[:16].replace("T", " ")
            for one in self.consents
            if one.line < line.line
            and one.protocol == line.protocol
            and one.roster in {"", line.roster}
        ]
        return f"covered by the consent of {given[-1]}" if given else "no consent is written down"


def is_word(line: Line) -> bool:
    """Return whether a line is of what the site said by itself: no task asked for it."""
    return line.event in {"joined", "rotated"} or (line.event == "sent" and not line.nonce)


def describe_word(line: Line) -> tuple[str, str]:
    """Return in words what a word was, and the sentence for the coordinator that went with it."""
    kind, _, sentence = line.reason.removeprefix("word: ").partition(": ")
    if line.event != "sent":
        return _WORDS[line.event], ""
    return (_WORDS[kind], sentence) if kind in _WORDS else (line.reason or "something", "")


def render_page(page: JournalPage) -> str:
    """Return the page as HTML that stands alone."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["whole"] = lambda count: f"{count:,}"
    environment.filters["size"] = tell_size
    environment.filters["minute"] = lambda utc: utc[:16].replace("T", " ")
    return environment.get_template("journal.html").render(page=page)


def tell_size(count: int) -> str:
    """Return a number of bytes in the largest unit of which there is one."""
    value, unit = float(count), 0
    while value >= _KIBI and unit < len(_UNITS) - 1:
        value, unit = value / _KIBI, unit + 1
    return f"{count} B" if not unit else f"{value:.1f} {_UNITS[unit]}"


def describe_message(line: Line) -> tuple[str, ...]:
    """Return in words what a message held, each thing once."""
    names = [_NAMES.get(name, name) for name in (*line.attachments, *line.fields)]
    return tuple(dict.fromkeys(names)) or (("one sentence",) if line.nonce else ("nothing signed",))


def _stage_of(line: Line) -> str:
    return line.stage or ("words and keys" if is_word(line) else "not a task")


def _total(named: Iterable[tuple[*tuple[str, ...], Line]]) -> list[Total]:
    messages: Counter[tuple[str, ...]] = Counter()
    sizes: Counter[tuple[str, ...]] = Counter()
    last: dict[tuple[str, ...], str] = {}
    for *name, line in named:
        key = tuple(map(str, name))
        messages[key] += 1
        sizes[key] += line.bytes
        last[key] = line.utc
    largest = max(sizes.values(), default=0) or 1
    return [
        Total(key, count, sizes[key], last[key], sizes[key] / largest)
        for key, count in messages.items()
    ]
