"""A study whose rounds are ordered one at a time: the real pipeline, and a task without torch."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.factories.cohort import recipe_settings, write_cohort
from tests.factories.federation import STUDY
from tests.federation.gated_steward import step
from vitrael.client.site.ingest.summary import summarize
from vitrael.client.site.ingest.told import save_summary
from vitrael.core.digest import Digest, write_atomically
from vitrael.core.study import Study, parse_study
from vitrael.privacy.journal_cross import compare_journals, read_account
from vitrael.server.db.engine import open_database
from vitrael.server.federation.layout import site_home
from vitrael.server.objects import ObjectStore
from vitrael.server.studies.ledger import Ledger, StageRecord

SITES = ("north", "south")
MOST_ROUNDS = 400
DEADLINE_S = 240.0

_APP = '''
"""The codec's rounds as the pipeline trains them, each when it is ordered."""

import json, time
from pathlib import Path
from vitrael.core.digest import Digest, write_atomically
from vitrael.core.errors import ProcessError
from vitrael.server.federation.app import make_app
from vitrael.server.studies.federated import train_rounds
from vitrael.server.studies.participation import tell_outcome
from vitrael.server.studies.run import open_run

ORDER = Path({order!r})

def order():
    return json.loads(ORDER.read_bytes())

class Hurried:
    def __init__(self, exchange):
        self.exchange = exchange

    def send(self, parcels, *, deadline_s):
        most = order()["deadline_s"]
        hurried = {{site: min(deadline_s[site], most) for site in parcels}}
        return self.exchange.send(parcels, deadline_s=hurried)

def run(home, exchange):
    study = open_run(home, Hurried(exchange))
    config = study.study.protocol.generator.codec.training
    done, until = 0, time.monotonic() + 3600
    while not (order()["last"] and done >= order()["rounds"]):
        if order()["rounds"] > done:
            done += 1
            far = config.model_copy(update={{"rounds": done}})
            train_rounds(study, "codec", "codec", Digest({start!r}), far)
        elif time.monotonic() > until:
            raise ProcessError("no further round was ordered")
        else:
            time.sleep(0.1)
    outcome = tell_outcome(study)
    told = {{"status": outcome.status, "sentence": outcome.sentence}}
    write_atomically(home / "outcome.json", json.dumps(told).encode())
    return 7 if outcome.status == "partial" else 0

