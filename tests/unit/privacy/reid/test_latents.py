"""The member that knows what a generator left of a scan: the coarse of it, among latents."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vitrael.core.records import PatientImages
from vitrael.core.rng import stream
from vitrael.privacy.reid.latents import (
    _MIRRORED_MARGIN,
    _MIRRORED_NATS,
    _NOISE,
    NEXT_PATIENTS,
    fit_latents,
    margins,
)

_GRID = (1, 4, 4, 4)


def _encode(image: np.ndarray) -> np.ndarray:
    return image.astype(np.float32)


def _people(name: str, count: int) -> np.ndarray:
    """Return latents whose first directions differ much between patients, the others little."""
    size = int(np.prod(_GRID))
    turn, _ = np.linalg.qr(stream(1, "turn").normal(size=(size, size)))
    spread = np.sqrt(np.concatenate([np.full(12, 8.0), np.full(size - 12, 0.1)]))
    drawn = stream(1, name).normal(size=(count, size)) * spread
    return (drawn @ turn.T + 3.0).reshape(count, *_GRID)


def _redrawn(latent: np.ndarray, sigma: float, name: str) -> np.ndarray:
    """Return what a perfect generator makes of latents that it noised by sigma and denoised."""
    size = int(np.prod(_GRID))
    turn, _ = np.linalg.qr(stream(1, "turn").normal(size=(size, size)))
    variance = np.concatenate([np.full(12, 8.0), np.full(size - 12, 0.1)])
    keep = variance / (variance + sigma**2)
    noisy = latent.reshape(len(latent), -1) - 3.0
    noisy = (noisy + sigma * stream(2, name).normal(size=noisy.shape)) @ turn
    again = keep * noisy + np.sqrt(keep * sigma**2) * stream(3, name).normal(size=noisy.shape)
    return (again @ turn.T + 3.0).reshape(latent.shape)


def _images(latent: np.ndarray, patient: np.ndarray | None = None) -> PatientImages:
    patient = np.arange(len(latent)) if patient is None else patient
    facts = np.zeros((len(latent), 4), np.float32)
    return PatientImages(latent, facts, patient, np.zeros(len(latent), np.int64))


def test_score_is_the_likelihood_ratio_of_correlated_to_uncorrelated_normals() -> None:
    latents = fit_latents(_images(_people("F", 40)), _encode)
    one = 1.5 * (_people("T", 4) - 3.0) + 3.0  # farther from the mean than an average
    other = _redrawn(one, 0.4, "again")
    spread = latents.spread
    full = torch.eye(one[0].size, dtype=torch.float64) * spread.rest.double()
    basis = spread.basis_KZ.double()
    full += basis.T @ torch.diag(spread.variance_K.double() - spread.rest.double()) @ basis
    # The generator adds noise to x, and draws from the posterior of what was noised.
    shared = full @ torch.linalg.inv(full + _NOISE * torch.eye(len(full)).double()) @ full
    joint = torch.cat([torch.cat([full, shared], 1), torch.cat([shared, full], 1)])
    middle = spread.mean_Z.double()
    pair = torch.distributions.MultivariateNormal(torch.cat([middle, middle]), joint)
    alone = torch.distributions.MultivariateNormal(middle, full)
    x, y = (torch.from_numpy(part).double().flatten(1) for part in (one, other))
    expected = torch.stack(
        [pair.log_prob(torch.cat([a.expand_as(y), y], 1)) - alone.log_prob(y) for a in x]
    )
    expected = expected - alone.log_prob(x)[:, None]
    told = latents.likely(latents.see(one), latents.see(other))
    nats_a_number = (expected / one[0].size).float()
    assert nats_a_number.diagonal().abs().max() < 2.0  # the control: where tanh tells numbers apart
    assert torch.allclose(told, nats_a_number.tanh(), atol=1e-4)


def test_margin_is_to_the_next_patients_and_not_to_the_patients_own_scans() -> None:
    cosine = torch.tensor([[0.9, 0.88, 0.5, 0.4], [0.1, 0.2, 0.6, 0.7]])
    patient = np.array([0, 0, 1, 2])
    assert margins(cosine, patient).tolist() == pytest.approx([(0.9 - 0.45) / 2, (0.7 - 0.4) / 2])


def test_scan_that_is_not_allowed_counts_nowhere() -> None:
    cosine = torch.tensor([[-torch.inf, 0.5, 0.3]])
    assert margins(cosine, np.arange(3)).tolist() == pytest.approx([0.1])
    alone = torch.tensor([[-torch.inf, 0.5, -torch.inf]])
    assert margins(alone, np.arange(3)).tolist() == pytest.approx([0.25])


def test_margin_looks_at_so_many_patients() -> None:
    cosine = torch.zeros(1, NEXT_PATIENTS + 30)
    cosine[0, 0] = 1.0
    cosine[0, NEXT_PATIENTS + 1 :] = -0.5  # too far to count
    assert margins(cosine, np.arange(cosine.shape[1])).item() == pytest.approx(0.5)


def test_average_of_many_is_nobody() -> None:
    gallery, strangers = _people("T", 120), _people("A", 200)
    latents = fit_latents(_images(_people("F", 40)), _encode)
    rows = stream(4, "groups").integers(0, 120, (60, 100))
    average, known = gallery[rows].mean(1), latents.see(gallery)

    def nats(image: np.ndarray) -> torch.Tensor:
        return latents.likely(latents.see(image), known).double().amax(1).atanh() * known.shape[1]

    usual = nats(strangers).quantile(0.95)
    dull = latents._dullness(latents.see(average))
    assert (nats(average) > usual).double().mean() <= 0.2
    assert (nats(average) + dull > usual).double().mean() > 0.8  # the control: without it
    assert (nats(gallery[rows[:, 0]]) > usual).all()  # and whoever is somebody is found


def test_weaker_scan_is_less_likely_and_as_near() -> None:
    gallery, strangers = _people("T", 120), _people("A", 200)
    latents = fit_latents(_images(_people("F", 40)), _encode)
    known, mean = latents.see(gallery), latents.spread.mean_Z.numpy().reshape(_GRID)
    weaker = mean + 0.4 * (gallery - mean)
    likely, near = (
        [found(latents.see(image), known) for image in (weaker, strangers)]
        for found in (latents.likely, latents.cosines)
    )
    caught = [
        (ours > theirs.quantile(0.95)).float().mean().item()
        for ours, theirs in (
            [one.amax(1) for one in likely],
            [margins(one, np.arange(120)) for one in near],
        )
    ]
    assert caught[1] >= 0.95
    assert caught[0] < caught[1] - 0.1


def test_patient_who_was_noised_and_denoised_stands_out_and_a_stranger_does_not() -> None:
    gallery, strangers = _people("T", 120), _people("A", 200)
    latents = fit_latents(_images(_people("F", 40)), _encode)
    known = latents.see(gallery)

    def likely(image: np.ndarray) -> np.ndarray:
        return latents.likely(latents.see(image), known).amax(1).numpy()

    usual = np.quantile(likely(strangers), 0.95)
    near, far = (_redrawn(gallery[:60], sigma, "again") for sigma in (0.5, 20.0))
    assert (likely(near) > usual).mean() >= 0.95
    assert (likely(far) > usual).mean() < 0.3  # nothing of the patient is left
    found = latents.likely(latents.see(near), known).argmax(1).numpy()
    assert (found == np.arange(60)).mean() >= 0.95


def test_the_fewer_patients_the_more_the_covariance_is_shrunk() -> None:
    few, many = (fit_latents(_images(_people("F", count)), _encode) for count in (6, 200))
    ratios = [float(one.spread.rest / one.spread.variance_K.max()) for one in (few, many)]
    assert ratios[0] > 3 * ratios[1]
    alone = fit_latents(_images(_people("F", 1)), _encode)
    assert torch.isfinite(alone.see(_people("T", 3))).all()


def test_patients_who_are_not_of_f_vary_as_much_as_the_variances_say() -> None:
    learning, strangers = _people("F", 40), _people("A", 200)
    latents = fit_latents(_images(learning), _encode)
    directions = len(learning) - 1  # the last of as many is that of no variance
    along_BK = latents.see(strangers)[:, :directions]
    usual = float((along_BK.square() / latents.spread.variance_K[:directions]).mean())
    learned_BK = latents.see(learning)[:, :directions]
    fitted = float((along_BK.square() / learned_BK.square().mean(0)).mean())
    assert 0.7 <= usual <= 1.4
    assert fitted > 1.5 * usual  # the control: the variances of F itself


def test_mirrored_look_has_to_be_nearer() -> None:
    latents = fit_latents(_images(_people("F", 40)), _encode)
    seen, known = latents.see(_people("A", 20)), latents.see(_people("T", 30))
    plain = latents.likely(seen, known).double().atanh()
    mirrored = latents.likely(seen, known, mirrored=True).double().atanh()
    told = plain.abs() < 4  # where tanh in float32 tells numbers apart
    assert told.any()
    assert torch.allclose(
        plain[told] - mirrored[told], torch.tensor(_MIRRORED_NATS).double(), atol=1e-3
    )
    near, patient = latents.cosines(seen, known), np.arange(30)
    cost = margins(near, patient) - margins(near, patient, mirrored=True)
    assert torch.allclose(cost, torch.tensor(_MIRRORED_MARGIN))


def test_visits_of_a_patient_are_left_out_together() -> None:
    once = _people("F", 8)
    again = np.concatenate([once, once, once])
    patient = np.tile(np.arange(8), 3)
    told = fit_latents(_images(again, patient), _encode).spread
    wrong = fit_latents(_images(again), _encode).spread  # the control: each by itself
    assert told.rest > 2 * wrong.rest


def test_one_image_is_seen_as_it_is_among_many() -> None:
    latents = fit_latents(_images(_people("F", 40)), _encode)
    many = _people("T", 5)
    alone = torch.cat([latents.see(one[None]) for one in many])
    assert torch.allclose(latents.see(many), alone, rtol=1e-5, atol=1e-4)


def test_what_is_private_is_not_shown() -> None:
    assert repr(fit_latents(_images(_people("F", 12)), _encode)) == "Latents(private)"
