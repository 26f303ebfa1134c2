"""The folder of a panel: what it is, and the weights of experts and fusion; no code, no pickle.

::

    panel.json             the PanelDocument
    fusion.safetensors     expert-SITE.safetensors (one for each site)

A folder appears whole or not at all. What is read is held against the digests in ``panel.json``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from vitrael.core.data.files import demand_free
from vitrael.core.digest import digest_bytes, write_atomically
from vitrael.core.errors import (
    ConfigError,
    DataError,
    WeightsError,
    storage_error,
)
from vitrael.core.models.view_panel import FUSION, PanelDocument, ViewPanel, open_panel
from vitrael.core.weights import Tensors, pack_tensors, unpack_tensors

DOCUMENT: Final = "panel.json"
_AGAIN: Final = "copy the whole folder again"


def save_panel(panel: ViewPanel, folder: Path) -> None:
    """Write a panel's folder, whole or not at all.

    ``folder`` may be missing or empty. Raises StorageError when something lies in it, or the disk
    refuses, and DataError for networks that are no longer those of the panel's document.
    """
    folder = folder.resolve()
    files = {file_of(part): pack_tensors(own) for part, own in panel.tensors().items()}
    known = {file_of(part): digest for part, digest in panel.document.parts.items()}
    if {file: digest_bytes(data) for file, data in files.items()} != known:
        raise DataError(
            "the panel cannot be written",
            why="its networks were changed after it was assembled",
            fix="assemble it again",
        )
    text = panel.document.model_dump_json(indent=1) + "\n"
    try:
        demand_free(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as name:
            workshop = Path(name) / "panel"
            for file, data in files.items():
                write_atomically(workshop / file, data)
            write_atomically(workshop / DOCUMENT, text.encode())
            if folder.is_dir():
                folder.rmdir()
            workshop.rename(folder)
    except OSError as error:
        raise storage_error("the folder of the panel", error) from error


def read_panel_document(folder: Path) -> PanelDocument:
    """Return the document of a panel's folder without opening its weights.

    Raises ConfigError for a folder that is none, or of another version.
    """
    path = folder / DOCUMENT
    try:
        return PanelDocument.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"{folder} is no panel",
            why=f"it has no {DOCUMENT} that can be read",
            fix="give the folder of a panel: experts of several sites with their fusion",
        ) from error
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, fault["loc"])) or "the document"
        raise ConfigError(
            f"{path} cannot be used",
            why=f"{where}: {fault['msg']}",
            fix="use the version of vitrael that wrote it, or copy the folder again",
        ) from error


def load_panel(folder: Path, *, device: str = "cpu") -> ViewPanel:
    """Return a panel from its folder; its experts look at images on a device.

    Raises ConfigError for a folder that is no panel, and WeightsError, which names it, for a file
    that is missing, that was changed, or that holds weights of another network.
    """
    document = read_panel_document(folder)
    panel = open_panel(document, {part: _read(folder, document, part) for part in document.parts})
    for expert in panel.experts:
        expert.net.to(device)
    return panel


def file_of(part: str) -> str:
    """Return the name of the file with the weights of the fusion, or of a site's expert."""
    return f"{part if part == FUSION else f'expert-{part}'}.safetensors"


def _read(folder: Path, document: PanelDocument, part: str) -> Tensors:
    file = file_of(part)
    try:
        data = (folder / file).read_bytes()
    except OSError as error:
        raise WeightsError(
            f"{file} of the panel cannot be read", why=error.strerror or "", fix=_AGAIN
        ) from error
    if digest_bytes(data) != document.parts[part]:
        raise WeightsError(
            f"{file} is not the file that {DOCUMENT} names",
            why="its digest is another: it was damaged, changed, or taken from another panel",
            fix=_AGAIN,
        )
    try:
        return unpack_tensors(data)
    except WeightsError as error:
        raise WeightsError(f"{file} of the panel holds no weights", why=error.why) from error
