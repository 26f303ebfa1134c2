"""A set is the same however it was drawn: at once, in shards, or after it was killed."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from tests.factories import models
from vitrael.core.data.nifti import read_nifti
from vitrael.core.digest import Digest, digest_file
from vitrael.core.errors import DataError, StorageError
from vitrael.core.geometry import Affine, centered_affine
from vitrael.core.records import SampleRequest, Samples
from vitrael.core.rng import stream
from vitrael.core.workbench.generation import FrugalGenerator
from vitrael.core.workbench.sampling import (
    MANIFEST,
    Drawn,
    SetRequest,
    draw_set,
    image_path,
    shard_of,
)

GRID = (8, 8, 8)
COUNT = 5


@dataclass
class Noise:
    """A Generator whose images are noise of the sample's own seed."""

    fails_at: int = -1
    flat_at: int = -1
    drawn: int = 0

    @property
    def affine(self) -> Affine:
        return centered_affine(GRID, spacing=20.0)

    def sample(self, request: SampleRequest) -> Samples:
        images = []
        for row in range(len(request.condition_BK)):
            index = request.first + row
            if index == self.fails_at:
                raise DataError("the machine went down")
            noise = stream(request.seed, "noise", index).random((1, *GRID), dtype=np.float32)
            images.append(np.zeros_like(noise) if index == self.flat_at else noise)
            self.drawn += 1
        return Samples(np.stack(images), request.condition_BK, self.affine)


def request(*, count: int = COUNT, seed: int = 7) -> SetRequest:
    asked = tuple({"age_years": 50.0 + row, "sex": 0.0} for row in range(count))
    return SetRequest(
        model=Digest("sha256:" + "0" * 64),
        covariates=models.covariates(),
        condition_BK=np.linspace(0, 1, COUNT * 4, dtype=np.float32).reshape(COUNT, 4)[:count],
        asked=asked,
        seed=seed,
        sampler="ddim",
        steps=5,
    )


def draw(
    folder: Path, generator: Noise | None = None, *, indices: range | None = None, batch: int = 2
) -> Drawn:
    frugal = FrugalGenerator(generator or Noise(), batch_images=batch)
    return draw_set(request(), frugal, folder, indices=indices or range(COUNT))


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_shards_together_are_one_process(tmp_path: Path) -> None:
    draw(tmp_path / "whole")
    first = draw(tmp_path / "parts", indices=shard_of(COUNT, (2, 2)), batch=3)
    assert not first.is_whole
    assert not (tmp_path / "parts" / MANIFEST).exists()
    assert draw(tmp_path / "parts", indices=shard_of(COUNT, (1, 2)), batch=1).is_whole
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_another_seed_gives_another_set(tmp_path: Path) -> None:
    draw(tmp_path / "one")
    frugal = FrugalGenerator(Noise(), batch_images=2)
    draw_set(request(seed=8), frugal, tmp_path / "two", indices=range(COUNT))
    path = image_path(0)
    assert digest_file(tmp_path / "one" / path) != digest_file(tmp_path / "two" / path)


@pytest.mark.parametrize("shards", [1, 2, 3, 7])
def test_shards_hold_every_index_once(shards: int) -> None:
    parts = [shard_of(COUNT, (number, shards)) for number in range(1, shards + 1)]
    assert [index for part in parts for index in part] == list(range(COUNT))


def test_killed_command_goes_on_to_the_same_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="went down"):
        draw(tmp_path / "killed", Noise(fails_at=4))
    assert (tmp_path / "killed" / image_path(0)).exists()
    again = Noise()
    drawn = draw(tmp_path / "killed", again)
    assert (drawn.drawn, drawn.kept) == (1, 4)
    assert again.drawn == 1
    draw(tmp_path / "whole")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_damaged_image_is_drawn_again_and_no_other(tmp_path: Path) -> None:
    draw(tmp_path)
    before = contents(tmp_path)
    (tmp_path / image_path(1)).write_bytes(b"cut")
    drawn = draw(tmp_path)
    assert (drawn.drawn, drawn.kept) == (1, COUNT - 1)
    assert contents(tmp_path) == before


def test_folder_of_another_request_is_refused_and_left_alone(tmp_path: Path) -> None:
    draw(tmp_path)
    before = contents(tmp_path)
    frugal = FrugalGenerator(Noise(), batch_images=2)
    for other in (request(seed=8), replace(request(), steps=6), request(count=3)):
        with pytest.raises(StorageError, match="holds something else"):
            draw_set(other, frugal, tmp_path, indices=range(3))
    assert contents(tmp_path) == before


def test_folder_with_strange_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(StorageError, match="holds something else"):
        draw(tmp_path)


def test_longer_request_keeps_what_is_there(tmp_path: Path) -> None:
    frugal = FrugalGenerator(Noise(), batch_images=2)
    draw_set(request(count=3), frugal, tmp_path, indices=range(3))
    drawn = draw(tmp_path)
    assert (drawn.drawn, drawn.kept) == (2, 3)
    assert drawn.is_whole


def test_sample_that_is_no_image_is_skipped_with_its_reason(tmp_path: Path) -> None:
    drawn = draw(tmp_path, Noise(flat_at=2))
    assert drawn.skipped == {2: "the image is constant"}
    assert (drawn.drawn, drawn.is_whole) == (4, False)
    assert (tmp_path / image_path(3)).exists()
    assert not (tmp_path / image_path(2)).exists()


def test_files_say_where_they_lie_and_what_they_are(tmp_path: Path) -> None:
    draw(tmp_path)
    scan = read_nifti(tmp_path / image_path(0))
    assert np.array_equal(scan.affine, Noise().affine)
    manifest = json.loads((tmp_path / MANIFEST).read_bytes())
    assert manifest["count"] == COUNT
    for path, digest in manifest["files"].items():
        assert digest_file(tmp_path / path) == digest
    rows = (tmp_path / "participants.tsv").read_text().splitlines()
    assert len(rows) == COUNT + 1
    cells = dict(zip(rows[0].split("\t"), rows[2].split("\t"), strict=True))
    assert cells["asked_age_years"] == "51"
    assert cells["asked_brain_ml"] == "n/a"
    assert float(cells["measured_brain_ml"]) >= 0


def test_set_says_where_its_model_is_from_and_that_nothing_was_screened(tmp_path: Path) -> None:
    noted = replace(request(), origin="trained", notes=("nobody has looked at it",))
    frugal = FrugalGenerator(Noise(), batch_images=2)
    draw_set(noted, frugal, tmp_path / "noted", indices=range(COUNT))
    draw(tmp_path / "plain")
    noted_text, plain_text = contents(tmp_path / "noted"), contents(tmp_path / "plain")
    for name in (MANIFEST, "dataset_description.json", "README"):
        assert b"trained" in noted_text[name]
        assert b"obody has looked at it" in noted_text[name]
        assert b"has looked at it" not in plain_text[name]  # the control
    about = json.loads(noted_text["dataset_description.json"])
    assert about["Notes"] == ["nobody has looked at it"]
    image = image_path(0)  # what is said of a model does not enter its samples
    assert digest_file(tmp_path / "noted" / image) == digest_file(tmp_path / "plain" / image)
