"""What an intake did, for the operator: a table for reading and a document for programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitrael.client.site.ingest.preflight import Finding
from vitrael.core.data.recipes import RecipeSettings
from vitrael.core.data.sources import LeftOut

_SHOWN_NUMBERS = 8


@dataclass(frozen=True, slots=True, repr=False)
class IngestReport:
    """Counts of one intake, and what was left out with its reasons."""

    cohort: str
    settings: RecipeSettings
    files: int
    """Regular files and what else stood in their place."""
    sources: int
    """Images, series, clips, or sets of contrasts that may become an item."""
    items: int
    patients: int
    anew: int
    """Sources that were read now; the others were known from an earlier intake."""
    left_out: tuple[LeftOut, ...] = ()
    numbers: Mapping[Path, int] = field(default_factory=dict)
    """Place of each file in the order of the walk, from 1."""
    removed: Mapping[str, int] = field(default_factory=dict)
    """How often de-identification left out which DICOM element."""
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    version: int = 0
    digest: str = ""
    """Empty in a dry run."""
    changed: bool = False
    report: Path | None = None

    @property
    def is_partial(self) -> bool:
        """Whether something that should have become an item did not."""
        return any(not left.expected for left in self.left_out)

    def document(self, *, paths: bool) -> dict[str, Any]:
        """Return the report as JSON values; files are named only when asked for."""
        return {
            "cohort": self.cohort,
            "recipe": self.settings.model_dump(mode="json"),
            "version": self.version,
            "digest": self.digest,
            "changed": self.changed,
            "files": self.files,
            "series": self.sources,
            "items": self.items,
            "patients": self.patients,
            "read": self.anew,
            "left_out": left_out_document(self.left_out, self.numbers, paths=paths),
            "removed": dict(sorted(self.removed.items())),
            "findings": [finding.model_dump(mode="json") for finding in self.findings],
            "notes": list(self.notes),
            "report": None if self.report is None else str(self.report),
        }


@dataclass(slots=True)
class _Group:
    expected: bool
    groups: int = 0
    paths: list[Path] = field(default_factory=list)


def _by_reason(left_out: tuple[LeftOut, ...]) -> dict[str, _Group]:
    """Return the files of each reason; what should have become an item stands first."""
    groups: dict[str, _Group] = {}
    for left in sorted(left_out, key=lambda left: (left.expected, left.reason)):
        group = groups.setdefault(left.reason, _Group(left.expected))
        group.groups += 1
        group.paths.extend(left.paths)
        group.expected = group.expected and left.expected
    return groups


def tell(report: IngestReport, *, paths: bool) -> str:
    """Return the table that ends an intake."""
    settings = report.settings
    grid = "x".join(str(size) for size in settings.grid_vox)
    spacing = "" if settings.spacing_mm is None else f", {settings.spacing_mm:g} mm"
    done = "taken in" if report.digest else "to take in"
    lines = [
        f"cohort {report.cohort}, recipe {settings.name} {settings.version} ({grid}{spacing})",
        f"  found      {report.files} files, {report.sources} series or images",
        f"  {done:<10} {report.items} items of {report.patients} patients, {report.anew} read now",
    ]
    lines += tell_left_out(report.left_out, report.numbers, paths=paths)
    if report.removed:
        total = sum(report.removed.values())
        kinds = len(report.removed)
        lines.append(
            f"  removed    {total} header elements of {kinds} kinds; the report lists them"
        )
    lines += [f"  note       {note}" for note in report.notes]
    lines += [f"  {finding.severity:<10} {finding.sentence}" for finding in report.findings]
    if report.digest and not report.items:
        lines.append("  nothing could be taken in; the cohort is as it was before")
    elif report.digest:
        state = "" if report.changed else ", as before"
        lines.append(f"  version    {report.version}, {report.digest}{state}")
    if report.report is not None:
        lines.append(f"  report     {report.report}, which stays at this site")
    return "\n".join(lines)


def left_out_document(
    left_out: tuple[LeftOut, ...], numbers: Mapping[Path, int], *, paths: bool
) -> list[dict[str, Any]]:
    """Return what was left out as JSON values, a group for each reason."""
    return [
        {
            "reason": reason,
            "expected": group.expected,
            "groups": group.groups,
            "files": len(group.paths),
            "numbers": [numbers.get(path, 0) for path in group.paths],
            **({"paths": [str(path) for path in group.paths]} if paths else {}),
        }
        for reason, group in _by_reason(left_out).items()
    ]


def tell_left_out(
    left_out: tuple[LeftOut, ...],
    numbers: Mapping[Path, int],
    *,
    paths: bool,
    others: str = "not for this recipe",
) -> list[str]:
    """Return the lines of a table of what was left out, with its reasons.

    ``others`` is the title of what was expected to be.
    """
    lines = []
    for title, expected in (("left out", False), (others, True)):
        groups = {r: g for r, g in _by_reason(left_out).items() if g.expected is expected}
        if groups:
            total = sum(len(group.paths) for group in groups.values())
            lines.append(f"  {title}: {total} files")
            for reason, group in groups.items():
                lines += _tell_group(reason, group, numbers, paths=paths)
    return lines


def _tell_group(
    reason: str, group: _Group, numbers: Mapping[Path, int], *, paths: bool
) -> list[str]:
    places = [str(numbers[path]) for path in group.paths if path in numbers]
    shown = ", ".join(places[:_SHOWN_NUMBERS]) + (", …" if len(places) > _SHOWN_NUMBERS else "")
    which = f" (number {shown})" if places and not group.expected else ""
    lines = [f"    {len(group.paths):>6}  {reason}{which}"]
    if paths:
        lines += [f"            {str(path)!r}" for path in group.paths]
    return lines
