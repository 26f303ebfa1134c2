"""Every system's Config on one page that needs no torch: all knobs, with units, in one place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vitrael.core.presets import BRAIN_LDM_PRESETS, fill_preset

Positive = Annotated[int, Field(gt=0)]

PresetName = Literal["pinaya2022", "cpu-2d", "cpu-3d", "gpu-3d"]
"""Of a brain LDM; ``core.presets.BRAIN_LDM_PRESETS`` tells what each stands for."""
Prediction = Literal["noise", "velocity", "image", "edm", "flow"]
"""What a diffusion network answers with; ``edm`` and ``flow`` bring a process of their own."""
SamplerName = Literal["ddpm", "ddim", "plms", "heun", "dpm_solver", "unipc"]
"""How a diffusion network is sampled; ``core.sampling.samplers.SAMPLERS`` tells what each is."""
ScheduleName = Literal["scaled_linear", "linear", "cosine"]
"""How noise grows over the trained levels; ``core.sampling.schedules`` tells what each is."""

EVEN_IN_TIME: Final[tuple[SamplerName, ...]] = ("ddpm", "ddim")
"""Samplers that take each step at a trained level of its own, where there are trained levels."""


class Section(BaseModel):
    """A frozen part of a document; an unknown key is an error, and so is NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TrainingConfig(Section):
    """How long and how one network is trained; lengths count images, not epochs or steps."""

    rounds: int = Field(default=1, ge=1, description="federated rounds; 1 in one place")
    length_images: int = Field(gt=0, description="images drawn per site over all rounds")
    batch_images: int = Field(default=16, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    warmup_images: int = Field(default=0, ge=0)
    ema_halflife_images: int = Field(default=0, ge=0, description="0: no moving average")
    accumulated_batches: int = Field(
        default=1, ge=1, description="batches whose gradients are averaged before a step"
    )

    @property
    def step_images(self) -> int:
        """Images that one step learns from."""
        return self.batch_images * self.accumulated_batches


class LocalTrainingConfig(TrainingConfig):
    """How a network is trained that is trained in one place: there are no rounds to choose."""

    rounds: Literal[1] = Field(default=1, description="of what is trained in one place")


class CriticConfig(Section):
    """A patch discriminator (MONAI ``PatchDiscriminator``) that is trained beside the codec.

    It never leaves the site and is new in every round.
    """

    weight: float = Field(default=0.005, gt=0, description="of the least-squares term beside L1")
    start_images: int = Field(default=0, ge=0, description="of a round, before the codec hears it")
    channels: Positive = Field(default=32, description="of the first layer; doubled by each other")
    layers: int = Field(default=3, ge=1)
    learning_rate_factor: float = Field(
        default=2.0, gt=0, description="its learning rate over the codec's"
    )

    @property
    def least_vox(self) -> int:
        """The shortest edge that an image may have: the last map of scores is then a voxel wide."""
        return 3 << self.layers


class AutoencoderConfig(Section):
    """A KL autoencoder (MONAI ``AutoencoderKL``) over patches, halving each axis between levels."""

    patch_vox: int = Field(default=2, ge=1, description="edge of the cubes that become channels")
    channels: tuple[Positive, ...] = Field(default=(24, 48), min_length=1)
    latent_channels: int = Field(default=4, ge=1)
    res_blocks: int = Field(default=1, ge=1)
    norm_groups: int = Field(default=8, ge=1)
    upsampling: Literal["transposed", "nearest"] = Field(
        default="transposed", description="transposed convolution, or nearest and a convolution"
    )
    square_weight: float = Field(default=4.0, ge=0, description="of the squared error beside L1")
    kl_weight: float = Field(
        default=1e-6, ge=0, description="of the divergence's mean over the latents, not of its sum"
    )
    perceptual_weight: float = Field(default=0.0, ge=0)
    perceptual: Literal["gradients", "medicalnet"] = Field(
        default="gradients",
        description="what the perceptual term compares; medicalnet needs weights from a local file",
    )
    critic: CriticConfig | None = None
    training: TrainingConfig

    @model_validator(mode="after")
    def _groups_divide(self) -> Self:
        _demand_groups(self.channels, self.norm_groups)
        return self

    @property
    def downsampling(self) -> int:
        """Voxels of the image along an axis for one of the latent."""
        return self.patch_vox << (len(self.channels) - 1)


class DiffusionConfig(Section):
    """A latent diffusion U-Net with hybrid conditioning (Pinaya et al. 2022, section 2.2)."""

    channels: tuple[Positive, ...] = Field(default=(32, 64), min_length=1)
    attention_levels: tuple[bool, ...] = (False, True)
    res_blocks: int = Field(default=1, ge=1)
    norm_groups: int = Field(default=8, ge=1)
    resblock_updown: bool = Field(default=False, description="residual blocks change resolution")
    upcast_attention: bool = Field(default=False, description="attention scores in float32")
    prediction: Prediction = "velocity"
    timesteps: int = Field(default=1000, ge=2, description="T of the forward process")
    schedule: ScheduleName = Field(
        default="scaled_linear", description="how noise grows; cosine takes no betas"
    )
    beta_start: float = Field(default=0.0015, gt=0)
    beta_end: float = Field(default=0.0205, gt=0, lt=1)
    condition_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="share of images learned without their condition"
    )
    min_snr_gamma: float | None = Field(
        default=None, gt=0, description="clips the weight of easy noise levels; None: no weights"
    )
    sampler: SamplerName = "ddim"
    sampling_steps: int = Field(default=50, ge=1, description="evaluations of the network a sample")
    training: TrainingConfig

    @model_validator(mode="after")
    def _levels_agree(self) -> Self:
        _demand_groups(self.channels, self.norm_groups)
        if len(self.channels) != len(self.attention_levels):
            msg = "channels and attention_levels must have the same length"
            raise ValueError(msg)
        if not self.beta_start < self.beta_end:
            msg = "beta_start must be below beta_end"
            raise ValueError(msg)
        trained = self.prediction not in ("edm", "flow")
        if trained and self.sampler in EVEN_IN_TIME and self.sampling_steps > self.timesteps:
            msg = f"sampling_steps must not exceed timesteps with {self.sampler}"
            raise ValueError(msg)
        return self


