"""What a panel of experts sees in local files: each is prepared as the experts know images.

One file that cannot be used stops none of the others. Axes: T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from vitrael.core.data.dicom.instance import is_dicom
from vitrael.core.data.dicom.read import read_clip, read_picture
from vitrael.core.data.layouts.kinds import PLURALS, Taken, is_table, is_taken, judge_other
from vitrael.core.data.pictures import read_picture_file
from vitrael.core.data.recipes import RECIPES, Prepared, RecipeInput, RecipeSettings, prepare
from vitrael.core.data.video import read_video
from vitrael.core.data.walk import HIDDEN, SPECIAL, FoundFile, walk_files
from vitrael.core.errors import CohortError, DataError, ScanError
from vitrael.core.workbench.generation import within_memory
from vitrael.core.workbench.inputs import Refused, take_each, tell_unreadable
from vitrael.core.workbench.progress import Tell, silent

if TYPE_CHECKING:
    from vitrael.core.data.planar import Clip, Picture
    from vitrael.core.models.view_panel import Prediction, ViewPanel

_LARGER: Final = "give --device cpu, or a larger GPU"
_BRIGHTEST: Final = np.float32(255)
_INDEX: Final = "DICOMDIR"
"""Lists the files of a medium; it is no image."""


@dataclass(frozen=True, slots=True)
class Predicted:
    """What a panel sees in one file."""

    number: int
    path: Path
    prediction: Prediction

    @property
    def cut_frac(self) -> float:
        """0: nothing of a picture is cut off."""
        return 0.0


@dataclass(frozen=True, slots=True, repr=False)
class Candidate:
    """One file to look at."""

    path: Path
    refusal: str = ""
    """Why it cannot be used, where that is known before it is opened."""


def predict_files(
    panel: ViewPanel,
    files: Sequence[Path],
    *,
    tell: Tell = silent,
    predicted: Callable[[Predicted], None] | None = None,
    refused: Callable[[Refused], None] | None = None,
) -> tuple[list[Predicted], list[Refused]]:
    """Return what a panel sees in files, and those that cannot be used with their reasons.

    A folder stands for the images below it. What is seen in a file does not depend on the others.
    Raises ConfigError when the memory does not hold one image, or the panel's recipe has another
    version here; ``predicted`` and ``refused`` were told of each file before.
    """
    found = list(find_candidates(files, takes=RECIPES[panel.document.recipe.name].takes))

    def predict(number: int, path: Path) -> Predicted | Refused:
        refusal = found[number - 1].refusal
        result = Refused(number, path, refusal) if refusal else _predict(panel, path, number=number)
        tell("predict files", number, len(found))
        return result

    return take_each(
        [each.path for each in found],
        predict,
        name=None,
        twice="",
        finished=predicted,
        refused=refused,
    )


def find_candidates(paths: Sequence[Path], *, takes: Taken) -> Iterator[Candidate]:
    """Yield files in the order given, and in the place of a folder what lies in it, sorted.

    Of a folder, hidden files, tables and texts are left out: nobody takes them for images. A
    folder without any image is told as one that cannot be used.
    """
    for path in paths:
        try:
            is_folder = path.is_dir()
        except OSError:  # whoever reads it says why
            is_folder = False
        if not is_folder:
            yield Candidate(path)
            continue
        try:
            inside = list(_inside(path, takes))
        except CohortError as error:
            yield Candidate(path, error.why)
            continue
        yield from inside or [Candidate(path, f"there are no {PLURALS[takes]} in it")]


def read_view(path: Path, recipe: RecipeSettings) -> np.ndarray:
    """Return one file as experts know images: float32 in [0, 1], ``[1, H, W]``.

    Of a clip it is the middle frame. Raises ScanError for a file that the recipe cannot take, and
    OSError for one that cannot be read.
    """
    image = _read(path, takes=RECIPES[recipe.name].takes)
    return view_of(prepare(RecipeInput(images={"image": image}), recipe))


def view_of(prepared: Prepared) -> np.ndarray:
    """Return the one image ``[1, H, W]`` of what a recipe of planes has made, in [0, 1]."""
    image = prepared.arrays["image"]
    if image.dtype != np.uint8:
        return image
    return np.asarray(image[len(image) // 2][None] / _BRIGHTEST, dtype=np.float32)


def _inside(folder: Path, takes: Taken) -> Iterator[Candidate]:
    for file in walk_files(folder):
        if file.refusal in {HIDDEN, SPECIAL}:
            continue
        name = file.path.name
        judged = judge_other(name, takes)
        is_image = is_taken(name, takes) or (judged is not None and not judged[1])
        if file.refusal or is_image or (judged is None and _may_be_dicom(file)):
            yield Candidate(file.path, file.refusal)


def _may_be_dicom(file: FoundFile) -> bool:
    """Return whether a file, whose name does not tell, is one that must be told of."""
    if is_table(file.path.name) or file.path.name.upper() == _INDEX:
        return False
    try:
        return file.size_bytes == 0 or is_dicom(file.path)
    except OSError:  # whoever reads it says why
        return True


def _predict(panel: ViewPanel, path: Path, *, number: int) -> Predicted | Refused:
    try:
        image_1HW = read_view(path, panel.document.recipe)
        with within_memory("one image", fix=_LARGER):
            (prediction,) = panel.predict(torch.from_numpy(image_1HW)[None])
    except DataError as error:
        reason = ", ".join(part for part in (error.what, error.why) if part)
        return Refused(number, path, reason)
    except OSError as error:
        return Refused(number, path, tell_unreadable(error))
    except MemoryError:  # of the file alone: a damaged header can ask for any amount
        return Refused(number, path, "the memory of this machine does not hold it")
    return Predicted(number, path, prediction)


def _read(path: Path, *, takes: Taken) -> Clip | Picture:
    if path.stat().st_size == 0:
        raise ScanError("the file is empty", fix="copy it again")
    if is_taken(path.name, takes):
        return read_video(path) if takes == "clip" else read_picture_file(path)
    judged = judge_other(path.name, takes)
    if judged is not None:
        raise ScanError(judged[0])
    if not is_dicom(path):
        raise ScanError("it is neither DICOM nor a file whose name tells what it is")
    return read_clip(path) if takes == "clip" else read_picture(path)
