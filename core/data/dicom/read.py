"""DICOM in: files into Scans, Clips and Pictures, with their place in the world or a clear refusal.

The natural way: ``is_dicom``, ``read_instance`` for each file, ``group_series``, then
``read_volume``, ``read_clip`` or ``read_picture`` by what a plan can serve as. Reading pixels does
not parse a header again when the facts are given. Every refusal is a ScanError of one clause,
free of names, identifiers, paths and values of a patient.

Axes: D H W the index axes x, y, z of a RAS+ image; S R C slices, rows and columns of DICOM.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from nibabel import orientations

from vitrael.core.data.dicom.elements import read_header
from vitrael.core.data.dicom.frames import Place
from vitrael.core.data.dicom.gray import (
    luma,
    modality_table,
    palette_of,
    to_8_bits,
    with_bright_dense,
)
from vitrael.core.data.dicom.instance import (
    VOLUME_KINDS,
    Instance,
    read_instance,
)
from vitrael.core.data.dicom.pixels import (
    digest_pixels,
    dtype_of,
    read_color_frames,
    read_gray_frames,
)
from vitrael.core.data.dicom.series import SeriesPlan, group_series
from vitrael.core.data.dicom.stored import PALETTE
from vitrael.core.data.planar import Clip, Picture
from vitrael.core.data.scan import Scan
from vitrael.core.errors import ScanError
from vitrael.core.geometry import Affine

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_volume(
    paths: Sequence[Path], plan: SeriesPlan | None = None, *, modality: str = ""
) -> Scan:
    """Return the scan of a series in RAS+ order, scaled as its headers say.

    ``paths`` are the files of ``plan.instances``, in that order; without a plan their headers are
    read again, in any order, and must make one volume. ``modality`` is the BIDS suffix; by
    default the guessed contrast, else DICOM's word. Positions and steps are those of the headers:
    the affine is exact for both ends of the stack. MONOCHROME1 is a matter of display and changes
    no value here.
    """
    if plan is None:
        paths, plan = _one_volume(paths)
    if "volume" not in plan.kinds:
        raise ScanError("the series is no volume", why=plan.fault)
    if len(paths) != len(plan.instances):
        raise ScanError("the series has changed", why="it has another number of files")
    places = _places(plan)
    to_ras, affine = _ras_grid(plan)
    stack_SRC = _read_stack(paths, plan)
    slopes = {(place.slope, place.intercept) for place in places}
    with np.errstate(all="ignore"):  # what overflows becomes infinite and is refused below
        if len(slopes) > 1:
            scale = np.array([(place.slope, place.intercept) for place in places], np.float32)
            stack_SRC = stack_SRC * scale[:, 0, None, None] + scale[:, 1, None, None]
        volume = _turn(stack_SRC.transpose(2, 1, 0), to_ras)
        if len(slopes) == 1 and slopes != {(1.0, 0.0)}:
            ((slope, intercept),) = slopes
            volume *= np.float32(slope)
            volume += np.float32(intercept)
    first = plan.instances[0]
    return Scan(
        image_CDHW=volume[None],
        affine=affine,
        modality=modality or first.contrast or first.modality,
    )


def volume_grid(plan: SeriesPlan) -> tuple[tuple[int, int, int], Affine]:
    """Return shape and affine that the headers of a volume give it, in RAS+ order."""
    to_ras, affine = _ras_grid(plan)
    sizes = np.empty(3, int)
    sizes[to_ras[:, 0].astype(int)] = _shape(plan)
    depth, height, width = sizes.tolist()
    return (depth, height, width), affine


def read_clip(path: Path, instance: Instance | None = None) -> Clip:
    """Return the gray frames of a clip or of a still: 8 bits, the luma of colors.

    Wider values keep their upper 8 bits; MONOCHROME1 is inverted, so that bright is dense. Raises
    ScanError when the frames are at unequal times, or of a volume.
    """
    instance = instance or _facts_of(path)
    stored = instance.stored
    if instance.kind in VOLUME_KINDS:
        raise ScanError("the file is no clip", why="it holds slices of a volume")
    if instance.uneven:
        raise ScanError("its frames are at unequal times", why="a clip has equal ones")
    palette = palette_of(read_header(path).elements, stored) if _indexed(instance) else None
    frames_THW = np.empty((stored.frames, stored.rows, stored.columns), np.uint8)
    for index, (frame, colors) in enumerate(read_color_frames(path, stored)):
        frames_THW[index] = to_8_bits(luma(frame, colors), stored, table=palette)
    return Clip(
        frames_THW=frames_THW,
        frame_s=instance.frame_s,
        spacing_mm=instance.plane_mm,
        modality=instance.modality,
    )


def read_picture(path: Path, instance: Instance | None = None) -> Picture:
    """Return a single image: a radiograph, a slice, a still; colors as their luma.

    MONOCHROME1 is inverted within its stored bits, so that bright is dense; then the Modality LUT
    or slope and intercept apply.
    """
    instance = instance or _facts_of(path)
    stored = instance.stored
    if stored.frames != 1:
        raise ScanError("the file is no picture", why="it has several frames")
    if _indexed(instance) or instance.table:
        elements = read_header(path).elements
        table = palette_of(elements, stored) or modality_table(elements, stored)
    else:
        table = None
    frame, colors = next(read_color_frames(path, stored))
    gray = with_bright_dense(luma(frame, colors), stored, table=table)
    with np.errstate(all="ignore"):  # what overflows becomes infinite and is refused below
        if table is None:
            gray = gray * instance.places[0].slope + instance.places[0].intercept
        image_HW = np.ascontiguousarray(gray, dtype=np.float32)
    return Picture(
        image_HW=image_HW,
        spacing_mm=instance.plane_mm,
        modality=instance.modality,
    )


def _indexed(instance: Instance) -> bool:
    return instance.stored.photometric == PALETTE


def _facts_of(path: Path) -> Instance:
    """Return a file's facts for one reading; its codes are thrown away with it."""
    return read_instance(path, code=lambda text: hashlib.sha256(text.encode()).hexdigest())[0]


