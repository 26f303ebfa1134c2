from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.factories.medicalnet import medicalnet_tensors
from vitrael.core.digest import digest_file
from vitrael.core.errors import DataError, WeightsError
from vitrael.core.metrics.features import extract_features
from vitrael.core.metrics.medicalnet import STAGES, build_medicalnet, medicalnet_extractor
from vitrael.core.rng import torch_stream
from vitrael.core.weights import pack_tensors

VOLUMES = torch.rand((2, 1, 24, 24, 24), generator=torch_stream(1, "volumes"))


@pytest.fixture(scope="module")
def tensors() -> Mapping[str, np.ndarray]:
    return medicalnet_tensors()


def _write(path: Path, tensors: Mapping[str, np.ndarray]) -> Path:
    path.write_bytes(pack_tensors(tensors))
    return path


def test_the_last_map_is_an_eighth_as_published() -> None:
    for name, width in (("resnet10", 512), ("resnet50", 2048)):
        with torch.device("meta"):
            module = build_medicalnet(name)
        module.to_empty(device="cpu")
        x = torch.zeros(1, 1, 32, 40, 24)
        with torch.no_grad():
            for stage in ("conv1", "bn1", "act", "maxpool", *STAGES):
                x = module.get_submodule(stage)(x)
        assert x.shape == (1, width, 4, 5, 3)


def test_published_names_are_read_with_prefix_and_head_and_without_counters(
    tmp_path: Path, tensors: Mapping[str, np.ndarray]
) -> None:
    plain = medicalnet_extractor(_write(tmp_path / "plain", tensors), network="resnet10")
    published = {
        f"module.{name}": array
        for name, array in tensors.items()
        if not name.endswith("num_batches_tracked")
    }
    published["module.conv_seg.0.weight"] = np.zeros((2, 2), np.float32)
    path = _write(tmp_path / "published", published)
    wrapped = medicalnet_extractor(path, network="resnet10")
    first, second = (extract_features(e, VOLUMES) for e in (plain, wrapped))
    assert first.shape == (2, 512)
    assert (first == second).all()
    digits = digest_file(path).removeprefix("sha256:")[:12]
    assert wrapped.name == f"medicalnet-resnet10-{digits}"
    assert plain.name != wrapped.name


def test_a_volume_is_standardized_first(tmp_path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    extractor = medicalnet_extractor(_write(tmp_path / "w", tensors), network="resnet10")
    first = extract_features(extractor, VOLUMES)
    np.testing.assert_allclose(first, extract_features(extractor, 5 * VOLUMES - 2), rtol=1e-3)
    assert not np.allclose(first[0], first[1], rtol=1e-3)


def test_the_network_is_told_from_the_names(
    tmp_path: Path, tensors: Mapping[str, np.ndarray]
) -> None:
    assert medicalnet_extractor(_write(tmp_path / "w", tensors)).name.startswith(
        "medicalnet-resnet10-"
    )
    deeper = {**tensors, "layer1.0.conv3.weight": np.zeros((256, 64, 1, 1, 1), np.float32)}
    with pytest.raises(WeightsError, match=r"tensor layer1\.0\.bn3"):  # a bottleneck of resnet50
        medicalnet_extractor(_write(tmp_path / "deeper", deeper))


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "w", {"conv.weight": np.zeros((1, 1), np.float32)})
    with pytest.raises(WeightsError, match=r"no weights of MedicalNet.*resnet_10 or resnet_50"):
        medicalnet_extractor(path)


@pytest.mark.parametrize(
    ("name", "array", "why"),
    [
        ("conv1.weight", np.zeros((64, 3, 7, 7, 7), np.float32), r"conv1.weight is float32\[64, 3"),
        ("layer2.0.conv1.weight", None, "layer2.0.conv1.weight is missing"),
        ("layer9.weight", np.zeros(2, np.float32), "layer9.weight is not expected"),
        ("bn1.bias", np.full(64, np.nan, np.float32), "bn1.bias holds values that are not finite"),
    ],
)
def test_the_first_tensor_that_differs_is_named(
    tmp_path: Path,
    tensors: Mapping[str, np.ndarray],
    name: str,
    array: np.ndarray | None,
    why: str,
) -> None:
    changed = {k: v for k, v in tensors.items() if k != name}
    if array is not None:
        changed[name] = array
    with pytest.raises(WeightsError, match=why):
        medicalnet_extractor(_write(tmp_path / "w", changed), network="resnet10")


def test_weights_that_are_missing_or_broken_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"cannot be read.*name another extractor"):
        medicalnet_extractor(tmp_path / "none")
    (tmp_path / "broken").write_bytes(b"no tensors")
    with pytest.raises(WeightsError, match="not a whole safetensors file"):
        medicalnet_extractor(tmp_path / "broken")


def test_unknown_networks_and_planes_are_refused(
    tmp_path: Path, tensors: Mapping[str, np.ndarray]
) -> None:
    with pytest.raises(DataError, match="choose from resnet10, resnet50"):
        build_medicalnet("resnet11")
    extractor = medicalnet_extractor(_write(tmp_path / "w", tensors), network="resnet10")
    with pytest.raises(DataError, match="volumes alone"):
        extract_features(extractor, VOLUMES[:, :, 0])
