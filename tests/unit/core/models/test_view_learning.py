"""A training shows pictures on their own background, or on others' where the config says so."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from vitrael.core.configs import BackMixConfig, LocalTrainingConfig, ViewExpertConfig
from vitrael.core.data.augment import BackMix, MovedViews
from vitrael.core.errors import DataError
from vitrael.core.models.view_learning import ViewLearning, view_learning
from vitrael.core.rng import stream, torch_stream

COUNT, EDGE = 40, 16
IMAGES = np.full((COUNT, 1, EDGE, EDGE), 0.2, dtype=np.float32)
IMAGES[:, :, 4:12, 4:12] = np.linspace(0.5, 0.9, COUNT, dtype=np.float32)[:, None, None, None]
SECTORS = np.zeros((COUNT, EDGE, EDGE), dtype=bool)
SECTORS[:, 4:12, 4:12] = True
LABELS = np.arange(COUNT) % 3


def config(backmix: BackMixConfig | None = None) -> ViewExpertConfig:
    training = LocalTrainingConfig(length_images=8)
    return ViewExpertConfig(kind="view_expert", backmix=backmix, training=training)


def learn(
    backmix: BackMixConfig | None = None,
    *,
    sectors: np.ndarray | None = SECTORS,
    seed: int = 1,
    classes: int = 3,
) -> ViewLearning:
    return view_learning(
        config(backmix),
        IMAGES,
        LABELS,
        classes=classes,
        sector_NHW=sectors,
        rng=stream(seed, "sectors"),
        device="cpu",
    )


def chosen(learning: ViewLearning, *, batch: int = 400) -> np.ndarray:
    """Return which pictures of a batch stand on the background of another."""
    drawn = learning.draw(batch, torch_stream(1, "draw"))
    return np.asarray(drawn.is_mixed_B)


def test_pictures_keep_their_background_unless_the_config_says_otherwise() -> None:
    learning = learn()
    assert isinstance(learning.draw, MovedViews)
    assert not chosen(learning).any()
    assert learning.objective.emphasis == 0
    mixed = learn(BackMixConfig())  # the control
    assert isinstance(mixed.draw, BackMix)
    assert chosen(mixed).all()


def test_sectors_that_are_not_asked_for_change_nothing() -> None:
    first = learn(sectors=SECTORS).draw(16, torch_stream(2, "draw"))
    second = learn(sectors=None).draw(16, torch_stream(2, "draw"))
    torch.testing.assert_close(first.image_BCHW, second.image_BCHW, rtol=0, atol=0)
    mixed = learn(BackMixConfig()).draw(16, torch_stream(2, "draw"))  # the control
    assert (mixed.image_BCHW != first.image_BCHW).any()


@pytest.mark.parametrize(("share", "count"), [(1.0, 40), (0.5, 20), (0.1, 4), (0.001, 1)])
def test_share_of_the_sectors_is_that_of_the_config(share: float, count: int) -> None:
    learning = learn(BackMixConfig(sectors_frac=share))
    assert learning.objective.mixed_frac == pytest.approx(count / COUNT)
    assert chosen(learning, batch=2_000).mean() == pytest.approx(count / COUNT, abs=0.04)


def test_objective_knows_how_much_a_mixed_picture_counts() -> None:
    learning = learn(BackMixConfig(sectors_frac=0.25, emphasis=2.0))
    assert (learning.objective.emphasis, learning.objective.mixed_frac) == (2.0, 0.25)
    assert learn(BackMixConfig(sectors_frac=0.25)).objective.emphasis == 0  # the control


def test_whose_sectors_are_used_is_drawn_from_the_generator() -> None:
    def known(seed: int) -> list[bool]:
        draw = learn(BackMixConfig(sectors_frac=0.5), seed=seed).draw
        assert isinstance(draw, BackMix)
        batch = draw(2_000, torch_stream(1, "draw"))
        rows = torch.randint(COUNT, (2_000,), generator=torch_stream(1, "draw"))
        found = dict(zip(rows.tolist(), batch.is_mixed_B.tolist(), strict=True))
        return [found[row] for row in range(COUNT)]

    assert known(1) == known(1)
    assert known(1) != known(2)


@pytest.mark.parametrize("emphasis", [1.0, 3.0])
def test_emphasis_that_leaves_plain_pictures_no_weight_is_refused(emphasis: float) -> None:
    with pytest.raises(ValidationError, match="must be below 1"):
        BackMixConfig(emphasis=emphasis)
    learn(BackMixConfig(emphasis=0.9))  # the control
    learn(BackMixConfig(emphasis=3.0, sectors_frac=0.2))


def test_backmix_without_any_sector_is_refused() -> None:
    with pytest.raises(DataError, match="no picture has a sector mask"):
        learn(BackMixConfig(), sectors=None)


def test_label_that_is_no_class_is_refused() -> None:
    for backmix in (None, BackMixConfig()):
        with pytest.raises(DataError, match="a label is none of the classes"):
            learn(backmix, classes=2)
