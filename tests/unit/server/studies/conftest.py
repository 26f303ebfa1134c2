"""A tiny federation, run once and looked at by many; heavy imports wait for their use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from vitrael.core.messages import Task


@dataclass(frozen=True)
class Ended:
    """What a run left: its home, its exit code, and the tasks that reached the stewards."""

    home: Path
    code: int
    seen: tuple[Task, ...]


ARM_STAGES = ("random student", "arm samples", "arms")
"""What a study has beside the others where its protocol compares arms."""


@contextmanager
def policy(*measurements: str, threshold: float = 1.0, publishable: bool = False) -> Iterator[None]:
    """Replace the gates of ``rehearsal`` for coordinator, sites and researcher alike."""
    from vitrael.privacy.gates import POLICIES, Gate, Policy

    gates = tuple(
        Gate(name=name, measurement=name, bound="lower_at_least", threshold=threshold)
        for name in measurements
    )
    replaced = Policy(name="rehearsal", title="Of a test", publishable=publishable, gates=gates)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(POLICIES, "rehearsal", replaced)  # type: ignore[arg-type]
        yield


@contextmanager
def lenient() -> Iterator[None]:
    """Ask for what even the tiny study has: everybody took part, everything was screened."""
    with policy("participation.complete", "screening.done"):
        yield


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Homes in which nothing has run; no test may change them."""
    from tests.factories.federation import prepare_homes

    return prepare_homes(tmp_path_factory.mktemp("prepared"))


@pytest.fixture
def home(prepared: Path, tmp_path: Path) -> Path:
    """Homes of the test's own in which nothing has run."""
    from tests.factories.federation import copy_homes

    return copy_homes(prepared, tmp_path)


@pytest.fixture(scope="session")
def finished(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """A study that ran undisturbed and was released; no test may change it."""
    from tests.factories.federation import copy_homes, federation
    from vitrael.server.studies.pipeline import run_study

    home = copy_homes(prepared, tmp_path_factory.mktemp("finished"))
    with lenient(), federation(home) as told:
        code = run_study(home, told.exchange)
        return Ended(home, code, tuple(told.seen))


@pytest.fixture
def finished_home(finished: Ended, tmp_path: Path) -> Path:
    """The released study's homes, for the test to go on with."""
    from tests.factories.federation import copy_homes

    return copy_homes(finished.home, tmp_path)


@pytest.fixture(scope="session")
def unsigned(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Homes of a study that was killed before its second site could sign; not to be changed."""
    from tests.factories.federation import Interruption, copy_homes, federation
    from vitrael.server.studies.pipeline import run_study

    home = copy_homes(prepared, tmp_path_factory.mktemp("unsigned"))
    with lenient(), federation(home) as told:
        told.interrupt = ("signing", 0, "harbour")
        with pytest.raises(Interruption):
            run_study(home, told.exchange)
    return home


@pytest.fixture
def unsigned_home(unsigned: Path, tmp_path: Path) -> Path:
    """The killed study's homes, for the test to go on with."""
    from tests.factories.federation import copy_homes

    return copy_homes(unsigned, tmp_path)


@pytest.fixture
def documents() -> Callable[[Path], dict[str, Any]]:
    """Return a reader of the finished stages' documents, by stage and round."""

    def read(home: Path) -> dict[str, Any]:
        from tests.fakes.federation import HandlerExchange
        from vitrael.server.studies.run import open_run

        run = open_run(home, HandlerExchange({}))
        return {
            f"{record.key.stage} {record.key.round + 1}": run.objects.get_json(record.output)
            for record in run.ledger.history(run.study.protocol.digest)
            if record.status == "finished" and record.output
        }

    return read
