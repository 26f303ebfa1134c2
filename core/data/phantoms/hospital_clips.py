"""A made-up hospital's ultrasound: echocardiograms and sweeps along the thigh.

Echo as videos beside ``FileList.csv`` with the columns of EchoNet-Dynamic and a few more, or as
DICOM clips on the screen of a machine, with the patient's name burned in above the picture. Muscle
as videos beside ``index.csv``, or as DICOM clips of the same look, a series for each leg. Anatomy,
exam, speckle and visits have a stream each.

Axes: T frames, H rows, W columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path, PurePath
from typing import Final

import numpy as np
from pydicom import dcmread

from vitrael.core.data.dicom.write import ClipCompression, Colors, made_uid, write_dicom_clip
from vitrael.core.data.phantoms.archive import Archive, Naming
from vitrael.core.data.phantoms.echo import EchoTruth, draw_exam, render_echo
from vitrael.core.data.phantoms.echo_styles import STYLES, draw_view
from vitrael.core.data.phantoms.heart import Heart, draw_heart, revisit_heart
from vitrael.core.data.phantoms.muscle import (
    SweepTruth,
    draw_leg,
    draw_session,
    render_sweep,
)
from vitrael.core.data.phantoms.orders import Facts, Hospital, TruthRow
from vitrael.core.data.phantoms.paperwork import write_rows
from vitrael.core.data.phantoms.people import (
    Person,
    Sex,
    draw_person,
    draw_visits,
    identify_visit,
    spell_name,
)
from vitrael.core.data.planar import Clip
from vitrael.core.data.video import write_video
from vitrael.core.rng import stream

FILE_LIST = (
    *("FileName", "EF", "ESV", "EDV", "FrameHeight", "FrameWidth", "FPS", "NumberOfFrames"),
    *("Split", "PatientId", "View", "Visit", "Sex", "Age"),
)
"""The first nine are EchoNet-Dynamic's, EF in percent; names have no ending, as there."""
INDEX = ("path", "subject", "session", "label", "date", "sex", "age")
LEGS = ("left", "right")
BAND_PX = 18
"""Above the picture on a machine's screen: where the name stands."""
_SCREEN_ASPECT = 4 / 3
_NAME_PX = 180
_SPLITS, _SPLIT_FRACS = ("TRAIN", "VAL", "TEST"), (0.75, 0.125, 0.125)
_AGES_YEARS = (20.0, 90.0)
_SWEEP = (0.05, 0.95)


@dataclass(frozen=True, slots=True)
class _Export:
    """How a site's machine stores a clip."""

    compression: ClipCompression
    colors: Colors
    naming: Naming


_EXPORTS: Final[Mapping[str, _Export]] = {
    "clinic": _Export("none", "gray", "numbers"),
    "bedside": _Export("jpeg", "rgb", "identifiers"),
    "tertiary": _Export("rle", "rgb", "numbers"),
    "legacy": _Export("rle", "gray", "identifiers"),
}
_MUSCLE_EXPORT: Final = _Export("none", "gray", "identifiers")


@dataclass(frozen=True, slots=True, repr=False)
class _Exam:
    """One visit of one patient, imaged."""

    patient: int
    number: int
    day: date
    person: Person
    heart: Heart
    clip: Clip
    truth: EchoTruth


@dataclass(frozen=True, slots=True, repr=False)
class _Sweep:
    """One leg at one visit of one patient, imaged."""

    patient: int
    number: int
    day: date
    person: Person
    leg: str
    clip: Clip
    truth: SweepTruth


def write_echo_videos(folder: Path, hospital: Hospital) -> Iterator[TruthRow]:
    """Write one video a visit and ``FileList.csv``, and yield the truth of each."""
    rows: list[tuple[str, ...]] = [FILE_LIST]
    (folder / "Videos").mkdir(parents=True)
    for exam in _draw_exams(hospital):
        name = f"0X{_code(hospital, exam.patient, exam.number)}"
        path = PurePath("Videos", f"{name}.mp4")
        write_video(exam.clip, folder / path)
        frames, height, width = exam.clip.frames_THW.shape
        truth, rate_hz = exam.truth, 1 / exam.truth.frame_s
        percent = f"{100 * truth.ef_frac:.4f}"
        volumes = (f"{truth.esv_ml:.4f}", f"{truth.edv_ml:.4f}")
        sizes = (str(height), str(width), f"{rate_hz:g}", str(frames))
        split = stream(hospital.seed, "split", hospital.site, exam.patient)
        told = _SPLITS[int(split.choice(3, p=_SPLIT_FRACS))]
        who = (exam.person.patient_id, truth.view, str(exam.number), exam.person.sex)
        age = f"{exam.person.age_years(exam.day):.2f}"
        rows.append((name, percent, *volumes, *sizes, told, *who, age))
        yield _echo_row(path, exam)
    write_rows(folder / "FileList.csv", rows)


