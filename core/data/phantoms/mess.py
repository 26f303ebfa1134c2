"""What hospitals have beside good scans, planted into a folder on purpose and counted.

Nothing that was there is changed, but for two things: a series moves into the folder of another
one, and the table is saved as a spreadsheet program would. Links need a file system that has them.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from vitrael.core.data.phantoms import mess_cine, mess_series, mess_videos, mess_volumes
from vitrael.core.data.phantoms.mess_ground import Form, Ground, survey
from vitrael.core.data.phantoms.orders import Kind
from vitrael.core.rng import stream

Plant = Callable[[Ground, np.random.Generator], int]
"""Plants one kind of mess; returns how often, 0 where the folder has no room for it."""

_KEPT_FRAC = 0.6
_REPORT = b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<< /Type /Catalog >>\nendobj\n%%EOF\n"
_THUMBS = bytes.fromhex("d0cf11e0a1b11ae1") + bytes(504)
_EF = "EF"


def plant_mess(folder: Path, *, kind: Kind, seed: int) -> Mapping[str, int]:
    """Make a mess of a folder of phantoms, and return what was planted: kind -> how often.

    Counted are files, series, rows and tables. Equal folders, kinds and seeds give an equal mess.
    Raises DataError when the folder has no phantoms of the kind, or is a mess already.
    """
    ground = survey(folder, kind=kind)
    planted = {}
    for name, plant in {**_EVERYWHERE, **_FORMS[ground.form]}.items():
        count = plant(ground, stream(seed, "mess", kind, name))
        if count:
            planted[name] = count
    if ground.table is not None:
        ground.save_table(is_from_spreadsheet=True)
        planted["bom-and-semicolons"] = 1
    return planted


def _truncate(ground: Ground, rng: np.random.Generator) -> int:
    data = ground.pick(rng).read_bytes()
    ground.stranger(rng).write_bytes(data[: int(_KEPT_FRAC * len(data))])
    return 1


def _empty(ground: Ground, rng: np.random.Generator) -> int:
    ground.stranger(rng).write_bytes(b"")
    return 1


def _write_notes(ground: Ground, rng: np.random.Generator) -> int:
    ground.pick(rng).with_name("notes.txt").write_text("Second scan is better\n")
    return 1


def _write_report(ground: Ground, rng: np.random.Generator) -> int:
    ground.pick(rng).with_name("report.dcm").write_bytes(_REPORT)
    return 1


def _write_thumbs(ground: Ground, rng: np.random.Generator) -> int:
    ground.pick(rng).with_name("Thumbs.db").write_bytes(_THUMBS)
    return 1


def _hide(ground: Ground, rng: np.random.Generator) -> int:
    ground.pick(rng).with_name(".DS_Store").write_bytes(bytes(64))
    return 1


def _link_up(ground: Ground, _rng: np.random.Generator) -> int:
    """Link a folder to the one above it: who follows the link never ends."""
    old = ground.folder / "old"
    old.mkdir()
    (old / "everything").symlink_to("..", target_is_directory=True)
    return 1


def _link_circle(ground: Ground, _rng: np.random.Generator) -> int:
    one, other = ground.folder / "scan-a", ground.folder / "scan-b"
    one.symlink_to(other.name)
    other.symlink_to(one.name)
    return 2


def _copy_as(mark: str) -> Plant:
    """Return what copies an image of a visit under a name with a mark in it."""

    def plant(ground: Ground, rng: np.random.Generator) -> int:
        image = ground.pick(rng)
        ground.twin(image, mark).write_bytes(image.read_bytes())
        return 1

    return plant


def _omit_patient(ground: Ground, rng: np.random.Generator) -> int:
    """Add a row that names no patient."""
    if ground.columns.file:
        ground.stranger(rng).write_bytes(ground.pick(rng).read_bytes())
    else:
        ground.rows.append(dict(ground.rows[0]))
    ground.rows[-1] |= {ground.columns.subject: ""}
    return 1


def _calculate(ground: Ground, rng: np.random.Generator) -> int:
    """Add a row of a stranger with a formula in it."""
    if ground.columns.file:
        ground.stranger(rng).write_bytes(ground.pick(rng).read_bytes())
    else:
        ground.rows.append(ground.rows[0] | {ground.columns.subject: "sub-X999"})
    ground.rows[-1] |= {ground.columns.number: "=1+1"}
    return 1


def _overshoot(ground: Ground, rng: np.random.Generator) -> int:
    """Add a row with an ejection fraction of 140 percent."""
    if _EF not in ground.rows[0]:
        return 0
    ground.stranger(rng).write_bytes(ground.pick(rng).read_bytes())
    ground.rows[-1] |= {_EF: "140"}
    return 1


_EVERYWHERE: Final[Mapping[str, Plant]] = {
    "truncated-copy": _truncate,
    "zero-byte-file": _empty,
    "text-file": _write_notes,
    "report-named-dcm": _write_report,
    "thumbs-db": _write_thumbs,
    "hidden-file": _hide,
    "link-to-a-folder": _link_up,
    "link-in-a-circle": _link_circle,
    "copy-with-spaces": _copy_as(" 2 new"),
    "copy-with-umlauts": _copy_as(unicodedata.normalize("NFD", "prüföäß")),
    "copy-with-a-newline": _copy_as("a\nb"),
}
_ROWS: Final[Mapping[str, Plant]] = {
    "row-without-id": _omit_patient,
    "formula-cell": _calculate,
}
_FORMS: Final[Mapping[Form, Mapping[str, Plant]]] = {
    "bids": {
        "nan-volume": mess_volumes.plant_nan,
        "constant-volume": mess_volumes.plant_constant,
        "4d-volume": mess_volumes.plant_4d,
        "singular-affine": mess_volumes.plant_singular,
        **_ROWS,
    },
    "series": {
        "copy-under-another-uid": mess_series.plant_copy,
        "repeated-slice": mess_series.plant_repeated,
        "missing-slice": mess_series.plant_missing,
        "uneven-slices": mess_series.plant_uneven,
        "constant-volume": mess_series.plant_constant,
        "4d-volume": mess_series.plant_4d,
        "file-without-patient": mess_series.plant_nobody,
        "mixed-folder": mess_series.plant_mixed,
    },
    "cine": {
        "copy-under-another-uid": mess_cine.plant_copy,
        "file-without-patient": mess_cine.plant_nobody,
        "no-region": mess_cine.plant_no_region,
        "no-frames": mess_cine.plant_no_frames,
        "variable-rate": mess_cine.plant_variable_rate,
    },
    "videos": {
        "no-frames": mess_videos.plant_no_frames,
        "variable-rate": mess_videos.plant_variable_rate,
        "impossible-ef": _overshoot,
        **_ROWS,
    },
    "pictures": {"constant-picture": mess_videos.plant_constant_picture, **_ROWS},
}
