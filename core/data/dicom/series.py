"""Which files belong together: DICOM instances sorted into series, each judged with a reason.

A series identifier is only a hint: what differs in matrix, orientation, spacing, echo, kind of
image or frame of reference is told apart. Positions are DICOM's (LPS, millimetres).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import numpy as np

from vitrael.core.data.dicom.frames import Place
from vitrael.core.data.dicom.instance import VOLUME_KINDS, Instance
from vitrael.core.data.dicom.stored import GRAY
from vitrael.core.data.scan import MAX_VOXELS
from vitrael.core.errors import ScanError

Use = Literal["volume", "clip", "picture"]

ONE_SLICE: Final = "one slice is no volume"
UNEVEN_FRAC: Final = 0.02
"""How far a step between slices may be from the usual one."""
UNEVEN_MM: Final = 0.02
"""What is allowed in any case: headers round their positions."""
TILT_FRAC: Final = 0.01
"""How far slices may drift sideways, of the way along their normal: 0.6 degrees."""

_SAME_PLACE_MM: Final = 0.005
_SAME_DIRECTION: Final = 1e-3
_SAME_FRAC: Final = np.array([1e-3, 1e-3, 1e-2])
"""Of the spacings and of the echo time, which some machines tell anew for each slice."""
_UNIT_LENGTH_FRAC: Final = 0.05
_RIGHT_ANGLE: Final = 0.01
_CLIP_KINDS: Final = frozenset({"US", "XA", "RF", "SC"})


@dataclass(frozen=True, slots=True, repr=False)
class SeriesPlan:
    """Files that make one image, in order, and what they can serve as."""

    kinds: tuple[Use, ...]
    """Empty when they can serve as nothing. Slices may be a volume together and each a picture."""
    indices: tuple[int, ...]
    """Of the instances that were grouped; slices in order along their normal."""
    instances: tuple[Instance, ...]
    """The same, themselves: a plan is enough to read by."""
    frames: tuple[int, ...]
    """Of a volume in one file, its frames in order; else empty."""
    fault: str
    """Why they are no volume, or no clip: one clause, fit for a table; or ""."""
    copies: tuple[int, ...]
    """Indices of exact copies of its files, which were dropped."""

    def __repr__(self) -> str:
        """Show what it serves as and how many files it has."""
        return f"SeriesPlan({self.kinds}, {len(self.indices)} files, {self.fault!r})"

    @property
    def dropped(self) -> int:
        """How many copies were dropped."""
        return len(self.copies)


class _Slice(NamedTuple):
    file: int
    frame: int
    instance: Instance
    place: Place


def group_series(
    instances: Sequence[Instance], *, content: Callable[[int], str] | None = None
) -> list[SeriesPlan]:
    """Return the images that the instances make, ordered by their first file.

    ``content`` gives a digest of an instance's pixels by its index, see ``digest_pixels``. It is
    asked only about slices that share a place and a time: equal ones are copies and are dropped.
    Without it, those are copies whose own identifiers are equal.
    """
    marks = None if content is None else _forgiving(content)
    series: dict[tuple[str, str, str], list[int]] = {}
    for index, instance in enumerate(instances):
        key = (instance.patient, instance.dicom_study, instance.series)
        series.setdefault(key, []).append(index)
    plans: list[SeriesPlan] = []
    for indices in series.values():
        slices: list[_Slice] = []
        planes: list[int] = []
        for index in indices:
            instance = instances[index]
            if instance.kind in VOLUME_KINDS:
                places = enumerate(instance.places)
                slices += [_Slice(index, frame, instance, place) for frame, place in places]
            else:
                planes.append(index)
        plans += _plan_planes(planes, instances, content=marks)
        plans += [_plan_volume(stack, content=marks) for stack in _stacks(slices)]
    return sorted(plans, key=lambda plan: (min(plan.indices), plan.frames))


def _forgiving(content: Callable[[int], str]) -> Callable[[int], str]:
    """Return the same, with a mark of its own for a file that cannot be read: it is no copy."""

    def mark(index: int) -> str:
        try:
            return content(index)
        except (OSError, ScanError):
            return f"#{index}"

    return mark


def _plan_planes(
    indices: Iterable[int],
    instances: Sequence[Instance],
    *,
    content: Callable[[int], str] | None,
) -> list[SeriesPlan]:
    """Return a plan for each clip or picture; files of one identifier and content are one."""
    alike: dict[str, list[int]] = {}
    for index in indices:
        alike.setdefault(instances[index].sop or f"#{index}", []).append(index)
    plans = []
    for group in alike.values():
        same: dict[str, list[int]] = {}
        for index in group:
            mark = content(index) if content and len(group) > 1 else ""
            same.setdefault(mark, []).append(index)
        for first, *copies in same.values():
            kinds, fault = _plane_uses(instances[first])
            plans.append(SeriesPlan(kinds, (first,), (instances[first],), (), fault, tuple(copies)))
    return plans


def _plane_uses(instance: Instance) -> tuple[tuple[Use, ...], str]:
    still = instance.stored.frames == 1
    if instance.uneven:
        return (), "its frames are at unequal times"
    if still:
        return ("picture",), ""
    if instance.kind not in _CLIP_KINDS:
        return (), "it has several frames"
    return (("clip",), "") if instance.frame_s else ((), "it has no frame time")


def _stacks(slices: Iterable[_Slice]) -> list[list[_Slice]]:
    """Return slices told apart by all that one volume has in common."""
    alike: dict[tuple[object, ...], list[_Slice]] = {}
    for one in slices:
        stored, place = one.instance.stored, one.place
        key = (
            one.instance.kind,
            stored.rows,
            stored.columns,
            stored.photometric,
            one.instance.frame_of_reference,
            place.image_type,
            place.echo[0],
            one.file if stored.frames > 1 else -1,
        )
        alike.setdefault(key, []).append(one)
    return [stack for group in alike.values() for stack in _parallel(group)]


def _parallel(group: list[_Slice]) -> list[list[_Slice]]:
    """Return slices told apart by orientation, spacing and echo time, within a tolerance."""
    stacks: list[list[_Slice]] = []
    known: dict[tuple[object, ...], int] = {}
    firsts: list[np.ndarray] = []
    for one in group:
        echo_ms = one.place.echo[1]
        exact = (one.place.orientation, one.place.spacing_mm, echo_ms)
        which = known.get(exact)
        if which is None:
            told = (*(exact[1] or (0.0, 0.0)), -1.0 if echo_ms is None else abs(echo_ms))
            plane = np.array([*(exact[0] or [9.0] * 6), *told])
            which = _close_to(plane, firsts)
            if which == len(firsts):
                firsts.append(plane)
                stacks.append([])
            known[exact] = which
        stacks[which].append(one)
    return stacks


def _close_to(plane: np.ndarray, firsts: list[np.ndarray]) -> int:
    if not firsts:
        return 0
    off = np.abs(np.array(firsts) - plane)
    close = (off[:, :6].max(axis=1) <= _SAME_DIRECTION) & (
        off[:, 6:] <= _SAME_FRAC * np.abs(plane[6:])
    ).all(axis=1)
    return int(close.argmax()) if close.any() else len(firsts)


def _plan_volume(stack: list[_Slice], *, content: Callable[[int], str] | None) -> SeriesPlan:
    fault = next(_stack_faults(stack), "")
    copies: tuple[int, ...] = ()
    if fault:
        stack = sorted(stack, key=lambda one: (one.instance.number or 0, one.file, one.frame))
    else:
        stack, copies, fault = _in_order(stack, content=content)
    kinds: tuple[Use, ...] = () if fault else ("volume",)
    one_file = stack[0].instance.stored.frames > 1
    if not one_file:
        kinds += ("picture",)
    indices = tuple(dict.fromkeys(one.file for one in stack))
    return SeriesPlan(
        kinds=kinds,
        indices=indices,
        instances=tuple({one.file: one.instance for one in stack}.values()),
        frames=tuple(one.frame for one in stack) if one_file else (),
        fault=fault,
        copies=copies,
    )


def _stack_faults(stack: list[_Slice]) -> Iterator[str]:
    """Yield why slices can be no volume, whatever their positions are."""
    first = stack[0]
    stored, words = first.instance.stored, first.place.image_type
    if "LOCALIZER" in words:
        yield "it is a localizer"
    if "MOSAIC" in words:
        yield "its slices lie side by side in a mosaic"
    if stored.photometric not in GRAY:
        yield "it is colored"
    if any(one.instance.table for one in stack):
        yield "its values pass through a table"
    if first.place.orientation is None or first.place.spacing_mm is None:
        yield "its orientation or its pixel spacing is missing"
    if any(one.place.position is None for one in stack):
        yield "the position of a slice is missing"
    if _axes(first.place) is None:
        yield "its orientation is singular"
    if stored.rows * stored.columns * len(stack) > MAX_VOXELS:
        yield "it has more voxels than are read"


def _axes(place: Place) -> np.ndarray | None:
    """Return ``[3, 3]``, None if singular: directions of a row, of a column, and their normal."""
    row, column = np.array(place.orientation).reshape(2, 3)
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if any(abs(length - 1) > _UNIT_LENGTH_FRAC for length in lengths):
        return None
    row, column = row / lengths[0], column / lengths[1]
    if abs(row @ column) > _RIGHT_ANGLE:
        return None
    normal = np.cross(row, column)
    return np.array([row, column, normal / np.linalg.norm(normal)])


def _in_order(
    stack: list[_Slice], *, content: Callable[[int], str] | None
) -> tuple[list[_Slice], tuple[int, ...], str]:
    """Return slices in order along their normal, the files that are copies, and the fault."""
    axes = _axes(stack[0].place)
    assert axes is not None  # noqa: S101 - _stack_faults told singular ones
    positions = np.array([one.place.position for one in stack], dtype=np.float64)
    order = np.lexsort((np.array([one.file for one in stack]), np.round(positions @ axes[2], 3)))
    kept: list[int] = []
    groups: list[list[int]] = []
    for which in order:
        if kept and np.abs(positions[which] - positions[kept[-1]]).max() <= _SAME_PLACE_MM:
            groups[-1].append(int(which))
        else:
            kept.append(int(which))
            groups.append([int(which)])
    fault = _copies_fault([[stack[which] for which in group] for group in groups], content=content)
    if fault:
        return [stack[which] for which in order], (), fault
    copies = tuple(stack[which].file for _, *others in groups for which in others)
    fault = _steps_fault(positions[kept], axes=axes)
    return [stack[which] for which in kept], copies, fault


def _copies_fault(groups: list[list[_Slice]], *, content: Callable[[int], str] | None) -> str:
    """Return why slices at one place are no copies of each other, or ""."""
    shared = [group for group in groups if len(group) > 1]
    if any(len({one.place.moment for one in group}) > 1 for group in shared):
        return "it holds several volumes over time"
    for group in shared:
        if len({one.file for one in group}) < len(group):  # frames of one file
            return "different slices are at one place"
        marks = {content(one.file) if content else one.instance.sop for one in group}
        if len(marks) > 1 or marks == {""}:
            return "different slices are at one place"
    return ""


def _steps_fault(positions: np.ndarray, *, axes: np.ndarray) -> str:
    """Return why ordered positions ``[N, 3]`` make no regular stack, or ""."""
    if len(positions) < 2:  # noqa: PLR2004
        return ONE_SLICE
    steps = np.diff(positions, axis=0) @ axes.T
    along = steps[:, 2]
    usual = float(np.median(along))
    allowed = max(UNEVEN_FRAC * usual, UNEVEN_MM)
    if np.abs(along - usual).max() > allowed:
        return _gap_fault(along)
    sideways = steps[:, :2] - steps[:, :2].mean(axis=0)
    if np.abs(sideways).max() > allowed:
        return "its slices are shifted against each other"
    whole = positions[-1] - positions[0]
    drift = float(np.hypot(*(axes[:2] @ whole)))
    if drift > max(TILT_FRAC * float(axes[2] @ whole), UNEVEN_MM):
        return "its slices are sheared (gantry tilt)"
    return ""


def _gap_fault(along: np.ndarray) -> str:
    """Tell missing slices, whose steps are whole multiples of the smallest, from uneven ones."""
    smallest = float(along.min())
    if smallest > UNEVEN_MM:
        usual = float(np.median(along[along < 1.5 * smallest]))
        times = np.round(along / usual)
        allowed = np.maximum(UNEVEN_FRAC * usual * times, UNEVEN_MM)
        if (np.abs(along - usual * times) <= allowed).all():
            missing = int((times - 1).sum())
            return f"slices are missing: {missing} of {len(along) + 1 + missing}"
    return "its slices are unevenly spaced"