def write_echo_dicom(folder: Path, hospital: Hospital) -> Iterator[TruthRow]:
    """Write one multi-frame file a visit, and yield the truth of each.

    The name stands above the one region that the header tells; EF stands nowhere.
    """
    export = _EXPORTS[hospital.site]
    archive = Archive(folder, hospital, naming=export.naming)
    for exam in _draw_exams(hospital):
        path = _export_clip(exam, archive, hospital=hospital, export=export)
        (kept,) = archive.keep([path], exam.patient, exam.number, series=1)
        yield _echo_row(kept, exam)
    archive.close()


def write_muscle_videos(folder: Path, hospital: Hospital) -> Iterator[TruthRow]:
    """Write a sweep of either leg a visit and ``index.csv``, and yield the truth of each."""
    rows: list[tuple[str, ...]] = [INDEX]
    (folder / "clips").mkdir(parents=True)
    for sweep in _draw_sweeps(hospital):
        name = _code(hospital, sweep.patient, sweep.number, sweep.leg)
        path = PurePath("clips", f"{name}.mp4")
        write_video(sweep.clip, folder / path)
        person, day = sweep.person, sweep.day
        who = (person.patient_id, str(sweep.number), sweep.leg, day.isoformat(), person.sex)
        rows.append((path.as_posix(), *who, f"{person.age_years(day):.2f}"))
        yield _sweep_row(path, sweep)
    write_rows(folder / "index.csv", rows)


def write_muscle_dicom(folder: Path, hospital: Hospital) -> Iterator[TruthRow]:
    """Write one study a visit with a multi-frame file for either leg, and yield the truth of each.

    The header tells the leg, the name stands above the one region, the lost muscle nowhere.
    """
    archive = Archive(folder, hospital, naming=_MUSCLE_EXPORT.naming)
    for sweep in _draw_sweeps(hospital):
        path = _export_clip(sweep, archive, hospital=hospital, export=_MUSCLE_EXPORT)
        series = LEGS.index(sweep.leg) + 1
        _call_leg(path, sweep.leg, series=series, seed=hospital.seed)
        (kept,) = archive.keep([path], sweep.patient, sweep.number, series=series)
        yield _sweep_row(kept, sweep)
    archive.close()


def show_on_screen(clip: Clip) -> tuple[Clip, tuple[int, int, int, int]]:
    """Return a clip as it stands on a machine's screen, and its left, top, right and bottom pixel.

    The picture is kept pixel by pixel, with a dark band above it and dark bars beside it.
    """
    frames, height, width = clip.frames_THW.shape
    across = max(round(_SCREEN_ASPECT * height), width, _NAME_PX)
    left = (across - width) // 2
    screen_THW = np.zeros((frames, height + BAND_PX, across), np.uint8)
    screen_THW[:, BAND_PX:, left : left + width] = clip.frames_THW
    region = (left, BAND_PX, left + width - 1, BAND_PX + height - 1)
    return Clip(screen_THW, clip.frame_s, clip.spacing_mm, clip.modality), region


def _export_clip(
    visit: _Exam | _Sweep, archive: Archive, *, hospital: Hospital, export: _Export
) -> Path:
    """Write a clip as a machine shows and stores it, not yet filed; return where it lies."""
    clip, region = show_on_screen(visit.clip)
    path = archive.inbox / "clip"
    write_dicom_clip(
        clip,
        path,
        identity=identify_visit(hospital, visit.patient, visit.person, on=visit.day),
        seed=hospital.seed,
        region=region,
        burned_in=spell_name(visit.person),
        colors=export.colors,
        compression=export.compression,
    )
    return path


