"""NIfTI files keep geometry and values; every bad file is refused in one sentence."""

from __future__ import annotations

import gzip
from contextlib import suppress
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nibabel import orientations
from nibabel.spatialimages import HeaderDataError

from vitrael.core.data.nifti import read_mask, read_nifti, write_nifti
from vitrael.core.data.scan import Scan
from vitrael.core.errors import ScanError
from vitrael.core.geometry import spacing_mm

SHAPE = (5, 6, 7)
SCANNER = np.array(
    [[-1.9, 0.3, 0.1, 40.0], [0.3, 2.1, 0.4, -50.0], [0.1, -0.4, 2.9, 20.0], [0, 0, 0, 1.0]]
)
"""Oblique, first axis to the left."""


def voxels() -> np.ndarray:
    return np.arange(210, dtype=np.float32).reshape(SHAPE)


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = SCANNER) -> Path:
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def bright_spot_mm(scan: Scan) -> np.ndarray:
    index = np.unravel_index(scan.image_CDHW[0].argmax(), scan.image_CDHW.shape[1:])
    return np.asarray(scan.affine @ [*index, 1])[:3]


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_world_coordinates_survive_the_turn_to_ras(tmp_path: Path, name: str) -> None:
    array = np.zeros(SHAPE, dtype=np.float32)
    array[1, 4, 2] = 9
    scan = read_nifti(save(tmp_path / name, array))
    assert nib.aff2axcodes(scan.affine) == ("R", "A", "S")
    assert np.allclose(bright_spot_mm(scan), (SCANNER @ [1, 4, 2, 1])[:3], atol=1e-3)
    # Control: the same voxels under the file's own affine would lie elsewhere.
    index = np.unravel_index(scan.image_CDHW[0].argmax(), SHAPE)
    assert not np.allclose((SCANNER @ [*index, 1])[:3], bright_spot_mm(scan), atol=1)


@given(st.permutations([0, 1, 2]), st.tuples(*[st.sampled_from([-1, 1])] * 3), st.integers(0, 209))
def test_any_orientation_reads_as_the_same_ras_scan(
    tmp_path_factory: pytest.TempPathFactory,
    order: list[int],
    flips: tuple[int, int, int],
    spot: int,
) -> None:
    turn = np.array(list(zip(order, flips, strict=True)), dtype=float)
    array = np.zeros(SHAPE, dtype=np.float32)
    array.flat[spot] = 1
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    affine[:3, 3] = [-10, 5, 20]
    turned = orientations.apply_orientation(array, turn)
    turned_affine = affine @ orientations.inv_ornt_aff(turn, SHAPE)
    path = tmp_path_factory.mktemp("turn") / "scan.nii"
    scan = read_nifti(save(path, turned, turned_affine))
    assert np.array_equal(scan.image_CDHW[0], array)
    assert np.allclose(scan.affine, affine, atol=1e-4)


def test_round_trip_keeps_values_and_geometry(tmp_path: Path) -> None:
    first = read_nifti(save(tmp_path / "a.nii", voxels()))
    write_nifti(first, tmp_path / "b.nii.gz")
    second = read_nifti(tmp_path / "b.nii.gz")
    assert np.array_equal(first.image_CDHW, second.image_CDHW)
    assert np.allclose(first.affine, second.affine, atol=1e-5)
    header = nib.Nifti1Image.from_filename(tmp_path / "b.nii.gz").header
    assert (int(header["qform_code"]), int(header["sform_code"])) == (1, 1)


def test_equal_scans_give_equal_bytes_without_a_time_or_name(tmp_path: Path) -> None:
    scan = read_nifti(save(tmp_path / "a.nii", voxels()))
    write_nifti(scan, tmp_path / "one.nii.gz")
    write_nifti(scan, tmp_path / "two.nii.gz")
    data = (tmp_path / "one.nii.gz").read_bytes()
    assert data == (tmp_path / "two.nii.gz").read_bytes()
    assert data[4:8] == b"\0\0\0\0"
    assert b"one" not in data[:32]


