"""One network that has all sites' pictures is held to the last patients of each, and to no other.

What it learns from are stripes whose direction tells the view.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.factories.experts_study import KNOWN, LABELS, VIEWS, draw_grating, write_study
from vitrael.core.data.phantoms.echo_sites import TABLE
from vitrael.core.data.pictures import write_picture
from vitrael.core.data.planar import Picture
from vitrael.core.metrics.intervals import clopper_pearson
from vitrael.core.rng import stream
from vitrael.core.study import Study, parse_study
from vitrael.server.demo_pooled import METHOD, compare_pooled
from vitrael.server.studies.tables import show_comparison

SITES = ("north", "harbour")
PATIENTS = 40
LEARNED, HELD = 16, 16
"""Of each site's, by the shares of the study; eight are of neither."""
ENOUGH_IMAGES = 1_920


def study_of(length_images: int, *, labels: Mapping[str, Mapping[str, str]] = LABELS) -> Study:
    text = write_study(SITES, labels=labels)
    assert "length_images = 64," in text
    return parse_study(
        text.replace("length_images = 64,", f"length_images = {length_images},").encode(),
        label="tiny",
    )


def write_sites(folder: Path, *, wrong: range = range(0)) -> dict[str, Path]:
    """Write the sites' pictures; of ``wrong`` patients the table names another view."""
    folders = {}
    for place, site in enumerate(SITES):
        folders[site] = folder / site
        folders[site].mkdir(parents=True)
        rng, rows = stream(11, "pooled pictures", place), [("file", "patient_id", "view")]
        own = {view: word for word, view in LABELS.get(site, {}).items()}
        for patient in range(PATIENTS):
            view = KNOWN[site][patient % 2]
            name = f"picture-{patient:02d}.png"
            picture = Picture(255 * draw_grating(view, rng), spacing_mm=None, modality="US")
            write_picture(picture, folders[site] / name, window=(0, 255))
            told = KNOWN[site][1 - patient % 2] if patient in wrong else view
            rows.append((name, f"patient-{patient}", own.get(told, told)))
        with (folders[site] / TABLE).open("w", newline="", encoding="utf-8") as table:
            csv.writer(table).writerows(rows)
    return folders


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The row of a network that learned for long enough."""
    return compare_pooled(write_sites(tmp_path_factory.mktemp("pooled")), study_of(ENOUGH_IMAGES))


def test_network_that_has_all_pictures_tells_the_views_apart(
    learned: dict[str, Any], tmp_path: Path
) -> None:
    assert learned["accuracy"] > 0.7
    misled = compare_pooled(write_sites(tmp_path, wrong=range(LEARNED)), study_of(ENOUGH_IMAGES))
    assert misled["accuracy"] < 0.3  # the control: it learned the wrong names


def test_row_counts_the_last_patients_of_every_site(learned: dict[str, Any]) -> None:
    images, accuracy = HELD * len(SITES), learned["accuracy"]
    assert learned["method"] == METHOD
    assert learned["images"] == images
    assert learned["interval"] == clopper_pearson(round(accuracy * images), images)
    assert list(learned["sites"]) == list(SITES)
    assert accuracy == pytest.approx(sum(learned["sites"].values()) / len(SITES))
    assert list(learned["by_view"]) == ["A2C", "A4C", "PSAX"]  # PLAX is known at neither
    assert "PLAX" in VIEWS


def test_row_fits_below_those_that_the_sites_counted(learned: dict[str, Any]) -> None:
    _, line, _ = show_comparison([learned], sites=SITES)
    assert line.startswith(f"{METHOD}  {learned['accuracy']:.3f} (")


def test_patients_between_are_neither_learned_from_nor_held_to(tmp_path: Path) -> None:
    study = study_of(64)
    row = compare_pooled(write_sites(tmp_path / "right"), study)
    between = write_sites(tmp_path / "between", wrong=range(LEARNED, PATIENTS - HELD))
    assert compare_pooled(between, study) == row
    held = write_sites(tmp_path / "held", wrong=range(PATIENTS - HELD, PATIENTS))
    assert compare_pooled(held, study) != row  # the control
