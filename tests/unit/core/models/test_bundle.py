"""The bundle's weights come in by name and shape, and in our order of covariates.

Which names the old library gave is not ours to say: MONAI's own ``load_old_state_dict`` does.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.networks.nets.autoencoderkl import AutoencoderKL
from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet

from tests.factories.systems import brain_ldm
from vitrael.core.configs import BrainLDMConfig
from vitrael.core.errors import WeightsError
from vitrael.core.models.brain_ldm import build_codec, build_denoiser
from vitrael.core.models.bundle import BUNDLE_ORDER, read_bundle, rename_tensors
from vitrael.core.models.nets.unet import HybridUNet
from vitrael.core.protocols import COVARIATES
from vitrael.core.weights import load_weights, module_tensors, pack_tensors

OLD_NAMES = (
    (".out_proj.", ".to_out.0."),
    (".postconv.conv.", ".conv.conv."),
)


def config() -> BrainLDMConfig:
    """Return a small relative of the published model: nearest upsampling, residual changes."""
    small = brain_ldm()
    codec = small.codec.model_copy(update={"patch_vox": 1, "upsampling": "nearest"})
    teacher = small.teacher.model_copy(update={"resblock_updown": True, "prediction": "noise"})
    return small.model_copy(update={"codec": codec, "teacher": teacher})


def old_style(tensors: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Return tensors under the names that the bundle uses."""
    renamed = {}
    for name, array in tensors.items():
        if not name.startswith("net."):
            continue
        old = name.removeprefix("net.")
        for new, before in OLD_NAMES:
            old = old.replace(new, before)
        renamed[old] = torch.from_numpy(array)
    return renamed


def write_bundle(folder: Path, *, seed: int = 3) -> tuple[dict[str, np.ndarray], HybridUNet]:
    """Write a bundle of the small model; return the codec's tensors and the network."""
    models = folder / "models"
    models.mkdir(parents=True)
    codec = module_tensors(build_codec(config(), seed=seed))
    denoiser = build_denoiser(config(), config().teacher, seed=seed)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=rng))
    torch.save(old_style(codec), models / "autoencoder.pt")
    torch.save(old_style(module_tensors(denoiser)), models / "model.pt")
    return codec, denoiser


@pytest.mark.parametrize("name", ["autoencoder", "model"])
def test_old_names_become_what_monai_makes_of_them(name: str, tmp_path: Path) -> None:
    write_bundle(tmp_path)
    state = torch.load(tmp_path / "models" / f"{name}.pt", weights_only=True)
    fresh = {
        "autoencoder": build_codec(config(), seed=9).net,
        "model": build_denoiser(config(), config().teacher, seed=9).net,
    }[name]
    assert isinstance(fresh, (AutoencoderKL, DiffusionModelUNet))
    assert not set(state) <= set(fresh.state_dict())  # the control: old names are in it
    arrays = {old: tensor.numpy().copy() for old, tensor in state.items()}
    ours = rename_tensors(arrays, fresh)
    parallel = {f"module.{old}": array for old, array in arrays.items()}
    fresh.load_old_state_dict(state)  # takes each name out that it knows
    assert not state
    theirs = {known: tensor.numpy() for known, tensor in fresh.state_dict().items()}
    for renamed in (ours, rename_tensors(parallel, fresh)):
        assert renamed.keys() == theirs.keys()
        assert all(np.array_equal(renamed[known], theirs[known]) for known in theirs)


def test_new_name_among_old_ones_is_unknown_to_monai(tmp_path: Path) -> None:
    """The control: the comparison above would see a table that names a layer wrongly."""
    write_bundle(tmp_path)
    state = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    old = next(name for name in state if ".to_out.0." in name)
    state[old.replace(".to_out.0.", ".to_out.")] = state.pop(old)
    fresh = build_denoiser(config(), config().teacher, seed=9).net
    with pytest.raises(KeyError, match="to_out"):
        fresh.load_old_state_dict(dict(state))
    with pytest.raises(WeightsError, match=r"tensor .*to_out\.\w+ is not part of the preset"):
        rename_tensors({name: tensor.numpy() for name, tensor in state.items()}, fresh)


