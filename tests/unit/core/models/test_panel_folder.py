"""A panel comes back as it was written; anything else is refused before it is used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.factories.panels import SITES, draw_panel
from vitrael.core.digest import digest_bytes
from vitrael.core.errors import ConfigError, DataError, StorageError, WeightsError
from vitrael.core.models.panel_folder import load_panel, read_panel_document, save_panel
from vitrael.core.models.view_panel import ViewPanel
from vitrael.core.rng import torch_stream

FILES = ("fusion.safetensors", "expert-north.safetensors", "expert-south.safetensors")


@pytest.fixture(scope="module")
def panel() -> ViewPanel:
    return draw_panel()


@pytest.fixture(scope="module")
def written(panel: ViewPanel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("panels") / "panel"
    save_panel(panel, folder)
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """Return a copy that a test may damage."""
    return Path(shutil.copytree(written, tmp_path / "panel"))


def change_document(folder: Path, **changes: Any) -> None:
    path = folder / "panel.json"
    document = json.loads(path.read_bytes())
    path.write_text(json.dumps({**document, **changes}), encoding="utf-8")


def test_panel_comes_back_and_says_the_same(panel: ViewPanel, written: Path) -> None:
    opened = load_panel(written)
    x = torch.rand((4, 1, 24, 24), generator=torch_stream(5, "images"))
    assert opened.document == panel.document
    assert opened.predict(x) == panel.predict(x)
    assert draw_panel(seed=7).predict(x) != panel.predict(x)  # the control


def test_equal_panels_have_one_digest(written: Path, tmp_path: Path) -> None:
    save_panel(draw_panel(), tmp_path / "again")
    save_panel(draw_panel(seed=7), tmp_path / "other")
    digest = read_panel_document(written).digest
    assert read_panel_document(tmp_path / "again").digest == digest
    assert read_panel_document(tmp_path / "other").digest != digest


def test_folder_holds_json_and_safetensors_alone(written: Path) -> None:
    assert {path.name for path in written.iterdir()} == {"panel.json", *FILES}
    assert [path.name for path in written.parent.iterdir()] == ["panel"]


def test_nothing_is_written_over(panel: ViewPanel, folder: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(StorageError, match="holds something already"):
        save_panel(draw_panel(seed=7), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (tmp_path / "empty").mkdir()
    save_panel(panel, tmp_path / "empty")
    assert load_panel(tmp_path / "empty").document == panel.document


def test_disk_that_refuses_leaves_nothing(panel: ViewPanel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StorageError, match="the folder of the panel"):
        save_panel(panel, tmp_path / "file" / "panel")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_networks_that_were_changed_since_are_not_written(tmp_path: Path) -> None:
    panel = draw_panel()
    with torch.no_grad():
        next(panel.experts[0].net.parameters()).add_(1)
    with pytest.raises(DataError, match="changed after it was assembled"):
        save_panel(panel, tmp_path / "panel")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", FILES)
def test_weights_that_are_missing_or_damaged_are_refused_by_name(folder: Path, file: str) -> None:
    path = folder / file
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=f"{file} is not the file that panel.json names"):
        load_panel(folder)
    path.unlink()
    with pytest.raises(WeightsError, match=f"{file} of the panel cannot be read"):
        load_panel(folder)
    path.mkdir()
    with pytest.raises(WeightsError, match=f"{file} of the panel cannot be read.*directory"):
        load_panel(folder)


def test_expert_in_the_place_of_another_is_refused(folder: Path) -> None:
    shutil.copy(folder / FILES[1], folder / FILES[2])
    with pytest.raises(WeightsError, match=r"expert-south\.safetensors is not the file"):
        load_panel(folder)


def test_file_that_holds_no_tensors_is_refused_by_name(folder: Path) -> None:
    (folder / FILES[0]).write_bytes(b"pickle")
    change_document(folder, fusion=digest_bytes(b"pickle"))
    with pytest.raises(WeightsError, match=r"fusion\.safetensors of the panel holds no weights"):
        load_panel(folder)


def test_weights_of_another_network_are_refused_by_name(folder: Path, panel: ViewPanel) -> None:
    config = panel.document.config.model_dump(mode="json")
    change_document(folder, config={**config, "channels": [8, 8, 8, 8]})
    with pytest.raises(WeightsError, match="weights of north do not fit the panel: tensor"):
        load_panel(folder)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"format": "vitrael/view-panel/9"}, "format"),
        ({"pickle": "code"}, "pickle"),
        ({"recipe": {"name": "brain-t1", "version": 1, "grid_vox": [8, 8, 8]}}, "makes volumes"),
        ({"recipe": {"name": "image-2d", "version": 1, "grid_vox": [24, 32]}}, "recipe: .*square"),
        ({"recipe": {"name": "echo-apical", "version": 1, "grid_vox": [24, 24]}}, "frame time"),
        ({"fusion": "sha256:0"}, "fusion"),
        ({"experts": []}, "experts"),
    ],
)
def test_document_that_is_none_is_refused(folder: Path, changes: dict[str, Any], told: str) -> None:
    assert [one.site for one in read_panel_document(folder).experts] == list(SITES)
    change_document(folder, **changes)
    with pytest.raises(ConfigError, match=told):
        load_panel(folder)


def test_folder_that_is_no_panel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is no panel: it has no panel\.json"):
        load_panel(tmp_path)
    (tmp_path / "panel.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match="JSON"):
        load_panel(tmp_path)
