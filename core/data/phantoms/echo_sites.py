"""Six phantom hospitals with machines, burned-in marks and views of their own, and their files."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import replace
from math import radians
from pathlib import Path
from typing import Final

import numpy as np

from vitrael.core.data.phantoms.cues import Cue
from vitrael.core.data.phantoms.echo import draw_exam, render_echo
from vitrael.core.data.phantoms.echo_styles import STYLES, EchoStyle
from vitrael.core.data.phantoms.heart import draw_heart
from vitrael.core.data.pictures import write_picture
from vitrael.core.data.planar import Picture
from vitrael.core.rng import stream

ECHO_SITES: Final[Mapping[str, tuple[EchoStyle, tuple[str, ...]]]] = {
    "clinic": (STYLES["clinic"], ("A4C", "A2C")),
    "bedside": (STYLES["bedside"], ("A4C", "PSAX", "A2C")),
    "tertiary": (STYLES["tertiary"], ("PLAX", "PSAX")),
    "legacy": (STYLES["legacy"], ("A4C", "A3C", "PLAX")),
    "abdomen": (
        replace(
            STYLES["clinic"],
            name="abdomen",
            angle_rad=radians(66),
            gray_gamma=0.8,
            range_db=52.0,
            smooth_px=0.9,
            overlay=(Cue("logo", "bottom-right", variant=1),),
        ),
        ("SC4C", "PLAX"),
    ),
    "trial": (
        replace(
            STYLES["tertiary"],
            name="trial",
            angle_rad=radians(90),
            tilt_rad=-0.06,
            range_db=44.0,
            gray_contrast=0.9,
            noise_db=-44.0,
            overlay=(Cue("ruler", "top-left"), Cue("trace", "bottom-right")),
        ),
        ("PSAX", "SC4C", "A4C"),
    ),
}
"""By name: the machine and the views that the site knows, in the order in which they join."""

TABLE: Final = "pictures.csv"


def draw_picture(seed: int, style: EchoStyle, number: int, *, view: str, edge_px: int) -> Picture:
    """Return a picture of another patient for each number; equal arguments, equal pictures."""
    rng = stream(seed, style.name, number)
    clip, _ = render_echo(
        draw_heart(rng, population=style.population),
        replace(draw_exam(rng, style), start_phase=float(rng.uniform())),
        view=view,
        frames=1,
        edge_px=edge_px,
        rng=rng,
    )
    return Picture(clip.frames_THW[0].astype(np.float32), spacing_mm=None, modality="US")


def write_view_files(
    folder: Path,
    *,
    seed: int,
    site: int,
    words: Mapping[str, str],
    patients: int,
    edge_px: int,
) -> int:
    """Write a hospital's pictures and the table of their views; return how many there are.

    ``site`` counts from 0 through ``ECHO_SITES``, again and again, and says with which machine the
    pictures are made and which views there are; of these only those of ``words`` are written, the
    view -> the site's own word for it. Each patient has one picture, the views in turn.
    """
    style, known = tuple(ECHO_SITES.values())[site % len(ECHO_SITES)]
    style = replace(style, name=f"{style.name} {site}")
    views = [view for view in known if view in words]
    folder.mkdir(parents=True, exist_ok=True)
    rows = [("file", "patient_id", "view")]
    for patient in range(patients if views else 0):
        view = views[patient % len(views)]
        name = f"picture-{patient + 1:04d}.png"
        picture = draw_picture(seed, style, patient, view=view, edge_px=edge_px)
        write_picture(picture, folder / name, window=(0, 255))
        rows.append((name, f"patient-{patient + 1:04d}", words[view]))
    with (folder / TABLE).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return len(rows) - 1
