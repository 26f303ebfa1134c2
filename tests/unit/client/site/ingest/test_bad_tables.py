"""Tables, videos and pictures as hospitals have them: what is wrong in them costs its own image."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.factories.intake import (
    BRAIN,
    ECHO,
    KEY,
    PLANE,
    leftovers,
    make_home,
    manifest_of,
    reason_of,
    refused,
    set_aside,
    take_in,
    write_brains,
    write_clip,
    write_dicom_echo,
    write_picture,
    write_pictures,
)
from vitrael.client.site.ingest.assemble import SAME_IMAGE
from vitrael.client.site.ingest.dicom_folder import COPY, NOT_DICOM
from vitrael.core.data.layouts.facts import IMPOSSIBLE_EF, NO_PATIENT
from vitrael.core.data.layouts.rows import NOT_LISTED
from vitrael.core.data.manifest import pseudonym_of
from vitrael.core.data.phantoms.hospital import write_hospital
from vitrael.core.data.phantoms.mess import plant_mess
from vitrael.core.data.phantoms.orders import FileFormat, Kind, order_hospital
from vitrael.core.data.recipes import RecipeSettings
from vitrael.core.data.tables import FORMULA
from vitrael.core.data.walk import CIRCLE, LINKED_FOLDER
from vitrael.core.errors import CohortError

BOM = "\ufeff"
FILE_LIST = """FileName;PatientId;EF;Age;View
c0;p0;55,5;40;A4C
c1;;60;40;A4C
c2;p2;=1+1;40;A4C
c3;p3;140;40;A4C
c4;p4;-3;40;A4C
c5;p5;0,61;40,5;A4C
c6;p6;n/a;;A2C
"""


def test_rows_that_cannot_be_believed_cost_their_own_clips(tmp_path: Path) -> None:
    root, home = tmp_path / "echo", make_home(tmp_path / "home")
    clips = [write_clip(root / f"c{patient}.avi", patient) for patient in range(8)]
    (root / "FileList.csv").write_text(BOM + FILE_LIST, encoding="utf-8")
    report = take_in(root, home, ECHO)
    reasons = {1: NO_PATIENT, 2: FORMULA, 3: IMPOSSIBLE_EF, 4: IMPOSSIBLE_EF, 7: NOT_LISTED}
    told = {number: reason_of(report, clip) for number, clip in enumerate(clips)}
    assert told == {number: reasons.get(number, "") for number in range(8)}
    known = {item.subject: item for item in manifest_of(home).items}
    assert known.keys() == {pseudonym_of(name, key=KEY) for name in ("p0", "p5", "p6")}
    first, second, third = (known[pseudonym_of(name, key=KEY)] for name in ("p0", "p5", "p6"))
    assert first.covariates == {"ef_frac": 0.555, "age_years": 40.0}
    assert second.covariates == {"ef_frac": 0.61, "age_years": 40.5}
    assert third.covariates == {}
    assert dict(third.labels) == {"view": "A2C"}
    assert leftovers(home) == set()


def test_participants_who_cannot_be_cost_their_own_scans(tmp_path: Path) -> None:
    root, home = tmp_path / "bids", make_home(tmp_path / "home")
    paths = write_brains(root, range(4))
    rows = ["participant_id\tage\tEF", "sub-00\t40\t140", "sub-01\t=2+2\t60", "\t50\t60"]
    (root / "participants.tsv").write_text("\n".join([*rows, "sub-02\t44\t60", ""]))
    report = take_in(root, home)
    assert (report.items, report.is_partial) == (3, True)
    assert refused(report) == {IMPOSSIBLE_EF: 1}
    assert reason_of(report, paths[0]) == IMPOSSIBLE_EF
    ages = {item.subject: item.covariates.get("age_years") for item in manifest_of(home).items}
    assert ages[pseudonym_of("sub-02", key=KEY)] == 44.0
    assert ages[pseudonym_of("sub-01", key=KEY)] is None, "a formula is not believed"


@pytest.mark.parametrize(
    "text",
    [
        "image_id,patient_id\nsub-00_xray.png,p0,more\n",
        'image_id,patient_id\n"sub-00_xray.png,p0\n',
        "image_id,patient_id,patient id\nsub-00_xray.png,p0,p1\n",
    ],
)
def test_table_that_cannot_be_read_stops_the_intake_and_changes_nothing(
    text: str, tmp_path: Path
) -> None:
    """Whose an image is stands in it: to go on without it would make new patients."""
    root, home = tmp_path / "pictures", make_home(tmp_path / "home")
    write_pictures(root)
    before = take_in(root, home, PLANE)
    (root / "images.csv").write_text(text)
    with pytest.raises(CohortError, match=r"images\.csv cannot be read"):
        take_in(root, home, PLANE)
    assert manifest_of(home).digest == before.digest


def write_film(path: Path, times_ms: list[int]) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=1000)
        stream.width = stream.height = 64
        stream.pix_fmt = "gray"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        if not times_ms:
            container.start_encoding()
            return path
        for number, time in enumerate(times_ms):
            gray = np.full((64, 64), 10 * number % 250, np.uint8)
            frame = av.VideoFrame.from_ndarray(gray, format="gray")
            frame.pts, frame.time_base = time, stream.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_videos_that_are_none_cost_themselves(tmp_path: Path) -> None:
    root, home = tmp_path / "echo", make_home(tmp_path / "home")
    good = [write_clip(root / f"sub-{p}_a4c.avi", p) for p in range(2)]
    cut = root / "sub-cut_a4c.avi"
    cut.write_bytes(good[0].read_bytes()[:3000])
    empty, text = root / "sub-empty_a4c.avi", root / "sub-text_a4c.mp4"
    empty.touch()
    text.write_text("no video at all")
    damaged = "the file is not a whole video: it is damaged or of another kind"
    reasons = {
        cut: damaged,
        empty: "the file is empty",
        text: damaged,
        write_film(root / "sub-none_a4c.mkv", []): damaged,
        write_film(root / "sub-uneven_a4c.mkv", [20 * n + 25 * (n // 2) for n in range(20)]): (
            "the frame rate varies: frame times differ by more than 10%"
        ),
        write_film(root / "sub-short_a4c.mkv", [40 * n for n in range(5)]): (
            "the clip is too short: at least 0.5 s are needed"
        ),
    }
    even = write_film(root / "sub-even_a4c.mkv", [40 * n for n in range(20)])
    report = take_in(root, home, ECHO)
    assert {path: reason_of(report, path) for path in reasons} == reasons
    assert reason_of(report, even) == ""
    assert report.items == len([*good, even])
    assert leftovers(home) == set()


def test_pictures_that_are_none_cost_themselves(tmp_path: Path) -> None:
    root, home = tmp_path / "pictures", make_home(tmp_path / "home")
    good = write_pictures(root, range(3))
    cut, empty, text = (root / f"sub-{name}_xray.png" for name in ("cut", "empty", "text"))
    cut.write_bytes(good[0].read_bytes()[:200])
    empty.touch()
    text.write_text("no picture")
    report = take_in(root, home, PLANE)
    assert (report.items, sum(refused(report).values())) == (3, 3)
    assert "the file is empty" in refused(report)
    assert leftovers(home) == set()


def test_ultrasound_without_regions_needs_a_mask(tmp_path: Path) -> None:
    root, home = tmp_path / "scans", make_home(tmp_path / "home")
    write_dicom_echo(root / "with", 1, region=(0, 4, 31, 31))
    write_dicom_echo(root / "without", 2)
    report = take_in(root, home, ECHO)
    assert report.items == 1
    assert reason_of(report, root / "without").startswith("burned-in text cannot be ruled out")
    mask = write_picture(tmp_path / "mask.png", 3, size=(32, 32))
    assert take_in(root, home, ECHO, pixel_mask=mask).items == 2


HOSPITALS: Mapping[tuple[Kind, FileFormat], tuple[RecipeSettings, Mapping[str, int]]] = {
    ("brain", "nifti"): (BRAIN, {"edge": 16}),
    ("brain", "dicom"): (BRAIN, {"edge": 16}),
    ("brain", "png"): (PLANE, {"edge": 32}),
    ("echo", "mp4"): (ECHO, {"edge": 32, "frames": 40}),
    ("echo", "dicom"): (ECHO, {"edge": 48, "frames": 40}),
}


TOLD: Mapping[str, str] = {
    "zero-byte-file": "the file is empty",
    "report-named-dcm": NOT_DICOM,
    "link-to-a-folder": LINKED_FOLDER,
    "link-in-a-circle": CIRCLE,
    "copy-with-spaces": SAME_IMAGE,
    "nan-volume": "not finite",
    "constant-volume": "constant",
    "constant-picture": "constant",
    "singular-affine": "singular",
    "copy-under-another-uid": SAME_IMAGE,
    "repeated-slice": COPY,
    "missing-slice": "slices are missing: 1",
    "uneven-slices": "unevenly spaced",
    "file-without-patient": "names no patient",
    "no-region": "burned-in text cannot be ruled out",
    "variable-rate": "frame",
    "impossible-ef": IMPOSSIBLE_EF,
}
"""Of each kind of mess, what is told of it; the rest is told in other words by each format."""


@pytest.mark.parametrize(("kind", "form"), HOSPITALS)
def test_mess_of_a_hospital_spoils_no_good_image(
    kind: Kind, form: FileFormat, tmp_path: Path
) -> None:
    settings, sizes = HOSPITALS[kind, form]
    root, home = tmp_path / "hospital", make_home(tmp_path / "home")
    write_hospital(root, order_hospital(kind, form, patients=3, seed=5, **sizes))
    clean = take_in(root, home, settings)
    assert (clean.items, refused(clean)) == (3, {})
    assert "cut-brain" not in {finding.check for finding in clean.findings}
    good = {(item.subject, item.digest) for item in manifest_of(home).items}
    planted = plant_mess(root, kind=kind, seed=5)
    other = make_home(tmp_path / "messy")
    messy = take_in(root, other, settings)
    assert good <= {(item.subject, item.digest) for item in manifest_of(other).items}
    assert messy.is_partial
    assert leftovers(other) == set()
    assert messy.items == 3
    reasons = " ".join([*refused(messy), *set_aside(messy)])
    assert [mess for mess, words in TOLD.items() if mess in planted and words not in reasons] == []
