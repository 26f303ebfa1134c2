"""What a site counts: its journal's totals, seconds, days left; never a name."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.fakes.clock import FakeClock
from vitrael.client.site.courier.numbers import (
    courier_metrics,
    read_metrics,
    resident_bytes,
    resident_tree_bytes,
)
from vitrael.client.site.metrics import SiteMetrics
from vitrael.client.site.settings import SiteSettings
from vitrael.client.site.steward import Steward
from vitrael.core.errors import EnvelopeError, StorageError
from vitrael.core.messages import Parcel, Task


class Home(Protocol):
    path: Path
    clock: FakeClock

    @property
    def settings(self) -> SiteSettings: ...

    def task(self, **changes: object) -> Task: ...

    def parcel(self, task: Task) -> dict[str, bytes]: ...


class Seconds:
    """A clock of which each look takes two seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 2
        return self.now


def metrics_of(home: Home, steward: Steward) -> SiteMetrics:
    return SiteMetrics(
        home.settings.metrics,
        journal=home.settings.journal,
        consents=steward.consent_ends,
        clock=home.clock,
        monotonic=Seconds(),
        memory=lambda: 7,
    )


def samples(data: bytes) -> dict[str, float]:
    """Return name{labels} -> value."""
    found = {}
    for family in text_string_to_metric_families(data.decode()):
        for one in family.samples:
            labels = ",".join(one.labels[name] for name in sorted(one.labels, reverse=True))
            found[f"{one.name}{{{labels}}}" if labels else one.name] = one.value
    return found


def test_tasks_bytes_seconds_and_days_are_counted(home: Home, steward: Steward) -> None:
    metrics = metrics_of(home, steward)
    answer = metrics.meter(steward.answer)
    reply = answer(home.parcel(home.task()))
    told = samples(read_metrics(home.settings.metrics))
    assert told["vitrael_site_tasks_total{codec,sent}"] == 1
    assert told["vitrael_site_tasks_total{none,consent}"] == 1
    assert told["vitrael_site_left_bytes_total"] == sum(map(len, reply.values()))
    assert told["vitrael_site_task_seconds_total{codec}"] == 2
    assert told["vitrael_site_journal_lines"] == 2
    assert told["vitrael_site_steward_resident_bytes"] == 7
    assert told["vitrael_site_last_task_seconds"] == home.clock().timestamp()
    (days,) = [value for name, value in told.items() if "consent_days_left" in name]
    assert days == 90
    assert home.settings.metrics.stat().st_mode & 0o777 == 0o640


def test_a_refusal_is_counted_as_one(home: Home, steward: Steward) -> None:
    metrics = metrics_of(home, steward)
    answer = metrics.meter(steward.answer)
    answer(home.parcel(home.task(protocol="sha256:" + "0" * 64)))
    with pytest.raises(EnvelopeError):
        answer({"envelope": b"none"})
    told = samples(read_metrics(home.settings.metrics))
    assert told["vitrael_site_tasks_total{codec,refused}"] == 1
    assert "vitrael_site_tasks_total{codec,sent}" not in told


def test_totals_outlive_the_steward(home: Home, steward: Steward) -> None:
    steward.answer(home.parcel(home.task()))
    again = metrics_of(home, steward)
    again.write()
    again.write()
    told = samples(read_metrics(home.settings.metrics))
    assert told["vitrael_site_tasks_total{codec,sent}"] == 1


def test_no_name_and_no_patient_stands_there(home: Home, steward: Steward) -> None:
    metrics_of(home, steward).meter(steward.answer)(home.parcel(home.task()))
    text = read_metrics(home.settings.metrics).decode()
    assert "north" not in text
    assert "site-test" not in text
    assert str(home.path) not in text


def test_a_full_disk_or_a_locked_store_stops_no_task(home: Home, tmp_path: Path) -> None:
    def locked() -> Mapping[str, datetime]:
        raise StorageError("the store is locked")

    def answer(parcel: Parcel) -> dict[str, bytes]:
        return dict(parcel)

    (tmp_path / "file").touch()
    path = tmp_path / "file" / "metrics.prom"
    metrics = SiteMetrics(
        path, journal=tmp_path / "none", consents=locked, clock=home.clock, monotonic=Seconds()
    )
    assert metrics.meter(answer)({"envelope": b"x"}) == {"envelope": b"x"}
    assert read_metrics(path) == b""


def test_a_consent_that_was_taken_back_is_not_counted(home: Home, steward: Steward) -> None:
    ends = steward.consent_ends()
    assert set(ends.values()) == {home.clock() + timedelta(days=90)}


def test_the_courier_tells_of_its_processes() -> None:
    told = samples(
        courier_metrics(
            up={"node": True, "executor": False},
            restarts={"node": 3},
            is_connected=True,
            resident=9,
        )
    )
    assert told["vitrael_courier_up{node}"] == 1
    assert told["vitrael_courier_up{executor}"] == 0
    assert told["vitrael_courier_restarts_total{node}"] == 3
    assert told["vitrael_courier_connected"] == 1
    assert "vitrael_courier_restarts_total{executor}" not in told  # another command's, not known
    assert told["vitrael_courier_resident_bytes"] == 9


def test_memory_is_the_kernel_s_number() -> None:
    assert resident_bytes() > 1 << 20
    assert resident_bytes(-1) == 0


def test_memory_is_that_of_all_who_descend_from_a_process() -> None:
    command = ("/bin/sh", "-c", "(sleep 100 & echo; wait) & wait")
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        assert resident_tree_bytes(parent.pid) > resident_bytes(parent.pid) > 0
        os.killpg(parent.pid, signal.SIGKILL)
    assert resident_tree_bytes(parent.pid) == 0
