"""The truth beside the images: what is told is what is shown."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from vitrael.core.data.phantoms.acquisition import STYLES, Acquisition
from vitrael.core.data.phantoms.anatomy import EFFECTS, with_disease
from vitrael.core.data.phantoms.brain import (
    BrainImages,
    draw_acquisition,
    draw_anatomy,
    image_brain,
    image_slice,
    render_brain,
)
from vitrael.core.data.phantoms.contrasts import CONTRASTS, signals
from vitrael.core.data.phantoms.lesions import draw_lesions
from vitrael.core.data.phantoms.tissues import BRAIN, Tissue
from vitrael.core.errors import DataError, ScanError
from vitrael.core.rng import stream

ZERO = np.zeros(3)
STILL = Acquisition(ZERO, ZERO, ZERO, contrast=1.0, noise_frac=0.0, noise_seed=0)
ANATOMY = draw_anatomy(stream(11, "truth", 4), ages_years=(70, 80))
LESIONS = draw_lesions(stream(11, "lesions"), ANATOMY, wmh_ml=10.0, tumor_ml=15.0)
GRID = (64, 72, 60)
ALL = tuple(CONTRASTS)


@cache
def session(*, head: bool = False) -> BrainImages:
    scan = replace(STILL, head=head)
    return image_brain(ANATOMY, scan, grid_vox=GRID, spacing_mm=3.0, contrasts=ALL, lesions=LESIONS)


def test_every_label_has_the_gray_value_of_its_tissue_in_every_contrast() -> None:
    labels = session().truth.labels_DHW
    for name, scan in session().scans.items():
        image, level_K = scan.image_CDHW[0], signals(CONTRASTS[name])
        for tissue in (Tissue.WHITE, Tissue.VENTRICLES, Tissue.BRAINSTEM, Tissue.TUMOR_RIM):
            found = float(np.median(image[labels == tissue]))
            assert found == pytest.approx(float(level_K[tissue]), abs=0.05)
        shuffled = stream(1, "shuffle").permutation(labels.ravel()).reshape(labels.shape)
        assert np.median(image[shuffled == Tissue.WHITE]) < 0.1  # control


def test_contrasts_order_the_tissues_as_they_should() -> None:
    labels = session().truth.labels_DHW
    median = {
        name: {
            tissue: float(np.median(scan.image_CDHW[0][labels == tissue]))
            for tissue in (Tissue.WHITE, Tissue.CORTEX, Tissue.VENTRICLES, Tissue.WMH)
        }
        for name, scan in session().scans.items()
    }
    t1, t2, flair = (median[name] for name in ("T1w", "T2w", "FLAIR"))
    assert t1[Tissue.WHITE] > t1[Tissue.CORTEX] > t1[Tissue.VENTRICLES]
    assert t2[Tissue.WHITE] < t2[Tissue.CORTEX] < t2[Tissue.VENTRICLES]
    assert flair[Tissue.VENTRICLES] < 0.2 * flair[Tissue.WHITE]
    assert flair[Tissue.WMH] > 1.5 * max(flair[Tissue.WHITE], flair[Tissue.CORTEX])


def test_labels_masks_and_volumes_agree() -> None:
    truth = session().truth
    assert truth.labels_DHW.shape == truth.brain_DHW.shape == GRID
    assert np.array_equal(np.isin(truth.labels_DHW, BRAIN), truth.brain_DHW)
    assert np.array_equal(truth.lesion_DHW["wmh"], truth.labels_DHW == Tissue.WMH)
    ventricles = (truth.labels_DHW == Tissue.VENTRICLES).sum() * 0.027
    assert ventricles == pytest.approx(truth.volumes_ml["ventricles"], rel=0.05)
    assert truth.brain_DHW.sum() * 0.027 == pytest.approx(truth.volumes_ml["brain"], rel=0.01)
    inside = sum(truth.volumes_ml[tissue.name.lower()] for tissue in BRAIN)
    assert inside == pytest.approx(truth.volumes_ml["brain"], rel=1e-4)
    assert not (session().scans["T2w"].image_CDHW[0] > 0.1)[~truth.brain_DHW].mean() > 0.02


def test_truth_tells_what_was_asked_and_by_which_law() -> None:
    truth = image_brain(with_disease(ANATOMY), STILL, grid_vox=(24,) * 3, spacing_mm=8.0).truth
    asked = truth.covariates
    assert (asked["age_years"], asked["sex"]) == (ANATOMY.age_years, ANATOMY.sex)
    assert (asked["disease"], asked["wmh_ml"]) == (1, 0)
    assert asked["hippocampus_ml"] == pytest.approx(0.85 * ANATOMY.hippocampus_ml)
    assert truth.coefficients is EFFECTS


def test_rendered_scan_is_the_sessions_t1_weighted_one() -> None:
    scan = draw_acquisition(stream(11, "scan"))
    alone = render_brain(ANATOMY, scan, grid_vox=(24, 24, 24), spacing_mm=8.0)
    images = image_brain(ANATOMY, scan, grid_vox=(24, 24, 24), spacing_mm=8.0, contrasts=ALL)
    assert np.array_equal(alone.image_CDHW, images.scans["T1w"].image_CDHW)
    assert np.array_equal(alone.affine, images.scans["FLAIR"].affine)
    assert list(images.scans) == [scan.modality for scan in images.scans.values()] == list(ALL)


def test_noise_of_two_contrasts_is_not_the_same() -> None:
    noisy = replace(STILL, noise_frac=0.05)
    images = image_brain(ANATOMY, noisy, grid_vox=(32,) * 3, spacing_mm=6.0, contrasts=ALL)
    clean = image_brain(ANATOMY, STILL, grid_vox=(32,) * 3, spacing_mm=6.0, contrasts=ALL)
    white = clean.truth.labels_DHW == Tissue.WHITE
    noise = [
        (images.scans[name].image_CDHW - clean.scans[name].image_CDHW)[0][white] for name in ALL
    ]
    likeness = np.corrcoef(noise)[np.triu_indices(3, 1)]
    assert np.abs(likeness).max() < 0.1


def test_head_has_a_skull_around_the_brain_and_a_face_in_front_of_it() -> None:
    truth = session(head=True).truth
    assert np.array_equal(truth.brain_DHW, session().truth.brain_DHW)
    assert not (truth.face_DHW & truth.brain_DHW).any()
    assert not session().truth.face_DHW.any()
    front = {
        name: np.argwhere(mask)[:, 1].max()
        for name, mask in (("brain", truth.brain_DHW), ("face", truth.face_DHW))
    }
    assert front["face"] >= front["brain"] + 3
    below = np.argwhere(truth.face_DHW)[:, 2].mean()
    assert below < np.argwhere(truth.brain_DHW)[:, 2].mean() - 10
    # From the brain outward on the right side: fluid, then bone, then skin.
    line = truth.labels_DHW[:, 36, 34]
    order = line[np.flatnonzero(line == Tissue.CORTEX)[-1] + 1 :]
    seen = [int(label) for label in dict.fromkeys(order) if label in (17, 18)]
    assert seen == [Tissue.SKULL, Tissue.SCALP]
    t1, t2 = (session(head=True).scans[name].image_CDHW[0] for name in ("T1w", "T2w"))
    eyes, skull = (truth.labels_DHW == t for t in (Tissue.EYES, Tissue.SKULL))
    assert np.median(t1[eyes]) < 0.3
    assert np.median(t2[eyes]) > 0.7
    assert np.median(t1[skull]) < 0.2


def test_faces_tell_people_apart_and_stay_with_their_owner() -> None:
    scan = replace(STILL, head=True)
    others = [draw_anatomy(stream(11, "truth", n)) for n in range(2)]
    masks = [
        image_brain(person, scan, grid_vox=(48, 64, 48), spacing_mm=4.5).truth.face_DHW
        for person in (others[0], replace(others[0], age_years=60.0), others[1])
    ]
    own, stranger = ((masks[0] & m).sum() / (masks[0] | m).sum() for m in masks[1:])
    assert own > 0.9 > stranger


def test_noise_fills_the_air_around_a_head_but_not_around_a_stripped_brain() -> None:
    style = STYLES["whole-head"]
    head = draw_acquisition(stream(11, "air"), style=style)
    for acquisition, air in ((head, True), (replace(head, head=False), False)):
        image = render_brain(ANATOMY, acquisition, grid_vox=(48, 48, 48), spacing_mm=6.0)
        assert (image.image_CDHW[0, :6, :, 40:] > 0).all() == air


def test_slice_is_the_plane_of_the_volume_upright() -> None:
    flat = image_slice(
        ANATOMY, STILL, grid_px=(72, 64), spacing_mm=3.0, height_mm=7.5, contrasts=ALL,
        lesions=LESIONS,
    )  # fmt: skip
    plane = 32  # of 60, 3 mm apart about 0
    for name, picture in flat.pictures.items():
        assert picture.image_HW.shape == (72, 64)
        assert picture.spacing_mm == (3, 3)
        volume = session().scans[name].image_CDHW[0, :, ::-1, plane].T
        np.testing.assert_allclose(picture.image_HW, volume, atol=1e-6)
    labels = session().truth.labels_DHW[:, ::-1, plane].T
    assert np.array_equal(flat.truth.labels_DHW[0], labels)
    assert flat.truth.labels_DHW.shape == (1, 72, 64)
    assert flat.truth.lesion_DHW["wmh"].any() or flat.truth.lesion_DHW["tumor"].any()


def test_slice_beside_the_head_is_refused() -> None:
    with pytest.raises(ScanError, match="constant"):
        image_slice(ANATOMY, STILL, grid_px=(32, 32), spacing_mm=6.0, height_mm=200.0)


@pytest.mark.parametrize("contrasts", [(), ("PET",), ("T1w", "t2w")])
def test_unknown_contrast_is_refused(contrasts: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="contrast is unknown"):
        image_brain(ANATOMY, STILL, grid_vox=(24,) * 3, spacing_mm=8.0, contrasts=contrasts)


def test_truth_shows_its_shape_alone() -> None:
    assert repr(session().truth) == "BrainTruth(64x72x60)"
