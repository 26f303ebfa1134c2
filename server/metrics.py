"""Health and metrics of a coordinator, for a monitor on the same host: loopback alone.

Sites appear by their names, which are public in every study; nothing of a patient can be here,
because the coordinator has nothing of a patient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from vitrael.core.page import Health, serving_page
from vitrael.server.board import ServerState, SiteState
from vitrael.server.runs import StudyStatus

_PREFIX = "vitrael_server"


class StateCollector(Collector):
    """Tells Prometheus what stands in the state at the moment it asks."""

    def __init__(self, state: Callable[[], ServerState]) -> None:
        """Keep what returns the state."""
        self._state = state

    def collect(self) -> Iterator[Metric]:
        """Yield every metric."""
        state = self._state()
        yield _one("build_info", "The version that runs", {"version": state.version}, 1)
        yield from _of_sites(state)
        yield from _of_children(state)
        yield from _of_study(state)


def _of_sites(state: ServerState) -> Iterator[Metric]:
    def each(name: str, text: str, value: Callable[[SiteState], float | None]) -> Metric:
        family = GaugeMetricFamily(f"{_PREFIX}_{name}", text, labels=["site"])
        for site, facts in state.sites.items():
            number = value(facts)
            if number is not None:
                family.add_metric([site], number)
        return family

    def total(name: str, text: str, value: Callable[[SiteState], float]) -> Metric:
        family = CounterMetricFamily(f"{_PREFIX}_{name}", text, labels=["site"])
        for site, facts in state.sites.items():
            family.add_metric([site], value(facts))
        return family

    online = sum(facts.online for facts in state.sites.values())
    yield _one("sites_online", "How many enrolled sites are connected", {}, online)
    yield each("site_online", "1 while the site is connected", lambda site: float(site.online))
    yield each("site_answer_seconds", "How long its last answer took", lambda site: site.answer_s)
    yield each(
        "site_last_answer_timestamp_seconds",
        "When its last answer came",
        lambda site: None if site.answered_utc is None else _seconds(site.answered_utc),
    )
    yield total("site_asked_bytes", "Bytes of tasks to the site", lambda site: site.asked_bytes)
    yield total("site_received_bytes", "Bytes from the site", lambda site: site.received_bytes)


def _of_children(state: ServerState) -> Iterator[Metric]:
    running = GaugeMetricFamily(
        f"{_PREFIX}_child_up", "1 while this process runs", labels=["child"]
    )
    falls = CounterMetricFamily(
        f"{_PREFIX}_child_falls", "How often this process ended", labels=["child"]
    )
    for child in state.children:
        running.add_metric([child.name], float(child.status == "running"))
        falls.add_metric([child.name], child.falls)
    yield running
    yield falls


def _of_study(state: ServerState) -> Iterator[Metric]:
    status = GaugeMetricFamily(f"{_PREFIX}_run_status", "1 for how it goes", labels=["status"])
    for name in get_args(StudyStatus):
        status.add_metric([name], float(state.study is not None and state.study.status == name))
    yield status
    if state.study is not None:
        yield _one("runs", "Flower runs of this study", {}, state.study.runs)
    if state.stage is not None:
        stage = {"stage": state.stage.stage}
        began = _seconds(state.stage.began_utc)
        yield _one("round", "The round of this stage, from 0", stage, state.stage.round)
        yield _one("stage_began_timestamp_seconds", "When it began", stage, began)
        yield _one("stage_answers", "How many sites have answered", stage, state.stage.answered)


def _one(name: str, text: str, labels: dict[str, str], value: float) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"{_PREFIX}_{name}", text, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family


def _seconds(utc: str) -> float:
    return datetime.fromisoformat(utc).timestamp()


@contextmanager
def serving_metrics(port: int, state: Callable[[], ServerState]) -> Iterator[None]:
    """Answer ``/health`` and ``/metrics`` on a port of loopback while the body runs.

    Health is 200 while all goes well, else 503, each with the sentence. Raises NetworkError when
    the port is in use.
    """
    registry = CollectorRegistry()
    registry.register(StateCollector(state))

    def health() -> Health:
        trouble = state().trouble
        return Health(not trouble, "trouble" if trouble else "ok", {"trouble": trouble})

    with serving_page(
        port,
        health=health,
        metrics=lambda: generate_latest(registry),
        setting="ports.metrics in server.toml",
    ):
        yield
