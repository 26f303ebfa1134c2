"""Weights under the names of the public bundle become a model that can be used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.factories.systems import brain_ldm
from vitrael.core.errors import StorageError, WeightsError
from vitrael.core.models.brain_ldm import build_codec, build_denoiser
from vitrael.core.protocols import COVARIATES
from vitrael.core.weights import module_tensors, pack_tensors
from vitrael.core.workbench.folder import load_model
from vitrael.core.workbench.foreign import import_pinaya

SYSTEM = brain_ldm()


def write_bundle(folder: Path) -> Path:
    """Write made-up weights of the tiny networks as the bundle lays them out."""
    (folder / "models").mkdir(parents=True)
    codec = build_codec(SYSTEM, seed=5).net
    denoiser = build_denoiser(SYSTEM, SYSTEM.teacher, seed=5).net
    for name, network in (("autoencoder", codec), ("model", denoiser)):
        data = pack_tensors(module_tensors(network))
        (folder / "models" / f"{name}.safetensors").write_bytes(data)
    return folder


def test_imported_model_can_be_loaded_and_says_where_it_is_from(tmp_path: Path) -> None:
    document = import_pinaya(write_bundle(tmp_path / "b"), tmp_path / "m", system=SYSTEM)
    model = load_model(tmp_path / "m")
    assert model.document == document
    assert document.provenance.origin == "imported"
    assert tuple(covariate.name for covariate in document.covariates) == COVARIATES
    assert "share" in document.covariates[2].unit
    stored = module_tensors(model.codec.net)
    for name, array in module_tensors(build_codec(SYSTEM, seed=5).net).items():
        assert np.array_equal(stored[name], array)


def test_published_weights_see_the_world_from_the_other_side(tmp_path: Path) -> None:
    document = import_pinaya(write_bundle(tmp_path / "b"), tmp_path / "m", system=SYSTEM)
    assert document.orientation == "LAS"
    codec = load_model(tmp_path / "m").codec
    bare = build_codec(SYSTEM, seed=5)
    bare.load_state_dict(codec.state_dict())
    edge = SYSTEM.codec.downsampling * 2
    image = torch.rand((1, 1, edge, edge, edge), generator=torch.Generator().manual_seed(1))
    image[:, :, : edge // 2] *= 0.2  # left and right differ
    with torch.no_grad():
        z = bare.encode(image.flip(2))
        assert torch.equal(codec.encode(image), z)
        assert torch.equal(codec.decode(z), bare.decode(z).flip(2))
        assert torch.equal(codec.render(z), bare.render(z).flip(2))
        assert torch.equal(codec.decode_in_parts(z), bare.decode_in_parts(z).flip(2))
        assert not torch.allclose(codec.decode(z), bare.decode(z), atol=1e-3)  # the control


def test_images_that_are_decoded_in_slabs_are_turned_too() -> None:
    bare = build_codec(SYSTEM, seed=5)
    turned = build_codec(SYSTEM, seed=5)
    turned.mirrored = True
    z = torch.randn(
        (1, *bare.latent_shape((80, 80, 80))), generator=torch.Generator().manual_seed(1)
    )
    with torch.no_grad():
        found, expected = turned.decode_in_parts(z), bare.decode_in_parts(z).flip(2)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert not torch.allclose(found, expected.flip(2), atol=1e-3)  # the control


def test_imported_model_says_what_it_has_seen(tmp_path: Path) -> None:
    document = import_pinaya(write_bundle(tmp_path / "b"), tmp_path / "m", system=SYSTEM)
    assert any("whole heads" in note for note in document.provenance.notes)


def test_dry_run_reads_and_writes_nothing(tmp_path: Path) -> None:
    import_pinaya(write_bundle(tmp_path / "b"), tmp_path / "m", system=SYSTEM, dry_run=True)
    assert not (tmp_path / "m").exists()


def test_bundle_of_other_networks_is_refused_by_a_tensor(tmp_path: Path) -> None:
    wider = SYSTEM.teacher.model_copy(update={"channels": (16, 16)})
    other = SYSTEM.model_copy(update={"teacher": wider})
    with pytest.raises(WeightsError, match="tensor "):
        import_pinaya(write_bundle(tmp_path / "b"), tmp_path / "m", system=other)
    assert not (tmp_path / "m").exists()


def test_nothing_is_imported_over(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "mine").write_text("x")
    with pytest.raises(StorageError, match="holds something already"):
        import_pinaya(write_bundle(tmp_path / "b"), tmp_path / "m", system=SYSTEM)
