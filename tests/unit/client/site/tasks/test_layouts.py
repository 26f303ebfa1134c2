"""A study alone tells the weights that it trains, without building them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from vitrael.client.site.tasks.layouts import study_layouts
from vitrael.core.errors import WeightsError
from vitrael.core.models import SYSTEMS
from vitrael.core.weights import check_like, module_tensors

if TYPE_CHECKING:
    from tests.unit.client.site.conftest import Home


def test_layouts_are_those_of_the_networks_that_the_study_builds(home: Home) -> None:
    protocol = home.study.protocol
    layouts = study_layouts(home.study)
    parts = SYSTEMS[protocol.generator.kind].build(protocol.generator, protocol.seed)
    check_like(module_tensors(parts["codec"]), layouts["codec"])
    check_like(module_tensors(parts["teacher"]), layouts["denoiser"])
    filters = SYSTEMS[protocol.reid.kind].build(protocol.reid, protocol.seed)
    check_like(module_tensors(filters["encoder"]), layouts["encoder"])
    assert set(layouts) == {"codec", "denoiser", "encoder"}
    with pytest.raises(WeightsError):
        check_like(module_tensors(parts["teacher"]), layouts["codec"])


def test_layouts_take_no_memory_and_draw_no_random_number(home: Home) -> None:
    before = torch.default_generator.get_state()
    layouts = study_layouts(home.study)
    assert torch.equal(torch.default_generator.get_state(), before)
    arrays = [array for tensors in layouts.values() for array in tensors.values()]
    assert sum(array.size for array in arrays) > 10_000
    assert all(array.strides == (0,) * array.ndim for array in arrays)
