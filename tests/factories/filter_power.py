"""A phantom hospital with a calibrated filter, and what it catches, class by class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch.nn import functional

from vitrael.core.configs import ReidEncoderConfig
from vitrael.core.data.phantoms.cohorts import draw_scan
from vitrael.core.metrics.intervals import Interval, clopper_pearson
from vitrael.core.models.reid import Learns, ReidEncoder, build_reid_encoder
from vitrael.core.records import PatientImages
from vitrael.core.rng import stream, torch_stream
from vitrael.core.training.warps import Along
from vitrael.privacy.audit.plants import (
    Means,
    PlantClass,
    Sources,
    draw_sources,
    each_plant,
    found_groups,
)
from vitrael.privacy.audit.power import Tally
from vitrael.privacy.reid.calibrate import first_visits, freeze, null_matches
from vitrael.privacy.reid.encoders import train_encoder
from vitrael.privacy.reid.gallery import build_gallery, with_round_trips
from vitrael.privacy.reid.latents import Encode
from vitrael.privacy.reid.lens import MEMBERS, Encoders, Work, fit_lens
from vitrael.privacy.reid.roles import RoundTrip
from vitrael.privacy.reid.screen import Screener
from vitrael.privacy.reid.template import Template, fit_template, lay_onto

RATE = 0.05


def draw_patients(
    name: str, count: int, *, visits: int, edge_vox: int, seed: int = 7
) -> PatientImages:
    """Return phantom patients on a cubic grid of 192 mm."""
    grid = (edge_vox, edge_vox, edge_vox)
    scans = [
        draw_scan(seed, name, patient, visit, grid_vox=grid, spacing_mm=192 / edge_vox)[0]
        for patient in range(count)
        for visit in range(visits)
    ]
    return PatientImages(
        np.clip(np.stack([scan.image_CDHW for scan in scans]), 0, 1),
        np.zeros((len(scans), 4), np.float32),
        np.repeat(np.arange(count), visits),
        np.tile(np.arange(visits), count),
    )


class FlatEmbedder:
    """An Embedder without weights: the image with its mirror image, centered, unit length."""

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        flat = (x + x.flip(2)).flatten(1)
        return functional.normalize(flat - flat.mean(1, keepdim=True), dim=1)


@dataclass(frozen=True)
class Caught:
    """What became of the plants of a class."""

    plant: PlantClass
    tally: Tally
    members: tuple[float, ...]
    """Share that each member alone would have dropped."""

    @property
    def share(self) -> float:
        return self.tally.dropped / self.tally.shown

    @property
    def bounds(self) -> Interval:
        return clopper_pearson(self.tally.dropped, self.tally.shown)

    @property
    def line(self) -> str:
        must = "must" if self.plant.must else "    "
        members = ", ".join(f"{n} {s:.2f}" for n, s in zip(MEMBERS, self.members, strict=False))
        demanded = "-" if self.plant.demanded is None else f"{self.plant.demanded:.2f}"
        return (
            f"  {self.plant.name:16} {must} {self.tally.dropped:4d} of {self.tally.shown:4d}, "
            f"bound {self.bounds.low:.3f}, demanded {demanded}  ({members})"
        )


@dataclass(frozen=True)
class Hospital:
    """A site's splits; strangers and fresh patients are known to nobody."""

    training: PatientImages
    learning: PatientImages
    calibration: PatientImages
    strangers: PatientImages
    fresh: PatientImages
    along: Along = "space"

    @cached_property
    def template(self) -> Template:
        first = self.learning.image_BCDHW[first_visits(self.learning)]
        return fit_template(first, along=self.along)

    def encoders(self, length_images: int, *, seed: int) -> Encoders:
        """Return both encoders, trained on split F."""
        config = ReidEncoderConfig.model_validate(
            {
                "kind": "reid_encoder",
                "training": {
                    "length_images": length_images,
                    "batch_images": 32,
                    "learning_rate": 1e-3,
                },
            }
        )
        laid = PatientImages(
            lay_onto(self.learning.image_BCDHW, self.template),
            self.learning.condition_BK,
            self.learning.patient_B,
            self.learning.visit_B,
        )

        def train(learns: Learns) -> ReidEncoder:
            encoder = build_reid_encoder(config, seed=seed, learns=learns, along=self.along)
            train_encoder(
                encoder, laid, config, learns=learns, rng=torch_stream(seed, "filter", learns)
            )
            return encoder

        return Encoders(copy=train("copies"), patient=train("visits"))

    def screener(
        self,
        encoders: Encoders,
        *,
        round_trip: RoundTrip | None = None,
        encode: Encode | None = None,
    ) -> Screener:
        """Return the filter with its operating point, frozen before any plant is made."""
        lens = fit_lens(
            with_round_trips(self.learning, round_trip), encoders, self.template, encode=encode
        )
        gallery = build_gallery(with_round_trips(self.training, round_trip), lens)
        point = freeze(
            null_matches(self.training, self.calibration, gallery, round_trip=round_trip),
            false_match_rate=RATE,
            gallery_patients=gallery.patients,
            salt="0" * 32,
        )
        assert point is not None
        return Screener(gallery, point)

    def sources(self, count: int, *, seed: int) -> Sources:
        return draw_sources(
            self.training, count, rng=stream(seed, "sources"), strangers=self.strangers
        )


def catch(
    screener: Screener,
    table: Mapping[str, PlantClass],
    sources: Sources,
    means: Means,
    *,
    seed: int,
    work: Work | None = None,
) -> Iterator[Caught]:
    """Yield what became of each class that can be made."""
    for name, plants in each_plant(table, sources, means, rng=stream(seed, "plants")):
        if not len(plants):
            continue
        with torch.no_grad():
            scores = screener.members(plants, work=work)
        over = scores > screener.point.threshold
        tally = found_groups(over.any(1), table[name])
        yield Caught(table[name], tally, tuple(over.mean(0).tolist()))


def half_gallery(hospital: Hospital) -> PatientImages:
    """Return every other training patient's scans: a reference set that was cut short."""
    rows = hospital.training.patient_B % 2 == 0
    part = hospital.training
    return PatientImages(
        part.image_BCDHW[rows], part.condition_BK[rows], part.patient_B[rows], part.visit_B[rows]
    )
