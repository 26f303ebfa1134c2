"""Scans are prepared once, parted by patient, and told with what is known of them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from tests.factories import models
from vitrael.core.data.recipes import settings_for
from vitrael.core.errors import CohortError, ProcessError
from vitrael.core.workbench.intake import Intake, Share, part_by_patient, rows_of, take_in

SETTINGS = settings_for("brain-t1", grid_vox=(16, 16, 16), spacing_mm=models.SPACING_MM)


@pytest.fixture(scope="module")
def visits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.write_scans(tmp_path_factory.mktemp("visits") / "s", patients=4, visits=2)


def prepared(steps: list[int], scans: Path, workshop: Path, share: Share | None = None) -> Intake:
    def tell(_step: str, done: int, _total: int) -> None:
        steps.append(done)

    return take_in(scans, SETTINGS, workshop=workshop, share=share or Share(), tell=tell)


def test_nothing_is_prepared_twice(visits: Path, tmp_path: Path) -> None:
    first, second = [], []
    one = prepared(first, visits, tmp_path)
    two = prepared(second, visits, tmp_path)
    assert (len(first), second) == (8, [])
    assert [item.digest for item in one.items] == [item.digest for item in two.items]


def test_line_that_was_cut_is_prepared_again(visits: Path, tmp_path: Path) -> None:
    one = prepared([], visits, tmp_path)
    ledger = next(tmp_path.glob("prepared-*.jsonl"))
    ledger.write_text(ledger.read_text()[:-40])
    again: list[int] = []
    two = prepared(again, visits, tmp_path)
    assert again == [1]
    assert [item.digest for item in one.items] == [item.digest for item in two.items]


def side_by_side(act: Callable[[Share], None], *, count: int = 2) -> None:
    """Act as each of several processes that wait for one another, for ten seconds at most."""
    barrier = threading.Barrier(count, timeout=10)
    named: dict[int, int] = {}

    def meet(rank: int, number: int) -> None:
        named[rank] = number
        barrier.wait()
        agreed = len(set(named.values())) == 1
        barrier.wait()
        if not agreed:
            raise ProcessError("the processes do not agree")

    shares = [Share(rank, count, partial(meet, rank)) for rank in range(count)]
    with ThreadPoolExecutor(count) as pool:
        for running in [pool.submit(act, share) for share in shares]:
            running.result()


@pytest.mark.parametrize("pieces", [0, 1, 7, 40])
def test_each_piece_is_done_once_and_none_runs_far_ahead(pieces: int) -> None:
    done: dict[int, list[int]] = {0: [], 1: [], 2: []}
    ahead: list[int] = []

    def act(share: Share) -> None:
        def do(piece: int) -> None:
            done[share.number].append(piece)
            ahead.append(len(done[share.number]) - min(map(len, done.values())))

        work = {str(piece): piece for piece in range(pieces)}
        assert all(0 < count <= pieces for count in share.share_out(work, do))

    side_by_side(act, count=3)
    assert sorted(chain.from_iterable(done.values())) == list(range(pieces))
    assert max(ahead, default=0) <= 4


def test_processes_that_list_other_work_are_told_before_any_is_done() -> None:
    done: list[int] = []

    def act(share: Share) -> None:
        work = {str(piece): piece for piece in range(8 + share.number)}
        for _ in share.share_out(work, done.append):
            pass

    with pytest.raises(ProcessError, match="do not agree"):
        side_by_side(act)
    assert done == []


def test_shares_together_are_the_whole(visits: Path, tmp_path: Path) -> None:
    whole = prepared([], visits, tmp_path / "whole")
    found: dict[int, Intake] = {}

    def act(share: Share) -> None:
        found[share.number] = prepared([], visits, tmp_path / "shared", share)

    side_by_side(act)
    digests = [item.digest for item in whole.items]
    assert [item.digest for item in found[0].items] == digests
    assert [item.digest for item in found[1].items] == digests
    assert [lines_of(tmp_path / "shared", rank) for rank in (0, 1)] == [4, 4]


def lines_of(workshop: Path, rank: int) -> int:
    """Return how many sources stand in the ledger of a process."""
    text = (workshop / f"prepared-{rank}.jsonl").read_text()
    return sum(1 for line in text.splitlines() if line)


def test_what_one_process_left_is_shared_by_all(visits: Path, tmp_path: Path) -> None:
    prepared([], visits, tmp_path)  # one had all of it, and all but one line was lost
    ledger = tmp_path / "prepared-0.jsonl"
    ledger.write_text("\n".join(ledger.read_text().splitlines()[:2]))
    side_by_side(lambda share: (prepared([], visits, tmp_path, share), None)[1])
    counts = [lines_of(tmp_path, rank) for rank in (0, 1)]
    assert counts == [1 + 4, 3]


def test_patient_is_never_on_both_sides(visits: Path, tmp_path: Path) -> None:
    intake = prepared([], visits, tmp_path)
    for frac in (0.01, 0.3, 0.49):
        learned, held = part_by_patient(intake, frac)
        assert learned
        assert held
        assert len(learned) + len(held) == len(intake.items)
        assert not {item.subject for item in learned} & {item.subject for item in held}


def test_no_name_of_a_patient_stands_in_the_workshop(visits: Path, tmp_path: Path) -> None:
    prepared([], visits, tmp_path)
    text = next(tmp_path.glob("prepared-*.jsonl")).read_text()
    assert "sub-0001" not in text
    assert "p-" in text


def test_conditions_are_those_of_the_tables(visits: Path, tmp_path: Path) -> None:
    intake = prepared([], visits, tmp_path)
    rows = rows_of(intake.items, intake.shards, models.covariates())
    ages = (visits / "sub-0001" / "sub-0001_sessions.tsv").read_text().split()[3::2]
    low, high = models.RANGES["age_years"]
    wanted = [(float(age) - low) / (high - low) for age in ages]
    np.testing.assert_allclose(rows.condition_BK[:2, 0], np.clip(wanted, 0, 1), atol=1e-4)
    assert set(rows.condition_BK[:, 1]) <= {0.0, 1.0}
    assert rows.images.batch([0]).shape == (1, 1, 16, 16, 16)


def test_scan_outside_a_range_counts_as_its_end_and_is_told(visits: Path, tmp_path: Path) -> None:
    intake = prepared([], visits, tmp_path)
    narrow = tuple(
        covariate.model_copy(update={"low": 0.0, "high": 1.0})
        if covariate.name == "brain_ml"
        else covariate
        for covariate in models.covariates()
    )
    rows = rows_of(intake.items, intake.shards, narrow)
    assert rows.condition_BK[:, 3].tolist() == [1.0] * 8
    assert rows.clipped["brain_ml"] == 8


def test_what_is_not_known_lies_in_the_middle(visits: Path, tmp_path: Path) -> None:
    intake = prepared([], visits, tmp_path)
    item = intake.items[0]
    unknown = item.model_copy(
        update={"covariates": {k: v for k, v in item.covariates.items() if k.endswith("_ml")}}
    )
    rows = rows_of([unknown], intake.shards, models.covariates())
    assert rows.condition_BK[0, :2].tolist() == [0.5, 0.5]


def test_folder_without_a_scan_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "a.json").write_text(json.dumps({}))
    with pytest.raises(CohortError, match="no scan of the folder can be used"):
        prepared([], tmp_path / "scans", tmp_path / "w")


def test_brain_that_the_grid_cuts_is_told_and_one_that_it_halves_is_refused(tmp_path: Path) -> None:
    scans = models.write_scans(tmp_path / "scans", patients=6)

    def taken(grid_vox: tuple[int, int, int]) -> Intake:
        small = settings_for("brain-t1", grid_vox=grid_vox, spacing_mm=models.SPACING_MM)
        return take_in(scans, small, workshop=tmp_path / "-".join(map(str, grid_vox)))

    assert taken((16, 16, 16)).cut == 0  # the control
    some = taken((12, 12, 12))
    assert some.cut > 0
    assert len(some.items) + sum(some.left_out.values()) == 6
    with pytest.raises(CohortError, match="grid is too small for the brain"):
        taken((8, 16, 16))


def test_line_that_does_not_tell_what_was_cut_is_prepared_again(
    visits: Path, tmp_path: Path
) -> None:
    prepared([], visits, tmp_path)
    ledger = next(tmp_path.glob("prepared-*.jsonl"))
    ledger.write_text(ledger.read_text().replace('"cut_frac"', '"another"'))
    again: list[int] = []
    prepared(again, visits, tmp_path)
    assert len(again) == 8
