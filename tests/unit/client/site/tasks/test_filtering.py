"""What a stage leaves for a later one outlives whatever may be cleared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import closing
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

from vitrael.client.site.steward import Steward
from vitrael.client.site.tasks import SiteContext, TaskResult, audit, filtering
from vitrael.client.site.tasks.sign_release import AUDITED
from vitrael.core.data.nifti import encode_nifti
from vitrael.core.data.scan import Scan
from vitrael.core.digest import digest_bytes
from vitrael.core.errors import DataError
from vitrael.core.geometry import centered_affine
from vitrael.core.models.reid import build_reid_encoder
from vitrael.privacy.reid.calibrate import OperatingPoint, Scale

if TYPE_CHECKING:
    from tests.unit.client.site.conftest import Home
    from vitrael.core.messages import Task
    from vitrael.core.weights import Tensors

CLEARED = ("cache", "spool", "steward.log", "progress.jsonl")
"""What sites.md leaves out of the backup, and what an earlier version called cache."""


def context_of(home: Home) -> SiteContext:
    """Return the context that a steward which has just started gives to its tasks."""
    seen: list[SiteContext] = []

    def run(_task: Task, _inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:
        seen.append(context)
        return TaskResult()

    none = cast("Any", SimpleNamespace(images=lambda _split: None))
    steward = Steward(
        home.settings,
        clock=home.clock,
        tasks={"codec": run},
        load_cohort=lambda *_: none,
        layouts=None,
    )
    with closing(steward):
        steward.answer(home.parcel(home.task(round=home.nonces % 2)))
    return seen[0]


def test_filter_outlives_all_that_may_be_cleared(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.consent()
    scale = Scale(mean=(0.0,), spread=(1.0,))
    point = OperatingPoint(
        best=scale,
        region=scale,
        regions=scale,
        threshold=2.0,
        false_match_rate=0.05,
        null_patients=40,
        gallery_patients=40,
        salt=filtering.new_salt(),
    )
    context = context_of(home)
    config = home.study.protocol.reid
    encoders = {
        learns: build_reid_encoder(config, seed=1, learns=learns) for learns in filtering.LEARNS
    }
    filtering.save_filter(context, encoders, cast("Any", None), point, codec=None)
    for name in CLEARED:
        shutil.rmtree(home.path / name, ignore_errors=True)
    for name in ("with_round_trips", "site_template", "fit_lens", "build_gallery"):
        monkeypatch.setattr(filtering, name, lambda *_, **__: None)
    again = context_of(home)
    assert again is not context
    screener = filtering.load_screener(again)
    assert screener is not None
    assert screener.point.commitment == point.commitment
    shutil.rmtree(home.settings.records)
    assert filtering.load_screener(context_of(home)) is None  # this is where it lay


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
