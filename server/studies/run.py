"""One study as the coordinator's process holds it: where things are, and how a stage is kept."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vitrael.core.digest import Digest, digest_json
from vitrael.core.errors import ConfigError, QuorumError, StorageError, StudyError, VitraelError
from vitrael.core.study import Study, load_study
from vitrael.core.version import package_version
from vitrael.privacy.keys import KeyPair, PublicKeys, roster_digest
from vitrael.server.db.engine import open_database
from vitrael.server.objects import ObjectStore
from vitrael.server.settings import utc_now
from vitrael.server.studies.ledger import Ledger, StageKey, StageRecord
from vitrael.server.studies.rosters import find_members, keep_members
from vitrael.server.studies.standing import Standings
from vitrael.server.studies.task_journal import TaskJournal

if TYPE_CHECKING:
    from vitrael.server.federation.exchange import Exchange

logger = logging.getLogger(__name__)

_PATH_CHARS = r"[^\s\"',;:]+"
WORK: Final = frozenset(
    {
        *("codec", "latents", "reid", "teacher", "candidates", "student"),
        *("samples", "synthesis", "relay", "fusion"),
        *("random student", "arm samples"),
    }
)
"""Stages that are work done, and no site's judgment or word: kept when the roster is amended."""
_LOST: Final = "what it left is damaged or gone: it is done again"
_STORED: Final = (
    *("codec", "encoder", "denoiser", "images", "conditions", "samples"),
    *("experts", "outlooks", "common", "fusion", "unweighted", "counts"),
)
"""Keys of a stage's document under which objects of the store are named."""


