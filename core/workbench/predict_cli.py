"""``vitrael model predict``: what a panel of experts sees in local files, and which one decided."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vitrael.core.workbench.options import (
    AS_JSON,
    DEVICE,
    FILES,
    FOLDER,
    THREADS,
    Device,
    open_compute,
)
from vitrael.core.workbench.telling import Account

if TYPE_CHECKING:
    from vitrael.core.workbench.predicting import Predicted


@click.command(
    epilog="Examples: 'vitrael model predict panel a.png b.dcm', "
    "'vitrael model predict panel clips --json'."
)
@click.argument("panel", type=FOLDER)
@FILES
@DEVICE
@THREADS
@AS_JSON
def predict(
    panel: Path,
    *,
    files: tuple[Path, ...],
    device: Device,
    threads: int | None,
    as_json: bool,
) -> int | None:
    """Say which view FILES show, how surely, and which expert of PANEL decided.

    A panel is a folder: experts of several sites with their fusion. Its recipe prepares the files,
    pictures, videos or DICOM; a folder stands for all of them below it, and a clip for its middle
    frame. The panel answers with one of the views that its experts know, also for an image that
    shows none of them. Nothing is written. A file that cannot be used stops none of the others;
    then the exit code is 7.
    """
    from vitrael.core.models.panel_folder import load_panel, read_panel_document  # noqa: PLC0415
    from vitrael.core.workbench.predicting import predict_files  # noqa: PLC0415
    from vitrael.core.workbench.progress import Progress  # noqa: PLC0415

    document = read_panel_document(panel)
    compute = open_compute(device, threads)
    loaded = load_panel(panel, device=compute.device)
    account: Account[Predicted] = Account(_show, _describe)
    with account.tell(as_json=as_json, facts={"panel": document.digest}):
        predict_files(
            loaded,
            files,
            tell=Progress(),
            predicted=account.done.append,
            refused=account.refused.append,
        )
    return account.exit_code


def _show(done: Sequence[Predicted]) -> None:
    rows = [("view", "probability", "decided by", "weight", "known to", "file")]
    for one in done:
        said = one.prediction
        weight = f"{said.weights[said.decider]:.2f}"
        name = click.format_filename(one.path)  # its bytes may be no text
        known = f"{len(said.known_to)} of {len(said.judges)}" if said.known_to else "none: foreign"
        known = known if said.judges else "not judged"
        rows.append((said.label, f"{said.probability:.3f}", said.decider, weight, known, name))
    a, b, c, d, e = (max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1])
    for view, probability, decider, weight, known, path in rows:
        line = f"{view:<{a}}  {probability:>{b}}  {decider:<{c}}  {weight:>{d}}  {known:<{e}}"
        click.echo(f"{line}  {path}")


def _describe(done: Sequence[Predicted]) -> list[dict[str, Any]]:
    return [
        {
            "file": str(one.path),
            "label": one.prediction.label,
            "probability": one.prediction.probability,
            "decider": one.prediction.decider,
            "weights": dict(one.prediction.weights),
            "known_to": list(one.prediction.known_to),
            "judges": list(one.prediction.judges),
        }
        for one in done
    ]
