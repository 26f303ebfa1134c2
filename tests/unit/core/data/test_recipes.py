"""A recipe fits its study or is refused, tells what is missing, and moves no point of the body."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import ndimage

from tests.factories.heads import phantom_head
from vitrael.core.data.brain_mask import MASKED_BY_SITE, MASKED_HERE, STRIPPED
from vitrael.core.data.manifest import COVARIATE_BOUNDS
from vitrael.core.data.planar import Clip, Picture
from vitrael.core.data.preprocess import prepare_scan
from vitrael.core.data.recipes import (
    RECIPES,
    Prepared,
    RecipeInput,
    RecipeName,
    RecipeSettings,
    prepare,
    recipe_of_study,
    settings_for,
    to_world,
    write_back,
)
from vitrael.core.data.scan import Scan
from vitrael.core.errors import ConfigError, ScanError
from vitrael.core.geometry import spacing_mm
from vitrael.core.protocols import Data
from vitrael.core.rng import stream

MakeBrain = Callable[..., Scan]

LANDMARK_MM = np.array([14.0, 22.0, -9.0])
BRAIN_GRID = settings_for("brain-t1", grid_vox=(48, 60, 48), spacing_mm=4.0)
LESION_GRID = settings_for("brain-lesion", grid_vox=(48, 60, 48), spacing_mm=4.0)


def oblique(spacing: tuple[float, float, float], shape: tuple[int, int, int]) -> np.ndarray:
    cos, sin = np.cos(0.35), np.sin(0.35)
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    tilt = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ tilt @ np.diag(spacing)
    affine[:3, 3] = np.array([3.0, -5, 4]) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def world_of(affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    index = np.indices(shape).reshape(3, -1)
    return (affine[:3, :3] @ index + affine[:3, 3:]).reshape(3, *shape)


def upright(spacing: tuple[float, float, float], shape: tuple[int, int, int]) -> np.ndarray:
    affine = np.diag([-spacing[0], spacing[1], spacing[2], 1.0])
    affine[:3, 3] = np.array([3.0, -5, 4]) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def marked_brain(
    spacing: tuple[float, float, float], modality: str = "T1w", *, turned: bool = True
) -> Scan:
    """Return an ellipsoid of 1250 ml with a bright ball of 18 mm around the landmark."""
    x, y, z = (round(240 / size) for size in spacing)
    affine = (oblique if turned else upright)(spacing, (x, y, z))
    world = world_of(affine, (x, y, z))
    axes = np.array([62.0, 80, 60]).reshape(3, 1, 1, 1)
    image = 0.5 * (((world - np.reshape([3, -5, 4], (3, 1, 1, 1))) / axes) ** 2).sum(0).__lt__(1)
    image[((world - LANDMARK_MM.reshape(3, 1, 1, 1)) ** 2).sum(0) < 18**2] = 1
    return Scan(image[None].astype(np.float32), affine, modality)


def centre_of(bright: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return to_world(affine, ndimage.center_of_mass(bright))


def moving_clip(spacing: tuple[float, float] | None, *, frame_s: float = 1 / 30) -> Clip:
    """Return speckle in a disc of radius 60 px, and in it a bright disc at row 80, column 130."""
    rng = stream(5, "speckle")
    row, column = np.indices((200, 240))
    frames = rng.integers(20, 90, (24, 200, 240))
    frames *= (row - 100) ** 2 + (column - 120) ** 2 < 60**2
    frames[:, (row - 80) ** 2 + (column - 130) ** 2 < 8**2] = 250
    return Clip(frames.astype(np.uint8), frame_s, spacing, "US")


def marked_picture(spacing: tuple[float, float] | None) -> Picture:
    """Return a ramp from 0 to 100 with a bright disc at row 80, column 130."""
    row, column = np.indices((200, 340))
    image = column * (100 / 340)
    image[(row - 80) ** 2 + (column - 130) ** 2 < 12**2] = 400
    return Picture(image.astype(np.float32), spacing, "DX")


EXAMPLES: dict[RecipeName, tuple[RecipeInput, RecipeSettings]] = {
    "brain-t1": (RecipeInput({"T1w": marked_brain((3.2, 3.5, 4.0))}), BRAIN_GRID),
    "brain-lesion": (
        RecipeInput(
            {
                "T1w": marked_brain((3.2, 3.5, 4.0)),
                "T2w": marked_brain((3.4, 3.4, 5.0), "T2w"),
                "FLAIR": marked_brain((4.0, 3.2, 3.3), "FLAIR"),
            }
        ),
        LESION_GRID,
    ),
    "echo-apical": (RecipeInput({"image": moving_clip((0.5, 0.4))}), settings_for("echo-apical")),
    "xray-2d": (RecipeInput({"image": marked_picture((0.5, 0.4))}), settings_for("xray-2d")),
    "image-2d": (RecipeInput({"image": marked_picture(None)}), settings_for("image-2d")),
}


@pytest.fixture(scope="module")
def prepared() -> dict[RecipeName, Prepared]:
    return {name: prepare(*example) for name, example in EXAMPLES.items()}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_gives_what_it_promises(
    name: RecipeName, prepared: dict[RecipeName, Prepared]
) -> None:
    recipe, made, settings = RECIPES[name], prepared[name], EXAMPLES[name][1]
    assert recipe.settings.name == name
    assert set(recipe.covariates) <= set(COVARIATE_BOUNDS)
    assert set(made.measured) <= set(COVARIATE_BOUNDS)
    image = made.arrays["image"]
    assert image.shape[1:] == settings.grid_vox
    assert image.dtype == (np.uint8 if recipe.takes == "clip" else np.float32)
    if recipe.takes != "clip":
        assert (image.min(), image.max()) == (0, 1)
    for kind, mask in made.arrays.items():
        if kind != "image":
            assert mask.dtype == np.uint8
            assert mask.shape == (1, *settings.grid_vox)
            assert set(np.unique(mask)) <= {0, 1}
    assert made.affine.shape == (4, 4)
    assert not any(letter.isdigit() for note in made.notes for letter in note)


FROZEN: dict[str, tuple[str, tuple[float, float], tuple[float, float, float], float]] = {
    "brain-t1": ("ccf9fb08bad30689", (0.0717, 0.1755), (-91.0, -123.0, -90.0), 4.0),
    "brain-lesion": ("02cc1d296d12137b", (0.0714, 0.1752), (-91.0, -123.0, -90.0), 4.0),
    "echo-apical": ("49daf1fe780980ed", (36.9805, 35.1873), (18.5156, 20.5156, 0), 0.53125),
    "xray-2d": ("5002e73cc97101b8", (0.0953, 0.1029), (-0.0672, -18.1172, 0), 0.265625),
    "image-2d": ("d15b626a356f4fae", (0.0770, 0.0968), (2.15625, -67.84375, 0), 5.3125),
}
"""Of version 1: the digest of its settings; of its example: mean and deviation, origin, step."""


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_of_one_version_gives_what_it_always_gave(
    name: RecipeName, prepared: dict[RecipeName, Prepared]
) -> None:
    """Whoever must change these numbers must change the version: cohorts were made by it."""
    digest, spread, origin, step = FROZEN[name]
    assert RECIPES[name].settings.version == 1
    assert settings_for(name).digest.startswith(f"sha256:{digest}")
    made = prepared[name]
    image = made.arrays["image"].astype(float)
    assert (image.mean(), image.std()) == pytest.approx(spread, rel=2e-3)
    assert tuple(made.affine[:3, 3]) == pytest.approx(origin, abs=1e-3)
    assert made.affine[0, 0] == pytest.approx(step)


@pytest.mark.parametrize("name", ["brain-t1", "brain-lesion"])
def test_landmark_of_an_oblique_scan_keeps_its_place(
    name: RecipeName, prepared: dict[RecipeName, Prepared]
) -> None:
    made = prepared[name]
    for image_DHW in made.arrays["image"]:
        found_mm = centre_of(image_DHW > 0.75, made.affine)
        assert np.abs(found_mm - LANDMARK_MM).max() < 2.0  # half a voxel of the grid
    # Control: with the identity for an affine it would be elsewhere.
    assert np.abs(centre_of(made.arrays["image"][0] > 0.75, np.eye(4)) - LANDMARK_MM).max() > 10


def test_landmark_keeps_its_place_under_a_mask_of_another_grid() -> None:
    scan = marked_brain((3.2, 3.5, 4.0))
    own = np.diag([3.0, 3, 3, 1])
    own[:3, 3] = [-100, -110, -95]
    world = world_of(own, (68, 72, 68))
    offset = (world - np.reshape([3, -5, 4], (3, 1, 1, 1))) / np.reshape([64, 82, 62], (3, 1, 1, 1))
    mask = Scan(((offset**2).sum(0) < 1).astype(np.float32)[None], own, "mask")
    made = prepare(RecipeInput({"T1w": scan}, {"brain": mask}), BRAIN_GRID)
    assert made.notes == (MASKED_BY_SITE,)
    assert np.abs(centre_of(made.arrays["image"][0] > 0.75, made.affine) - LANDMARK_MM).max() < 2


@pytest.mark.parametrize("name", ["echo-apical", "xray-2d", "image-2d"])
@pytest.mark.parametrize("spacing", [(0.5, 0.4), (0.2, 0.3), None])
def test_landmark_of_a_plane_keeps_its_place(
    name: RecipeName, spacing: tuple[float, float] | None
) -> None:
    source = moving_clip(spacing) if name == "echo-apical" else marked_picture(spacing)
    made = prepare(RecipeInput({"image": source}), settings_for(name))
    assert made.unit == ("px" if spacing is None else "mm")
    image = made.arrays["image"].astype(float)
    bright = image.mean(axis=0) if name == "echo-apical" else image[0]
    row, column = ndimage.center_of_mass(bright > 0.7 * bright.max())
    row_mm, column_mm = spacing or (1.0, 1.0)
    step = made.affine[0, 0]
    assert made.affine[1, 1] == step  # pixels of the result are square
    found = to_world(made.affine, [column, row, 0])
    wanted = np.array([130 * column_mm, 80 * row_mm, 0])
    assert np.abs(found - wanted).max() < 0.5 * max(step, row_mm, column_mm)


def test_volume_is_written_back_to_its_place(prepared: dict[RecipeName, Prepared]) -> None:
    made = prepared["brain-t1"]
    scan = write_back(made.arrays["image"][0], made.affine, unit=made.unit)
    assert scan.image_CDHW.shape == (1, *BRAIN_GRID.grid_vox)
    assert spacing_mm(scan.affine) == (4, 4, 4)
    assert np.abs(centre_of(scan.image_CDHW[0] > 0.75, scan.affine) - LANDMARK_MM).max() < 2
    with pytest.raises(ScanError, match="a plane has no place"):
        write_back(prepared["image-2d"].arrays["image"], np.eye(4), unit="px")


def test_recipe_of_a_study_does_what_the_study_path_does(data: Data, make_brain: MakeBrain) -> None:
    settings = recipe_of_study(data)
    assert (settings.grid_vox, settings.spacing_mm) == (data.grid_vox, data.spacing_mm)
    scan = make_brain(noise=0.01)
    made = prepare(RecipeInput({"T1w": scan}), settings)
    ready = prepare_scan(scan, data)
    assert np.array_equal(made.arrays["image"], ready.image_CDHW)
    assert np.array_equal(made.affine, ready.affine)
    assert made.notes == (STRIPPED,)
    assert made.measured["brain_ml"] == pytest.approx(1250, rel=0.05)
    assert made.measured["ventricle_ml"] == pytest.approx(30, rel=0.5)


@pytest.mark.parametrize("name", ["brain-t1", "brain-lesion"])
@pytest.mark.parametrize("turned", [False, True])
def test_share_of_the_brain_outside_the_grid_is_told(name: RecipeName, *, turned: bool) -> None:
    scan = marked_brain((3.0, 3.2, 1.5), turned=turned)
    images = {each: Scan(scan.image_CDHW, scan.affine, each) for each in ("T1w", "T2w", "FLAIR")}
    given = RecipeInput({each: images[each] for each in RECIPES[name].images})
    whole = prepare(given, settings_for(name, grid_vox=(34, 42, 32), spacing_mm=4.0))
    assert whole.cut_frac < 0.001
    cut = prepare(given, settings_for(name, grid_vox=(34, 42, 15), spacing_mm=4.0))
    assert cut.cut_frac == pytest.approx(1 - (1.5 - 0.5 * 0.5**2) * 0.5, abs=0.03)


def test_head_leaves_no_face_in_any_contrast() -> None:
    head = phantom_head(1)
    flair = Scan(head.scan.image_CDHW * np.float32(3), head.scan.affine, "FLAIR")
    t2 = Scan(np.sqrt(head.scan.image_CDHW), head.scan.affine, "T2w")
    given = RecipeInput({"T1w": head.scan, "T2w": t2, "FLAIR": flair})
    made = prepare(given, LESION_GRID)
    assert made.notes == (MASKED_HERE,)
    shown_ml = (made.arrays["image"] > 0.1).sum(axis=(1, 2, 3)) * 4.0**3 / 1000
    brain_ml = head.brain_DHW.sum() * 27 / 1000
    assert (shown_ml < 1.1 * brain_ml).all()
    assert (shown_ml > 0.7 * brain_ml).all()


def test_lesion_mask_lies_on_the_image_and_is_measured() -> None:
    given, settings = EXAMPLES["brain-lesion"]
    ball = marked_brain((2.5, 2.5, 2.5), "lesion")
    lesion = Scan((ball.image_CDHW == 1).astype(np.float32), ball.affine, "lesion")
    made = prepare(RecipeInput(given.images, {"lesion": lesion}), settings)
    mask_DHW = made.arrays["lesion"][0]
    assert np.abs(centre_of(mask_DHW, made.affine) - LANDMARK_MM).max() < 2
    assert made.measured["lesion_ml"] == pytest.approx(4 / 3 * np.pi * 1.8**3, rel=0.1)
    assert "lesion_ml" not in prepare(given, settings).measured
    assert "lesion_ml" in RECIPES["brain-lesion"].covariates, "a visit without a mask must be told"


def test_patient_without_a_lesion_has_an_empty_mask() -> None:
    given, settings = EXAMPLES["brain-lesion"]
    made = prepare(RecipeInput(given.images, unmarked=frozenset({"lesion"})), settings)
    assert made.measured["lesion_ml"] == 0
    assert made.arrays["lesion"].shape == made.arrays["image"][:1].shape
    assert not made.arrays["lesion"].any()


@pytest.mark.parametrize("missing", ["T1w", "T2w", "FLAIR"])
def test_missing_contrast_is_named(missing: str) -> None:
    given, settings = EXAMPLES["brain-lesion"]
    images = {name: scan for name, scan in given.images.items() if name != missing}
    with pytest.raises(ScanError, match=f"the visit has no {missing} image"):
        prepare(RecipeInput(images), settings)


def test_contrast_of_another_place_is_refused() -> None:
    given, settings = EXAMPLES["brain-lesion"]
    flair = given.images["FLAIR"]
    assert isinstance(flair, Scan)
    affine = flair.affine.copy()
    affine[1, 3] += 60
    moved = Scan(flair.image_CDHW, affine, "FLAIR")
    with pytest.raises(ScanError, match="the FLAIR does not lie over"):
        prepare(RecipeInput({**given.images, "FLAIR": moved}), settings)


@pytest.mark.parametrize("name", RECIPES)
def test_image_of_another_kind_and_empty_visit_are_refused(name: RecipeName) -> None:
    wrong = marked_picture(None) if RECIPES[name].takes != "picture" else moving_clip(None)
    with pytest.raises(ScanError, match="the image is not a"):
        prepare(RecipeInput(dict.fromkeys(RECIPES[name].images, wrong)), settings_for(name))
    with pytest.raises(ScanError, match="the visit has no"):
        prepare(RecipeInput({}), settings_for(name))


def test_only_image_of_a_recipe_may_be_called_image() -> None:
    given, settings = EXAMPLES["brain-t1"]
    made = prepare(RecipeInput({"image": given.images["T1w"]}), settings)
    assert np.array_equal(made.arrays["image"], prepare(given, settings).arrays["image"])


@pytest.mark.parametrize("name", RECIPES)
def test_equal_input_and_settings_give_equal_arrays(
    name: RecipeName, prepared: dict[RecipeName, Prepared]
) -> None:
    again = prepare(*EXAMPLES[name])
    for kind, array in prepared[name].arrays.items():
        assert np.array_equal(array, again.arrays[kind])


def test_equal_settings_have_one_digest_and_others_another() -> None:
    usual = settings_for("brain-t1")
    assert usual == RECIPES["brain-t1"].settings
    assert usual.digest == settings_for("brain-t1", grid_vox=(160, 224, 160)).digest
    assert usual.digest != settings_for("brain-t1", spacing_mm=2.0).digest
    assert RecipeSettings.model_validate_json(usual.model_dump_json()) == usual


@pytest.mark.parametrize(
    ("name", "grid_vox", "spacing", "told"),
    [
        ("brain-t1", (64, 64), None, "2 axes, and 3 are needed"),
        ("echo-apical", (112, 112, 112), None, "3 axes, and 2 are needed"),
        ("xray-2d", (512, 256), None, "padded to a square"),
        ("image-2d", (4, 4), None, "less than 8"),
        ("brain-t1", (1024, 1024, 1024), None, "more than"),
        ("image-2d", None, 1.0, "takes no spacing"),
        ("brain-t1", None, 0.0, "0.1 to 20 mm"),
        ("brain-t1", None, float("nan"), "0.1 to 20 mm"),
        ("brain-t3", None, None, "the recipe is unknown"),
    ],
)
def test_choice_that_does_not_fit_is_refused(
    name: RecipeName, grid_vox: tuple[int, ...] | None, spacing: float | None, told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        settings_for(name, grid_vox=grid_vox, spacing_mm=spacing)


def test_other_version_of_a_recipe_is_refused() -> None:
    given, settings = EXAMPLES["image-2d"]
    with pytest.raises(ConfigError, match="another version"):
        prepare(given, settings.model_copy(update={"version": 2}))


def test_recipes_cannot_be_changed_from_outside() -> None:
    with pytest.raises(TypeError):
        RECIPES["brain-t1"] = RECIPES["image-2d"]  # type: ignore[index]
    with pytest.raises(ValueError, match="frozen"):
        RECIPES["brain-t1"].settings.version = 2  # type: ignore[misc]
