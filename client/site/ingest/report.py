"""The report of an intake for the site's data steward: one page that opens without a network.

It shows images of patients and stays at the site. The page runs no script and fetches nothing: its
style and pictures stand in it, and a content security policy forbids all else. Files are named by
their place in the folder, patients by their pseudonym, de-identified elements by their tag; no
path, no value of a header and no name is on it.
"""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import jinja2
import numpy as np
from pydicom.datadict import dictionary_description
from pydicom.tag import Tag

from vitrael.client.site.ingest.findings import (
    COVARIATE_WORDS,
    Check,
    Entry,
    Finding,
    number_of,
)
from vitrael.client.site.ingest.outcome import IngestReport
from vitrael.client.site.ingest.summary import CohortSummary, sex_of
from vitrael.core.data.manifest import COVARIATE_BOUNDS, Item
from vitrael.core.data.recipes import RECIPES
from vitrael.core.data.sources import LeftOut
from vitrael.core.digest import write_atomically
from vitrael.core.errors import storage_error

MOST_SHOWN: Final = 200
"""Items in the montage."""
_MOST_FLAGGED = 60
_MOST_PAIRS = 12
_MOST_NUMBERS = 24
_MOST_FILES = 3
_MOST_ROWS = 20
_ABOUT_BINS = 10
_CHART_WIDTH_PX, _CHART_HEIGHT_PX = 300, 110

_NOT_SEEN: Final = frozenset({"missing-covariates", "missing-spacing"})
"""Findings that no look at an image helps with."""
_UNITS: Final = {"years": "years", "ml": "ml", "frac": "share of 1"}
_TITLES: Final[dict[Check, str]] = {
    "copies": "Copies",
    "same-image": "One image or one person under two names",
    "alike-strangers": "Perhaps one person under two names",
    "mirrored": "One of two is mirrored",
    "repeated": "Perhaps one image twice of a patient",
}
"""Over the pairs that a finding compares."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One item of a montage."""

    place: int
    """In the manifest."""
    patient: str
    visit: int
    files: str
    """Places in the folder of the files that it came from; empty where they are not known."""
    png: str
    """Base64."""
    is_flagged: bool


@dataclass(frozen=True, slots=True)
class Told:
    """A finding as the page shows it."""

    finding: Finding
    title: str
    numbers: str
    pairs: tuple[tuple[Picture, Picture], ...]


