"""Weights that all experts begin with are a local file of the very network, named by digest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.factories.experts_study import prepare_views, write_study
from tests.factories.federation import federation
from vitrael.core.digest import Digest, digest_bytes
from vitrael.core.errors import StudyError, UsageError, WeightsError
from vitrael.core.models.view_expert import build_view_net
from vitrael.core.study import Study, parse_study
from vitrael.core.weights import module_tensors, pack_tensors
from vitrael.server.given_weights import keep_given, read_given
from vitrael.server.studies.experts import train_experts
from vitrael.server.studies.federated import collect_consents


def document(weights: Digest) -> str:
    return write_study(begin="given").replace(
        'begin = "given"', f'begin = "given"\nweights = "{weights}"'
    )


def study_of(weights: Digest) -> Study:
    return parse_study(document(weights).encode(), label="given")


def network(seed: int = 3, *, prefix: str = "") -> bytes:
    config = parse_study(write_study().encode(), label="tiny").experts.expert
    tensors = module_tensors(build_view_net(config, 5, seed=seed))
    return pack_tensors({f"{prefix}{name}": value for name, value in tensors.items()})


def write(folder: Path, data: bytes) -> Path:
    path = folder / "weights.safetensors"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("prefix", ["", "net."])
def test_file_of_a_network_or_of_an_expert_is_taken(prefix: str, tmp_path: Path) -> None:
    data = network(prefix=prefix)
    study = study_of(digest_bytes(data))
    assert read_given(tmp_path, study, write(tmp_path, data)) == data
    with pytest.raises(UsageError, match="weights that are not here"):
        read_given(tmp_path, study, None)
    keep_given(tmp_path, data)
    assert read_given(tmp_path, study, None) is None  # it is kept


def test_other_weights_than_are_named_are_refused(tmp_path: Path) -> None:
    study = study_of(digest_bytes(network()))
    with pytest.raises(UsageError, match="does not hold the weights that the study names"):
        read_given(tmp_path, study, write(tmp_path, network(seed=4)))
    wrong = pack_tensors({"body.conv1.weight": np.zeros((2, 1, 3, 3), np.float32)})
    with pytest.raises(WeightsError):
        read_given(tmp_path, study_of(digest_bytes(wrong)), write(tmp_path, wrong))
    plain = parse_study(write_study().encode(), label="tiny")
    with pytest.raises(UsageError, match="no weights that are given"):
        read_given(tmp_path, plain, write(tmp_path, network()))
    assert read_given(tmp_path, plain, None) is None  # the control


@pytest.mark.parametrize("begin", ["fresh", "first"])
def test_weights_are_named_where_they_are_given_and_only_there(begin: str) -> None:
    text = document(digest_bytes(b"weights"))
    parse_study(text.encode(), label="given")  # the control
    with pytest.raises(StudyError, match="weights"):
        parse_study(text.replace('"given"', f'"{begin}"').encode(), label="given")
    with pytest.raises(StudyError, match="weights"):
        parse_study(write_study(begin="given").encode(), label="given")


def test_every_expert_is_trained_from_them(tmp_path: Path) -> None:
    data = network()
    home = prepare_views(tmp_path, document(digest_bytes(data)))
    keep_given(home, data)
    with federation(home) as told:
        collect_consents(told.run())
        assert len(train_experts(told.run())) == 3
        starts = {task.inputs.get("start") for task in told.seen if task.stage == "expert"}
    assert starts == {digest_bytes(data)}
