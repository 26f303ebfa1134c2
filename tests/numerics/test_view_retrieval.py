"""The view of one visit is found again at the next, and the muscle's loss is read from the pair.

Nobody says where the probe stood: positions are asked of the phantom only to judge. The patients
judged are never those learned from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import process_time

import numpy as np
import pytest
import torch

from tests.factories.sweeps import Visit, draw_visits, shift_site
from vitrael.core.configs import LocalTrainingConfig, ViewRetrievalConfig
from vitrael.core.metrics.measured import Measured
from vitrael.core.metrics.retrieval import (
    RetrievalScores,
    Revisit,
    average_patients,
    measure_retrieval,
)
from vitrael.core.models.muscle_area import (
    MuscleOutliner,
    OutlinedFrames,
    OutlineObjective,
    build_muscle_outliner,
    measure_areas,
)
from vitrael.core.models.view_retrieval import ViewEncoder, build_view_encoder
from vitrael.core.rng import stream, torch_stream
from vitrael.core.training.clip_contrast import ClipContrastObjective, NeighborClips, Sweep
from vitrael.core.training.loop import fit

pytestmark = pytest.mark.slow

SEEDS = (80_611, 27_044, 95_302)
LEARNED, JUDGED = range(80), range(1_000, 1_040)
CONFIG = ViewRetrievalConfig(
    kind="view_retrieval",
    training=LocalTrainingConfig(
        length_images=64_000, batch_images=128, learning_rate=2e-3, warmup_images=2_000
    ),
)
OUTLINING = LocalTrainingConfig(
    length_images=16_000, batch_images=32, learning_rate=5e-3, warmup_images=200
)
Embed = Callable[[Visit], np.ndarray]


def learn_views(visits: Sequence[Visit], seed: int) -> ViewEncoder:
    encoder = build_view_encoder(CONFIG, seed=seed)
    fit(
        encoder,
        ClipContrastObjective(CONFIG.temperature),
        NeighborClips([Sweep(visit.frames_THW, visit.patient) for visit in visits]),
        CONFIG.training,
        length_images=CONFIG.training.length_images,
        rng=torch_stream(seed, "views"),
    )
    return encoder


def learn_outlines(visits: Sequence[Visit], seed: int) -> MuscleOutliner:
    outliner = build_muscle_outliner(seed=seed)
    frames = OutlinedFrames(
        np.concatenate([visit.frames_THW[::10] for visit in visits]),
        np.concatenate([visit.truth.mask_THW[::10] for visit in visits]),
    )
    fit(
        outliner,
        OutlineObjective(),
        frames,
        OUTLINING,
        length_images=OUTLINING.length_images,
        rng=torch_stream(seed, "outlines"),
    )
    return outliner


def embed_by(encoder: ViewEncoder) -> Embed:
    def embed(visit: Visit) -> np.ndarray:
        with torch.inference_mode():
            return encoder.embed(torch.from_numpy(visit.clips)).numpy()

    return embed


def correlate_pixels(visit: Visit) -> np.ndarray:
    """Return what makes a product a normalized cross-correlation of the mean frames."""
    image = visit.clips.mean(axis=(1, 2)).reshape(len(visit.starts), -1)
    image = image - image.mean(axis=1, keepdims=True)
    return image / np.linalg.norm(image, axis=1, keepdims=True)


def revisit(embed: Embed, first: Sequence[Visit], later: Sequence[Visit]) -> list[Revisit]:
    return [
        Revisit(embed(query) @ embed(gallery).T, query.positions, gallery.positions)
        for query, gallery in zip(first, later, strict=True)
    ]


def lost_area(
    outliner: MuscleOutliner,
    first: Sequence[Visit],
    later: Sequence[Visit],
    found: Sequence[np.ndarray],
) -> np.ndarray:
    """Return each patient's mean absolute error of the change of area, in parts of the area.

    ``found`` are the clips of the later visit, ``[Q, N]``; of several the median area counts.
    """
    errors = []
    for query, gallery, found_QN in zip(first, later, found, strict=True):
        before, after = (
            measure_areas(outliner, v.frames_THW[v.middles], spacing_mm=v.truth.spacing_mm)
            for v in (query, gallery)
        )
        change = np.median(after[found_QN], axis=1) / before - 1
        errors.append(np.abs(change + gallery.truth.atrophy_frac).mean())
    return np.array(errors)


def outline_error(outliner: MuscleOutliner, visits: Sequence[Visit]) -> np.ndarray:
    return np.array(
        [
            np.abs(
                measure_areas(outliner, v.frames_THW[v.middles], spacing_mm=v.truth.spacing_mm)
                / v.truth.area_T_mm2[v.middles]
                - 1
            ).mean()
            for v in visits
        ]
    )


def tell(label: str, scores: RetrievalScores) -> None:
    cells = (scores.same_view, scores.hit, scores.gap)
    print(f"  {label:<38}" + "".join(f" {say(cell)}" for cell in cells))


def say(found: Measured) -> str:
    return f"{found.value:.3f} ({found.low:.3f}-{found.high:.3f})"


@pytest.mark.parametrize("seed", SEEDS)
def test_view_is_found_again_and_the_lost_area_with_it(seed: int) -> None:
    torch.set_num_threads(1)
    began = process_time()
    learned, judged = draw_visits(seed, LEARNED), draw_visits(seed, JUDGED)
    common = {visit.patient for visit in learned} & {visit.patient for visit in judged}
    first, later = judged[::2], judged[1::2]
    away = [shift_site(visit, stream(seed, "site", visit.patient)) for visit in later]

    untrained = embed_by(build_view_encoder(CONFIG, seed=seed))
    encoder = learn_views(learned, seed)
    took_s = process_time() - began
    scores = {}
    print(
        f"\nseed {seed}: {len(learned)} sweeps of {len(LEARNED)} patients, {took_s:.0f} s to learn"
    )
    print(f"  patients learned and judged: {sorted(common)}; judged: {len(JUDGED)}")
    print(f"  {'':<38} same view, AUC       among the first 5    gap of the first")
    for name, embed in (
        ("trained", embed_by(encoder)),
        ("untrained", untrained),
        ("pixels", correlate_pixels),
    ):
        for place, gallery in (("", later), (" at another site", away)):
            revisits = revisit(embed, first, gallery)
            scores[name + place] = measure_retrieval(revisits, rng=stream(seed, "draws"))
            tell(name + place, scores[name + place])

    outliner = learn_outlines(learned, seed)
    areas = {"outline alone": outline_error(outliner, judged)}
    for name, gallery in (("retrieved", later), ("retrieved at another site", away)):
        visits = revisit(embed_by(encoder), first, gallery)
        for top, label in ((1, name), (5, f"{name}, median of 5")):
            found = [visit.best(top) for visit in visits]
            areas[label] = lost_area(outliner, first, gallery, found)
    places = [
        np.abs(query.positions[:, None] - gallery.positions).argmin(axis=1)[:, None]
        for query, gallery in zip(first, later, strict=True)
    ]
    areas["true position"] = lost_area(outliner, first, later, places)
    chance = [stream(seed, "chance", q.patient).permutation(len(q.starts))[:, None] for q in first]
    areas["any clip"] = lost_area(outliner, first, later, chance)
    area = {n: average_patients(n, e, rng=stream(seed, "draws")) for n, e in areas.items()}
    print("  mean absolute error of the area, in parts of it:")
    for name, error in area.items():
        print(f"  {name:<38} {say(error)}")
    print(f"  {process_time() - began:.0f} s of one thread in all")

    assert not common
    for place in ("", " at another site"):
        assert scores["trained" + place].same_view.value >= 0.85
        assert scores["trained" + place].hit.value >= 0.70
        assert scores["trained" + place].gap.value <= 0.08
        assert scores["untrained" + place].same_view.value <= 0.65  # the controls
        assert scores["trained" + place].same_view.above(scores["pixels" + place].same_view)
        assert area["retrieved" + place].value <= 0.06
    assert area["any clip"].low > 0.06  # the control