def test_int16_loses_at_most_half_a_step(tmp_path: Path) -> None:
    scan = Scan(np.linspace(-3, 70, 210, dtype=np.float32).reshape(1, *SHAPE), SCANNER, "T1w")
    write_nifti(scan, tmp_path / "small.nii", dtype="int16")
    stored = nib.Nifti1Image.from_filename(tmp_path / "small.nii")
    assert stored.get_data_dtype() == np.int16
    back = stored.get_fdata(dtype=np.float32)
    assert np.abs(back - scan.image_CDHW[0]).max() <= 73 / 65535
    assert not np.array_equal(back, np.round(back))  # control: slope and intercept are at work


def test_stored_slope_and_intercept_are_applied(tmp_path: Path) -> None:
    image = nib.Nifti1Image(voxels().astype(np.int16), np.diag([2.0, 2, 2, 1]))
    image.header.set_slope_inter(0.5, 10)
    image.to_filename(tmp_path / "scaled.nii")
    raw = bytearray((tmp_path / "scaled.nii").read_bytes())
    raw[112:120] = np.array([0.5, 10], dtype="<f4").tobytes()
    raw[352:] = voxels().astype("<i2").tobytes(order="F")
    (tmp_path / "scaled.nii").write_bytes(bytes(raw))
    scan = read_nifti(tmp_path / "scaled.nii")
    assert np.allclose(scan.image_CDHW[0], voxels() * 0.5 + 10)


@pytest.mark.parametrize(("unit", "per_mm"), [("meter", 0.001), ("micron", 1000.0)])
@pytest.mark.parametrize("spacing", [0.9, 2.0])
def test_other_units_are_read_as_millimeters(
    tmp_path: Path, unit: str, per_mm: float, spacing: float
) -> None:
    size = spacing * per_mm
    image = nib.Nifti1Image(voxels(), np.diag([size, size, size, 1]))
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "scan.nii")
    assert np.allclose(spacing_mm(read_nifti(tmp_path / "scan.nii").affine), spacing)


def refusal(path: Path) -> str:
    with pytest.raises(ScanError) as caught:
        read_nifti(path, label="scan 3 of 9")
    sentence = str(caught.value)
    assert sentence.startswith("scan 3 of 9 cannot be used")
    assert path.name not in sentence
    assert str(path.parent) not in sentence
    assert caught.value.__cause__ is None
    return sentence


def test_file_without_affine_is_refused(tmp_path: Path) -> None:
    image = nib.Nifti1Image(voxels(), None)
    image.header["pixdim"][1:4] = 2
    nib.save(image, tmp_path / "scan.nii")
    assert "no affine" in refusal(tmp_path / "scan.nii")


def test_scan_with_nan_is_refused(tmp_path: Path) -> None:
    array = voxels()
    array[2, 2, 2] = np.nan
    assert "not finite" in refusal(save(tmp_path / "scan.nii.gz", array))


def test_constant_scan_is_refused(tmp_path: Path) -> None:
    array = np.full(SHAPE, 7, dtype=np.float32)
    assert "constant" in refusal(save(tmp_path / "scan.nii", array))


@pytest.mark.parametrize(
    ("shape", "told"),
    [((5, 6, 7, 3), "4 axes"), ((5, 6), "2 axes"), ((5, 6, 1), "not a volume")],
)
def test_scan_of_another_shape_is_refused(
    tmp_path: Path, shape: tuple[int, ...], told: str
) -> None:
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    assert told in refusal(save(tmp_path / "scan.nii", array))


def test_fourth_axis_of_length_one_is_no_axis(tmp_path: Path) -> None:
    assert read_nifti(save(tmp_path / "a.nii", voxels()[..., None])).image_CDHW.shape == (1, *SHAPE)


def test_color_scan_is_refused(tmp_path: Path) -> None:
    array = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert "not real numbers" in refusal(save(tmp_path / "scan.nii", array))


def test_singular_affine_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "scan.nii", voxels())
    raw = bytearray(path.read_bytes())
    raw[252:256] = np.array([0, 1], dtype="<i2").tobytes()
    raw[280:328] = np.array([1, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0], dtype="<f4").tobytes()
    path.write_bytes(bytes(raw))
    assert "singular" in refusal(path)


