from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.factories.enrolling import Answers, JoiningSite
from tests.fakes.clock import START, FakeClock
from vitrael.server.config import ServerDocument, ServerSettings, load_server
from vitrael.server.sites.desk import Desk
from vitrael.server.sites.founding import found_coordinator
from vitrael.server.sites.registry import Registry

ADDRESS = "vitrael.example.org:443"


@pytest.fixture(scope="session")
def founded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a coordinator's home without a site; copy it."""
    home = tmp_path_factory.mktemp("founded") / "home"
    found_coordinator(home, ServerDocument(address=ADDRESS), now=START)
    return home


@pytest.fixture
def settings(founded: Path, tmp_path: Path) -> ServerSettings:
    home = tmp_path / "coordinator"
    shutil.copytree(founded, home)
    return load_server(home)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def registry(settings: ServerSettings, clock: FakeClock) -> Iterator[Registry]:
    with Registry(settings, clock=clock) as opened:
        yield opened


@pytest.fixture
def desk(settings: ServerSettings, clock: FakeClock) -> Iterator[Desk]:
    with Desk(settings, clock=clock) as opened:
        yield opened


@pytest.fixture
def north(clock: FakeClock, settings: ServerSettings) -> JoiningSite:
    return JoiningSite("north", clock, settings)


@pytest.fixture
def south(clock: FakeClock, settings: ServerSettings) -> JoiningSite:
    return JoiningSite("south", clock, settings)


@pytest.fixture
def answers(desk: Desk, settings: ServerSettings) -> Answers:
    return Answers(desk, settings)