def _draw_exams(hospital: Hospital) -> Iterator[_Exam]:
    """Yield the exams of every patient; the heart changes a little from one to the next."""
    seed, site = hospital.seed, hospital.site
    style = STYLES[site]
    for patient in range(hospital.patients):
        days = draw_visits(hospital, patient)
        heart = draw_heart(stream(seed, "heart", site, patient), population=style.population)
        person = _draw_anybody(hospital, patient, on=days[0])
        for number, day in enumerate(days, start=1):
            if number > 1:
                heart = revisit_heart(heart, stream(seed, "revisit", site, patient, number))
            clip, truth = render_echo(
                heart,
                draw_exam(stream(seed, "exam", site, patient, number), style),
                view=draw_view(stream(seed, "view", site, patient, number), style),
                frames=hospital.frames,
                edge_px=hospital.grid[0],
                rng=stream(seed, "speckle", site, patient, number),
            )
            yield _Exam(patient, number, day, person, heart, clip, truth)


def _draw_sweeps(hospital: Hospital) -> Iterator[_Sweep]:
    """Yield the sweeps of every patient, leg by leg.

    The left leg is the mirror image of the right one, with other speckle.
    """
    seed, site = hospital.seed, hospital.site
    position_T = np.linspace(*_SWEEP, hospital.frames)
    for patient in range(hospital.patients):
        days = draw_visits(hospital, patient)
        leg = draw_leg(stream(seed, "leg", site, patient))
        person = _draw_anybody(hospital, patient, on=days[0])
        for number, day in enumerate(days, start=1):
            rng = stream(seed, "session", site, patient, number)
            session = draw_session(rng, first=number == 1)
            for side in LEGS:
                clip, truth = render_sweep(
                    leg,
                    session,
                    position_T=position_T,
                    edge_px=hospital.grid[0],
                    rng=stream(seed, "speckle", site, patient, number, side),
                )
                shown = _mirrored(clip) if side == "left" else clip
                yield _Sweep(patient, number, day, person, side, shown, truth)


def _draw_anybody(hospital: Hospital, patient: int, *, on: date) -> Person:
    """Return a patient whose age and sex the images do not tell."""
    rng = stream(hospital.seed, "anybody", hospital.kind, hospital.site, patient)
    sexes: tuple[Sex, Sex] = ("F", "M")
    sex = sexes[int(rng.integers(2))]
    age_years = float(rng.uniform(*_AGES_YEARS))
    return draw_person(hospital, patient, sex=sex, age_years=age_years, on=on)


def _echo_row(path: PurePath, exam: _Exam) -> TruthRow:
    truth, person = exam.truth, exam.person
    facts: Facts = {
        "view": truth.view,
        "ef_frac": truth.ef_frac,
        "edv_ml": truth.edv_ml,
        "esv_ml": truth.esv_ml,
        "heart_rate_bpm": exam.heart.heart_rate_bpm,
        "frame_s": truth.frame_s,
        "row_mm": truth.spacing_mm[0],
        "column_mm": truth.spacing_mm[1],
        "ed_frame": truth.ed_frame,
        "es_frame": truth.es_frame,
        "age_years": person.age_years(exam.day),
        "sex": float(person.sex == "M"),
    }
    return TruthRow(path, person.patient_id, str(exam.number), exam.day, facts)


def _sweep_row(path: PurePath, sweep: _Sweep) -> TruthRow:
    truth = sweep.truth
    facts: Facts = {
        "leg": sweep.leg,
        "atrophy_frac": truth.atrophy_frac,
        "mean_area_mm2": float(truth.area_T_mm2.mean()),
        "first_position": float(truth.position_T[0]),
        "last_position": float(truth.position_T[-1]),
        "frame_s": truth.frame_s,
        "row_mm": truth.spacing_mm[0],
        "column_mm": truth.spacing_mm[1],
    }
    return TruthRow(path, sweep.person.patient_id, str(sweep.number), sweep.day, facts)


def _call_leg(path: Path, leg: str, *, series: int, seed: int) -> None:
    """Tell in a clip's header which leg it shows, and make it a series of its own."""
    header = dcmread(path)
    header.Laterality = leg[0].upper()
    header.SeriesNumber = series
    header.SeriesInstanceUID = made_uid(seed, str(header.SeriesInstanceUID), leg)
    header.SOPInstanceUID = made_uid(seed, str(header.SOPInstanceUID), leg)
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    header.save_as(path, enforce_file_format=True)


def _mirrored(clip: Clip) -> Clip:
    frames_THW = np.ascontiguousarray(clip.frames_THW[:, :, ::-1])
    return Clip(frames_THW, clip.frame_s, clip.spacing_mm, clip.modality)


def _code(hospital: Hospital, *names: int | str) -> str:
    """Return a name of a file that tells nothing."""
    words = " ".join(map(str, (hospital.seed, hospital.kind, hospital.site, *names)))
    return hashlib.sha256(words.encode()).hexdigest()[:16].upper()
