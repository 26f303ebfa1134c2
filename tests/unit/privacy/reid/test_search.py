"""How a candidate is held against a gallery: whose scans take a place, and what is looked at."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.factories.filter_power import FlatEmbedder
from vitrael.core.data.phantoms.cohorts import draw_scan
from vitrael.core.records import PatientImages
from vitrael.core.rng import stream
from vitrael.privacy.reid.gallery import Gallery, build_gallery
from vitrael.privacy.reid.lens import Encoders, Work, fit_lens, see_parts, view
from vitrael.privacy.reid.pairs import registered_pairs
from vitrael.privacy.reid.planes import best_planes, fit_planes
from vitrael.privacy.reid.reference import build_reference, registered_similarity
from vitrael.privacy.reid.regions import cell_edge
from vitrael.privacy.reid.search import match, nearest_patients
from vitrael.privacy.reid.template import chunk_of, fit_template, register

_GRID = (24, 24, 24)


def _people(name: str, count: int) -> PatientImages:
    scans = [
        draw_scan(5, name, person, 0, grid_vox=_GRID, spacing_mm=8.0)[0].image_CDHW
        for person in range(count)
    ]
    image = np.clip(np.stack(scans), 0, 1).astype(np.float32)
    nothing = np.zeros((count, 4), np.float32), np.arange(count), np.zeros(count, np.int64)
    return PatientImages(image, *nothing)


@pytest.fixture(scope="module")
def gallery() -> Gallery:
    learning = _people("F", 12)
    template = fit_template(learning.image_BCDHW)
    lens = fit_lens(learning, Encoders(FlatEmbedder(), FlatEmbedder()), template)
    return build_gallery(_people("T", 12), lens)


def test_three_nearest_are_three_patients() -> None:
    """Each scan is in the gallery as it is and after the autoencoder, and nearly as near."""
    patient_N = np.tile([4, 7, 8, 9], 3)
    own = torch.tensor([[0.9, 0.5, 0.7, 0.2], [0.1, 0.3, 0.2, 0.8]])
    similarity_BN = torch.cat([own - 0.02, own, own - 0.01], 1)
    scan_BT = nearest_patients(similarity_BN, patient_N)
    assert scan_BT.tolist() == [[4, 6, 5], [7, 5, 6]]
    plain = patient_N[similarity_BN.topk(3, dim=1).indices]
    assert (plain == [[4], [9]]).all()  # the control: three scans of one patient
    few = nearest_patients(similarity_BN[:, :2], patient_N[:2])
    assert few.tolist() == [[0, 1], [1, 0]]


def test_patient_who_is_not_allowed_takes_no_place() -> None:
    similarity_BN = torch.tensor([[0.9, 0.5, 0.7, 0.2]])
    allowed_BN = torch.tensor([[False, True, True, True]])
    scan_BT = nearest_patients(similarity_BN.masked_fill(~allowed_BN, -1.0), np.arange(4))
    assert scan_BT.tolist() == [[2, 1, 3]]


def test_scan_that_several_members_find_is_registered_once(gallery: Gallery) -> None:
    """And counts as it did: each candidate has its best of all pairs that were named."""
    candidates = np.concatenate([_people("T", 4).image_BCDHW, _people("S", 4).image_BCDHW])
    work = Work()
    found = match(candidates, gallery, work=work).best_BK[:, 2]
    assert 8 * 3 <= work.pairs <= 8 * 6  # both encoders are one here, and each names three of nine
    laid = view(candidates, gallery.lens.template).laid_BCDHW[:, 0]
    row_P, scan_P = (
        axis.flatten() for axis in torch.meshgrid(torch.arange(8), torch.arange(12), indexing="ij")
    )
    every = registered_pairs(
        torch.from_numpy(laid),
        torch.from_numpy(gallery.laid_NCDHW[:, 0]),
        gallery.lens.template,
        row_P=row_P,
        scan_P=scan_P,
    ).reshape(8, 12)
    assert found[:4] == pytest.approx(every.amax(1)[:4].numpy(), abs=1e-6)
    assert (every[:4].argmax(1) == torch.arange(4)).all()
    assert found[4:].max() < found[:4].min()  # the control: strangers


def test_slice_is_found_in_a_stranger_who_was_turned_and_inverted(gallery: Gallery) -> None:
    strangers = _people("S", 8).image_BCDHW
    pasted = strangers.copy()
    pasted[:, :, :, :, 12] = _people("T", 8).image_BCDHW[:, :, :, :, 12]
    turned, plain = (
        np.ascontiguousarray(1 - np.rot90(image, 1, (2, 3))) for image in (pasted, strangers)
    )
    one_plane = [-12, -8, -4]  # the best plane along each axis
    found, usual = (
        match(image, gallery).region_BR[:, one_plane].max(1) for image in (turned, plain)
    )
    upright = found > 0.999  # where the orientation of a composite was found
    assert upright.mean() > 0.3
    assert usual.max() < 0.99
    # The control: as it came nothing of it looks like a plane of the gallery's.
    seen = see_parts(view(turned, gallery.lens.template), gallery.lens)
    as_it_came = [
        best_planes(mine, theirs, allowed_BN=None)[:, 0]
        for mine, theirs in zip(seen.planes, gallery.parts.planes, strict=True)
    ]
    assert torch.stack(as_it_came).amax() < 0.9


@pytest.mark.parametrize(
    ("shape", "edge"), [(_GRID, 4), ((32,) * 3, 4), ((1, 64, 64), 4), ((64,) * 3, 7)]
)
def test_cells_grow_with_the_image(shape: tuple[int, int, int], edge: int) -> None:
    assert cell_edge(shape) == edge
    for large in ((64, 64, 64), (128, 128, 128), (160, 192, 160)):
        cells = np.prod([-(-size // cell_edge(large)) for size in large])
        assert cells <= 1024


def test_larger_images_are_worked_on_fewer_at_a_time() -> None:
    assert [chunk_of((edge,) * 3) for edge in (24, 32, 64, 128, 256)] == [64, 64, 8, 1, 1]


def test_components_of_planes_need_no_more_than_some_of_them() -> None:
    rng = stream(6, "planes")
    few = torch.from_numpy(rng.normal(size=(3, 8, 20, 20)).astype(np.float32))
    basis = fit_planes(few, 0).basis_KV
    assert basis.shape == (24, 400)  # 24 planes of 400 pixels: no matrix of 400 by 400
    assert torch.allclose(basis @ basis.T, torch.eye(24), atol=1e-3)
    many = torch.from_numpy(rng.normal(size=(300, 12, 12, 12)).astype(np.float32))
    assert fit_planes(many, 2).basis_KV.shape == (96, 144)


def test_registration_of_a_large_image_looks_at_some_of_its_voxels() -> None:
    scans = [
        draw_scan(5, "large", person, 0, grid_vox=(64, 64, 64), spacing_mm=3.0)[0].image_CDHW
        for person in range(3)
    ]
    image = np.clip(np.stack(scans), 0, 1).astype(np.float32)
    template = fit_template(image)
    assert int(template.near_DHW.sum()) == 40_000 < int(template.mask_DHW.sum())
    moved = np.roll(image, (3, -4, 2), (2, 3, 4))
    still, found = register(image, template), register(moved, template)
    before = np.abs(moved - image).mean()
    assert float((still - found).abs().mean()) < 0.2 * before


def test_scans_that_made_the_template_are_less_alike_than_newcomers() -> None:
    """Why the audit's search for copies sees through the template of split F."""
    scans, newcomers = _people("T", 16).image_BCDHW, _people("A", 16).image_BCDHW
    gap = {}
    for name, made_of in (("own", scans), ("others", _people("F", 16).image_BCDHW)):
        reference = build_reference(scans, fit_template(made_of))
        among = registered_similarity(scans, reference)
        among = among[~np.identity(16, dtype=bool)]
        gap[name] = registered_similarity(newcomers, reference).mean() - among.mean()
    assert gap["own"] > gap["others"] + 0.01
