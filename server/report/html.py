"""Writes a report: ``report.html``, whole in one file, and ``report.json``, which says the same.

The page runs no script and fetches nothing: its style and pictures stand in it, and a content
security policy forbids all else.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import jinja2
import numpy as np

from vitrael.core.digest import write_atomically
from vitrael.privacy.audit.arms import RATIO_BAND
from vitrael.privacy.evidence import NAMES
from vitrael.privacy.gates import Finding
from vitrael.server.report.arms import read_arms
from vitrael.server.report.charts import draw_interval, draw_lines, draw_scatter
from vitrael.server.report.data import SCHEMA, ReportData
from vitrael.server.report.montage import PLANES, draw_overview, draw_planes
from vitrael.server.report.reading import read_verdict

_SIDE_BY_SIDE: Final = 5
"""Volumes in each of the two montages."""
_OVERVIEW: Final = 48
_OVERVIEW_COLUMNS: Final = 12
_GROUPS: Final = (
    *("participation", "screening", "filter", "copies"),
    *("closeness", "membership", "conditioning"),
)
"""Beginnings of the names of measurements, in the order in which a reader needs them."""
_CHECKS: Final = ("control", "placebo", "permuted")


@dataclass(frozen=True, slots=True)
class ReportImages:
    """Pictures of a report; never a scan of a patient.

    Both are ``image_BCDHW`` in [0, 1]. ``references`` are phantoms made for the
    report by the declared generator: neither scans nor what was trained on.
    """

    samples: np.ndarray
    references: np.ndarray | None = None


def write_report(folder: Path, data: ReportData, *, images: ReportImages | None) -> Path:
    """Write both files and return the path of the page.

    Raises DataError when images cannot be drawn.
    """
    page = render_report(data, images=images)
    write_atomically(folder / "report.json", render_json(data, images=images))
    path = folder / "report.html"
    write_atomically(path, page.encode())
    return path


def render_json(data: ReportData, *, images: ReportImages | None) -> bytes:
    """Return the JSON twin: the data and the reading of it, under the name of its schema."""
    document = {
        "schema": SCHEMA,
        **data.model_dump(mode="json"),
        "reading": read_verdict(data).model_dump(mode="json"),
        "pictures": _count_pictures(images),
    }
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def render_report(data: ReportData, *, images: ReportImages | None, twin: bool = True) -> str:
    """Return the page as HTML; ``twin`` says whether ``report.json`` lies beside it."""
    conditioning = data.conditioning
    pairs = (conditioning.asked_ml, conditioning.measured_ml) if conditioning else ((), ())
    findings = sorted(data.verdict.findings, key=_row)
    return (
        page_environment()
        .get_template("report.html")
        .render(
            data=data,
            twin=twin,
            reading=read_verdict(data),
            arms=None if data.arms is None else read_arms(data.arms),
            band=RATIO_BAND,
            names=NAMES,
            planes=PLANES,
            count=_count_pictures(images),
            pictures=_draw_pictures(images),
            scatter=draw_scatter(*pairs),
            curves=[drawn for curve in data.curves if (drawn := draw_lines(curve))],
            rows=[(finding, draw_interval(finding)) for finding in findings],
            longest_s=max((stage.seconds or 0 for stage in data.stages), default=0),
        )
    )


def _row(finding: Finding) -> tuple[int, bool]:
    """Return where a gate stands in the table: by subject, and what checks an attack after it."""
    group, _, what = finding.gate.measurement.partition(".")
    place = _GROUPS.index(group) if group in _GROUPS else len(_GROUPS)
    return place, what.startswith(_CHECKS)


def format_number(value: float) -> str:
    """Return a number as it is shown: counts whole, others with three significant digits."""
    if isinstance(value, int) or value == 0:
        return f"{value:,.0f}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if digits else text


def page_environment() -> jinja2.Environment:
    """Return where the templates of reports lie, and how they show numbers and times."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = format_number
    environment.filters["utc"] = _format_utc
    return environment


def _format_utc(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S} UTC"


def _count_pictures(images: ReportImages | None) -> dict[str, int]:
    samples = 0 if images is None else len(images.samples)
    references = 0 if images is None or images.references is None else len(images.references)
    return {
        "samples": min(samples, _SIDE_BY_SIDE),
        "references": min(references, _SIDE_BY_SIDE),
        "overview": min(samples, _OVERVIEW) if samples > _SIDE_BY_SIDE else 0,
    }


def _draw_pictures(images: ReportImages | None) -> Mapping[str, Any]:
    count = _count_pictures(images)
    pictures = {}
    if images is not None and count["samples"]:
        pictures["samples"] = draw_planes(images.samples[: count["samples"]])
    if images is not None and images.references is not None and count["references"]:
        pictures["references"] = draw_planes(images.references[: count["references"]])
    if images is not None and count["overview"]:
        shown = images.samples[: count["overview"]]
        pictures["overview"] = draw_overview(shown, columns=_OVERVIEW_COLUMNS)
    return {name: base64.b64encode(png).decode() for name, png in pictures.items()}
