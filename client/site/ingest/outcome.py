"""What an intake did, for the operator: a table for reading and a document for programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitrael.client.site.ingest.findings import Finding, number_of
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
    """Of what the cohort holds now; empty in a dry run and where it holds nothing yet."""
    changed: bool = False
    report: Path | None = None
    origins: tuple[tuple[Path, ...], ...] = ()
    """The files of each item, in the order of the manifest."""
    is_foreseen: bool = False
    """Whether it tells of a dry run."""

    @property
    def is_partial(self) -> bool:
        """Whether something that should have become an item did not."""
        return any(not left.expected for left in self.left_out)

    @property
    def is_vain(self) -> bool:
        """Whether there is nothing to take in, and not because patients were withdrawn."""
        return not self.items and (self.is_partial or not self.sources)

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
            "findings": [self._document(finding, paths=paths) for finding in self.findings],
            "notes": list(self.notes),
            "report": None if self.report is None else str(self.report),
        }

    def _document(self, finding: Finding, *, paths: bool) -> dict[str, Any]:
        """Return a finding as JSON values, with the files of its images when asked for."""
        names = {str(i): [str(path) for path in self.origins[i]] for i in self._looked_for(finding)}
        return {**finding.model_dump(mode="json"), **({"paths": names} if paths else {})}

    def _looked_for(self, finding: Finding) -> tuple[int, ...]:
        """Return the items whose files an operator needs: not all, and only after an intake."""
        is_told = len(finding.items) < self.items == len(self.origins)
        return finding.items if is_told else ()

    def lines_of(self, finding: Finding, *, paths: bool) -> list[str]:
        """Return a finding for reading, with the files of its images when asked for."""
        lines = [f"  {finding.severity:<10} {finding.sentence}"]
        for place in self._looked_for(finding) if paths else ():
            first, *others = self.origins[place]
            more = f" and {len(others)} more" if others else ""
            lines.append(f"            image {place}: {str(first)!r}{more}")
        return lines


@dataclass(slots=True)
class _Group:
    expected: bool
    groups: int = 0
    paths: list[Path] = field(default_factory=list)


def _by_reason(left_out: tuple[LeftOut, ...], numbers: Mapping[Path, int]) -> dict[str, _Group]:
    """Return the files of each reason in their order; what should have become an item first."""
    groups: dict[str, _Group] = {}
    for left in sorted(left_out, key=lambda left: (left.expected, left.reason)):
        group = groups.setdefault(left.reason, _Group(left.expected))
        group.groups += 1
        group.paths.extend(left.paths)
        group.expected = group.expected and left.expected
    for group in groups.values():
        group.paths.sort(key=lambda path: numbers.get(path, 0))
    return groups


def tell(report: IngestReport, *, paths: bool) -> str:
    """Return the table that ends an intake."""
    settings = report.settings
    grid = "x".join(str(size) for size in settings.grid_vox)
    spacing = "" if settings.spacing_mm is None else f", {settings.spacing_mm:g} mm"
    done = "to take in" if report.is_foreseen else "taken in"
    taken = f"{number_of(report.items, 'item')} of {number_of(report.patients, 'patient')}"
    lines = [
        f"cohort {report.cohort}, recipe {settings.name} {settings.version} ({grid}{spacing})",
        f"  found      {number_of(report.files, 'file')}, {report.sources:,} series or images",
        f"  {done:<10} {taken}, {report.anew:,} read now",
    ]
    lines += tell_left_out(report.left_out, report.numbers, paths=paths)
    if report.removed:
        total = number_of(sum(report.removed.values()), "header element")
        kinds = number_of(len(report.removed), "kind")
        lines.append(f"  removed    {total} of {kinds}; the report lists them")
    lines += [f"  note       {note}" for note in report.notes]
    for finding in report.findings:
        lines += report.lines_of(finding, paths=paths)
    if not report.is_foreseen and not report.items:
        lines.append("  nothing could be taken in; the cohort is as it was before")
    elif not report.is_foreseen:
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
        for reason, group in _by_reason(left_out, numbers).items()
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
        every = _by_reason(left_out, numbers).items()
        groups = {reason: group for reason, group in every if group.expected is expected}
        if groups:
            total = sum(len(group.paths) for group in groups.values())
            lines.append(f"  {title}: {number_of(total, 'file')}")
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