@pytest.mark.parametrize("spacing", [1e-3, 400.0])
def test_absurd_voxel_size_is_refused(tmp_path: Path, spacing: float) -> None:
    path = save(tmp_path / "scan.nii", voxels(), np.diag([spacing, spacing, spacing, 1]))
    assert "absurd voxel size" in refusal(path)


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize("keep_frac", [0.02, 0.3, 0.9])
def test_truncated_file_is_refused(tmp_path: Path, name: str, keep_frac: float) -> None:
    path = save(tmp_path / name, np.sin(voxels()))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep_frac)])
    assert "file" in refusal(path)


def test_empty_and_foreign_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.nii.gz").touch()
    assert "empty" in refusal(tmp_path / "empty.nii.gz")
    for name in ("text.nii", "text.nii.gz"):
        (tmp_path / name).write_text("no image at all\n" * 100)
        assert "NIfTI" in refusal(tmp_path / name)


@pytest.mark.parametrize("side", [500, 20_000])
def test_absurd_header_size_is_refused_before_memory_is_taken(tmp_path: Path, side: int) -> None:
    raw = bytearray(save(tmp_path / "scan.nii", voxels()).read_bytes())
    raw[40:56] = np.array([3, side, side, side, 1, 1, 1, 1], dtype="<i2").tobytes()
    path = tmp_path / "huge.nii.gz"
    path.write_bytes(gzip.compress(bytes(raw)))
    assert "absurd image size" in refusal(path) or "cut short" in refusal(path)


def test_content_and_not_the_name_tells_whether_a_file_is_packed(tmp_path: Path) -> None:
    plain = save(tmp_path / "a.nii", np.sin(voxels())).read_bytes()
    packed = save(tmp_path / "a.nii.gz", np.sin(voxels())).read_bytes()
    for name, data in (("b.NII.GZ", packed), ("c.nii", packed), ("d.nii.gz", plain)):
        (tmp_path / name).write_bytes(data)
        scan = read_nifti(tmp_path / name)
        assert np.array_equal(scan.image_CDHW, read_nifti(tmp_path / "a.nii").image_CDHW)


def test_packed_voxels_with_a_wrong_check_sum_are_refused(tmp_path: Path) -> None:
    plain = save(tmp_path / "scan.nii", voxels()).read_bytes()
    packed = bytearray(gzip.compress(plain, compresslevel=0))  # its bytes stand there as they are
    place = packed.find(plain[360:480]) + 6
    packed[place] ^= 0x40
    (tmp_path / "scan.nii.gz").write_bytes(bytes(packed))
    assert "cut short or damaged" in refusal(tmp_path / "scan.nii.gz")
    assert len(gzip.GzipFile(tmp_path / "scan.nii.gz").read(len(plain))) == len(plain)  # control


def test_far_more_than_the_header_tells_is_refused(tmp_path: Path) -> None:
    plain = save(tmp_path / "scan.nii", voxels()).read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(plain + bytes(1 << 25)))
    assert "cut short or damaged" in refusal(tmp_path / "a.nii.gz")
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(plain + bytes(1 << 10)))
    assert np.array_equal(
        read_nifti(tmp_path / "b.nii.gz").image_CDHW, read_nifti(tmp_path / "scan.nii").image_CDHW
    )


@pytest.mark.parametrize("mirrored", [0, 1, 2])
def test_forms_that_mirror_each_other_are_refused(tmp_path: Path, mirrored: int) -> None:
    path = tmp_path / "scan.nii"
    image = nib.Nifti1Image(voxels(), SCANNER)
    flip = np.eye(4)
    flip[mirrored, mirrored] = -1
    for form, code, told in (
        (SCANNER @ flip, 1, "left and right are not clear"),
        (SCANNER @ flip, 0, ""),  # control: it does not count
        (np.diag([1.0, 1, 1, 1]) @ SCANNER, 2, ""),
    ):
        image.set_sform(SCANNER, 1)
        image.set_qform(form, code, strip_shears=True)
        nib.save(image, path)
        if told:
            assert told in refusal(path)
        else:
            assert nib.aff2axcodes(read_nifti(path).affine) == ("R", "A", "S")


