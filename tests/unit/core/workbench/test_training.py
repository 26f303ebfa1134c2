"""From a folder of scans to a model; a command that was killed ends at the same weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.factories import models
from tests.factories.medicalnet import write_medicalnet
from vitrael.core.errors import CohortError, ConfigError, StorageError, WeightsError
from vitrael.core.training.compute import Compute
from vitrael.core.workbench.folder import ModelDocument, load_model, read_document
from vitrael.core.workbench.recipe import read_recipe
from vitrael.core.workbench.training import Trained, TrainingOrder, train_model


class KilledError(Exception):
    """Stands for a process that ends in the middle."""


def order(scans: Path, to: Path, *, text: str = models.RECIPE, seed: int = 1) -> TrainingOrder:
    recipe = to.parent / f"{to.name}.toml"
    recipe.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text(text, encoding="utf-8")
    return TrainingOrder(read_recipe(recipe), scans, to, seed, Compute("cpu", bf16=False), 1)


def train(scans: Path, to: Path, *, text: str = models.RECIPE, seed: int = 1) -> Trained:
    trained = train_model(order(scans, to, text=text, seed=seed))
    assert trained is not None
    return trained


@pytest.fixture(scope="module")
def whole(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelDocument:
    return train(scans, tmp_path_factory.mktemp("whole") / "model").document


def test_trained_model_is_ready_and_tells_what_it_is(scans: Path, tmp_path: Path) -> None:
    steps: list[str] = []
    trained = train_model(
        order(scans, tmp_path / "model"), tell=lambda step, _done, _total: steps.append(step)
    )
    assert trained is not None
    assert (trained.scans, trained.patients, trained.left_out) == (5, 5, {})
    document = load_model(tmp_path / "model").document
    assert document == trained.document
    assert document.provenance.training_images == 4
    assert document.measured["ceiling"]["n"] == 1
    assert document.measured["conditioning"]["n"] == 4
    assert not (tmp_path / "model.training").exists()
    assert list(dict.fromkeys(steps)) == [
        "prepare scans",
        "train codec",
        "encode scans",
        "train denoiser",
        "draw samples",
    ]


def test_latents_of_a_trained_codec_have_unit_variance(scans: Path, tmp_path: Path) -> None:
    train(scans, tmp_path / "model")
    codec = load_model(tmp_path / "model").codec
    assert not torch.equal(codec.latent_std, torch.ones(2))


@pytest.mark.parametrize(
    ("step", "done"), [("prepare scans", 3), ("train codec", 16), ("train denoiser", 16)]
)
def test_killed_training_goes_on_to_the_same_weights(
    step: str, done: int, whole: ModelDocument, scans: Path, tmp_path: Path
) -> None:
    def kill(now: str, so_far: int, _total: int) -> None:
        if now == step and so_far >= done:
            raise KilledError

    ordered = order(scans, tmp_path / "model")
    with pytest.raises(KilledError):
        train_model(ordered, tell=kill)
    assert ordered.workshop.exists()
    assert not ordered.to.exists()
    again = train_model(ordered)
    assert again is not None
    assert again.document.files == whole.files


def test_another_seed_gives_other_weights(
    whole: ModelDocument, scans: Path, tmp_path: Path
) -> None:
    assert train(scans, tmp_path / "model", seed=2).document.files != whole.files


def test_workshop_of_another_recipe_is_not_used(
    whole: ModelDocument, scans: Path, tmp_path: Path
) -> None:
    def kill(now: str, _done: int, _total: int) -> None:
        if now == "draw samples":
            raise KilledError

    longer = models.RECIPE.replace("length_images = 32", "length_images = 40")
    with pytest.raises(KilledError):
        train_model(order(scans, tmp_path / "model", text=longer), tell=kill)
    assert train(scans, tmp_path / "model").document.files == whole.files


def test_model_is_never_trained_over_another(scans: Path, model_folder: Path) -> None:
    before = read_document(model_folder)
    with pytest.raises(StorageError, match="holds something already"):
        train(scans, model_folder)
    assert read_document(model_folder) == before


def test_folder_of_one_patient_is_refused(tmp_path: Path) -> None:
    scans = models.write_scans(tmp_path / "scans", patients=1, visits=2)
    with pytest.raises(CohortError, match="one patient alone"):
        train(scans, tmp_path / "model")


def test_refused_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CohortError, match="no scan of the folder can be used"):
        train(tmp_path / "empty", tmp_path / "model")
    assert not (tmp_path / "model.training").exists()


def test_unusable_scan_is_left_out_with_its_reason(tmp_path: Path) -> None:
    scans = models.write_scans(tmp_path / "scans", patients=3)
    broken = scans / "sub-0009" / "anat" / "sub-0009_T1w.nii.gz"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"cut")
    trained = train(scans, tmp_path / "model")
    assert trained.scans == 3
    assert sum(trained.left_out.values()) == 1


def test_critic_and_perceptual_term_are_told(scans: Path, tmp_path: Path) -> None:
    text = models.RECIPE.replace(
        "latent_channels = 2",
        "latent_channels = 2\nperceptual_weight = 0.1\nperceptual = 'medicalnet'\n"
        "critic = { channels = 8, layers = 1 }",
        1,
    )
    origin = train(scans, tmp_path / "model", text=text).document.provenance
    assert origin.critic
    assert origin.perceptual.startswith("gradients (fallback")


def test_perceptual_weights_that_are_not_there_are_refused(scans: Path, tmp_path: Path) -> None:
    text = models.RECIPE.replace(
        "latent_channels = 2", "latent_channels = 2\nperceptual_weight = 0.1", 1
    ).replace("perceptual_weight = 0.1", "perceptual_weight = 0.1\nperceptual = 'medicalnet'")
    ordered = order(scans, tmp_path / "model", text=text)
    wrong = TrainingOrder(
        ordered.recipe,
        scans,
        ordered.to,
        1,
        ordered.compute,
        1,
        perceptual_weights=tmp_path / "none",
    )
    with pytest.raises(WeightsError, match="MedicalNet cannot be read"):
        train_model(wrong)


def test_codec_of_other_perceptual_weights_is_not_gone_on_with(scans: Path, tmp_path: Path) -> None:
    text = models.RECIPE.replace(
        "latent_channels = 2",
        "latent_channels = 2\nperceptual_weight = 0.1\nperceptual = 'medicalnet'",
        1,
    )
    plain = order(scans, tmp_path / "model", text=text)
    weights = [write_medicalnet(tmp_path / f"weights-{seed}", seed=seed) for seed in (1, 2)]

    def trains_codec(perceptual: Path) -> bool:
        """Return whether a codec was trained; all ends before the denoiser is done."""
        steps: list[str] = []

        def kill(now: str, _done: int, _total: int) -> None:
            steps.append(now)
            if now == "train denoiser":
                raise KilledError

        with pytest.raises(KilledError):
            train_model(replace(plain, perceptual_weights=perceptual), tell=kill)
        return "train codec" in steps

    assert trains_codec(weights[0])
    assert not trains_codec(weights[0])  # the control: what is finished is kept
    assert trains_codec(weights[1])


@pytest.mark.parametrize(
    ("step", "what", "fix"),
    [
        ("train codec", "the codec's training", "batch_images = 4 and accumulated_batches = 2"),
        ("train denoiser", "the denoiser's training", "[model.denoiser.training]"),
        ("draw samples", "the drawing of samples", "larger GPU"),
    ],
)
def test_gpu_that_is_too_small_is_one_sentence(
    step: str, what: str, fix: str, scans: Path, tmp_path: Path
) -> None:
    def run_out(now: str, _done: int, _total: int) -> None:
        if now == step:
            raise torch.OutOfMemoryError

    with pytest.raises(ConfigError) as refused:
        train_model(order(scans, tmp_path / "model"), tell=run_out)
    assert what in refused.value.what
    assert fix in refused.value.fix


def test_second_command_for_one_model_is_refused(scans: Path, tmp_path: Path) -> None:
    refused: list[str] = []

    def meddle(now: str, done: int, _total: int) -> None:
        if now == "train codec" and done and not refused:
            with pytest.raises(StorageError, match="another command trains this model") as error:
                train(scans, tmp_path / "model")
            refused.append(error.value.fix)

    assert train_model(order(scans, tmp_path / "model"), tell=meddle) is not None
    assert refused
    assert "another folder" in refused[0]
    with pytest.raises(StorageError, match="holds something already"):  # the control: unlocked
        train(scans, tmp_path / "model")


def test_workshop_that_cannot_be_removed_is_told(scans: Path, tmp_path: Path) -> None:
    ordered = order(scans, tmp_path / "model")
    (tmp_path / "disk").mkdir()
    ordered.workshop.symlink_to(tmp_path / "disk", target_is_directory=True)
    trained = train_model(ordered)
    assert trained is not None
    assert trained.leftover == ordered.workshop
    assert train(scans, tmp_path / "other").leftover is None  # the control


def test_scorer_is_kept_out_of_a_model_when_it_is_not_wanted(tmp_path: Path) -> None:
    scans = models.write_scans(tmp_path / "scans", patients=21)
    text = models.RECIPE.replace("[data]", "[data]\nvalidation_frac = 0.49", 1)
    without = train_model(replace(order(scans, tmp_path / "without", text=text), scorer=False))
    assert without is not None
    assert without.document.scorer is None
    assert not (tmp_path / "without" / "scorer.safetensors").exists()
    assert train(scans, tmp_path / "with", text=text).document.scorer is not None  # the control


def test_brains_that_the_grid_cuts_are_told(scans: Path, tmp_path: Path) -> None:
    text = models.RECIPE.replace("spacing_mm = 12.0", "spacing_mm = 9.0")
    trained = train(scans, tmp_path / "small", text=text)
    assert trained.cut > 0
    assert train(scans, tmp_path / "large").cut == 0  # the control
