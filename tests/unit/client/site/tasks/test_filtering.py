"""What a stage leaves for a later one outlives whatever may be cleared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

from vitrael.client.site.steward import Steward
from vitrael.client.site.tasks import SiteContext, TaskResult, audit, filtering
from vitrael.client.site.tasks.sign_release import AUDITED
from vitrael.core.data.nifti import encode_nifti
from vitrael.core.data.scan import Scan
from vitrael.core.data.splits import Split
from vitrael.core.digest import digest_bytes
from vitrael.core.errors import DataError
from vitrael.core.geometry import centered_affine
from vitrael.core.models.reid import Learns, ReidEncoder, build_reid_encoder
from vitrael.core.weights import module_tensors, pack_tensors
from vitrael.privacy.reid import calibrate
from vitrael.privacy.reid.calibrate import OperatingPoint, Scale

if TYPE_CHECKING:
    from tests.unit.client.site.conftest import Home
    from vitrael.core.messages import Task
    from vitrael.core.weights import Tensors

CLEARED = ("cache", "spool", "steward.log", "progress.jsonl")
"""What sites.md leaves out of the backup, and what an earlier version called cache."""


SCANS = {
    Split.TRAINING: ("a", "b"),
    Split.FILTER: ("c", "c"),
    Split.CALIBRATION: ("d", "e"),
    Split.AUDIT: ("f", "g"),
}
"""The patients of each split, one scan each; its digest is that of the name and the place."""
CODEC = {"w": np.arange(3, dtype=np.float32)}


def context_of(home: Home, *, scans: Mapping[Split, tuple[str, ...]] | None = None) -> SiteContext:
    """Return the context that a steward which has just started gives to its tasks."""
    seen: list[SiteContext] = []

    def run(_task: Task, _inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:
        seen.append(context)
        return TaskResult()

    def items(split: Split) -> list[SimpleNamespace]:
        names = {**SCANS, **(scans or {})}[split]
        return [
            SimpleNamespace(subject=name, digest=digest_bytes(f"{split} {place}".encode()))
            for place, name in enumerate(names)
        ]

    cohort = cast("Any", SimpleNamespace(images=lambda _split: None, items=items))
    steward = Steward(
        home.settings,
        clock=home.clock,
        tasks={"codec": run},
        load_cohort=lambda *_: cohort,
        layouts=None,
    )
    with closing(steward):
        steward.answer(home.parcel(home.task(round=home.nonces % 2)))
    return seen[0]


def encoders_of(home: Home, *, seed: int = 1) -> dict[Learns, ReidEncoder]:
    config = home.study.protocol.reid
    return {each: build_reid_encoder(config, seed=seed, learns=each) for each in filtering.LEARNS}


def keep_filter(home: Home, *, codec: Tensors | None = None) -> OperatingPoint:
    """Write a site's filter to its records, as a calibration does, and return its point."""
    context, encoders = context_of(home), encoders_of(home)
    scale = Scale(mean=(0.0,), spread=(1.0,))
    point = OperatingPoint(
        best=scale,
        region=scale,
        regions=scale,
        threshold=2.0,
        false_match_rate=0.05,
        null_patients=40,
        gallery_patients=40,
        made_with=filtering.name_made_with(context, encoders, codec),
        salt=filtering.new_salt(),
    )
    filtering.save_filter(context, encoders, cast("Any", None), point, codec=codec)
    return point


