"""A copy for inference answers what the original answers, and rounds only what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet
from torch import nn

from vitrael.core.configs import BrainLDMConfig
from vitrael.core.errors import ConfigError
from vitrael.core.models.nets.precision import (
    arithmetic_dtype,
    inference_copy,
)
from vitrael.core.models.nets.unet import HybridUNet
from vitrael.core.rng import seeded_initialization, torch_stream

CPU = torch.device("cpu")


def build(dimensions: int = 3, *, conditions: int | None = 4) -> DiffusionModelUNet:
    """Return a U-Net that has left its start, at which it answers zero."""
    with seeded_initialization(1, "precision", dimensions):
        net = DiffusionModelUNet(
            dimensions,
            in_channels=3,
            out_channels=3,
            num_res_blocks=1,
            channels=(8, 16),
            attention_levels=(False, True),
            num_head_channels=(0, 8),
            norm_num_groups=4,
            with_conditioning=conditions is not None,
            cross_attention_dim=conditions,
            dropout_cattn=0.0 if conditions is None else 0.1,
        )
    rng = torch_stream(1, "weights")
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng), alpha=0.05)
    return net.eval()


def given(dimensions: int = 3, *, conditions: int | None = 4) -> tuple[torch.Tensor, ...]:
    """Return state, timestep and, if there is one, condition."""
    rng = torch_stream(1, "state")
    state = torch.randn((2, 3, *(8, 6, 4)[:dimensions]), generator=rng)
    timestep = torch.tensor([999.0, 3.25])
    if conditions is None:
        return state, timestep
    return state, timestep, torch.randn((2, 1, conditions), generator=rng)


def relative(answer: torch.Tensor, reference: torch.Tensor) -> float:
    return float((answer - reference).norm() / reference.norm())


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("conditions", [None, 4])
def test_copy_answers_what_the_original_answers(dimensions: int, conditions: int | None) -> None:
    net, args = build(dimensions, conditions=conditions), given(dimensions, conditions=conditions)
    with torch.no_grad():
        reference = net(*args)
        exact = inference_copy(net, dtype=torch.float32)(*args)
        rounded = inference_copy(net, dtype=torch.bfloat16)(*args)
    assert relative(exact, reference) < 1e-5
    assert 1e-5 < relative(rounded, reference) < 0.02
    assert exact.dtype == rounded.dtype == torch.float32
    assert rounded.is_contiguous()


def test_original_is_not_touched() -> None:
    net, args = build(), given()
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    inference_copy(net, dtype=torch.bfloat16)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net(*args).requires_grad


def test_norms_timesteps_and_last_layer_stay_in_float32() -> None:
    seen: dict[str, torch.dtype] = {}

    def note(name: str, part: nn.Module) -> None:
        def hook(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            seen[name] = args[0].dtype

        part.register_forward_pre_hook(hook)

    made = inference_copy(build(), dtype=torch.bfloat16)
    for name, part in made.named_modules():
        if isinstance(part, nn.GroupNorm | nn.LayerNorm | nn.Linear | nn.Conv3d):
            note(name, part)
    made(*given())
    kept = [name for name in seen if "norm" in name or name.startswith(("time_embed.", "out."))]
    assert len(kept) > 10
    assert {seen[name] for name in kept} == {torch.float32}
    rest = {seen[name] for name in seen if name not in kept}
    assert rest == {torch.bfloat16}  # the control: the others do compute in it


def test_fractions_of_a_timestep_are_told_apart() -> None:
    made = inference_copy(build(), dtype=torch.bfloat16)
    state, _, condition = given()
    state, condition = state[:1].repeat(2, 1, 1, 1, 1), condition[:1].repeat(2, 1, 1)
    answer = made(state, torch.tensor([999.0, 998.5]), condition)  # one number in bfloat16
    assert not torch.equal(answer[0], answer[1])
    assert torch.tensor(999.0).bfloat16() == torch.tensor(998.5).bfloat16()  # the control


def test_copy_has_no_gradient_and_no_dropout() -> None:
    made = inference_copy(build().train(), dtype=torch.float32)
    first, second = made(*given()), made(*given())
    assert torch.equal(first, second)
    assert not first.requires_grad


def test_float16_is_refused() -> None:
    with pytest.raises(ConfigError, match="float16 overflows"):
        inference_copy(build(), dtype=torch.float16)


def has_matrix_units() -> bool | None:
    """Return what the operating system says of the processor; None where it does not."""
    said = Path("/proc/cpuinfo")
    if not said.exists():
        return None
    flags = [line for line in said.read_text().splitlines() if line.startswith("flags")]
    return bool(flags) and "amx_bf16" in flags[0].split()


def test_processor_multiplies_in_bfloat16_only_with_matrix_units() -> None:
    fast = has_matrix_units()
    if fast is None:
        pytest.skip("this system does not say what its processor has")
    expected = torch.bfloat16 if fast else torch.float32
    assert arithmetic_dtype(CPU, torch.bfloat16) == expected
    assert arithmetic_dtype(CPU, torch.float32) == torch.float32  # the control: never by itself


def test_device_that_is_not_known_multiplies_in_float32() -> None:
    assert arithmetic_dtype(torch.device("meta"), torch.bfloat16) == torch.float32


@pytest.mark.parametrize("dimensions", [2, 3])
def test_network_with_the_switches_of_the_published_one_is_copied(dimensions: int) -> None:
    part = BrainLDMConfig.model_validate({"kind": "brain_ldm", "preset": "pinaya2022"}).teacher
    small = {"channels": (8, 16, 16), "res_blocks": 1, "norm_groups": 4}
    with seeded_initialization(1, "published", dimensions):
        net = HybridUNet(
            part.model_copy(update=small), latent_channels=3, conditions=4, dimensions=dimensions
        ).eval()
    rng = torch_stream(1, "weights")
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng), alpha=0.05)
    state, timestep, condition = given(dimensions)
    state = state.repeat(1, 1, 1, 2, *[2] * (dimensions - 2))
    args = state, timestep, condition[:, 0]
    assert any(isinstance(part, nn.AvgPool2d | nn.AvgPool3d) for part in net.modules())
    with torch.no_grad():
        reference = net(*args)
        exact = inference_copy(net, dtype=torch.float32)(*args)
        rounded = inference_copy(net, dtype=torch.bfloat16)(*args)
    assert relative(exact, reference) < 1e-5
    assert 1e-5 < relative(rounded, reference) < 0.02
