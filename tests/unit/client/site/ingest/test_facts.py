"""What a worker measures on an item, and the fingerprint and thumbnail that it leaves."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from tests.factories.entries import (
    clip_entry,
    draw_head,
    draw_plane,
    head_entry,
    picture_entry,
    prepare_clip,
    prepare_picture,
    prepare_volume,
    volume,
)
from vitrael.client.site.ingest import prepare
from vitrael.client.site.ingest.facts import (
    FINGERPRINT_SHAPE,
    MIRRORED_AXIS,
    ItemFacts,
    fingerprint_of,
    measure_facts,
    read_fingerprint,
)
from vitrael.client.site.ingest.montage import EDGE_PX, thumbnail
from vitrael.client.site.ingest.prepare import PrepareJob
from vitrael.core.data.planar import Picture
from vitrael.core.data.recipes import Prepared, RecipeInput, settings_for
from vitrael.core.data.scan import Scan
from vitrael.core.rng import stream


def frames(patient: int, count: int = 9) -> np.ndarray:
    still = draw_plane(patient)
    wave = np.sin(np.arange(count))[:, None, None]
    return np.round(255 * np.clip(still + 0.1 * wave, 0, 1)).astype(np.uint8)


def likeness(one: ItemFacts, two: ItemFacts) -> float:
    return float(read_fingerprint(one) @ read_fingerprint(two))


def test_facts_of_a_volume_are_those_of_its_source() -> None:
    facts = head_entry(0, scan=volume(draw_head(0), spacing_mm=(1.0, 0.5, 3.0))).facts
    assert (facts.kind, facts.shape, facts.spacing_mm) == ("volume", (24, 24, 24), (1.0, 0.5, 3.0))
    assert (facts.orientation, facts.plane, facts.slices) == ("RAS", "axial", 24)
    assert facts.extent_mm == (24, 12, 72)
    assert facts.frames == 1
    assert facts.frame_s is None


def test_share_of_the_brain_that_the_recipe_lost_is_kept() -> None:
    given, whole = RecipeInput({"T1w": volume(draw_head(0))}), prepare_volume(draw_head(0))
    assert measure_facts(given, whole).cut_frac == 0
    cut = Prepared(whole.arrays, whole.affine, "mm", cut_frac=0.41237)
    assert measure_facts(given, cut).cut_frac == 0.4124


def test_orientation_is_read_from_the_affine() -> None:
    affine = np.array([[0, 0, 3.0, 0], [-1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1]])
    facts = head_entry(0, scan=Scan(draw_head(0)[None], affine, "T1w")).facts
    assert (facts.orientation, facts.plane) == ("PSR", "sagittal")
    assert head_entry(0).facts.plane == "isotropic"


def test_orientation_is_that_of_the_file_and_not_of_the_image_that_was_read(
    tmp_path: Path,
) -> None:
    plain = volume(draw_head(0), spacing_mm=(1.0, 1.0, 3.0))
    turned = Scan(plain.image_CDHW[:, ::-1, ::-1], plain.affine @ np.diag([-1, -1, 1, 1.0]), "T1w")
    for scan, orientation in ((plain, "RAS"), (turned, "LPS")):
        path = tmp_path / f"{orientation}.nii.gz"
        image = nib.Nifti1Image(scan.image_CDHW[0], scan.affine)
        nib.save(image, path)
        job = PrepareJob(
            source="s",
            kind="nifti",
            images={"T1w": (path,)},
            masks={},
            settings=settings_for("image-2d"),
            shards=tmp_path,
        )
        assert prepare._read_orientation(job) == orientation
        given = prepare.read_input(job, Counter())
        facts = measure_facts(
            given, prepare_volume(draw_head(0)), orientation=prepare._read_orientation(job)
        )
        assert (facts.orientation, facts.plane) == (orientation, "axial")


def test_facts_of_a_clip_and_of_a_picture() -> None:
    clip, picture = clip_entry(0, frames(0)).facts, picture_entry(0).facts
    assert (clip.kind, clip.shape, clip.frames, clip.frame_s) == ("clip", (9, 128, 128), 9, 0.04)
    assert clip.spacing_mm == (0.5, 0.5)
    assert clip.extent_mm == (64, 64)
    assert (picture.kind, picture.shape, picture.frames) == ("picture", (128, 128), 1)
    assert picture.spacing_mm is None
    assert picture.slices is None


def test_percentiles_and_foreground_are_those_of_source_and_prepared_image() -> None:
    image = np.zeros((24, 24, 24), dtype=np.float32)
    image[:6] = 1.0
    facts = head_entry(0, image).facts
    assert facts.percentiles == (0, 0, 1)
    assert facts.source_percentiles == (1, 1, 901)
    assert facts.foreground_frac == 0.25


def test_padding_of_a_picture_is_no_dark_part_of_it() -> None:
    bright = stream(0, "grain").random((128, 64), dtype=np.float32)
    wide, square = (Picture(each, None, "DX") for each in (bright, np.tile(bright, 2)))
    padded = np.zeros((32, 32), np.float32)
    padded[:, 8:24] = 0.5
    for source, image, share in ((wide, padded, 1.0), (square, padded, 0.5)):
        prepared = Prepared({"image": image[None]}, np.eye(4), "px")
        facts = measure_facts(RecipeInput({"image": source}), prepared)
        assert facts.foreground_frac == share


def test_facts_survive_json() -> None:
    for facts in (head_entry(0).facts, picture_entry(0).facts, clip_entry(0, frames(0)).facts):
        text = json.dumps(facts.model_dump(mode="json"))
        assert ItemFacts.model_validate_json(text) == facts
        assert ItemFacts.model_validate(json.loads(text)) == facts


def test_facts_show_nothing_of_a_patient_in_text() -> None:
    facts = head_entry(0).facts
    assert repr(facts) == str(facts) == "ItemFacts(volume)"


@pytest.mark.parametrize("kind", ["volume", "clip", "picture"])
def test_fingerprint_has_the_size_of_its_kind(kind: str) -> None:
    facts = {
        "volume": head_entry(0).facts,
        "clip": clip_entry(0, frames(0)).facts,
        "picture": picture_entry(0).facts,
    }[kind]
    vector = read_fingerprint(facts)
    assert vector.size == np.prod(FINGERPRINT_SHAPE[facts.kind])
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
    assert len(facts.fingerprint) < 2000


def test_fingerprint_forgets_gain_offset_noise_and_where_a_volume_lies() -> None:
    image = draw_head(0)
    noise = stream(0, "more").normal(0, 0.01, image.shape).astype(np.float32)
    own = head_entry(0).facts
    for changed in (0.5 * image, image + noise, np.roll(image, 1, axis=2), 0.4 * image + 0.05):
        assert likeness(own, head_entry(0, changed).facts) > 0.999
    assert likeness(own, head_entry(1).facts) < 0.995


def test_fingerprint_of_a_mirrored_image_is_mirrored() -> None:
    for facts, mirrored in (
        (head_entry(0).facts, head_entry(0, np.flip(draw_head(0), 0)).facts),
        (picture_entry(0).facts, picture_entry(0, np.flip(draw_plane(0), 1)).facts),
        (clip_entry(0, frames(0)).facts, clip_entry(0, np.flip(frames(0), 2)).facts),
    ):
        grid = read_fingerprint(mirrored).reshape(FINGERPRINT_SHAPE[facts.kind])
        turned = np.flip(grid, MIRRORED_AXIS[facts.kind]).ravel()
        assert float(read_fingerprint(facts) @ turned) > 0.9999
        assert likeness(facts, mirrored) < 0.999


def test_fingerprint_is_the_area_average() -> None:
    image = stream(0, "area").random((12, 36), dtype=np.float32)
    averages = image.reshape(12, 1, 12, 3).mean(axis=(1, 3))
    wanted = averages - averages.mean()
    wanted /= np.linalg.norm(wanted)
    facts = picture_entry(0).facts.model_copy(
        update={"fingerprint": fingerprint_of(image, "picture")}
    )
    assert read_fingerprint(facts) == pytest.approx(wanted.ravel(), abs=1e-4)


def test_constant_image_has_a_fingerprint_of_zeros() -> None:
    facts = picture_entry(0).facts.model_copy(
        update={"fingerprint": fingerprint_of(np.full((32, 32), 0.5, np.float32), "picture")}
    )
    assert not read_fingerprint(facts).any()


def open_png(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    assert image.format == "PNG"
    assert not image.info
    return image


def test_thumbnail_of_a_volume_shows_three_planes_for_each_contrast() -> None:
    image = draw_head(0)[None]
    for count in (1, 2):
        contrasts = np.concatenate([image] * count)
        picture = open_png(thumbnail(Prepared({"image": contrasts}, np.eye(4), "mm")))
        assert picture.size == (3 * EDGE_PX + 4, count * EDGE_PX + 2 * (count - 1))
        assert picture.mode == "L"


def test_left_of_the_patient_is_on_the_left_of_the_thumbnail() -> None:
    image = np.zeros((24, 24, 24), dtype=np.float32)
    image[:8] = 1  # x runs to the patient's right
    pixels = np.asarray(open_png(thumbnail(prepare_volume(image))))
    axial, sagittal = pixels[:, :EDGE_PX], pixels[:, -EDGE_PX:]
    assert axial[:, :30].min() > 200
    assert axial[:, 40:].max() < 50
    assert sagittal.max() == 0
    image = np.zeros((24, 24, 24), dtype=np.float32)
    image[:, :, 16:] = 1  # z runs to the top
    pixels = np.asarray(open_png(thumbnail(prepare_volume(image))))
    assert pixels[:30, -EDGE_PX:].min() > 200


def test_thumbnail_of_a_clip_shows_its_first_and_its_middle_frame() -> None:
    clip = np.zeros((6, 40, 20), dtype=np.uint8)
    clip[0], clip[3] = 50, 200
    pixels = np.asarray(open_png(thumbnail(prepare_clip(clip))))
    assert pixels.shape == (EDGE_PX, 2 * EDGE_PX + 2)
    assert pixels[48, 48] == 50
    assert pixels[48, EDGE_PX + 2 + 48] == 200
    assert pixels[48, 5] == 0  # not stretched


def test_thumbnail_of_a_picture_is_the_picture() -> None:
    pixels = np.asarray(open_png(thumbnail(prepare_picture(draw_plane(0)))))
    assert pixels.shape == (EDGE_PX, EDGE_PX)
    assert pixels[:20].mean() > pixels[-20:].mean()