@dataclass(frozen=True, slots=True)
class Reason:
    """A reason for which files were left out."""

    text: str
    files: int
    numbers: str
    """Places of the files in the folder."""
    expected: bool


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a histogram; coordinates in pixels."""

    x_px: float
    width_px: float
    height_px: float
    count: int
    label: str


@dataclass(frozen=True, slots=True)
class Histogram:
    """How one covariate is spread over the images that have it."""

    name: str
    unit: str
    known: int
    missing: int
    low: float
    high: float
    bars: tuple[Bar, ...]


def write_report(
    path: Path,
    report: IngestReport,
    *,
    entries: Sequence[Entry],
    thumbnails: Sequence[bytes],
    summary: CohortSummary | None = None,
    created_utc: datetime | None = None,
) -> Path:
    """Write the page of an intake for this user alone, and return its path.

    ``thumbnails`` are PNG in the order of the entries; an empty one is not shown. Raises
    StorageError when the page cannot be written.
    """
    page = render_report(
        report, entries=entries, thumbnails=thumbnails, summary=summary, created_utc=created_utc
    )
    try:
        write_atomically(path, page.encode())
        path.chmod(0o600)
    except OSError as error:
        raise storage_error("the report of the intake", error) from error
    return path


def render_report(
    report: IngestReport,
    *,
    entries: Sequence[Entry],
    thumbnails: Sequence[bytes],
    summary: CohortSummary | None = None,
    created_utc: datetime | None = None,
) -> str:
    """Return the page; see ``write_report``."""
    looked_at = [finding for finding in report.findings if finding.check not in _NOT_SEEN]
    flagged = sorted({place for finding in looked_at for place in finding.items})
    marked = set(flagged)

    def picture(place: int) -> Picture:
        item = entries[place].item
        png = base64.b64encode(thumbnails[place]).decode("ascii")
        files = _name_files(report, place)
        return Picture(place, item.subject, item.visit, files, png, place in marked)

    visible = [place for place in range(len(entries)) if thumbnails[place]]
    return (
        _environment()
        .get_template("report.html")
        .render(
            report=report,
            created_utc=created_utc,
            severities=Counter(finding.severity for finding in report.findings)
            + Counter({"note": len(report.notes)}),
            has_findings=bool(report.findings or report.notes),
            findings=[
                Told(
                    finding,
                    _TITLES.get(finding.check, ""),
                    _list_numbers(finding.items) if len(finding.items) < len(entries) else "all",
                    tuple((picture(a), picture(b)) for a, b in finding.pairs[:_MOST_PAIRS]),
                )
                for finding in report.findings
            ],
            reasons=_reasons(report),
            histograms=[_draw(name, entries) for name in COVARIATE_BOUNDS if _has(name, entries)],
            sexes=_count_sexes(entries),
            visits=sorted(Counter(_visits(entries).values()).items()),
            labels=_count_labels(entries),
            geometry=_count_geometry(entries),
            most_rows=_MOST_ROWS,
            removed=_name_elements(report),
            flagged=[picture(place) for place in flagged if thumbnails[place]][:_MOST_FLAGGED],
            all_flagged=len(flagged),
            shown=[picture(place) for place in visible[:MOST_SHOWN]],
            summary=summary,
            words=COVARIATE_WORDS,
            contrasts=RECIPES[report.settings.name].images,
            chart=(_CHART_WIDTH_PX, _CHART_HEIGHT_PX),
        )
        .lstrip()
    )


def _name_files(report: IngestReport, place: int) -> str:
    """Return ``file 17`` or ``96 files from 17`` for an item of the manifest."""
    if len(report.origins) != report.items:
        return ""
    numbers = sorted(report.numbers[path] for path in report.origins[place])
    if len(numbers) > _MOST_FILES:
        return f"{len(numbers):,} files from {numbers[0]}"
    return f"{'file' if len(numbers) == 1 else 'files'} {', '.join(map(str, numbers))}"


def _list_numbers(places: Sequence[int]) -> str:
    text = ", ".join(str(place) for place in places[:_MOST_NUMBERS])
    more = len(places) - _MOST_NUMBERS
    return f"{text} and {more:,} more" if more > 0 else text


def _reasons(report: IngestReport) -> list[Reason]:
    groups: dict[tuple[bool, str], list[LeftOut]] = {}
    for left in report.left_out:
        groups.setdefault((left.expected, left.reason), []).append(left)
    rows = []
    for (expected, text), group in sorted(groups.items()):
        paths = [path for left in group for path in left.paths]
        numbers = sorted(report.numbers[path] for path in paths if path in report.numbers)
        rows.append(Reason(text, len(paths), _list_numbers(numbers), expected))
    return rows


def _has(name: str, entries: Sequence[Entry]) -> bool:
    return name != "sex" and any(name in entry.item.covariates for entry in entries)


def _draw(name: str, entries: Sequence[Entry]) -> Histogram:
    values = [e.item.covariates[name] for e in entries if name in e.item.covariates]
    edges = _choose_edges(min(values), max(values))
    counts, _ = np.histogram(values, bins=edges)
    width = _CHART_WIDTH_PX / len(counts)
    bars = tuple(
        Bar(
            x_px=round(place * width + 1, 2),
            width_px=round(width - 2, 2),
            height_px=round(_CHART_HEIGHT_PX * int(count) / int(counts.max()), 2),
            count=int(count),
            label=f"{edges[place]:g} to {edges[place + 1]:g}",
        )
        for place, count in enumerate(counts)
    )
    unit = _UNITS[name.rpartition("_")[2]]
    missing = len(entries) - len(values)
    word = COVARIATE_WORDS[name]
    return Histogram(word, unit, len(values), missing, edges[0], edges[-1], bars)


def _choose_edges(low: float, high: float) -> list[float]:
    """Return about ten equal bins between round numbers that hold low and high."""
    rough = max((high - low) / _ABOUT_BINS, 1e-3 * max(abs(high), 1e-3))
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(place * step, 12) for place in range(first, max(last, first + 1) + 1)]


def _count_sexes(entries: Sequence[Entry]) -> list[tuple[str, int]]:
    """Return the patients of each sex; one whose images contradict each other counts as unknown."""
    items: dict[str, list[Item]] = {}
    for item, _ in entries:
        items.setdefault(item.subject, []).append(item)
    return sorted(Counter(map(sex_of, items.values())).items())


def _visits(entries: Sequence[Entry]) -> Counter[str]:
    return Counter(subject for subject, _ in {(e.item.subject, e.item.visit) for e in entries})


def _count_labels(entries: Sequence[Entry]) -> list[tuple[str, str, int, int]]:
    """Return label, value, images and patients, at most so many rows as can be read."""
    images: Counter[tuple[str, str]] = Counter()
    patients: dict[tuple[str, str], set[str]] = {}
    for item, _ in entries:
        for pair in item.labels.items():
            images[pair] += 1
            patients.setdefault(pair, set()).add(item.subject)
    rows = [(*pair, count, len(patients[pair])) for pair, count in sorted(images.items())]
    return rows[:_MOST_ROWS]


def _count_geometry(entries: Sequence[Entry]) -> list[tuple[str, str, str, int]]:
    """Return size, spacing, and orientation or frame time of the sources, the usual ones first."""
    rows: Counter[tuple[str, str, str]] = Counter()
    for _, facts in entries:
        size = " × ".join(str(edge) for edge in facts.shape)  # noqa: RUF001 - the sign for times
        spacing = "unknown"
        if facts.spacing_mm is not None:
            spacing = " × ".join(f"{step:.3g}" for step in facts.spacing_mm) + " mm"  # noqa: RUF001
        rest = ", ".join(filter(None, (facts.orientation, facts.plane)))
        if facts.frame_s is not None:
            rest = f"{1 / facts.frame_s:.3g} frames a second"
        rows[size, spacing, rest] += 1
    return [(*row, count) for row, count in rows.most_common(_MOST_ROWS)]


def _name_elements(report: IngestReport) -> list[tuple[str, str, int]]:
    return [(tag, _name_element(tag), count) for tag, count in sorted(report.removed.items())]


def _name_element(tag: str) -> str:
    """Return the dictionary's name of an element; a private one has none."""
    try:
        return dictionary_description(Tag(tag.strip("()").replace(",", "")))
    except (KeyError, ValueError, OverflowError):
        return "an element of the maker or of no name"


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number_of
    environment.filters["whole"] = lambda count: f"{count:,}"
    environment.filters["told"] = lambda count: "not told" if count is None else f"{count:,}"
    return environment
