"""What dcm2niix leaves behind is judged, whatever it says; its result is that of our own reader."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset as DicomHeader

from tests.factories.dicom import facts_of, small_scan, write_enhanced, write_series
from vitrael.client.site.ingest import dicom_read
from vitrael.client.site.ingest.dicom_read import convert_series
from vitrael.core.data.dicom.read import read_volume, volume_grid
from vitrael.core.data.dicom.series import SeriesPlan, group_series
from vitrael.core.data.nifti import write_nifti
from vitrael.core.data.scan import Scan
from vitrael.core.errors import ConfigError, ScanError

dcm2niix = pytest.importorskip("dcm2niix")

Program = Callable[[str], Path]


def planned(paths: Sequence[Path]) -> tuple[list[Path], SeriesPlan]:
    (plan,) = group_series(facts_of(paths))
    return [paths[index] for index in plan.indices], plan


def converted(paths: Sequence[Path]) -> Scan:
    return convert_series(*planned(paths), modality="T1w")


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Put a script in the place of dcm2niix; ``$out`` is where it is to write."""

    def put(script: str) -> Path:
        path = tmp_path / "program"
        lines = ["#!/bin/sh", f'echo "$@" > {shlex.quote(str(tmp_path / "said"))}']
        lines += ['while [ "$1" != -o ]; do shift; done', 'out="$2"', script]
        path.write_text("\n".join(lines) + "\n")
        path.chmod(0o700)
        monkeypatch.setattr(dcm2niix, "bin", str(path))
        return tmp_path / "said"

    return put


@pytest.fixture
def series(tmp_path: Path) -> list[Path]:
    return write_series(tmp_path / "in")


def nifti(path: Path, *, affine: np.ndarray | None = None, slices: int = 6) -> str:
    """Write the series as dcm2niix would, or with a fault; return its name for a shell."""
    scan = small_scan()
    image_CDHW = scan.image_CDHW[..., :slices]
    write_nifti(Scan(image_CDHW, scan.affine if affine is None else affine, "T1w"), path)
    return shlex.quote(str(path))


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("whole", [True, False])
def test_both_readers_make_one_scan(tmp_path: Path, plane: str, *, whole: bool) -> None:
    paths = write_series(tmp_path, small_scan(whole=whole), plane=plane)
    own, other = read_volume(paths), converted(paths)
    assert np.allclose(own.affine, other.affine, atol=1e-4)
    assert np.allclose(own.image_CDHW, other.image_CDHW, rtol=1e-6)
    shape, affine = volume_grid(planned(paths)[1])
    assert own.image_CDHW.shape[1:] == shape
    assert np.array_equal(own.affine, affine)


def test_real_series_are_the_same_by_both_readers(root: Path) -> None:
    folder = root.parent / "shared/data/dicom/studyforrest_T1w"
    if not folder.is_dir():
        pytest.skip("the public DICOM files are not on this machine")
    paths = sorted(folder.iterdir())
    own, other = read_volume(paths), converted(paths)
    assert np.allclose(own.affine, other.affine, atol=1e-4)
    assert np.array_equal(own.image_CDHW, other.image_CDHW)


def test_echo_and_map_are_taken_whatever_their_files_are_called(tmp_path: Path) -> None:
    def second(_: int, header: DicomHeader) -> None:
        header.EchoNumbers, header.ImageType = "2", ["DERIVED", "PRIMARY", "DIFFUSION", "ADC"]

    paths = write_series(tmp_path, edit=second)
    assert np.array_equal(converted(paths).image_CDHW, small_scan().image_CDHW)


def test_frames_with_scales_of_their_own_are_refused(tmp_path: Path) -> None:
    def scale(index: int, frame: DicomHeader) -> None:
        frame.PixelValueTransformationSequence[0].RescaleSlope = str(1 + index)

    slices = write_series(tmp_path / "slices")
    plain = write_enhanced(tmp_path / "plain", slices)
    assert np.array_equal(converted([plain]).image_CDHW, small_scan().image_CDHW)
    scaled = write_enhanced(tmp_path / "scaled", slices, edit_frame=scale)
    with pytest.raises(ScanError, match="scales of their own"):
        converted([scaled])


def test_slices_with_scales_of_their_own_are_scaled(tmp_path: Path) -> None:
    def scale(index: int, header: DicomHeader) -> None:
        header.RescaleSlope, header.RescaleIntercept = str(1 + index), str(10 * index)

    paths = write_series(tmp_path, edit=scale)
    assert np.array_equal(converted(paths).image_CDHW, read_volume(paths).image_CDHW)


def test_exit_code_is_not_believed(program: Program, series: list[Path], tmp_path: Path) -> None:
    said = program(f'cp {nifti(tmp_path / "good.nii")} "$out/volume.nii"; exit 1')
    assert np.array_equal(converted(series).image_CDHW, small_scan().image_CDHW)
    # Whatever settings lie in somebody's home do not count.
    assert " -g i " in f" {said.read_text()}"
    program("exit 0")
    with pytest.raises(ScanError, match="dcm2niix made 0 volumes"):
        converted(series)


def test_two_volumes_of_one_series_are_refused(
    program: Program, series: list[Path], tmp_path: Path
) -> None:
    good = nifti(tmp_path / "good.nii")
    program(f'cp {good} "$out/volume.nii"; cp {good} "$out/volume_Tilt_1.nii"')
    with pytest.raises(ScanError, match="dcm2niix made 2 volumes"):
        converted(series)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("slices", "another size"),
        ("flipped", "elsewhere in the world"),
        ("moved", "elsewhere in the world"),
        ("stretched", "elsewhere in the world"),
    ],
)
def test_wrong_geometry_is_refused(
    program: Program, series: list[Path], tmp_path: Path, fault: str, told: str
) -> None:
    affine = small_scan().affine.copy()
    if fault == "flipped":
        affine[:3, 2] *= -1
    elif fault == "moved":
        affine[:3, 3] += 0.2
    elif fault == "stretched":
        affine[:3, 2] *= 1.05
    slices = 5 if fault == "slices" else 6
    bad = nifti(tmp_path / "bad.nii", affine=affine, slices=slices)
    program(f'cp {bad} "$out/volume.nii"')
    with pytest.raises(ScanError, match=told):
        converted(series)


def test_what_is_no_image_is_refused(program: Program, series: list[Path]) -> None:
    program('echo no image > "$out/volume.nii"')
    with pytest.raises(ScanError, match="what dcm2niix made cannot be used"):
        converted(series)


def test_program_that_does_not_end_is_ended(
    program: Program, series: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dicom_read, "CONVERTER_S", 0.2)
    said = program("exec tail -f /dev/null")
    with pytest.raises(ScanError, match=r"dcm2niix did not end within 0\.2 s"):
        converted(series)
    assert said.is_file()


def test_nothing_of_a_conversion_stays(
    series: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    killed, going_on = (scratch / f"vitrael-dcm2niix-{name}" for name in ("killed", "going-on"))
    for folder in (killed, going_on):
        (folder / "out").mkdir(parents=True)
    os.utime(killed, (1e9, 1e9))
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    converted(series)
    assert list(scratch.iterdir()) == [going_on]


def test_missing_dcm2niix_is_told_with_a_remedy_that_needs_no_index(
    series: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(converted(series), Scan)
    monkeypatch.setitem(sys.modules, "dcm2niix", None)
    with pytest.raises(ConfigError, match="dcm2niix is not installed") as caught:
        converted(series)
    assert "pip install -c deploy/constraints.txt '.[dcm2niix]'" in caught.value.fix
    assert caught.value.exit_code == 3
