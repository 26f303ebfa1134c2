"""Volumes from DICOM series: exact geometry and values, whatever way they are stored."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom import uid
from pydicom.dataset import Dataset as DicomHeader

from tests.factories.dicom import (
    OBLIQUE,
    code,
    edit_file,
    facts_of,
    small_scan,
    write_enhanced,
    write_series,
)
from vitrael.core.data.dicom.instance import read_instance
from vitrael.core.data.dicom.pixels import digest_pixels
from vitrael.core.data.dicom.read import read_volume
from vitrael.core.data.dicom.series import group_series
from vitrael.core.data.nifti import read_nifti
from vitrael.core.data.scan import Scan
from vitrael.core.errors import ScanError

PLANES = ["axial", "coronal", "sagittal"]


@pytest.fixture(scope="session")
def real_dicom(root: Path) -> Path:
    folder = root.parent / "shared/data/dicom"
    if not folder.is_dir():
        pytest.skip("the public DICOM files are not on this machine")
    return folder


def same_place(scan: Scan, other: Scan) -> bool:
    """Say whether equal voxels lie at equal places of the world."""
    return scan.image_CDHW.shape == other.image_CDHW.shape and bool(
        np.allclose(scan.affine, other.affine, atol=1e-5)
    )


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("axes", ["RAS", "LPS", "SAR", "PIL"])
def test_a_series_reads_back_to_the_same_world(tmp_path: Path, plane: str, axes: str) -> None:
    turn = nib.orientations.axcodes2ornt(axes)
    original = small_scan()
    image = nib.orientations.apply_orientation(original.image_CDHW[0], turn)
    shape = original.image_CDHW.shape[1:]
    affine = original.affine @ nib.orientations.inv_ornt_aff(turn, shape)
    scan = read_volume(write_series(tmp_path, Scan(image[None], affine, "T1w"), plane=plane))
    assert nib.aff2axcodes(scan.affine) == ("R", "A", "S")
    assert same_place(scan, original)
    assert np.array_equal(scan.image_CDHW, original.image_CDHW)
    assert scan.image_CDHW.flags.c_contiguous
    assert scan.modality == "T1w"
    # Control: one flip of the same voxels is another image.
    assert not np.array_equal(scan.image_CDHW, original.image_CDHW[:, ::-1])


def test_values_survive_within_half_a_step(tmp_path: Path) -> None:
    original = small_scan(whole=False)
    scan = read_volume(write_series(tmp_path, original))
    step = float(np.ptp(original.image_CDHW)) / 65535
    worst = float(np.abs(scan.image_CDHW - original.image_CDHW).max())
    assert 0 < worst <= 0.51 * step


@pytest.mark.parametrize("compression", ["none", "rle", "jpeg-ls", "jpeg-2000"])
def test_lossless_compressions_change_nothing(tmp_path: Path, compression: str) -> None:
    original = small_scan(shape=(40, 36, 3))
    paths = write_series(tmp_path, original, compression=compression)
    assert facts_of(paths[:1])[0].stored.compressed == (compression != "none")
    assert np.array_equal(read_volume(paths).image_CDHW, original.image_CDHW)


@pytest.mark.parametrize(
    "syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian]
)
def test_every_uncompressed_syntax_gives_the_same_scan(tmp_path: Path, syntax: str) -> None:
    original = small_scan()
    paths = write_series(tmp_path, original)
    for path in paths:
        edit_file(path, lambda _: None, syntax=syntax)
    assert {facts.stored.syntax for facts in facts_of(paths)} == {syntax}
    scan = read_volume(paths)
    assert np.array_equal(scan.image_CDHW, original.image_CDHW)
    assert same_place(scan, original)


def test_the_order_of_the_files_does_not_matter(tmp_path: Path) -> None:
    paths = write_series(tmp_path)
    mixed = [paths[index] for index in (3, 0, 5, 1, 4, 2)]
    assert np.array_equal(read_volume(mixed).image_CDHW, read_volume(paths).image_CDHW)


def test_a_plan_and_the_files_alone_give_the_same_scan(tmp_path: Path) -> None:
    paths = write_series(tmp_path)[::-1]
    (plan,) = group_series(facts_of(paths))
    assert plan.indices == (5, 4, 3, 2, 1, 0)
    by_plan = read_volume([paths[index] for index in plan.indices], plan)
    alone = read_volume(paths)
    assert np.array_equal(by_plan.image_CDHW, alone.image_CDHW)
    assert same_place(by_plan, alone)


def test_each_slice_has_its_own_scale(tmp_path: Path) -> None:
    def scale(index: int, header: DicomHeader) -> None:
        header.RescaleSlope, header.RescaleIntercept = str(1 + index), str(10 * index)

    plain = read_volume(write_series(tmp_path / "a"))
    scaled = read_volume(write_series(tmp_path / "b", edit=scale))
    for index in range(6):
        expected = plain.image_CDHW[0, ..., index] * (1 + index) + 10 * index
        assert np.array_equal(scaled.image_CDHW[0, ..., index], expected)


def test_ct_numbers_are_scaled_and_signed(tmp_path: Path) -> None:
    original = small_scan(modality="CT")
    values = original.image_CDHW - 1000
    scan = read_volume(write_series(tmp_path, Scan(values, OBLIQUE, "CT")))
    assert scan.modality == "CT"
    assert np.array_equal(scan.image_CDHW, values)


def test_unused_bits_are_no_part_of_a_value(tmp_path: Path) -> None:
    def plant(_: int, header: DicomHeader) -> None:
        stored = np.frombuffer(header.PixelData, "<u2") | 0xF000
        header.BitsStored, header.HighBit, header.PixelRepresentation = 12, 11, 0
        header.PixelData = stored.tobytes()

    original = small_scan()
    scan = read_volume(write_series(tmp_path, original, edit=plant))
    assert np.array_equal(scan.image_CDHW, original.image_CDHW)


def test_the_sign_of_twelve_bits_is_kept(tmp_path: Path) -> None:
    def plant(_: int, header: DicomHeader) -> None:
        stored = np.frombuffer(header.PixelData, "<i2") & 0x0FFF
        header.BitsStored, header.HighBit = 12, 11
        header.PixelData = stored.tobytes()

    original = small_scan()
    values = original.image_CDHW - 700
    assert values.min() < 0
    scan = read_volume(write_series(tmp_path, Scan(values, OBLIQUE, "T1w"), edit=plant))
    assert np.array_equal(scan.image_CDHW, values)


def test_slices_stored_in_two_ways_make_one_scan(tmp_path: Path) -> None:
    def unsigned(index: int, header: DicomHeader) -> None:
        header.PixelRepresentation = index % 2

    original = small_scan()
    scan = read_volume(write_series(tmp_path, original, edit=unsigned))
    assert np.array_equal(scan.image_CDHW, original.image_CDHW)


def test_an_enhanced_file_reads_as_its_slices_do(tmp_path: Path) -> None:
    slices = write_series(tmp_path / "slices", small_scan(whole=False))
    classic = read_volume(slices)
    for order in ([0, 1, 2, 3, 4, 5], [4, 1, 5, 0, 2, 3]):
        path = write_enhanced(tmp_path / "enhanced", slices, order=order)
        enhanced = read_volume([path])
        assert np.array_equal(enhanced.image_CDHW, classic.image_CDHW)
        assert same_place(enhanced, classic)


def test_an_enhanced_frame_has_its_own_scale(tmp_path: Path) -> None:
    def scale(index: int, frame: DicomHeader) -> None:
        frame.PixelValueTransformationSequence[0].RescaleSlope = str(1 + index)

    slices = write_series(tmp_path / "slices")
    plain = read_volume(slices)
    scaled = read_volume([write_enhanced(tmp_path / "enhanced", slices, edit_frame=scale)])
    ratio = scaled.image_CDHW / plain.image_CDHW
    assert np.allclose(ratio, np.arange(1, 7))


def test_copies_are_read_once(tmp_path: Path) -> None:
    paths = write_series(tmp_path)
    copy = tmp_path / "copy"
    copy.write_bytes(paths[2].read_bytes())
    scan = read_volume([*paths, copy])
    assert scan.image_CDHW.shape == (1, 12, 10, 6)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda path: path.write_bytes(path.read_bytes() + b"\0\0"), "has changed"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "has changed"),
    ],
    ids=["longer", "shorter"],
)
def test_a_file_that_changed_since_its_header_was_read_is_refused(
    tmp_path: Path, spoil: object, told: str
) -> None:
    paths = write_series(tmp_path)
    (plan,) = group_series(facts_of(paths))
    assert read_volume(paths, plan).modality == "T1w"
    spoil(paths[3])  # type: ignore[operator]
    with pytest.raises(ScanError, match=told):
        read_volume(paths, plan)
    paths[3].unlink()
    with pytest.raises(FileNotFoundError, match=r"^\[Errno 2\] No such file or directory$"):
        read_volume(paths, plan)


def test_what_is_no_volume_is_refused_with_the_reason(tmp_path: Path) -> None:
    paths = write_series(tmp_path)
    with pytest.raises(ScanError, match="one slice is no volume"):
        read_volume(paths[:1])
    with pytest.raises(ScanError, match="slices are missing: 1 of 6"):
        read_volume([*paths[:3], *paths[4:]])
    with pytest.raises(ScanError, match="there is no file"):
        read_volume([])
    other = write_series(tmp_path / "other", series=2)
    with pytest.raises(ScanError, match="more than one volume"):
        read_volume([*paths, *other])


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    def scale(_: int, header: DicomHeader) -> None:
        header["RescaleSlope"].value = "1e300"

    with pytest.raises(ScanError, match="not finite"):
        read_volume(write_series(tmp_path, edit=scale))


def test_no_message_tells_anything_of_the_patient(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "Amendoeira")
    told = []
    for size in (0, 50, 140, 700, 1400, len(paths[0].read_bytes()) - 3):
        cut = tmp_path / "Amendoeira" / "VX-20417"
        cut.write_bytes(paths[0].read_bytes()[:size])
        with pytest.raises(ScanError) as caught:
            read_volume([cut])
        told.append(str(caught.value))
        assert caught.value.__cause__ is None
    text = " ".join(told)
    assert len(set(told)) >= 3
    assert not re.search(r"Amendoeira|VX-20417|2\.25\.|1957|2021|/", text)


def read_as_peer(folder: Path, out: Path) -> Scan:
    """Return the one volume that dcm2niix makes of a folder."""
    program = pytest.importorskip("dcm2niix").bin
    command = [program, "-z", "n", "-b", "n", "-f", "peer", "-o", str(out), str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return read_nifti(out / "peer.nii")


def test_the_real_slices_read_as_dcm2niix_reads_them(real_dicom: Path, tmp_path: Path) -> None:
    folder = real_dicom / "studyforrest_T1w"
    peer = read_as_peer(folder, tmp_path)
    scan = read_volume(sorted(folder.iterdir()))
    assert scan.image_CDHW.shape == (1, 274, 384, 16)
    assert same_place(scan, peer)
    assert np.array_equal(scan.image_CDHW, peer.image_CDHW)
    # Control: without the turn to RAS+ the first axis would grow to the left.
    assert nib.aff2axcodes(scan.affine) == ("R", "A", "S")


def test_real_echo_planar_slices_lie_where_dcm2niix_puts_them(
    real_dicom: Path, tmp_path: Path
) -> None:
    folder = real_dicom / "studyforrest_bold"
    peer = read_as_peer(folder, tmp_path)
    scan = read_volume(list(folder.iterdir()))
    assert scan.image_CDHW.shape == (1, 80, 80, 35)
    assert same_place(scan, peer)
    # That program applies a private scale of the maker, the same for all slices.
    assert np.corrcoef(scan.image_CDHW.ravel(), peer.image_CDHW.ravel())[0, 1] > 1 - 1e-9


def test_the_facts_of_the_real_files(real_dicom: Path) -> None:
    bold = facts_of(sorted((real_dicom / "studyforrest_bold").iterdir()))
    (plan,) = group_series(bold)
    assert (plan.kinds, plan.fault, len(plan.indices)) == (("volume", "picture"), "", 35)
    assert {facts.contrast for facts in bold} == {None}
    t1 = facts_of(sorted((real_dicom / "studyforrest_T1w").iterdir()))
    (plan,) = group_series(t1)
    assert (plan.kinds, plan.fault, len(plan.indices)) == (("volume", "picture"), "", 16)
    first = t1[0]
    assert (first.contrast, first.sex, first.age_years) == ("T1w", "F", 47.54)
    # Both together, as in one folder, are told apart.
    assert len(group_series([*bold, *t1])) == 2
    missing = group_series([*t1[:5], *t1[6:]])
    assert [plan.fault for plan in missing] == ["slices are missing: 1 of 16"]


def test_a_digest_of_pixels_is_that_of_the_image_alone(tmp_path: Path) -> None:
    paths = write_series(tmp_path)
    renamed = edit_file(
        paths[0], lambda header: setattr(header, "PatientID", "another"), to=tmp_path / "renamed"
    )
    one, same, other = (
        digest_pixels(path, read_instance(path, code=code)[0].stored)
        for path in (paths[0], renamed, paths[1])
    )
    assert one == same != other
