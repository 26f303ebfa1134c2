"""What a demo alone can know: how good one network is that has all sites' phantom pictures.

No study can do this, which is why there are experts. It reads the files that the demo has drawn
for its hospitals, and learns as long as all the experts together.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np

from vitrael.core.data.phantoms.echo_sites import TABLE
from vitrael.core.data.pictures import read_picture_file
from vitrael.core.data.planar_recipes import prepare_picture
from vitrael.core.metrics.comparison import MethodRow
from vitrael.core.metrics.intervals import clopper_pearson
from vitrael.core.protocols import ExpertsProtocol
from vitrael.core.rng import stream, torch_stream
from vitrael.core.study import Study

METHOD: Final = "pooled, phantoms only"
_AT_ONCE: Final = 64


def compare_pooled(folders: Mapping[str, Path], study: Study) -> dict[str, Any]:
    """Return a row of the comparison's table for one network that learned from all sites.

    It learns from the first of each site's patients and is held to the last of them, in the shares
    of the study; each has one picture. The folders are those of ``write_view_files``.
    """
    import torch  # noqa: PLC0415

    from vitrael.core.models.view_expert import build_view_net  # noqa: PLC0415
    from vitrael.core.models.view_learning import view_learning  # noqa: PLC0415
    from vitrael.core.training.compute import prepare_compute  # noqa: PLC0415
    from vitrael.core.training.loop import fit  # noqa: PLC0415

    protocol = study.experts
    prepare_compute(
        device="cpu", threads=study.performance.coordinator_threads, bf16="off", vram_frac=None
    )
    parts = {site: _read(folder, site, study) for site, folder in folders.items()}
    image_NCHW = np.concatenate([image for (image, _), _ in parts.values()])
    label_N = np.concatenate([label for (_, label), _ in parts.values()])
    classes, config = len(protocol.data.views), protocol.expert
    net = build_view_net(config, classes, seed=protocol.seed)
    rng = stream(protocol.seed, "pooled sectors")
    learning = view_learning(
        config, image_NCHW, label_N, classes=classes, sector_NHW=None, rng=rng, device="cpu"
    )
    length = config.training.length_images * len(folders)
    whole = config.training.model_copy(update={"length_images": length})
    fit(
        net,
        learning.objective,
        learning.draw,
        whole,
        length_images=length,
        rng=torch_stream(protocol.seed, "pooled"),
    )
    net.eval()
    right: dict[str, np.ndarray] = {}
    with torch.no_grad():
        for site, (_, (image, label)) in parts.items():
            said = [net(part).argmax(1) for part in torch.from_numpy(image).split(_AT_ONCE)]
            right[site] = torch.cat(said).numpy() == label
    return asdict(_row(right, {site: held[1] for site, (_, held) in parts.items()}, protocol))


def _row(
    right: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray], protocol: ExpertsProtocol
) -> MethodRow:
    every, label = np.concatenate([*right.values()]), np.concatenate([*truth.values()])
    hits, images = int(every.sum()), len(every)
    return MethodRow(
        METHOD,
        hits / images,
        clopper_pearson(hits, images),
        images,
        {site: float(own.mean()) for site, own in right.items()},
        {
            view: float(every[label == place].mean())
            for place, view in enumerate(protocol.data.views)
            if (label == place).any()
        },
    )


_Pictures = tuple[np.ndarray, np.ndarray]


def _read(folder: Path, site: str, study: Study) -> tuple[_Pictures, _Pictures]:
    """Return images and labels to learn from, and those to be held to."""
    protocol = study.experts
    words = study.roster.labels.get(site, {})
    with (folder / TABLE).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    images = [
        prepare_picture(read_picture_file(folder / row["file"]), pixels=protocol.data.edge_px)[0]
        for row in rows
    ]
    image_NCHW = np.stack(images)[:, None]
    label_N = np.array(
        [protocol.data.views.index(words.get(row["view"], row["view"])) for row in rows],
        dtype=np.int64,
    )
    learned = round(protocol.data.splits.training_frac * len(rows))
    held = len(rows) - round(protocol.data.splits.utility_frac * len(rows))
    return (image_NCHW[:learned], label_N[:learned]), (image_NCHW[held:], label_N[held:])
