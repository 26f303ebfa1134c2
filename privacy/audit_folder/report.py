"""The report of an audit: one JSON and one page that stands alone, and a summary on a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import jinja2

from vitrael.core.data.files import demand_free
from vitrael.core.errors import storage_error
from vitrael.privacy.audit_folder.findings import Findings, PlantOutcome
from vitrael.privacy.evidence import Measurement

JSON_NAME: Final = "audit.json"
PAGE_NAME: Final = "audit.html"
_MOST_SHOWN: Final = 500
"""Rows of a table of the page; the JSON has all."""
_LINES: Final = 20
"""Files that are named on a terminal."""


def write_report(findings: Findings, folder: Path) -> tuple[Path, Path]:
    """Write both files into a folder and return their paths.

    Raises StorageError when something lies there, and when the disk refuses.
    """
    demand_free(folder)
    page = render_page(findings)
    document = json.dumps(document_of(findings), indent=2, ensure_ascii=False)
    paths = folder / JSON_NAME, folder / PAGE_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in zip(paths, (document + "\n", page), strict=True):
            path.write_text(text, encoding="utf-8")
            path.chmod(0o600)
    except OSError as error:
        raise storage_error("the folder of the report", error) from error
    return paths


def document_of(findings: Findings) -> dict[str, Any]:
    """Return the findings as JSON, with the exit code that they mean."""
    return {**findings.model_dump(mode="json"), "exit_code": findings.exit_code}


def render_page(findings: Findings) -> str:
    """Return the page: no picture of a scan, nothing from elsewhere, every name escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["share"] = format_share
    template = environment.get_template("report.html")
    return template.render(data=findings, most=_MOST_SHOWN, headline=headline_of(findings))


def headline_of(findings: Findings) -> str:
    """Return the verdict in one line."""
    if findings.copies_found:
        return "Copies of real images were found"
    if not findings.filter.calibrated:
        return "Not estimable: disguised copies could not be looked for"
    return "No more copies were found than chance explains"


def summarize(findings: Findings) -> Iterator[str]:
    """Yield the lines of a terminal."""
    yield headline_of(findings)
    yield ""
    for side, facts in (("real", findings.real), ("synthetic", findings.synthetic)):
        yield f"{side}: {facts.images} images, {facts.patients} patients"
        yield from (f"  {told}" for told in facts.told)
        yield from (f"  refused: {reason} ({n})" for reason, n in facts.refused.items())
        yield from (f"  left out: {reason} ({n})" for reason, n in facts.left_out.items())
    yield from ("", *findings.notes, *findings.filter.notes)
    yield from findings.found
    yield from _list("the same as a real file", [
        f"{one.synthetic} = {one.real} ({one.how})" for one in findings.same_files
    ])  # fmt: skip
    yield from _list("conspicuous", [
        f"{one.synthetic} ~ {one.real or 'not asked'} ({', '.join(one.members)})"
        for one in findings.conspicuous
    ])  # fmt: skip
    if findings.filter.calibrated:
        yield from ("", "Planted copies caught:")
        yield from (f"  {_line_of(one)}" for one in findings.certificate.plants)
    yield from ("", *findings.not_estimated, "", *findings.not_claimed)


def format_share(measured: Measurement) -> str:
    """Return a share with its bounds, or why there is none."""
    if measured.value is None:
        return f"not estimable: {measured.reason}"
    return f"{measured.value:.1%} ({measured.low:.1%} to {measured.high:.1%}), n = {measured.n}"


def _line_of(plant: PlantOutcome) -> str:
    demanded = "" if plant.demanded is None else f", demanded {plant.demanded:.0%}"
    return f"{plant.name}: {format_share(plant.caught)}{demanded}: {plant.outcome}"


def _list(title: str, lines: list[str]) -> Iterator[str]:
    if lines:
        yield f"{title}:"
        yield from (f"  {line}" for line in lines[:_LINES])
        if len(lines) > _LINES:
            yield f"  and {len(lines) - _LINES} more, in the report"