def _one_volume(paths: Sequence[Path]) -> tuple[list[Path], SeriesPlan]:
    instances = [_facts_of(path) for path in paths]
    plans = group_series(
        instances, content=lambda index: digest_pixels(paths[index], instances[index].stored)
    )
    volumes = [plan for plan in plans if "volume" in plan.kinds]
    if not volumes:
        why = plans[0].fault if plans else "there is no file"
        raise ScanError("the series is no volume", why=why)
    if len(plans) > 1:
        raise ScanError("the files are more than one volume", fix="give one series at a time")
    return [paths[index] for index in volumes[0].indices], volumes[0]


def _places(plan: SeriesPlan) -> tuple[Place, ...]:
    """Return the places of a volume's slices, in order."""
    if plan.frames:
        places = plan.instances[0].places
        return tuple(places[frame] for frame in plan.frames)
    return tuple(instance.places[0] for instance in plan.instances)


def _affine_lps(places: Sequence[Place]) -> Affine:
    """Return the map from column, row and slice to DICOM's coordinates (PS3.3, C.7.6.2.1.1)."""
    first, last = np.array(places[0].position), np.array(places[-1].position)
    row, column = np.array(places[0].orientation).reshape(2, 3)
    between_rows, between_columns = places[0].spacing_mm or (0.0, 0.0)
    affine = np.eye(4)
    affine[:3, 0] = row / np.linalg.norm(row) * between_columns
    affine[:3, 1] = column / np.linalg.norm(column) * between_rows
    affine[:3, 2] = (last - first) / (len(places) - 1)
    affine[:3, 3] = first
    return affine


def _read_stack(paths: Sequence[Path], plan: SeriesPlan) -> np.ndarray:
    """Return stored values ``[S, R, C]``, of the files' own type where they agree on one."""
    first = plan.instances[0].stored
    if plan.frames:
        frames = np.empty((first.frames, first.rows, first.columns), dtype_of(first))
        read_gray_frames(paths[0], first, out_THW=frames)
        whole = plan.frames == tuple(range(first.frames))
        return frames if whole else frames[list(plan.frames)]
    types = {dtype_of(instance.stored) for instance in plan.instances}
    kind = types.pop() if len(types) == 1 else np.dtype(np.float32)
    stack_SRC = np.empty((len(paths), first.rows, first.columns), kind)
    for index, (path, instance) in enumerate(zip(paths, plan.instances, strict=True)):
        read_gray_frames(path, instance.stored, out_THW=stack_SRC[index : index + 1])
    return stack_SRC


def _shape(plan: SeriesPlan) -> tuple[int, int, int]:
    """Return how many columns, rows and slices a volume has."""
    stored = plan.instances[0].stored
    return stored.columns, stored.rows, len(_places(plan))


def _ras_grid(plan: SeriesPlan) -> tuple[np.ndarray, Affine]:
    """Return how columns, rows and slices are turned to RAS+ order, and the affine after it."""
    affine = _LPS_TO_RAS @ _affine_lps(_places(plan))
    to_ras = orientations.io_orientation(affine)
    return to_ras, affine @ orientations.inv_ornt_aff(to_ras, _shape(plan))


def _turn(volume: np.ndarray, to_ras: np.ndarray) -> np.ndarray:
    """Return a volume with its axes turned; float32, contiguous.

    Copied plane by plane across the axis that is neither the fastest to read nor to write: three
    times faster than in one go.
    """
    turned = orientations.apply_orientation(volume, to_ras)
    fastest = int(np.argmin(np.abs(turned.strides)))
    plane = 0 if fastest == 2 else 1 - fastest  # noqa: PLR2004 - the last axis is written fastest
    result = np.empty(turned.shape, np.float32)
    for to, values in zip(
        np.moveaxis(result, plane, 0), np.moveaxis(turned, plane, 0), strict=True
    ):
        to[...] = values
    return result
