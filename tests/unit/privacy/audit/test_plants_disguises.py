"""Each disguise of a volume is what its clause says, on phantom brains."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.unit.privacy.audit.test_plants import GRID, SmoothEmbedder, cohort
from vitrael.core.errors import DataError
from vitrael.core.records import PatientImages
from vitrael.core.rng import stream
from vitrael.privacy.audit.plants import (
    VOLUME_PLANTS,
    Means,
    Sources,
    draw_sources,
    make_plants,
)
from vitrael.privacy.audit.plants.adversarial import EPS, lead_away

_DARK = 0.05


@pytest.fixture(scope="module")
def sources() -> Sources:
    strangers = cohort(5, first=50)
    return draw_sources(cohort(5), 5, rng=stream(1, "sources"), strangers=strangers)


@pytest.fixture(scope="module")
def plants(sources: Sources) -> dict[str, np.ndarray]:
    means = Means(renoise=lambda image, share: (1 - share) * image + share * image.mean())
    return make_plants(VOLUME_PLANTS, sources, means, rng=stream(2, "plants"))


def _rms(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.sqrt(np.square(first - second).mean()))


@pytest.mark.parametrize("percent", [1, 2, 5, 10])
def test_noise_has_its_standard_deviation(
    plants: dict[str, np.ndarray], sources: Sources, percent: int
) -> None:
    inside = (sources.image_PCDHW > 0.4) & (sources.image_PCDHW < 0.6)
    rest = (plants[f"noise_{percent}"] - sources.image_PCDHW)[inside]
    assert rest.std() == pytest.approx(percent / 100, rel=0.1)


def test_mirrors_quarter_turns_and_axes_only_move_voxels(
    plants: dict[str, np.ndarray],
) -> None:
    cubes = draw_sources(
        PatientImages(
            stream(1, "cubes").uniform(0, 1, (4, 1, 6, 6, 6)).astype(np.float32),
            np.zeros((4, 4), np.float32),
            np.arange(4),
            np.zeros(4, np.int64),
        ),
        4,
        rng=stream(1, "s"),
    )
    names = [f"{kind}_{letter}" for kind in ("flip", "turn") for letter in "xyz"] + ["axes"]
    table = {name: VOLUME_PLANTS[name] for name in names}
    made = make_plants(table, cubes, Means(), rng=stream(1, "p"))
    source = cubes.image_PCDHW
    for axis, letter in ((2, "x"), (3, "y"), (4, "z")):
        assert np.array_equal(np.flip(made[f"flip_{letter}"], axis), source)
        # About its axis a turn keeps each plane and moves the others.
        plane = tuple({2, 3, 4} - {axis})
        for once, before in zip(made[f"turn_{letter}"], source, strict=True):
            axes = (plane[0] - 1, plane[1] - 1)
            ways = [np.array_equal(np.rot90(once, way, axes), before) for way in (1, 2, 3)]
            assert ways in ([True, False, False], [False, False, True])
    for one, before in zip(made["axes"], source, strict=True):
        orders = [(0, 2, 3, 1), (0, 3, 1, 2)]
        assert any(np.array_equal(one.transpose(order), before) for order in orders)


def test_small_affine_moves_a_point_no_farther_than_it_says() -> None:
    edge = 64
    dot = np.zeros((40, 1, edge, edge, edge), np.float32)
    dot[:, :, 31:33, 31:33, 31:33] = 1
    several = PatientImages(dot, np.zeros((40, 4)), np.arange(40), np.zeros(40, np.int64))
    sources = draw_sources(several, 40, rng=stream(1, "s"))
    made = make_plants({"a": VOLUME_PLANTS["affine_5"]}, sources, Means(), rng=stream(1, "p"))["a"]
    lines = np.arange(edge)
    mass = made.sum((1, 2, 3, 4))
    places = [np.tensordot(made.sum(axes), lines, 1) / mass for axes in ((1, 3, 4), (1, 2, 4))]
    moved = np.abs(np.array(places) - 31.5)
    assert moved.max() < 5 * edge / 128 * 1.1
    assert moved.max() > 0.5 * 5 * edge / 128


def test_histogram_becomes_the_other_patients(
    plants: dict[str, np.ndarray], sources: Sources
) -> None:
    assert sources.other_PCDHW is not None
    quantiles = np.linspace(0.05, 0.95, 19)

    def grays(image: np.ndarray) -> np.ndarray:
        return np.quantile(image[image > _DARK], quantiles)

    brighter = 0.5 * sources.other_PCDHW + 0.3 * (sources.other_PCDHW > _DARK)
    changed = replace(sources, other_PCDHW=brighter.astype(np.float32))
    table = {"histogram_match": VOLUME_PLANTS["histogram_match"]}
    made = make_plants(table, changed, Means(), rng=stream(1, "p"))["histogram_match"]
    for one, source, other in zip(made, sources.image_PCDHW, brighter, strict=True):
        assert grays(one) == pytest.approx(grays(other), abs=0.02)
        assert np.abs(grays(source) - grays(other)).max() > 0.1
        head = source > _DARK
        assert np.corrcoef(one[head], source[head])[0, 1] > 0.9


@pytest.mark.parametrize(("name", "share"), [("copy_50", 0.5), ("copy_25", 0.25), ("copy_10", 0.1)])
def test_block_holds_its_share_of_the_copied_head(
    plants: dict[str, np.ndarray], sources: Sources, name: str, share: float
) -> None:
    assert sources.other_PCDHW is not None
    for one, source, other in zip(
        plants[name], sources.image_PCDHW, sources.other_PCDHW, strict=True
    ):
        copied = ((one == source) & (one != other) & (source > _DARK)).sum()
        clear = ((source != other) & (source > _DARK)).sum()
        assert copied / clear == pytest.approx(share, abs=0.08)
        assert ((one == source) | (one == other)).all()


@pytest.mark.parametrize(
    ("name", "share"), [("slices_all", 1.0), ("slices_50", 0.5), ("slices_10", 0.1), ("slice_1", 0)]
)
def test_slices_are_as_many_as_it_says(
    plants: dict[str, np.ndarray], sources: Sources, name: str, share: float
) -> None:
    for one, source in zip(plants[name], sources.image_PCDHW, strict=True):
        shown = (source[0] > _DARK).any((0, 1))
        copied = (one == source).all((0, 1, 2)) & shown
        assert copied.sum() == max(1, round(share * shown.sum()))


def test_lone_slice_shows_much_of_the_head(plants: dict[str, np.ndarray], sources: Sources) -> None:
    for one, source in zip(plants["slice_alone"], sources.image_PCDHW, strict=True):
        area = (one[0] > _DARK).sum((0, 1))
        assert (area > 0).sum() == 1
        assert area.max() >= 0.5 * (source[0] > _DARK).sum((0, 1)).max()


def test_left_half_is_copied_and_the_right_is_the_strangers(
    plants: dict[str, np.ndarray], sources: Sources
) -> None:
    middle = GRID[0] // 2
    assert sources.other_PCDHW is not None
    assert np.array_equal(plants["half"][:, :, :middle], sources.image_PCDHW[:, :, :middle])
    assert np.array_equal(plants["half"][:, :, middle:], sources.other_PCDHW[:, :, middle:])


def test_masks_take_the_face_and_the_shell_alone(
    plants: dict[str, np.ndarray], sources: Sources
) -> None:
    heads = (sources.image_PCDHW > _DARK).sum()
    for name, most in (("masked_face", 0.2), ("masked_skull", 0.5)):
        made = plants[name]
        kept = made == sources.image_PCDHW
        assert (made[~kept] == 0).all()
        assert 0.01 < (~kept).sum() / heads < most
    # Front and below: the back and the top of every head are there.
    assert np.array_equal(plants["masked_face"][:, :, :, :8], sources.image_PCDHW[:, :, :, :8])
    assert np.array_equal(plants["masked_face"][..., 14:], sources.image_PCDHW[..., 14:])


def test_margin_is_dark(plants: dict[str, np.ndarray]) -> None:
    rim = [plants["padding"].take([0, 1, -2, -1], axis=axis).max() for axis in (2, 3, 4)]
    assert max(rim) == 0


def test_codecs_and_blurs_lose_something_and_not_much(
    plants: dict[str, np.ndarray], sources: Sources
) -> None:
    for name in ("bits_8", "blur_2", "resample_half", "resample_double", "jpeg_30"):
        pairs = zip(plants[name], sources.image_PCDHW, strict=True)
        alike = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in pairs]
        assert 0.85 < min(alike) <= max(alike) < 1
    assert len(np.unique(plants["bits_8"])) <= 256


def test_share_of_noise_and_of_latents_is_handed_on(
    plants: dict[str, np.ndarray], sources: Sources
) -> None:
    away = [
        _rms(plants[f"sdedit_{percent}"], sources.image_PCDHW) for percent in (10, 20, 30, 50, 70)
    ]
    assert away == sorted(away)
    assert away[4] == pytest.approx(7 * away[0], rel=1e-3)


def test_group_is_of_one_patient(plants: dict[str, np.ndarray], sources: Sources) -> None:
    flat = sources.image_PCDHW.reshape(len(sources), -1)
    made = plants["group_20"].reshape(5 * 20, -1)
    nearest = np.square(made[:, None] - flat[None]).sum(2).argmin(1).reshape(5, 20)
    assert (nearest == np.arange(5)[:, None]).mean() > 0.8
    assert len(np.unique(made, axis=0)) == 5 * 20


def test_adversarial_steps_stay_in_the_box_and_beat_noise_in_it(sources: Sources) -> None:
    embedder, source = SmoothEmbedder(), sources.image_PCDHW
    led = lead_away(source, embedder, rng=stream(1, "pgd"))
    noisy = source + stream(2, "box").uniform(-EPS, EPS, source.shape)
    assert np.abs(led - source).max() <= EPS + 1e-6
    assert led.min() >= 0
    assert led.max() <= 1

    def cosine(image: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            ours, own = (
                embedder.embed(torch.from_numpy(x.astype(np.float32))) for x in (image, source)
            )
        return (ours * own).sum(1).numpy()

    assert (1 - cosine(led) > 10 * (1 - cosine(np.clip(noisy, 0, 1)))).all()
    assert embedder.weight.grad is None


def test_embedder_without_gradient_is_refused(sources: Sources) -> None:
    class Blind(SmoothEmbedder):
        @torch.no_grad()
        def embed(self, x: torch.Tensor) -> torch.Tensor:
            return super().embed(x)

    with pytest.raises(DataError, match="adversarial"):
        lead_away(sources.image_PCDHW, Blind(), rng=stream(1, "pgd"))
