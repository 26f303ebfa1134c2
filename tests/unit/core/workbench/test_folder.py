"""A model comes back as it was written; anything else is refused before it is used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.factories import models
from vitrael.core.errors import ConfigError, StorageError, WeightsError
from vitrael.core.models.brain_ldm import build_codec, build_denoiser
from vitrael.core.weights import module_tensors, pack_tensors
from vitrael.core.workbench.folder import (
    Weights,
    load_model,
    read_document,
    read_tensors,
    write_model,
)


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    """Return a copy that a test may damage."""
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


def test_model_comes_back_with_its_weights(model_folder: Path) -> None:
    model = load_model(model_folder)
    stored = read_tensors(model_folder, model.document, "denoiser")
    for name, array in module_tensors(model.denoiser).items():
        assert np.array_equal(array, stored[name])
    assert model.document.covariates == models.covariates()
    assert model.document.takes_nothing
    assert dict(model.scorer) == {}


def test_equal_models_have_one_digest(model_folder: Path, tmp_path: Path) -> None:
    again = models.write_untrained(tmp_path / "again", dropout=0.2)
    other = models.write_untrained(tmp_path / "other", dropout=0.2, seed=2)
    digest = read_document(model_folder).digest
    assert read_document(again).digest == digest
    assert read_document(other).digest != digest


def test_folder_holds_json_and_safetensors_alone(model_folder: Path) -> None:
    names = {path.name for path in model_folder.iterdir()}
    assert names == {"model.json", "codec.safetensors", "denoiser.safetensors"}
    assert list(model_folder.parent.glob(".model-*")) == []


def test_nothing_is_written_over(folder: Path) -> None:
    before = (folder / "model.json").read_bytes()
    with pytest.raises(StorageError, match="holds something already"):
        models.write_untrained(folder)
    assert (folder / "model.json").read_bytes() == before


def test_damaged_weights_are_refused(folder: Path) -> None:
    path = folder / "codec.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=r"codec\.safetensors is not the file"):
        load_model(folder)


def test_missing_weights_are_refused(folder: Path) -> None:
    (folder / "denoiser.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"denoiser\.safetensors of the model cannot be read"):
        load_model(folder)


def test_weights_of_another_preset_are_refused_by_the_first_tensor(tmp_path: Path) -> None:
    document = models.document()
    wider = document.system.teacher.model_copy(update={"channels": (16, 16)})
    codec = module_tensors(build_codec(document.system, seed=1))
    denoiser = module_tensors(build_denoiser(document.system, wider, seed=1))
    write_model(document, Weights(codec, denoiser), tmp_path / "mixed")
    with pytest.raises(
        WeightsError, match=r"denoiser do not fit: tensor net\.\S+ is float32"
    ) as told:
        load_model(tmp_path / "mixed")
    assert "another preset" in told.value.sentence()


@pytest.mark.parametrize(
    ("text", "told"),
    [("{", "JSON"), ('{"format": "vitrael/model/9"}', "format"), ("[]", "cannot be used")],
)
def test_document_that_is_none_is_refused(folder: Path, text: str, told: str) -> None:
    (folder / "model.json").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=told):
        read_document(folder)


def test_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no model"):
        read_document(tmp_path)


def test_unknown_key_of_a_document_is_refused(folder: Path) -> None:
    path = folder / "model.json"
    document = json.loads(path.read_bytes())
    path.write_text(json.dumps({**document, "pickle": "code"}), encoding="utf-8")
    with pytest.raises(ConfigError, match="pickle"):
        load_model(folder)


def test_weights_are_checked_by_content_not_by_place(folder: Path) -> None:
    tensors = read_tensors(folder, read_document(folder), "codec")
    name = min(tensors)
    changed = {**tensors, name: tensors[name] + 1}
    (folder / "codec.safetensors").write_bytes(pack_tensors(changed))
    with pytest.raises(WeightsError, match="digest is another"):
        load_model(folder)