def test_bundle_is_loaded_with_its_conditions_in_our_order(tmp_path: Path) -> None:
    codec, theirs = write_bundle(tmp_path)
    codec_tensors, tensors = read_bundle(tmp_path, config())
    load_weights(build_codec(config(), seed=9), codec_tensors)
    assert np.array_equal(
        codec_tensors["net.encoder.blocks.0.conv.weight"], codec["net.encoder.blocks.0.conv.weight"]
    )
    ours = build_denoiser(config(), config().teacher, seed=9)
    load_weights(ours, tensors)
    rng = torch.Generator().manual_seed(1)
    state, told = torch.randn((2, 2, 4, 4, 4), generator=rng), torch.rand((2, 4), generator=rng)
    ordered = told[:, [BUNDLE_ORDER.index(name) for name in COVARIATES]]
    with torch.no_grad():
        expected = theirs(state, torch.tensor([3.0, 50.0]), told)
        torch.testing.assert_close(ours(state, torch.tensor([3.0, 50.0]), ordered), expected)
        assert not torch.allclose(ours(state, torch.tensor([3.0, 50.0]), told), expected, atol=1e-3)


def test_first_tensor_of_another_preset_is_named(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    other = config()
    wider = other.model_copy(
        update={"teacher": other.teacher.model_copy(update={"channels": (16, 32)})}
    )
    with pytest.raises(WeightsError, match=r"tensor conv_in\.conv\.weight has the shape"):
        read_bundle(tmp_path, wider)
    deeper = other.model_copy(
        update={"teacher": other.teacher.model_copy(update={"res_blocks": 2})}
    )
    with pytest.raises(WeightsError, match="is missing"):
        read_bundle(tmp_path, deeper)


def test_unknown_tensor_is_refused(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    path = tmp_path / "models" / "model.pt"
    torch.save({**torch.load(path, weights_only=True), "stranger": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="tensor stranger is not part of the preset"):
        read_bundle(tmp_path, config())


def test_file_that_would_run_code_is_not_run(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    torch.save({"weights": Path("/")}, tmp_path / "models" / "model.pt")
    with pytest.raises(WeightsError, match=r"model\.pt cannot be read"):
        read_bundle(tmp_path, config())


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    path = tmp_path / "models" / "model.pt"
    state = torch.load(path, weights_only=True)
    state["out.0.weight"][0] = torch.nan
    torch.save(state, path)
    with pytest.raises(WeightsError, match="not finite"):
        read_bundle(tmp_path, config())


def test_missing_file_says_what_to_fetch(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no models/autoencoder\.pt"):
        read_bundle(tmp_path, config())


def test_safetensors_are_read_as_well(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    models = tmp_path / "models"
    before = read_bundle(tmp_path, config())
    for stem in ("autoencoder", "model"):
        state = torch.load(models / f"{stem}.pt", weights_only=True)
        arrays = {name: tensor.numpy() for name, tensor in state.items()}
        (models / f"{stem}.safetensors").write_bytes(pack_tensors(arrays))
        (models / f"{stem}.pt").unlink()
    after = read_bundle(tmp_path, config())
    for ours, again in zip(before, after, strict=True):
        assert all(np.array_equal(ours[name], again[name]) for name in ours)
        assert ours.keys() == again.keys()


def test_older_layout_and_older_files_are_read_as_well(tmp_path: Path) -> None:
    """The copy of the GenerativeModels library, in the format before torch 1.6: no zip file."""
    write_bundle(tmp_path)
    models = tmp_path / "models"
    before = read_bundle(tmp_path, config())
    for stem, older in (("autoencoder", "autoencoder"), ("model", "diffusion_model")):
        state = torch.load(models / f"{stem}.pt", weights_only=True)
        (models / f"{stem}.pt").unlink()
        path = models / f"{older}.pth"
        torch.save(state, path, _use_new_zipfile_serialization=False)
        assert not zipfile.is_zipfile(path)
    after = read_bundle(tmp_path, config())
    for ours, again in zip(before, after, strict=True):
        assert ours.keys() == again.keys()
        assert all(np.array_equal(ours[name], again[name]) for name in ours)


def test_older_file_that_would_run_code_is_not_run(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    path = tmp_path / "models" / "model.pt"
    torch.save({"weights": Path("/")}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(WeightsError, match=r"model\.pt cannot be read"):
        read_bundle(tmp_path, config())


@pytest.mark.parametrize("layout", ["zip", "older"])
def test_file_that_was_cut_is_refused(layout: str, tmp_path: Path) -> None:
    write_bundle(tmp_path)
    path = tmp_path / "models" / "model.pt"
    state = torch.load(path, weights_only=True)
    torch.save(state, path, _use_new_zipfile_serialization=layout == "zip")
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(WeightsError, match="it is no file of tensors alone, or it was cut"):
        read_bundle(tmp_path, config())