@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("dtype", ["int8", "uint16", "int64", "float64"])
def test_every_byte_order_version_and_type_reads_alike(
    tmp_path: Path, endian: str, kind: type[nib.Nifti1Image], dtype: str
) -> None:
    array = (voxels() / 2).astype(dtype)
    header = kind.header_class(endianness=endian)
    nib.save(kind(array, SCANNER, header, dtype=dtype), tmp_path / "scan.nii.gz")
    stored = nib.load(tmp_path / "scan.nii.gz")
    assert isinstance(stored, kind)
    assert stored.header.endianness == endian
    expected = save(tmp_path / "same.nii", array.astype(np.float32))
    scan = read_nifti(tmp_path / "scan.nii.gz")
    assert np.array_equal(scan.image_CDHW, read_nifti(expected).image_CDHW)


def test_damaged_header_is_not_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = save(tmp_path / "scan.nii", voxels()).read_bytes()
    for place, value in (
        (40, b"\x09\0"),
        (70, b"\xd2\x04"),
        (76, bytes(16)),
        (108, b"\0\0\xc8\xc3"),
    ):
        path = tmp_path / "damaged.nii"
        path.write_bytes(whole[:place] + value + whole[place + len(value) :])
        with suppress(ScanError):
            read_nifti(path)
    assert not caplog.records
    with suppress(HeaderDataError):
        nib.load(path)
    assert caplog.records  # control: the library does tell


@pytest.mark.parametrize("value", [3.0, np.inf])
def test_rotation_that_is_none_is_refused_unless_another_form_counts(
    tmp_path: Path, value: float
) -> None:
    image = nib.Nifti1Image(voxels(), np.diag([2.0, 2, 2, 1]))
    image.set_qform(image.affine, 1)
    for code, told in ((0, "no rotation"), (1, "")):
        image.set_sform(image.affine, code)
        raw = bytearray(image.to_bytes())
        raw[256:260] = np.array([value], "<f4").tobytes()
        (tmp_path / "scan.nii").write_bytes(bytes(raw))
        if told:
            assert told in refusal(tmp_path / "scan.nii")
        else:
            assert read_nifti(tmp_path / "scan.nii").image_CDHW.shape == (1, *SHAPE)


@given(st.integers(0, 351), st.integers(0, 255))
def test_no_damaged_header_gets_past_as_another_error(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int
) -> None:
    path = save(tmp_path_factory.mktemp("fuzz") / "scan.nii", voxels())
    raw = bytearray(path.read_bytes())
    raw[place] = value
    path.write_bytes(bytes(raw))
    try:
        scan = read_nifti(path)
    except ScanError:
        return
    assert np.isfinite(scan.image_CDHW).all()


def test_scan_of_two_channels_is_not_written(tmp_path: Path) -> None:
    scan = Scan(np.stack([voxels(), voxels()]), SCANNER, "T1w")
    with pytest.raises(ScanError, match="2 channels"):
        write_nifti(scan, tmp_path / "two.nii")
    assert not list(tmp_path.iterdir())


def test_mask_that_marks_nothing_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    path = tmp_path / "mask.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 8), np.uint8), np.eye(4)), path)
    assert read_mask(path) is None
    with pytest.raises(ScanError, match="constant"):
        read_nifti(path)
    nib.save(nib.Nifti1Image(np.full((8, 8, 8), np.nan, np.float32), np.eye(4)), path)
    with pytest.raises(ScanError, match="the mask cannot be used"):
        read_mask(path)
    marked = np.zeros((8, 8, 8), np.uint8)
    marked[2, 3, 4] = 1
    nib.save(nib.Nifti1Image(marked, np.eye(4)), path)
    mask = read_mask(path)
    assert mask is not None
    assert mask.image_CDHW.sum() == 1
