"""What each member of the filter is for: a copy that it knows and that the others may miss."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from vitrael.core.data.phantoms.cohorts import draw_scan
from vitrael.core.errors import DataError
from vitrael.core.rng import stream
from vitrael.privacy.audit.plants import bend_affinely
from vitrael.privacy.reid.calibrate import fisher_z
from vitrael.privacy.reid.pairs import registered_pairs
from vitrael.privacy.reid.planes import best_planes, describe_planes, fit_planes, plane_axes
from vitrael.privacy.reid.regions import best_regions, cut_parcels, parcel
from vitrael.privacy.reid.similarity import own_detail, own_form
from vitrael.privacy.reid.template import Template, fit_template, lay_both_ways, lay_onto

_GRID = (24, 24, 24)
_PEOPLE = 24


def _scans(name: str, count: int) -> np.ndarray:
    scans = [
        draw_scan(3, name, person, 0, grid_vox=_GRID, spacing_mm=8.0)[0].image_CDHW
        for person in range(count)
    ]
    return np.clip(np.stack(scans), 0, 1).astype(np.float32)


@pytest.fixture(scope="module")
def gallery() -> np.ndarray:
    return _scans("gallery", _PEOPLE)


@pytest.fixture(scope="module")
def strangers() -> np.ndarray:
    return _scans("strangers", 12)


@pytest.fixture(scope="module")
def template(gallery: np.ndarray) -> Template:
    return fit_template(gallery)


@pytest.mark.parametrize(
    "turn",
    [
        lambda x: x[:, :, :, ::-1],
        lambda x: x[:, :, :, :, ::-1],
        lambda x: np.rot90(x, 1, (2, 3)),
        lambda x: np.rot90(x, 1, (3, 4)),
        lambda x: x.transpose(0, 1, 4, 2, 3),
        lambda x: x.max((1, 2, 3, 4), keepdims=True) - x,
    ],
    ids=["flip y", "flip z", "turn z", "turn x", "axes", "negative"],
)
def test_turned_and_inverted_images_are_laid_where_their_sources_lie(
    gallery: np.ndarray, template: Template, turn: Callable[[np.ndarray], np.ndarray]
) -> None:
    scans = gallery[:8]
    forms, turned = (
        own_form(lay_onto(np.ascontiguousarray(one), template), template)
        for one in (scans, turn(scans))
    )
    mirrored = own_form(np.ascontiguousarray(lay_onto(scans, template)[:, :, ::-1]), template)
    same = torch.maximum((turned * forms).sum(1), (turned * mirrored).sum(1))
    assert (same > 0.9).float().mean() >= 0.8
    assert (turned * forms.roll(1, 0)).sum(1).max() < 0.9  # a stranger is not so near


def test_image_is_laid_alike_alone_and_among_many(gallery: np.ndarray, template: Template) -> None:
    many = lay_both_ways(gallery[:6], template)
    for row in range(6):
        alone = lay_both_ways(gallery[row : row + 1], template)
        for way in range(2):
            assert np.abs(alone[way][0] - many[way][row]).max() < 1e-4


def test_image_that_was_normalized_with_its_batch_is_laid_otherwise(
    gallery: np.ndarray, template: Template
) -> None:
    def together(image: np.ndarray) -> np.ndarray:
        return (image - image.min(axis=(0, 2, 3, 4), keepdims=True)) / image.max()

    batch = np.concatenate([gallery[:1], 1.3 * gallery[1:6]])
    alone = lay_onto(together(batch[:1]), template)
    assert np.abs(alone[0] - lay_onto(together(batch), template)[0]).max() > 1e-2


def test_pictures_are_laid_too() -> None:
    picture = _scans("pictures", 6)[:, :, :, :, 12][:, :, None]
    template = fit_template(picture)
    laid = lay_onto(np.ascontiguousarray(picture[..., ::-1]), template)
    form, own = own_form(laid, template), own_form(lay_onto(picture, template), template)
    mirrored = own_form(np.ascontiguousarray(laid[..., ::-1]), template)
    assert torch.maximum((form * own).sum(1), (mirrored * own).sum(1)).min() > 0.99


def test_pair_is_registered_where_the_template_left_it_apart(
    gallery: np.ndarray, template: Template
) -> None:
    laid = lay_onto(gallery, template)[:, 0]
    rng = stream(1, "apart")
    bent = np.stack([bend_affinely(scan, rng=rng) for scan in laid]).astype(np.float32)
    fixed, moving = torch.from_numpy(laid), torch.from_numpy(bent)
    before = (own_form(bent[:, None], template) * own_form(laid[:, None], template)).sum(1)
    row = torch.arange(len(moving))
    copies = registered_pairs(moving, fixed, template, row_P=row, scan_P=row)
    strangers = registered_pairs(moving, fixed, template, row_P=row, scan_P=row.roll(1))
    assert copies.median() > before.median() + 0.1
    assert copies.quantile(0.1) > strangers.max()
    assert (copies >= before - 1e-5).all()  # a registration that fails hides nothing


def test_hemisphere_of_a_scan_is_found_in_a_stranger(
    gallery: np.ndarray, strangers: np.ndarray, template: Template
) -> None:
    half = np.concatenate([gallery[:12, :, :12], strangers[:, :, 12:]], axis=2)
    known = own_detail(gallery, template)
    parcels = cut_parcels(known, template)
    scans = parcel(known, parcels)

    def best(image: np.ndarray) -> np.ndarray:
        looked = parcel(own_detail(image, template), parcels)
        return fisher_z(best_regions(looked, scans, parcels, allowed_BN=None).numpy())

    usual = best(_scans("others", 24))
    copied, new = (
        ((best(image) - usual.mean(0)) / usual.std(0)).max(1) for image in (half, strangers)
    )
    assert np.quantile(copied, 0.1) > new.max()
    nobody = torch.zeros((12, _PEOPLE), dtype=torch.bool)
    looked = parcel(own_detail(half, template), parcels)
    assert (best_regions(looked, scans, parcels, allowed_BN=nobody) == -1).all()


def test_one_slice_of_a_scan_is_found_wherever_it_stands(
    gallery: np.ndarray, strangers: np.ndarray
) -> None:
    pasted = strangers.copy()
    pasted[:, 0, :, :, 10] = gallery[:12, 0, :, :, 13]
    shuffled = gallery[:4][:, :, :, :, stream(2, "order").permutation(24)]
    volume = torch.from_numpy(gallery[:, 0])
    basis = fit_planes(volume, 2)
    scans = describe_planes(volume, basis)

    def look(image: np.ndarray) -> torch.Tensor:
        looked = describe_planes(torch.from_numpy(image[:, 0].copy()), basis)
        return best_planes(looked, scans, allowed_BN=None)

    usual = look(strangers)
    assert look(pasted)[:, 0].min() > 0.999 > usual[:, 0].max()
    assert look(pasted)[:, 3].max() < 0.99  # all its planes together are nobody's
    assert look(shuffled)[:, 3].min() > 0.999 > usual[:, 3].max()


def test_picture_has_no_planes_of_its_own() -> None:
    assert plane_axes((1, 64, 64), along="space") == ()
    assert plane_axes(_GRID, along="space") == (0, 1, 2)
    assert plane_axes(_GRID, along="time") == (0,)


def test_values_that_are_not_finite_are_refused(gallery: np.ndarray, template: Template) -> None:
    broken = gallery[:2].copy()
    broken[1, 0, 3, 3, 3] = np.inf
    with pytest.raises(DataError, match="not finite"):
        lay_onto(broken, template)
