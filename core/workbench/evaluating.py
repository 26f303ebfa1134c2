"""From a model's folder and a folder of scans to a report."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vitrael.core.errors import ConfigError
from vitrael.core.metrics.medicalnet import medicalnet_extractor
from vitrael.core.workbench.covariates import UNITS
from vitrael.core.workbench.detection import evaluate_scorer
from vitrael.core.workbench.evaluation import Line, evaluate_samples
from vitrael.core.workbench.folder import ModelDocument, load_model, read_document
from vitrael.core.workbench.generation import (
    FrugalGenerator,
    build_generator,
    choose_part,
    within_memory,
)
from vitrael.core.workbench.intake import rows_of, take_in
from vitrael.core.workbench.progress import Tell, silent
from vitrael.core.workbench.scoring import FrugalScorer, open_scorer

if TYPE_CHECKING:
    from vitrael.core.digest import Digest
    from vitrael.core.training.compute import Compute

_SMALLER: Final = "give --device cpu, or a folder with fewer scans"


@dataclass(frozen=True, slots=True)
class Report:
    """What was found of one model."""

    model: Digest
    scans: int
    left_out: Mapping[str, int]
    clipped: Mapping[str, int]
    """Covariate -> how many scans lie outside of its range; they are asked for at its end."""
    cut: int
    """How many brains reach beyond the model's grid, so that their volumes are too small."""
    lines: tuple[Line, ...]


def evaluate_against(
    folder: Path,
    scans: Path,
    compute: Compute,
    *,
    batch_images: int = 8,
    seed: int = 0,
    medicalnet: Path | None = None,
    scorer: bool = True,
    tell: Tell = silent,
) -> Report:
    """Return the report on a model beside the scans of a folder, which its recipe prepares.

    The prepared scans lie in a folder of this user alone (0700) under the system's temporary one
    until the report is made, and with the samples in the machine's memory. With ``scorer`` a model
    that has one is asked first what it notices of changed scans. Raises CohortError for
    a folder that holds too few scans, ConfigError for a model that cannot be asked in the units of
    the scans, and where the memory does not hold them.
    """
    _demand_units(read_document(folder))
    model = load_model(folder, device=compute.device)
    document = model.document
    generator = build_generator(
        model, choose_part(document), batch_images=batch_images, bf16=compute.bf16
    )
    extractors = (
        [] if medicalnet is None else [medicalnet_extractor(medicalnet, device=compute.device)]
    )
    judge = FrugalScorer(open_scorer(model)) if scorer and model.scorer else None
    with tempfile.TemporaryDirectory(prefix="vitrael-evaluation-") as place:
        intake = take_in(scans, document.recipe, workshop=Path(place) / "scans", tell=tell)
        rows = rows_of(intake.items, intake.shards, document.covariates)
        noticed = [] if judge is None else evaluate_scorer(judge, rows, seed=seed, tell=tell)
        with within_memory("the scans and as many samples", fix=_SMALLER):
            lines = evaluate_samples(
                FrugalGenerator(generator, batch_images=batch_images),
                rows,
                document.covariates,
                seed=seed,
                extractors=extractors,
                device=compute.device,
                tell=tell,
            )
    return Report(
        model=document.digest,
        scans=len(intake.items),
        left_out=dict(intake.left_out),
        clipped=dict(rows.clipped),
        cut=intake.cut,
        lines=(*lines, *noticed),
    )


def _demand_units(document: ModelDocument) -> None:
    for covariate in document.covariates:
        if covariate.unit != UNITS[covariate.name]:
            raise ConfigError(
                "the model cannot be held against scans",
                why=f"it is asked for {covariate.name} as {covariate.unit}, and scans are measured "
                f"in {UNITS[covariate.name]}",
                fix="draw with 'vitrael model sample' and judge the samples by themselves",
            )