@dataclass(frozen=True, slots=True)
class StageResult:
    """What a stage leaves behind: a document for the next, and what people want to see."""

    document: Mapping[str, Any]
    """JSON; tensors and files are named in it by their digest in the object store."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """JSON for the report and the experiment record: curves, counts, reasons."""
    participants: Sequence[str] = ()


@dataclass(frozen=True, slots=True, repr=False)
class StudyRun:
    """Everything that the stages of one study share."""

    home: Path
    study: Study
    keys: KeyPair
    members: Mapping[str, PublicKeys]
    """The roster with its keys, in the study's order."""
    ledger: Ledger
    objects: ObjectStore
    exchange: Exchange
    clock: Callable[[], datetime]
    standings: Standings
    journal: TaskJournal

    @property
    def roster(self) -> Digest:
        """Name of the roster with its keys."""
        return roster_digest(self.members, labels=self.study.roster.labels)

    def stage(
        self,
        name: str,
        inputs: Mapping[str, Any],
        work: Callable[[], StageResult],
        *,
        round_index: int = 0,
    ) -> dict[str, Any]:
        """Return the stage's document, from the ledger if it is finished, else by doing the work.

        The stage is named by protocol, name, round and inputs, so that whatever it depends on
        must be among the inputs. Work that was finished with the roster which this one amends is
        kept too. An error marks the attempt as failed and is raised on.
        """
        key = self._key(self.roster, name, inputs, round_index)
        done = self.ledger.finished(key) or self._keep_earlier(key, inputs)
        if done is not None and done.output is not None:
            self.tell(name, round_index, "kept")
            return dict(self.objects.get_json(done.output))
        record = self.ledger.begin(key, details={"roster": self.roster})
        self.tell(name, round_index, "begun")
        try:
            result = work()
        except BaseException as error:
            # The ledger outlives this machine. What a foreign exception says is not kept.
            told = error.sentence() if isinstance(error, VitraelError) else type(error).__name__
            details = error.absences if isinstance(error, QuorumError) else {}
            self.ledger.fail(record, without_paths(told, home=self.home), details=details)
            raise
        output = self.objects.put_json(dict(result.document))
        self.ledger.finish(
            record, output, details=result.details, participants=tuple(result.participants)
        )
        self.tell(name, round_index, "finished")
        return dict(result.document)

    def history(self) -> tuple[StageRecord, ...]:
        """Return every attempt at a stage with this roster, in the order of their beginning."""
        return tuple(
            record
            for record in self.ledger.history(self.study.protocol.digest)
            if record.details.get("roster") == self.roster
        )

    def finished(self) -> tuple[StageRecord, ...]:
        """Return of each stage and round the last attempt that was finished with this roster.

        They stand in the order of the stages' beginning, the rounds of one by number.
        """
        done = [record for record in self.history() if record.status == "finished"]
        places = {stage: at for at, stage in enumerate(dict.fromkeys(r.key.stage for r in done))}
        last = {(places[record.key.stage], record.key.round): record for record in done}
        return tuple(last[place] for place in sorted(last))

    def document(self, stage: str) -> dict[str, Any] | None:
        """Return what the stage left, None when it is not finished with this roster."""
        outputs = [r.output for r in self.finished() if r.key.stage == stage and r.output]
        return dict(self.objects.get_json(outputs[-1])) if outputs else None

    def documents(self, stage: str) -> list[dict[str, Any]]:
        """Return what each round of a stage left that is finished with this roster, in order."""
        outputs = [r.output for r in self.finished() if r.key.stage == stage and r.output]
        return [dict(self.objects.get_json(output)) for output in outputs]

    def earlier_document(self, stage: str) -> dict[str, Any] | None:
        """Return what the stage left with the roster which this one amends, None without any."""
        earlier = self.study.roster.predecessor
        outputs = [
            record.output
            for record in self.ledger.history(self.study.protocol.digest)
            if record.status == "finished"
            and record.key.stage == stage
            and record.details.get("roster") == earlier
            and record.output
        ]
        return dict(self.objects.get_json(outputs[-1])) if earlier and outputs else None

    def discard(self, damaged: Digest) -> bool:
        """Let the stages that made an object be done again; return whether there was one.

        Sites give what they finished once more and compute nothing. The stage before is gone on
        from, and the log says so.
        """
        records = self.ledger.history(self.study.protocol.digest)
        makers = [r for r in records if r.status == "finished" and self._made(r, damaged)]
        for record in makers:
            self.ledger.discard(record, _LOST)
            self.tell(record.key.stage, record.key.round, "damaged")
            logger.warning("%s is damaged: its stage is done again", damaged)
        return bool(makers)

    def find_lost(self, stage: str, round_index: int) -> StageRecord | None:
        """Return the attempt whose result was lost and not made again since, or None."""
        own = [r for r in self.history() if (r.key.stage, r.key.round) == (stage, round_index)]
        ended = [r for r in own if r.status == "finished" or r.reason == _LOST]
        return ended[-1] if ended and ended[-1].reason == _LOST else None

    def _made(self, record: StageRecord, damaged: Digest) -> bool:
        if record.output is None or record.output == damaged:
            return record.output == damaged
        try:
            document = self.objects.get_json(record.output)
        except StorageError:
            return False  # it is found when it is needed
        return any(_names(document.get(key), damaged) for key in _STORED)

    def _key(
        self, roster: Digest, name: str, inputs: Mapping[str, Any], round_index: int
    ) -> StageKey:
        named = digest_json([roster, dict(inputs)])
        return StageKey(self.study.protocol.digest, name, round_index, named)

    def _keep_earlier(self, key: StageKey, inputs: Mapping[str, Any]) -> StageRecord | None:
        """Return the predecessor's finished work as finished with this roster, or None."""
        earlier = self.study.roster.predecessor
        if earlier is None or key.stage not in WORK:
            return None
        found = self.ledger.finished(self._key(earlier, key.stage, inputs, key.round))
        if found is None or found.output is None:
            return None
        details = {**found.details, "roster": self.roster, "kept_from": earlier}
        record = self.ledger.begin(key, participants=found.participants, details=details)
        return self.ledger.finish(record, found.output)

    def tell(
        self,
        stage: str,
        round_index: int,
        event: str,
        *,
        done: int = 0,
        total: int = 0,
        about: Mapping[str, str | float] | None = None,
    ) -> None:
        """Append one line to the progress file that people follow.

        ``about`` tells of one site: ``site`` is its name, then ``seconds``, ``bytes``, ``reason``.
        """
        line = {
            "utc": self.clock().isoformat(),
            "stage": stage,
            "round": round_index,
            "event": event,
            "done": done,
            "total": total,
            **(about or {}),
        }
        with (self.home / "progress.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _names(value: object, digest: Digest) -> bool:
    """Return whether a part of a document names an object, at whatever depth."""
    if isinstance(value, Mapping):
        return any(_names(part, digest) for part in value.values())
    return value == digest


def without_paths(text: str, *, home: Path) -> str:
    """Return the text with ``…`` for the home, all below it, and every other absolute path.

    Elsewhere than below the home a path ends where a space, quote, comma, semicolon or colon is.
    """
    below_home = rf"{re.escape(str(home))}(?![^\s\"',;:/])(?:/{_PATH_CHARS})*"
    return re.sub(rf"{below_home}|(?<![\w.…])/+{_PATH_CHARS}", "…", text)


def open_run(home: Path, exchange: Exchange) -> StudyRun:
    """Return the run of the study that a coordinator's home folder holds.

    Raises ConfigError when the study admits no such version of the package as is installed, and
    when a site of its roster was not enrolled when it began; StudyError when nothing is known of
    its predecessor.
    """
    study = load_study(home / "study.toml")
    _demand_version(study)
    members = find_members(home, study)
    engine = open_database(home / "server.sqlite")
    run = StudyRun(
        home=home,
        study=study,
        keys=KeyPair.load(home / "keys"),
        members=members,
        ledger=Ledger(engine),
        objects=ObjectStore(home / "objects"),
        exchange=exchange,
        clock=utc_now,
        standings=Standings(engine),
        journal=TaskJournal.of(home, members, engine=engine, clock=utc_now),
    )
    _demand_predecessor(run)
    keep_members(home, study, members)
    return run


def _demand_version(study: Study) -> None:
    own = package_version()
    if not study.protocol.federation.admits(own):
        raise ConfigError(
            f"the study {study.protocol.name} does not admit version {own} of the package",
            why=f'protocol.federation.software is "{study.protocol.federation.software}"',
            fix="install a version that it admits; several can be installed side by side",
        )


def _demand_predecessor(run: StudyRun) -> None:
    earlier = run.study.roster.predecessor
    if earlier is None:
        return
    records = run.ledger.history(run.study.protocol.digest)
    known = {record.details.get("roster") for record in records} - {run.roster}
    if earlier not in known:
        raise StudyError(
            "roster.predecessor names a roster with which this study was never run here",
            why=f"known are {', '.join(sorted(filter(None, known))) or 'none'}",
            fix="write the one that vitrael server status gives as roster of the earlier run",
        )