app = make_app(run)
'''


def paced_study(sites: Sequence[str] = SITES, *, quorum: int = 1) -> bytes:
    """Return the text of a study of many rounds of one stage."""
    everybody, ours = '["north", "harbour", "valley"]', json.dumps(list(sites))
    return (
        STUDY.replace(everybody, ours)
        .replace("rounds = 2, length_images = 32, batch_images = 4", _ROUNDS)
        .replace("quorum = 2", f"quorum = {quorum}\ndeadline_s = {DEADLINE_S}")
        .encode()
    )


_ROUNDS = f"rounds = {MOST_ROUNDS}, length_images = {32 * MOST_ROUNDS}, batch_images = 4"


def give_scans(home: Path, study: Study) -> None:
    """Give a site a few scans that are hardly looked at, as an intake leaves them."""
    data = study.protocol.data
    folder = home / "cohorts" / "main"
    recipe = recipe_settings(data.grid_vox, data.spacing_mm)
    manifest = write_cohort(folder, recipe=recipe, patients=6)
    save_summary(summarize(manifest), manifest, folder)


@dataclass
class Paced:
    """A coordinator's home, and the folder in which a test says what is to happen."""

    home: Path
    gates: Path
    size: int
    """Weights of the model, 4 bytes each."""
    sites: tuple[str, ...] = SITES
    study: Study = field(init=False)
    _weights: dict[int, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.study = parse_study(paced_study(self.sites), label="study")
        self.gates.mkdir(parents=True, exist_ok=True)
        self.order(0)

    @property
    def start(self) -> np.ndarray:
        """The weights before the first round."""
        draw = np.random.default_rng(7)
        return draw.integers(-1000, 1000, self.size).astype(np.float32)

    @property
    def objects(self) -> ObjectStore:
        """The coordinator's."""
        return ObjectStore(self.home / "objects")

    def server_app(self) -> str:
        """Return the text of the ServerApp; the first weights are laid into the home."""
        start = self.objects.put_tensors({"w": self.start})
        return _APP.format(order=str(self.gates / "order.json"), start=str(start))

    def order(self, rounds: int, *, deadline_s: float = DEADLINE_S, last: bool = False) -> None:
        """Let the study go on until so many rounds are finished, and no further."""
        told = {"rounds": rounds, "deadline_s": deadline_s, "last": last}
        write_atomically(self.gates / "order.json", json.dumps(told).encode())

    def hold(self, site: str) -> None:
        """Keep the site's next task from its end."""
        (self.gates / f"hold-{site}").touch()

    def let_go(self, site: str) -> None:
        """Let the site's task come to its end."""
        (self.gates / f"hold-{site}").unlink(missing_ok=True)

    def is_at(self, site: str, number: int) -> bool:
        """Say whether a site has begun with a round, the first being 1."""
        path = self.gates / f"begun-{site}"
        return path.exists() and int(path.read_text()) == number - 1

    def count_computed(self, site: str, number: int) -> int:
        """Return how often a site has computed a round to its end, the first being 1."""
        path = self.gates / f"computed-{site}"
        lines = path.read_text().splitlines() if path.exists() else []
        return lines.count(str(number - 1))

    def records(self) -> list[StageRecord]:
        """Return every attempt at a round, in the order of their beginning."""
        engine = open_database(self.home / "server.sqlite")
        try:
            return list(Ledger(engine).history(self.study.protocol.digest))
        finally:
            engine.dispose()

    def finished(self) -> list[StageRecord]:
        """Return the finished rounds by number."""
        done = [record for record in self.records() if record.status == "finished"]
        return sorted(done, key=lambda record: record.key.round)

    def weights(self, record: StageRecord) -> np.ndarray:
        """Return the weights that a finished round has left."""
        assert record.output is not None
        digest = Digest(self.objects.get_json(record.output)["codec"])
        return self.objects.get_tensors(digest)["w"]

    def assert_sound(self) -> list[StageRecord]:
        """Assert that no round is lost and each left what it must; return the rounds."""
        records, done = self.records(), self.finished()
        assert [record.key.round for record in done] == list(range(len(done)))
        assert not [record for record in records if record.status == "running"]
        for record in done:
            self._assert_weights(record)
        return done

    def assert_journals(self) -> None:
        """Assert that every journal is whole and that no two contradict each other."""
        server = read_account(self.home / "journal.jsonl", in_home=True)
        assert server.faults == ()
        answered = {site for record in self.finished() for site in record.participants}
        for site in self.sites:
            own = read_account(site_home(self.home, site) / "journal.jsonl", in_home=True)
            assert own.faults == ()
            told = compare_journals(server, own)
            assert told.faults == ()
            assert told.replies > 0 or site not in answered

    def _assert_weights(self, record: StageRecord) -> None:
        number = record.key.round
        if number in self._weights:
            return
        before = self.start if number == 0 else self._weights[number - 1]
        there = record.participants
        moved = sum(step(site, number, self.size) for site in there)
        expected = before + np.asarray(moved / len(there), np.float32)
        np.testing.assert_array_equal(self.weights(record), expected)
        self._weights[number] = expected


def wait_until(
    condition: Callable[[], object],
    what: str,
    *,
    seconds: float = 120,
    told: Iterable[Path] = (),
    every_s: float = 0.1,
) -> None:
    """Return once a condition holds; fail with what was waited for and the ends of some logs."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= until:
            ends = [f"{log.name}:\n{_end_of(log)}" for log in told]
            raise AssertionError("\n".join([f"not within {seconds:.0f} s: {what}", *ends]))
        time.sleep(every_s)


def _end_of(log: Path) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-6:])
    except OSError as error:
        return str(error)
