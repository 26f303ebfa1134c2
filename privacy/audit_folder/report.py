"""The report of an audit: one JSON and one page that stands alone, and a summary on a terminal."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import jinja2

from vitrael.core.errors import StorageError, storage_error
from vitrael.privacy.audit_folder.certificate import LEAST_GROUPS
from vitrael.privacy.audit_folder.findings import Findings, FolderFacts, PlantOutcome
from vitrael.privacy.audit_folder.sentences import tell_members
from vitrael.privacy.evidence import Measurement

JSON_NAME: Final = "audit.json"
PAGE_NAME: Final = "audit.html"
HOW: Final = {"bytes": "bytes", "content": "values, written anew"}
_MOST_SHOWN: Final = 500
"""Rows of a table of the page; the JSON has all."""
_LINES: Final = 20
"""Files that a list on a terminal names."""


def demand_report_folder(folder: Path) -> None:
    """Raise StorageError unless a report can be written there: before hours of work, not after."""
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    why = ""
    if not there.is_dir():
        why = "it is a file" if there == folder else "a part of its path is a file"
    elif there == folder and any(folder.iterdir()):
        why = "there are files in it already, and nothing is written over"
    elif not os.access(there, os.W_OK | os.X_OK):
        why = "you have no right to write there"
    if why:
        raise StorageError(
            f"the report cannot be written to the folder {folder}",
            why=why,
            fix="name another folder with --out; it need not exist",
        )


def write_report(findings: Findings, folder: Path) -> tuple[Path, Path]:
    """Write both files into a folder and return their paths.

    Raises StorageError when something lies there, and when the disk refuses.
    """
    demand_report_folder(folder)
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
    environment.filters["members"] = tell_members
    environment.filters["images"] = count_images
    template = environment.get_template("report.html")
    return template.render(
        data=findings,
        most=_MOST_SHOWN,
        headline=headline_of(findings),
        ending=tell_ending(findings),
        groups=LEAST_GROUPS,
        how=HOW,
    )


def headline_of(findings: Findings) -> str:
    """Return the verdict in one line."""
    if findings.copies_found:
        return (
            "Copies of real images were found"
            if findings.same_files
            else "More images than chance explains come near a real patient"
        )
    if not findings.filter.calibrated:
        return "Not estimable: disguised copies could not be looked for"
    if findings.gaps:
        gaps = " and ".join(findings.gaps)
        return f"Incomplete: no more copies were found than chance explains, and {gaps}"
    return "No more copies were found than chance explains"


def summarize(findings: Findings) -> Iterator[str]:
    """Yield the lines of a terminal."""
    yield headline_of(findings)
    yield ""
    for side, facts in (("real", findings.real), ("synthetic", findings.synthetic)):
        yield f"{side} folder: {count_images(side, facts)}"
        yield from (f"  {told}" for told in facts.told)
        yield from (f"  left out: {reason} ({n})" for reason, n in facts.left_out.items())
        refused = [f"{one.file}: {one.reason}" for one in facts.refused_files]
        title = f"refused in the {side} folder, {len(refused)}"
        yield from (f"  {line}" for line in _list(title, refused))
    yield from ("", *findings.notes, *findings.filter.notes)
    yield from findings.found
    yield from _list("synthetic file = real file with the same bytes or the same values", [
        f"{one.synthetic} = {one.real} (the same {HOW[one.how]})" for one in findings.same_files
    ])  # fmt: skip
    yield from _list("conspicuous ~ the real image that the filter finds most like it", [
        f"{one.synthetic} ~ {one.real or 'not asked'} (said so: {tell_members(one.members)})"
        for one in findings.conspicuous
    ])  # fmt: skip
    if findings.neighbors is not None and not findings.filter.calibrated:
        each = sorted(findings.neighbors.each, key=lambda one: one.distance)
        yield from _list("nearest real image by plain distance (0: a copy, 1.41: nothing alike)", [
            f"{one.synthetic} ~ {one.real} ({one.distance:.3f})" for one in each
        ])  # fmt: skip
    if findings.filter.calibrated:
        yield from ("", "Planted copies that were caught, a star where they must be:")
        yield from (f"  {_line_of(one)}" for one in findings.certificate.plants)
    yield from ("", *findings.not_estimated, "", *findings.not_claimed, "", tell_ending(findings))


def tell_ending(findings: Findings) -> str:
    """Return with which exit code the command ends, and why."""
    if findings.copies_found:
        conspicuous = "more images are conspicuous than chance explains"
        why = "copies were found" if findings.same_files else conspicuous
    elif findings.gaps:
        why = f"the audit is incomplete, since {' and '.join(findings.gaps)}"
    else:
        why = "nothing was found beyond the nominal rate, and no more than that is said"
    return f"Exit code {findings.exit_code}: {why}."


def count_images(side: str, facts: FolderFacts) -> str:
    """Return how many images a folder held, and of how many patients where that means anything."""
    images = f"{facts.images} image{'' if facts.images == 1 else 's'}"
    if side == "synthetic":
        return images
    return f"{images} of {facts.patients} patient{'' if facts.patients == 1 else 's'}"


def format_share(measured: Measurement) -> str:
    """Return a share with its bounds, or why there is none."""
    if measured.value is None:
        return f"not estimable: {measured.reason}"
    return f"{measured.value:.1%} ({measured.low:.1%} to {measured.high:.1%}), n = {measured.n}"


def _line_of(plant: PlantOutcome) -> str:
    star = "*" if plant.must else ""
    demanded = "" if plant.demanded is None else f", demanded {plant.demanded:.0%}"
    if plant.caught.value is None:
        return f"{plant.says}{star}: {format_share(plant.caught)}{demanded}"
    return f"{plant.says}{star}: {format_share(plant.caught)}{demanded}: {plant.outcome}"


def _list(title: str, lines: list[str]) -> Iterator[str]:
    if lines:
        yield f"{title}:"
        yield from (f"  {line}" for line in lines[:_LINES])
        if len(lines) > _LINES:
            yield f"  and {len(lines) - _LINES} more, in the report"