class StudentConfig(DiffusionConfig):
    """The student's U-Net; the coordinator alone trains it."""

    training: LocalTrainingConfig


class BrainLDMConfig(Section):
    """The brain latent diffusion model: codec, teacher and the student distilled from it."""

    kind: Literal["brain_ldm"]
    preset: PresetName | None = Field(default=None, description="fills in what is not given")
    dimensions: Literal[2, 3] = Field(
        default=3, description="axes of space; a study's scans have 3"
    )
    codec: AutoencoderConfig
    teacher: DiffusionConfig
    student: StudentConfig

    @model_validator(mode="before")
    @classmethod
    def _fill_preset(cls, given: Any) -> Any:  # noqa: ANN401 - as pydantic hands it over
        return fill_preset(given, BRAIN_LDM_PRESETS) if isinstance(given, Mapping) else given


class ReidEncoderConfig(Section):
    """The networks that recognize a patient and a copy: one averaged over the sites, one their own.

    Both learn from F. ``training.rounds`` are of the one that recognizes a patient; the other is
    trained at each site at once.
    """

    kind: Literal["reid_encoder"]
    channels: tuple[Positive, ...] = Field(default=(16, 32, 64), min_length=1)
    embedding: int = Field(default=64, ge=2)
    temperature: float = Field(default=0.1, gt=0)
    training: TrainingConfig


class ViewRetrievalConfig(Section):
    """The encoder that finds a muscle's view again on another visit; it learns without labels."""

    kind: Literal["view_retrieval"]
    patch_px: int = Field(default=2, ge=1, description="edge of the squares that become channels")
    channels: tuple[Positive, ...] = Field(default=(8, 16, 32, 64, 64), min_length=1)
    features: int = Field(default=128, ge=2, description="of the dense layer before the projection")
    embedding: int = Field(default=64, ge=2)
    temperature: float = Field(default=0.1, gt=0)
    training: LocalTrainingConfig


class BackMixConfig(Section):
    """Training on the backgrounds of other pictures (BackMix and wBackMix)."""

    sectors_frac: float = Field(
        default=1.0, gt=0, le=1, description="share of the pictures whose sector mask is used"
    )
    emphasis: float = Field(
        default=0.0, ge=0, description="lambda of wBackMix: how much more a mixed picture counts"
    )

    @model_validator(mode="after")
    def _plain_pictures_count(self) -> Self:
        if not self.emphasis * self.sectors_frac < 1:
            msg = "emphasis times sectors_frac must be below 1, or plain pictures count for nothing"
            raise ValueError(msg)
        return self


class ViewExpertConfig(Section):
    """A site's classifier of views: MONAI's residual network with the small stem, four stages."""

    kind: Literal["view_expert"]
    channels: tuple[Positive, Positive, Positive, Positive] = Field(
        default=(64, 128, 256, 512), description="of the stages; with two blocks each ResNet-18"
    )
    blocks: tuple[Positive, Positive, Positive, Positive] = (2, 2, 2, 2)
    stem_stride: Literal[1, 2] = Field(default=1, description="2: a quarter of the arithmetic")
    dropout: float = Field(default=0.1, ge=0, lt=1)
    backmix: BackMixConfig | None = Field(
        default=None, description="needs sector masks; None: pictures keep their background"
    )
    training: LocalTrainingConfig


class ScoreFusionConfig(Section):
    """The network over all experts that weighs them; the coordinator alone trains it."""

    kind: Literal["score_fusion"]
    hidden: Positive = Field(default=16, description="width of the network that weighs an expert")
    training: LocalTrainingConfig


SystemConfig = Annotated[BrainLDMConfig | ReidEncoderConfig, Field(discriminator="kind")]
ExpertSystemConfig = Annotated[ViewExpertConfig | ScoreFusionConfig, Field(discriminator="kind")]


def _demand_groups(channels: tuple[int, ...], norm_groups: int) -> None:
    if any(width % norm_groups for width in channels):
        msg = f"channels must be multiples of norm_groups, which is {norm_groups}"
        raise ValueError(msg)
