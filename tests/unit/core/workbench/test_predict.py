"""Files become what a panel sees in them; what cannot be used is told and stops nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.factories.dicom import IDENTITY, small_scan, write_series
from tests.factories.panels import CLIPS, PICTURES, draw_panel
from vitrael.core.cli import run
from vitrael.core.data.dicom.write import write_dicom_clip
from vitrael.core.data.nifti import write_nifti
from vitrael.core.data.pictures import read_picture_file
from vitrael.core.data.planar import Clip
from vitrael.core.data.planar_recipes import prepare_clip, prepare_picture
from vitrael.core.data.video import write_video
from vitrael.core.errors import EXIT_PARTIAL, ConfigError
from vitrael.core.models.panel_folder import save_panel
from vitrael.core.models.view_panel import PanelDocument, Prediction, ViewPanel, assemble_panel
from vitrael.core.rng import stream
from vitrael.core.workbench.predicting import predict_files, read_view

BRIEF = ("--device", "cpu", "--threads", "1")

Capture = pytest.CaptureFixture[str]


def predict(panel: Path, *files: Path, more: tuple[str, ...] = ("--json",)) -> int:
    return run(["model", "predict", str(panel), *map(str, files), *BRIEF, *more])


def told(capsys: Capture) -> dict[str, Any]:
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def gray(seed: int = 1, *, shape: tuple[int, ...] = (40, 30)) -> np.ndarray:
    return stream(seed, "picture").integers(0, 256, shape, dtype=np.uint8)


def write_png(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def moving_clip() -> Clip:
    """Return a fan in which every frame has noise of its own."""
    row, column = np.mgrid[:64, :64]
    fan = (np.hypot(row, column - 32) < 60) & (abs(column - 32) < 0.7 * row + 2)
    noise = stream(3, "clip").integers(30, 250, (24, 64, 64), dtype=np.uint8)
    return Clip(noise * fan, 1 / 30, None, "US")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("predict")


@pytest.fixture(scope="module")
def panel() -> ViewPanel:
    return draw_panel()


@pytest.fixture(scope="module")
def folder(panel: ViewPanel, place: Path) -> Path:
    save_panel(panel, place / "panel")
    return place / "panel"


@pytest.fixture(scope="module")
def picture(place: Path) -> Path:
    return write_png(place / "good.png", gray())


@pytest.fixture(scope="module")
def clips(place: Path) -> Path:
    """Return a panel of clips."""
    save_panel(draw_panel(CLIPS), place / "clips")
    return place / "clips"


def test_file_is_prepared_by_the_recipe_and_json_names_every_expert(
    panel: ViewPanel, folder: Path, picture: Path, place: Path, capsys: Capture
) -> None:
    other = write_png(place / "other.png", gray(2, shape=(64, 90)))
    assert predict(folder, picture, other) == 0
    found = told(capsys)
    assert found["panel"] == panel.document.digest
    assert found["skipped"] == []
    assert [one["file"] for one in found["files"]] == [str(picture), str(other)]
    for one in found["files"]:
        image_HW, _ = prepare_picture(read_picture_file(Path(one["file"])), pixels=24)
        (said,) = panel.predict(torch.from_numpy(image_HW)[None, None])
        assert (one["label"], one["decider"]) == (said.label, said.decider)
        assert one["probability"] == pytest.approx(said.probability)
        assert one["weights"] == pytest.approx(dict(said.weights))
    first, second = found["files"]
    assert first["weights"] != second["weights"]  # the control


def test_table_says_what_is_seen_and_who_decided(
    panel: ViewPanel, folder: Path, picture: Path, capsys: Capture
) -> None:
    assert predict(folder, picture, more=()) == 0
    shown = capsys.readouterr()
    head, line = shown.out.splitlines()
    (said,) = panel.predict(torch.from_numpy(read_view(picture, PICTURES))[None])
    assert head.split() == [
        *("view", "probability", "decided", "by", "weight"),
        *("known", "to", "file"),
    ]
    weight = f"{said.weights[said.decider]:.2f}"
    wanted = [said.label, f"{said.probability:.3f}", said.decider, weight]
    assert line.split() == [*wanted, "not", "judged", str(picture)]  # nobody was held out
    assert "predict files: 1 of 1" in shown.err


def save_rgba(path: Path) -> None:
    Image.fromarray(gray(shape=(40, 30, 4))).save(path)


def save_jpeg(path: Path) -> None:
    Image.fromarray(gray(shape=(40, 30, 3))).save(path)


def save_deep(path: Path) -> None:
    Image.fromarray(gray().astype(np.uint16) * 200).save(path)


def save_still(path: Path) -> None:
    write_dicom_clip(Clip(gray()[None], None, None, "US"), path, identity=IDENTITY, seed=1)


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("rgba.png", save_rgba),
        ("color.JPG", save_jpeg),
        ("deep.tiff", save_deep),
        ("IM0001", save_still),
        ("still.dcm", save_still),
    ],
)
def test_pictures_of_any_kind_become_one_gray_square(
    panel: ViewPanel, tmp_path: Path, name: str, save: Callable[[Path], None]
) -> None:
    path = tmp_path / name
    save(path)
    image_1HW = read_view(path, PICTURES)
    assert image_1HW.shape == (1, 24, 24)
    assert image_1HW.dtype == np.float32
    assert 0 <= image_1HW.min() < image_1HW.max() <= 1
    done, refused = predict_files(panel, [path])
    assert (len(done), refused) == (1, [])


def test_what_is_transparent_is_black(tmp_path: Path) -> None:
    pixels = gray(shape=(40, 30, 4))
    pixels[..., 3] = 255
    opaque = read_view(write_png(tmp_path / "a.png", pixels), PICTURES)
    pixels[:, :15, 3] = 0
    half = read_view(write_png(tmp_path / "b.png", pixels), PICTURES)
    assert half[0, :, 3:11].max() < 0.01 < opaque[0, :, 3:11].min()


@pytest.mark.parametrize("name", ["clip.avi", "clip.dcm", "IM0001"])
def test_clip_stands_for_the_middle_frame_of_its_sector(
    clips: Path, tmp_path: Path, name: str, capsys: Capture
) -> None:
    clip, path = moving_clip(), tmp_path / name
    if path.suffix == ".avi":
        write_video(clip, path)
    else:
        write_dicom_clip(clip, path, identity=IDENTITY, seed=1)
    ready = prepare_clip(clip, pixels=32, frame_s=1 / 30)
    view_1HW = read_view(path, CLIPS)
    assert np.array_equal(view_1HW[0], ready.frames_THW[12] / np.float32(255))
    assert not np.array_equal(view_1HW[0], ready.frames_THW[11] / np.float32(255))  # the control
    assert predict(clips, path) == 0
    assert [one["file"] for one in told(capsys)["files"]] == [str(path)]


def write_bad(folder: Path) -> dict[Path, str]:
    """Return bad files and what is said of them."""
    whole = write_png(folder / "cut.png", gray()).read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    write_png(folder / "flat.png", np.full((40, 30), 7, np.uint8))
    broken = gray().astype(np.float32)
    broken[3, 3] = np.nan
    write_png(folder / "nan.tiff", broken)
    (folder / "empty.png").touch()
    (folder / "notes.txt").write_text("a note")
    (folder / "IM0009").write_text("neither")
    write_nifti(small_scan(), folder / "brain.nii.gz")
    write_video(moving_clip(), folder / "clip.avi")
    write_dicom_clip(moving_clip(), folder / "clip.dcm", identity=IDENTITY, seed=1)
    reasons = {
        "cut.png": "not a whole picture",
        "flat.png": "constant",
        "nan.tiff": "not finite",
        "empty.png": "empty",
        "notes.txt": "a text",
        "IM0009": "neither DICOM nor",
        "brain.nii.gz": "takes pictures",
        "clip.avi": "takes pictures",
        "clip.dcm": "several frames",
        "none.png": "no such file",
    }
    return {folder / name: reason for name, reason in reasons.items()}


def test_bad_files_are_told_and_stop_nothing(
    folder: Path, picture: Path, tmp_path: Path, capsys: Capture
) -> None:
    bad = write_bad(tmp_path)
    assert predict(folder, *bad, picture) == EXIT_PARTIAL
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert [one["file"] for one in found["files"]] == [str(picture)]
    assert [one["file"] for one in found["skipped"]] == list(map(str, bad))
    for one, reason in zip(found["skipped"], bad.values(), strict=True):
        assert reason in one["reason"]
    assert "file 1 was skipped" in shown.err
    assert str(tmp_path) not in shown.err
    assert predict(folder, *bad) == 1
    assert told(capsys)["files"] == []
    assert predict(folder, *bad, picture, more=()) == EXIT_PARTIAL
    assert f"{tmp_path / 'flat.png'}: skipped, the picture is constant" in capsys.readouterr().out


def test_still_is_no_clip(clips: Path, tmp_path: Path, capsys: Capture) -> None:
    save_still(tmp_path / "still.dcm")
    write_video(Clip(moving_clip().frames_THW[:8], 1 / 30, None, "US"), tmp_path / "short.avi")
    picture = write_png(tmp_path / "picture.png", gray())
    assert predict(clips, tmp_path / "still.dcm", tmp_path / "short.avi", picture) == 1
    reasons = [one["reason"] for one in told(capsys)["skipped"]]
    for reason, part in zip(reasons, ("a still", "too short", "takes clips"), strict=True):
        assert part in reason


def test_folder_stands_for_the_images_in_it(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    scans = tmp_path / "scans"
    wanted = [write_png(scans / name, gray()) for name in ("a/2.png", "a/10.png", "b.png")]
    wanted += write_series(scans / "c")[:2]
    for extra in (scans / "c").iterdir():
        if extra not in wanted:
            extra.unlink()
    for name in ("README.md", "labels.csv", ".hidden.png", "Makefile", "DICOMDIR"):
        (scans / name).write_text("text")
    assert predict(folder, scans) == 0
    assert {one["file"] for one in told(capsys)["files"]} == set(map(str, wanted))
    (scans / "zero").touch()  # what is left of a copy that failed
    (scans / "d.webp").write_text("a format that is not read")
    (scans / "link").symlink_to(tmp_path)
    (tmp_path / "nothing").mkdir()
    assert predict(folder, scans, tmp_path / "nothing") == EXIT_PARTIAL
    skipped = {one["file"]: one["reason"] for one in told(capsys)["skipped"]}
    assert set(skipped) == {
        *(str(scans / name) for name in ("zero", "d.webp", "link")),
        str(tmp_path / "nothing"),
    }
    assert skipped[str(tmp_path / "nothing")] == "there are no pictures in it"


def test_file_that_is_given_twice_is_answered_twice(panel: ViewPanel, picture: Path) -> None:
    done, refused = predict_files(panel, [picture, picture])
    assert ([one.number for one in done], refused) == ([1, 2], [])
    assert done[0].prediction == done[1].prediction


def test_folder_that_is_no_panel_is_refused(
    model_folder: Path, picture: Path, tmp_path: Path, capsys: Capture
) -> None:
    for none in (tmp_path, tmp_path / "none", model_folder):
        assert predict(none, picture) == ConfigError.exit_code
        assert told(capsys)["error"]["what"] == f"{none} is no panel"


def test_panel_that_was_changed_is_refused(picture: Path, tmp_path: Path, capsys: Capture) -> None:
    save_panel(draw_panel(), tmp_path / "panel")
    assert predict(tmp_path / "panel", picture) == 0
    (tmp_path / "panel" / "expert-north.safetensors").write_bytes(b"other")
    capsys.readouterr()
    assert predict(tmp_path / "panel", picture) == 1
    assert "expert-north.safetensors is not the file" in told(capsys)["error"]["what"]


def test_recipe_of_another_version_is_refused(
    folder: Path, picture: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "panel").mkdir()
    for path in folder.iterdir():
        (tmp_path / "panel" / path.name).write_bytes(path.read_bytes())
    path = tmp_path / "panel" / "panel.json"
    document = json.loads(path.read_bytes())
    document["recipe"]["version"] += 1
    path.write_text(json.dumps(document), encoding="utf-8")
    assert predict(tmp_path / "panel", picture) == ConfigError.exit_code
    assert "another version" in told(capsys)["error"]["what"]


def test_expert_whose_features_are_not_finite_is_named(
    panel: ViewPanel, picture: Path, tmp_path: Path, capsys: Capture
) -> None:
    broken = draw_panel()
    with torch.no_grad():
        for parameter in broken.experts[1].net.parameters():
            parameter.mul_(1e30)
    everything = assemble_panel(
        broken.experts, broken.fusion, broken.document.config, recipe=PICTURES
    )
    save_panel(everything, tmp_path / "panel")
    assert predict(tmp_path / "panel", picture) == 1
    (skipped,) = told(capsys)["skipped"]
    assert "the expert of south cannot be used" in skipped["reason"]
    assert "not finite" in skipped["reason"]


class Ending:
    """A panel for the first so many images; then something ends it."""

    def __init__(self, panel: ViewPanel, error: BaseException, *, images: int) -> None:
        self.document: PanelDocument = panel.document
        self._panel, self._error, self._left = panel, error, images

    def predict(self, x: torch.Tensor) -> list[Prediction]:
        self._left -= 1
        if self._left < 0:
            raise self._error
        return self._panel.predict(x)


@pytest.fixture
def end_after(panel: ViewPanel, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def end(error: BaseException, *, images: int) -> None:
        ending = Ending(panel, error, images=images)

        def load(_folder: Path, *, device: str) -> Ending:
            assert device == "cpu"
            return ending

        monkeypatch.setattr("vitrael.core.models.panel_folder.load_panel", load)

    return end


def test_memory_that_ends_takes_nothing_from_the_files_before(
    folder: Path, picture: Path, end_after: Callable[..., None], capsys: Capture
) -> None:
    end_after(torch.OutOfMemoryError(), images=1)
    assert predict(folder, picture, picture) == ConfigError.exit_code
    found = told(capsys)
    assert "memory of the GPU does not hold one image" in found["error"]["what"]
    assert "--device cpu" in found["error"]["fix"]
    assert [one["file"] for one in found["files"]] == [str(picture)]


def test_interrupted_json_is_one_document(
    folder: Path, picture: Path, end_after: Callable[..., None], capsys: Capture
) -> None:
    end_after(KeyboardInterrupt(), images=1)
    assert predict(folder, picture, picture) == 130
    assert told(capsys)["error"]["exit_code"] == 130
    end_after(KeyboardInterrupt(), images=1)
    assert predict(folder, picture, picture, more=()) == 130  # without it, a table
    assert capsys.readouterr().out.count(str(picture)) == 1


def test_file_that_asks_for_all_memory_stops_nothing(
    panel: ViewPanel, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path) -> Any:
        if path.name == "greedy.png":
            raise MemoryError
        return read_picture_file(path)

    monkeypatch.setattr("vitrael.core.workbench.predicting.read_picture_file", read)
    greedy = write_png(picture.parent / "greedy.png", gray())
    done, refused = predict_files(panel, [greedy, picture])
    assert [one.path for one in done] == [picture]
    assert refused[0].reason == "the memory of this machine does not hold it"
