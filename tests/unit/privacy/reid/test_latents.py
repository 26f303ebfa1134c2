"""The member that knows what a generator left of a scan: the coarse of it, among latents."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vitrael.core.rng import stream
from vitrael.privacy.reid.latents import NEXT_PATIENTS, fit_latents, margins

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


def test_margin_is_to_the_next_patients_and_not_to_the_patients_own_scans() -> None:
    cosine = torch.tensor([[0.9, 0.88, 0.5, 0.4], [0.1, 0.2, 0.6, 0.7]])
    patient = np.array([0, 0, 1, 2])
    assert margins(cosine, patient).tolist() == pytest.approx([(0.9 - 0.45) / 2, (0.7 - 0.4) / 2])


def test_scan_that_is_not_allowed_counts_nowhere() -> None:
    cosine = torch.tensor([[-torch.inf, 0.5, 0.3]])
    assert margins(cosine, np.arange(3)).tolist() == pytest.approx([0.1])
    alone = torch.tensor([[-torch.inf, 0.5, -torch.inf]])
    assert margins(alone, np.arange(3)).tolist() == pytest.approx([0.25])


def test_patient_who_was_noised_and_denoised_stands_out_and_a_stranger_does_not() -> None:
    gallery, strangers = _people("T", 120), _people("A", 200)
    latents = fit_latents(_people("F", 40), _encode)
    known, owner = latents.see(gallery), np.arange(len(gallery))

    def margin(image: np.ndarray) -> np.ndarray:
        return margins(latents.see(image) @ known.T, owner).numpy()

    usual = np.quantile(margin(strangers), 0.95)
    near, far = (_redrawn(gallery[:60], sigma, "again") for sigma in (0.5, 20.0))
    assert (margin(near) > usual).mean() >= 0.95
    assert (margin(far) > usual).mean() < 0.3  # nothing of the patient is left
    found = (latents.see(near) @ known.T).argmax(1).numpy()
    assert (found == owner[:60]).mean() >= 0.95


def test_one_image_is_seen_as_it_is_among_many() -> None:
    latents = fit_latents(_people("F", 40), _encode)
    many = _people("T", 5)
    alone = torch.cat([latents.see(one[None]) for one in many])
    assert torch.allclose(latents.see(many), alone, atol=1e-6)
    assert torch.allclose(alone.norm(dim=1), torch.ones(5), atol=1e-5)


def test_margin_looks_at_so_many_patients() -> None:
    cosine = torch.zeros(1, NEXT_PATIENTS + 30)
    cosine[0, 0] = 1.0
    cosine[0, NEXT_PATIENTS + 1 :] = -0.5  # too far to count
    assert margins(cosine, np.arange(cosine.shape[1])).item() == pytest.approx(0.5)


def test_what_is_private_is_not_shown() -> None:
    assert repr(fit_latents(_people("F", 12), _encode)) == "Latents(private)"
