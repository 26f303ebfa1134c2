"""How much memory an intake of 100,000 files takes, in its main process and in each worker.

Once they are notes and logs around a few scans, as folders of a hospital have them; once they are
slices of 1,000 series, so that every header is kept and every series becomes an item. The limit
is that of a small machine: 1 GiB for each process.
"""

from __future__ import annotations

import json
import sys
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks.children import Run, run_child
from vitrael.core.data.dicom.write import DicomIdentity, made_uid, write_dicom_series
from vitrael.core.data.phantoms.brain import draw_acquisition, draw_anatomy, render_brain
from vitrael.core.data.scan import Scan
from vitrael.core.rng import stream

MOST_KIB = 1 << 20
FILES = 100_000
SERIES, SLICES = 1_000, 100
NAMES = ("report.txt", "study.log", "notes", "IM", "settings.ini")
VITRAEL = Path(sys.executable).parent / "vitrael"
IDENTITY = DicomIdentity(
    patient_id="VX-00000",
    name="Amendoeira^Iris",
    birth_date=date(1957, 4, 9),
    sex="F",
    study_date=date(2021, 11, 30),
)


def draw_scan(number: int) -> Scan:
    """Return a brain of 24 x 24 columns and 100 thin slices."""
    rng = stream(number, "memory")
    fine = render_brain(
        draw_anatomy(rng), draw_acquisition(rng), grid_vox=(96, 96, SLICES), spacing_mm=2.0
    )
    image = fine.image_CDHW.reshape(1, 24, 4, 24, 4, SLICES).mean(axis=(2, 4))
    affine = fine.affine @ np.diag([4.0, 4.0, 1.0, 1.0])
    affine[:3, 3] += 3.0 * np.array([1.0, 1.0, 0.0])
    return Scan(np.rint(1000 * np.maximum(image, 0)).astype(np.float32), affine, "T1w")


def write_series(root: Path, count: int) -> None:
    """Write series of different patients: one is made, the others are copies with other numbers."""
    made = write_dicom_series(draw_scan(0), root / "0000", identity=IDENTITY, seed=0)
    first = [path.read_bytes() for path in made]
    names = (IDENTITY.patient_id, f"{IDENTITY.study_date:%Y%m%d}")
    shared = [
        made_uid(0, "study", *names),
        made_uid(0, "series", *names, 1),
        made_uid(0, "frame of reference", *names),
    ]
    images = [draw_scan(number).image_CDHW[0] for number in range(8)]
    for number in range(1, count):
        folder = root / f"{number:04d}"
        folder.mkdir()
        image = images[number % len(images)]
        noise = stream(number, "noise").integers(0, 40, image.shape)
        stack_SRC = np.flip(np.where(image > 0, image + noise, 0).transpose(2, 1, 0), (1, 2))
        for index, (data, slice_RC) in enumerate(zip(first, stack_SRC, strict=True), start=1):
            pixels = slice_RC.astype("<i2").tobytes()
            header = data[: -len(pixels)].replace(b"VX-00000", b"VX-%05d" % number)
            for uid in (*shared, made_uid(0, "instance", *names, 1, index)):
                header = header.replace(uid.encode(), f"{uid[:-5]}{number:05d}".encode())
            (folder / f"IM{index:05d}").write_bytes(header + pixels)


def write_others(root: Path, count: int) -> None:
    """Write small files that are no images, with the names that such files have."""
    for number in range(count):
        folder = root / f"{number // 100:04d}"
        if number % 100 == 0:
            folder.mkdir(parents=True)
        name = f"{number:06d}-{NAMES[number % len(NAMES)]}"
        (folder / name).write_text(f"Study {number}: as before.\n", encoding="utf-8")


def take_in(root: Path, folder: Path) -> tuple[Run, dict[str, object]]:
    """Take a folder in with two workers, and return what that used and what it told."""
    what = ["--recipe", "brain-t1", "--grid", "24x24x24", "--spacing-mm", "8"]
    how = ["--home", str(folder / "home"), "--workers", "2", "--json"]
    run = run_child([VITRAEL, "site", "ingest", root, *what, *how], folder, codes=(0, 7))
    return run, json.loads(run.text)


def show(what: str, run: Run, report: dict[str, object]) -> None:
    print(
        f"\n{what}: {report['files']} files, {report['items']} items; the most memory: "
        f"main {run.main_kib / 1024:.0f} MiB, a worker {run.worker_kib / 1024:.0f} MiB of "
        f"{run.workers}; {run.wall_s:.0f} s, {run.cpu_s:.0f} s of CPU"
    )


@pytest.mark.bench
def test_a_hundred_thousand_other_files_take_less_than_a_gibibyte(tmp_path: Path) -> None:
    root = tmp_path / "scans"
    write_series(root / "mri", 2)
    write_others(root / "notes", FILES - 2 * SLICES)
    run, report = take_in(root, tmp_path / "out")
    show("notes and logs", run, report)
    assert report["files"] == FILES
    assert report["items"] == 2
    assert max(run.main_kib, run.worker_kib) < MOST_KIB


@pytest.mark.bench
def test_a_hundred_thousand_slices_take_less_than_a_gibibyte(tmp_path: Path) -> None:
    root = tmp_path / "scans"
    write_series(root, SERIES)
    run, report = take_in(root, tmp_path / "out")
    show("slices", run, report)
    again, report_again = take_in(root, tmp_path / "out")
    show("the same again, known from the index", again, report_again)
    assert report["files"] == SERIES * SLICES
    assert report["items"] == report_again["items"] == SERIES
    assert (report["read"], report_again["read"]) == (SERIES, 0)
    assert max(run.main_kib, run.worker_kib, again.main_kib, again.worker_kib) < MOST_KIB
