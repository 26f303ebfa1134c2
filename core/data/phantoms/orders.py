"""What a made-up hospital is to be: its kind of images, its file format, its people, its grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import PurePath
from typing import Literal

from vitrael.core.data.phantoms.acquisition import STYLES as BRAIN_STYLES
from vitrael.core.data.phantoms.contrasts import CONTRASTS
from vitrael.core.data.phantoms.echo_styles import STYLES as ECHO_STYLES
from vitrael.core.errors import UsageError

Kind = Literal["brain", "echo", "muscle"]
FileFormat = Literal["nifti", "dicom", "mp4", "png"]

Facts = Mapping[str, float | str]

FORMATS: Mapping[Kind, tuple[FileFormat, ...]] = {
    "brain": ("nifti", "dicom", "png"),
    "echo": ("mp4", "dicom"),
    "muscle": ("mp4", "dicom"),
}
"""The first one is the usual one."""
SITES: Mapping[Kind, tuple[str, ...]] = {
    "brain": tuple(BRAIN_STYLES),
    "echo": tuple(ECHO_STYLES),
    "muscle": ("plain",),
}
"""Styles of a site; the first one is the usual one."""

HEAD_MM, BRAIN_MM = 240.0, 192.0
"""What a brain's grid spans where no spacing is given: a whole head, or a brain alone."""
_EDGES: Mapping[tuple[Kind, FileFormat], int] = {
    ("brain", "nifti"): 96,
    ("brain", "dicom"): 96,
    ("brain", "png"): 192,
    ("echo", "mp4"): 112,
    ("echo", "dicom"): 224,
    ("muscle", "mp4"): 128,
    ("muscle", "dicom"): 224,
}
_SMALLEST_EDGE = 16
_FRAMES = 48


@dataclass(frozen=True, slots=True)
class Hospital:
    """All that decides the files of one made-up hospital; see ``order_hospital``."""

    kind: Kind
    file_format: FileFormat
    site: str
    """Name of a style; two sites of one seed have different people."""
    seed: int
    patients: int
    visits: int
    grid: tuple[int, ...]
    """D, H, W of volumes; H, W of planes."""
    spacing_mm: float
    """Of a brain; echo and muscle have that of their probe."""
    frames: int
    """Of a clip."""
    contrasts: tuple[str, ...]
    """Of a brain."""

    @property
    def images(self) -> int:
        """How many rows of truth there will be: one a visit, and of muscle one a leg."""
        return self.patients * self.visits * (2 if self.kind == "muscle" else 1)


@dataclass(frozen=True, slots=True, repr=False)
class TruthRow:
    """What is known of one image, by the names that the hospital's files use."""

    path: PurePath
    """Of the file, or of the folder of a DICOM series, as seen from the hospital's folder."""
    subject: str
    session: str
    taken: date
    facts: Facts = field(default_factory=dict)

    def __repr__(self) -> str:
        """Show nothing, as for a real patient."""
        return "TruthRow(private)"


def order_hospital(
    kind: Kind,
    file_format: FileFormat | None = None,
    *,
    site: str | None = None,
    seed: int = 0,
    patients: int = 10,
    visits: int = 1,
    edge: int | None = None,
    grid_vox: tuple[int, int, int] | None = None,
    spacing_mm: float | None = None,
    frames: int | None = None,
    contrasts: tuple[str, ...] | None = None,
) -> Hospital:
    """Return a hospital with what is not given filled in.

    ``edge`` is that of a square picture or a cube. Raises UsageError for what does not go together.
    """
    chosen = file_format or FORMATS[kind][0]
    if chosen not in FORMATS[kind]:
        raise UsageError(
            f"there are no {kind} phantoms as {chosen}", fix=f"choose {_either(FORMATS[kind])}"
        )
    style = site or SITES[kind][0]
    if style not in SITES[kind]:
        raise UsageError(
            f"no site of {kind} phantoms has this style", fix=f"choose {_either(SITES[kind])}"
        )
    if patients < 1 or visits < 1:
        raise UsageError("a hospital has at least one patient, who comes at least once")
    if kind != "brain" and (spacing_mm is not None or contrasts is not None):
        raise UsageError(f"{kind} phantoms have neither spacing nor contrasts to choose")
    is_clip = kind != "brain"
    if frames is not None and (not is_clip or frames < 2):  # noqa: PLR2004 - it must move
        raise UsageError("only clips have frames, and at least 2")
    if contrasts and chosen == "png" and contrasts != ("T1w",):
        raise UsageError("slices as png are T1w alone", fix="leave --contrasts out")
    if contrasts is not None and not set(contrasts) <= set(CONTRASTS):
        raise UsageError("the contrast is unknown", fix=f"choose from {', '.join(CONTRASTS)}")
    grid = _grid(kind, chosen, edge=edge, grid_vox=grid_vox)
    return Hospital(
        kind=kind,
        file_format=chosen,
        site=style,
        seed=seed,
        patients=patients,
        visits=visits,
        grid=grid,
        spacing_mm=spacing_mm or _span_mm(kind, style) / max(grid),
        frames=frames or _FRAMES if is_clip else 1,
        contrasts=tuple(dict.fromkeys(contrasts or ("T1w",))) if kind == "brain" else (),
    )


def _grid(
    kind: Kind,
    file_format: FileFormat,
    *,
    edge: int | None,
    grid_vox: tuple[int, int, int] | None,
) -> tuple[int, ...]:
    is_volume = file_format in {"nifti", "dicom"} and kind == "brain"
    if grid_vox is not None and (edge is not None or not is_volume):
        raise UsageError("--grid is for volumes, and goes with no --edge", fix="give --edge alone")
    size = edge or _EDGES[kind, file_format]
    grid = grid_vox or (size,) * (3 if is_volume else 2)
    if min(grid) < _SMALLEST_EDGE:
        raise UsageError(f"an edge has at least {_SMALLEST_EDGE} pixels")
    if file_format == "mp4" and size % 2:
        raise UsageError("the edge of a video is even")
    return grid


def _span_mm(kind: Kind, site: str) -> float:
    return HEAD_MM if kind == "brain" and BRAIN_STYLES[site].head else BRAIN_MM


def _either(words: tuple[str, ...]) -> str:
    return " or ".join(words)
