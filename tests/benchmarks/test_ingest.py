"""From a folder of DICOM files to a cohort that is ready to train on, beside the usual converters.

All are given the same uncompressed series of 176 slices of 256 x 256 at 1 mm, which lie in the
file cache, and run in turn. dcm2niix is run as a site would run it (``-z y``), dicom2nifti as its
manual says. They convert, and nothing more. Ours, with two processes and a home of its own each
time, also de-identifies, takes skull and face off, brings the brain to a grid, measures it, and
writes a report; its volumes stay uncompressed.

Once the scans are brains whose skull a site has taken off, whose empty background costs the
converters next to nothing; once whole heads with the noise of a scanner, as they leave it.
Processor time tells more than the clock on a machine with other work.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks.children import Run, run_child
from vitrael.client.site.ingest.dicom_folder import HeaderJob, read_headers
from vitrael.client.site.ingest.facts import measure_facts
from vitrael.client.site.ingest.montage import thumbnail
from vitrael.core.data.brain_mask import bare_brain
from vitrael.core.data.cache import decode, open_shard, write_shard
from vitrael.core.data.dicom.instance import from_record
from vitrael.core.data.dicom.read import read_volume
from vitrael.core.data.dicom.series import group_series
from vitrael.core.data.dicom.write import DicomIdentity, write_dicom_series
from vitrael.core.data.manifest import Manifest, read_manifest
from vitrael.core.data.measure import measure_volumes
from vitrael.core.data.nifti import read_nifti
from vitrael.core.data.phantoms.acquisition import STYLES
from vitrael.core.data.phantoms.brain import draw_acquisition, draw_anatomy, render_brain
from vitrael.core.data.preprocess import prepare_brain_t1
from vitrael.core.data.recipes import RecipeInput, RecipeSettings, prepare, settings_for
from vitrael.core.data.resample import resample_volume
from vitrael.core.data.scan import Scan
from vitrael.core.rng import stream

SERIES, DRAWN, ROUNDS = 32, 2, 3
GRID = (176, 256, 256)
STYLE = {"brains": "sharp", "heads": "whole-head"}
GRIDS = {"ours, 1 mm": (160, 224, 160, 1.0), "ours, 4 mm": (48, 56, 48, 4.0)}
VITRAEL = Path(sys.executable).parent / "vitrael"
CONVERT = "import sys, dicom2nifti; dicom2nifti.convert_directory(sys.argv[1], sys.argv[2])"
START = "import vitrael.client.site.ingest.pipeline"


def draw_scan(kind: str, number: int) -> Scan:
    """Return a scan in whole numbers, as scanners store them."""
    rng = stream(11, kind, number)
    scan = render_brain(
        draw_anatomy(rng),
        draw_acquisition(rng, style=STYLES[STYLE[kind]]),
        grid_vox=GRID,
        spacing_mm=1.0,
    )
    return Scan(np.rint(1000 * np.maximum(scan.image_CDHW, 0)), scan.affine, "T1w")


def write_scans(root: Path, kind: str) -> None:
    """Write series of different patients; each scan comes several times, moved and brighter."""
    drawn = [draw_scan(kind, number) for number in range(DRAWN)]
    for number in range(SERIES):
        scan, times = drawn[number % DRAWN], number // DRAWN
        brighter = np.float32(1 + 0.07 * times)  # never twice: that scales to an equal image
        image = np.roll(scan.image_CDHW, times, axis=1) * brighter
        identity = DicomIdentity(
            patient_id=f"VX-{number:05d}",
            name=f"Amendoeira^Iris {number}",
            birth_date=date(1957, 4, 9),
            sex="F",
            study_date=date(2021, 10, 1) + timedelta(days=number),
        )
        write_dicom_series(
            Scan(np.rint(image), scan.affine, "T1w"),
            root / f"{number:02d}",
            identity=identity,
            seed=number,
            series=number + 1,  # dicom2nifti names its files so
            plane="sagittal",
        )


def commands(root: Path, out: Path) -> dict[str, list[str | Path]]:
    """Return the command lines by name; ``out`` is where all that they make may lie."""
    from dcm2niix import bin as dcm2niix

    lines: dict[str, list[str | Path]] = {}
    for name, (x, y, z, spacing) in GRIDS.items():
        grid = ["--grid", f"{x}x{y}x{z}", "--spacing-mm", str(spacing)]
        how = ["--recipe", "brain-t1", "--home", str(out), "--workers", "2", "--json"]
        lines[name] = [VITRAEL, "site", "ingest", root, *grid, *how]
    for level in ("y", "n"):
        lines[f"dcm2niix -z {level}"] = [dcm2niix, "-z", level, "-o", out, root]
    lines["dicom2nifti"] = [sys.executable, "-W", "ignore", "-c", CONVERT, root, out]
    return lines


def run_in_turn(root: Path, folder: Path) -> dict[str, list[Run]]:
    """Return the runs of every program, A B C A B C."""
    runs: dict[str, list[Run]] = {}
    for number in range(ROUNDS):
        for name in commands(root, folder):
            out = folder / f"{number} {name}"
            out.mkdir()
            run = run_child(commands(root, out)[name], folder / f"{number} {name} told")
            runs.setdefault(name, []).append(run)
    return runs


def check_places(manifest: Manifest, shards: Path, volumes: Path) -> float:
    """Return how well an item agrees with the volume of dcm2niix that lies in its place.

    Both are compared where the item shows brain, in world coordinates. Raises unless just one of
    the volumes agrees, and moved by a millimetre it does not.
    """
    item = manifest.items[0]
    affine = np.array(item.affine)
    image = decode(open_shard(shards / item.shard)["image"])[0]
    inside = (image > 0) & (image < 1)
    alike: list[float] = []
    for path in sorted(volumes.glob("*.nii*")):
        scan = read_nifti(path, modality="T1w")
        agreement = [_agree(scan, image, inside, affine, moved_mm) for moved_mm in (0, 1)]
        assert agreement[1] < 0.99
        alike.append(agreement[0])
    assert sum(value > 0.999 for value in alike) == 1
    return max(alike)


def _agree(
    scan: Scan, image: np.ndarray, inside: np.ndarray, affine: np.ndarray, moved_mm: float
) -> float:
    target = affine.copy()
    target[1, 3] += moved_mm
    x, y, z = image.shape
    there = resample_volume(scan.image_CDHW[0], scan.affine, target, shape=(x, y, z))
    return float(np.corrcoef(there[inside], image[inside])[0, 1])


def show(kind: str, runs: dict[str, list[Run]]) -> dict[str, dict[str, float]]:
    """Print and return the figures of each program, least and median."""
    print(f"\n{SERIES} {kind}, {ROUNDS} rounds in turn, load {os.getloadavg()[0]:.1f} at the end")
    figures = {}
    for name, several in runs.items():
        wall, cpu = [run.wall_s for run in several], [run.cpu_s for run in several]
        figures[name] = {
            "wall_s": min(wall),
            "wall_median_s": statistics.median(wall),
            "cpu_s": min(cpu),
            "cpu_median_s": statistics.median(cpu),
        }
    for name, own in figures.items():
        ratios = ", ".join(
            f"{own['wall_s'] / peer['wall_s']:.2f} / {own['cpu_s'] / peer['cpu_s']:.2f} of {other}"
            for other, peer in figures.items()
            if name.startswith("ours") and not other.startswith("ours")
        )
        print(
            f"  {name:13} wall min {own['wall_s']:6.2f} median {own['wall_median_s']:6.2f} s, CPU "
            f"min {own['cpu_s']:6.2f} median {own['cpu_median_s']:6.2f} s"
            f"{'; wall / CPU ' if ratios else ''}{ratios}"
        )
    print("  " + json.dumps({"kind": kind, "series": SERIES, "figures": figures}))
    return figures


@pytest.mark.bench
@pytest.mark.parametrize("kind", STYLE)
def test_intake_beside_the_usual_converters(kind: str, tmp_path: Path) -> None:
    root, folder = tmp_path / "scans", tmp_path / "out"
    write_scans(root, kind)
    folder.mkdir()
    runs = run_in_turn(root, folder)
    show(kind, runs)
    for name, (x, y, z, _) in GRIDS.items():
        place = folder / f"0 {name}" / "cohorts" / "main"
        manifest = read_manifest(place / "manifest.json")
        assert len(manifest.items) == SERIES
        assert manifest.recipe.grid_vox == (x, y, z)
        if name == "ours, 1 mm":
            alike = check_places(manifest, place / "shards", folder / "0 dcm2niix -z n")
            print(f"  in its place an item agrees with dcm2niix by {alike:.5f}")
    for name in ("dcm2niix -z y", "dicom2nifti"):
        assert len(list((folder / f"0 {name}").glob("*.nii.gz"))) == SERIES


def _cpu_ms(work: Callable[[], object]) -> float:
    times = []
    for _ in range(3):
        start = time.process_time()
        work()
        times.append(1000 * (time.process_time() - start))
    return min(times)


@pytest.mark.bench
@pytest.mark.parametrize("kind", STYLE)
def test_where_the_time_goes(kind: str, tmp_path: Path) -> None:
    scan = draw_scan(kind, 0)
    who = DicomIdentity(
        patient_id="VX-1",
        name="Amendoeira^Iris",
        birth_date=date(1957, 4, 9),
        sex="F",
        study_date=date(2021, 11, 1),
    )
    paths = write_dicom_series(scan, tmp_path / "in", identity=who, seed=1, plane="sagittal")
    job = HeaderJob(tuple((path.name, path) for path in paths), b"k" * 32)
    instances = [from_record(header["instance"]) for _, header in read_headers(job)]
    (plan,) = group_series(instances)
    in_order = [paths[index] for index in plan.indices]
    bare, _ = bare_brain(scan)
    print(f"\nCPU of one of the {kind}, ms, the least of three")
    start = run_child([sys.executable, "-c", START], tmp_path / "start")
    parts = {
        "start of a process": 1000 * start.cpu_s,
        "headers": _cpu_ms(lambda: read_headers(job)),
        "pixels": _cpu_ms(lambda: read_volume(in_order, plan)),
        "skull and face": _cpu_ms(lambda: bare_brain(scan)),
    }
    print("  " + ", ".join(f"{name} {ms:.0f}" for name, ms in parts.items()))
    for x, y, z, spacing in (*GRIDS.values(), (24, 24, 24, 8.0)):
        settings = settings_for("brain-t1", grid_vox=(x, y, z), spacing_mm=spacing)
        own = parts_at(settings, scan, bare, tmp_path)
        told = ", ".join(f"{name} {ms:.0f}" for name, ms in own.items())
        print(f"  {x}x{y}x{z}, {spacing:g} mm: {told}")


def parts_at(settings: RecipeSettings, scan: Scan, bare: Scan, folder: Path) -> dict[str, float]:
    """Return the milliseconds of what is done on the recipe's grid."""
    x, y, z = settings.grid_vox
    spacing = settings.spacing_mm or 1.0
    ready = prepare_brain_t1(bare, (x, y, z), spacing)
    given = RecipeInput({"T1w": scan})
    prepared = prepare(given, settings)
    assert np.array_equal(prepared.arrays["image"], ready.image_CDHW)
    fresh = (folder / f"{spacing:g}-{number}" for number in itertools.count())
    return {
        "to the grid": _cpu_ms(lambda: prepare_brain_t1(bare, (x, y, z), spacing)),
        "measuring": _cpu_ms(lambda: measure_volumes(ready.image_CDHW[None], ready.affine)),
        "recipe in all": _cpu_ms(lambda: prepare(given, settings)),
        "facts": _cpu_ms(lambda: measure_facts(given, prepared)),
        "thumbnail": _cpu_ms(lambda: thumbnail(prepared)),
        "shard": _cpu_ms(lambda: write_shard(next(fresh), prepared.arrays, store="int16")),
    }
