"""A site's log says by what its codec learns, and nothing of a scan."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from vitrael.client.site.tasks import SiteContext, train_codec
from vitrael.core.configs import AutoencoderConfig
from vitrael.core.logs import JsonFormatter
from vitrael.core.models.brain_ldm import build_codec
from vitrael.core.weights import module_tensors

if TYPE_CHECKING:
    from tests.unit.client.site.conftest import Home

CRITIC = {"layers": 2, "channels": 4, "weight": 0.25}


@pytest.mark.parametrize(
    ("options", "event"),
    [
        ({}, "the codec learns with perceptual weight 0 (edges), critic weight 0"),
        (
            {"perceptual_weight": 0.5, "critic": CRITIC},
            "the codec learns with perceptual weight 0.5 (edges), critic weight 0.25",
        ),
    ],
)
def test_log_says_by_what_the_codec_learns(
    options: dict[str, Any], event: str, home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    context = started(home, options)
    system = context.study.protocol.generator
    codec = module_tensors(build_codec(system, seed=1))
    with caplog.at_level(logging.INFO, logger=train_codec.__name__):
        train_codec.run(home.task({}, stage="codec"), {"codec": codec}, context)
    lines = [JsonFormatter().format(record) for record in caplog.records]
    assert [line for line in lines if f'"event": "{event}"' in line] == lines[:1]
    assert len(lines) == 1


def started(home: Home, options: dict[str, Any]) -> SiteContext:
    """Return the context of a steward whose study has other options of its codec."""
    protocol = home.study.protocol
    generator = protocol.generator
    codec = AutoencoderConfig.model_validate({**generator.codec.model_dump(), **options})
    systems = (generator.model_copy(update={"codec": codec}), protocol.reid)
    context = home.context()
    changed = protocol.model_copy(update={"systems": systems})
    return replace(context, study=home.study.model_copy(update={"protocol": changed}))