@pytest.fixture
def unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes scans: the point is held against names."""
    learned = ("with_round_trips", "study_round_trip", "study_encode", "site_template")
    for name in (*learned, "fit_lens", "build_gallery"):
        monkeypatch.setattr(filtering, name, lambda *_, **__: None)


@pytest.mark.usefixtures("unseen")
def test_filter_outlives_all_that_may_be_cleared(home: Home) -> None:
    home.consent()
    point = keep_filter(home, codec=CODEC)
    for name in CLEARED:
        shutil.rmtree(home.path / name, ignore_errors=True)
    screener = filtering.load_screener(context_of(home))
    assert screener is not None
    assert screener.point.commitment == point.commitment
    shutil.rmtree(home.settings.records)
    assert filtering.load_screener(context_of(home)) is None  # this is where it lay


def _other_encoder(home: Home, folder: Path) -> SiteContext:
    weights = module_tensors(encoders_of(home, seed=2)["visits"])
    (folder / "visits.safetensors").write_bytes(pack_tensors(weights))
    return context_of(home)


def _other_codec(home: Home, folder: Path) -> SiteContext:
    (folder / "codec.safetensors").write_bytes(pack_tensors({"w": CODEC["w"] + 1}))
    return context_of(home)


def _no_codec(home: Home, folder: Path) -> SiteContext:
    (folder / "codec.safetensors").unlink()
    return context_of(home)


def _other_scans(home: Home, folder: Path) -> SiteContext:
    del folder
    return context_of(home, scans={Split.TRAINING: ("a", "another")})


def _other_patient(home: Home, folder: Path) -> SiteContext:
    del folder
    return context_of(home, scans={Split.FILTER: ("another", "c")})


@pytest.mark.usefixtures("unseen")
@pytest.mark.parametrize(
    "change", [_other_encoder, _other_codec, _no_codec, _other_scans, _other_patient]
)
def test_point_of_another_filter_is_refused(
    home: Home, change: Callable[[Home, Path], SiteContext]
) -> None:
    home.consent()
    point = keep_filter(home, codec=CODEC)
    assert filtering.load_screener(context_of(home)) is not None  # the control
    context = change(home, context_of(home).records / "reid")
    with pytest.raises(DataError, match="that of another filter") as caught:
        filtering.load_screener(context)
    assert str(point.threshold) not in caught.value.sentence()


@pytest.mark.usefixtures("unseen")
def test_point_of_another_way_of_scoring_is_refused(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.consent()
    keep_filter(home, codec=CODEC)
    monkeypatch.setattr(calibrate, "SCORES", calibrate.SCORES + 1)
    with pytest.raises(DataError, match="that of another filter"):
        filtering.load_screener(context_of(home))


@pytest.mark.usefixtures("unseen")
def test_scans_that_no_filter_is_made_of_may_change(home: Home) -> None:
    home.consent()
    keep_filter(home)
    changed = context_of(home, scans={Split.AUDIT: ("another", "another")})
    assert filtering.load_screener(changed) is not None


def test_operating_point_of_another_version_is_refused_without_its_values(home: Home) -> None:
    home.consent()
    context = context_of(home)
    path = context.records / "reid" / "operating_point.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"embedding": 0.87654, "similarity": 0.9}', encoding="utf-8")
    with pytest.raises(DataError, match="fresh study") as caught:
        filtering.load_screener(context)
    assert "87654" not in caught.value.sentence()
    assert caught.value.__cause__ is None


def test_task_with_another_codec_than_the_calibrations_is_refused(home: Home) -> None:
    home.consent()
    context = context_of(home)
    filtering.demand_same_codec(context, None)  # nothing was calibrated: there is no other
    keep_filter(home, codec=CODEC)
    filtering.demand_same_codec(context, CODEC)
    for other in ({"w": CODEC["w"] + 1}, None):
        with pytest.raises(DataError, match="another codec"):
            filtering.demand_same_codec(context, other)


def test_digests_of_the_audited_images_outlive_all_that_may_be_cleared(home: Home) -> None:
    home.consent()
    data = home.study.protocol.data
    affine = centered_affine(data.grid_vox, spacing=data.spacing_mm)
    image = np.linspace(0, 1, np.prod(data.grid_vox), dtype=np.float32)
    scan = Scan(image.reshape(1, *data.grid_vox), affine, "T1w")
    content = encode_nifti(scan, dtype="int16", compressed=True)
    audit._keep_digests({"a.nii.gz": content}, context_of(home))
    for name in CLEARED:
        shutil.rmtree(home.path / name, ignore_errors=True)
    kept = context_of(home).records / AUDITED
    assert json.loads(kept.read_bytes()) == [digest_bytes(content)]


def test_records_are_for_their_user_alone(home: Home) -> None:
    home.consent()
    records = context_of(home).records
    assert records.parent == home.settings.records
    assert [folder.stat().st_mode & 0o777 for folder in (records.parent, records)] == [0o700] * 2
