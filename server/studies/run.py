"""One study as the coordinator's process holds it: where things are, and how a stage is kept."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrael.core.digest import Digest, digest_json
from vitrael.core.errors import VitraelError
from vitrael.core.study import Study, load_study
from vitrael.privacy.keys import KeyPair, PublicKeys, load_roster, roster_digest
from vitrael.server.db.engine import open_database
from vitrael.server.objects import ObjectStore
from vitrael.server.settings import utc_now
from vitrael.server.studies.ledger import Ledger, StageKey

if TYPE_CHECKING:
    from vitrael.server.federation.exchange import Exchange

_PATH_CHARS = r"[^\s\"',;:]+"


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

    @property
    def roster(self) -> Digest:
        """Name of the roster with its keys."""
        return roster_digest(self.members)

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
        must be among the inputs. An error marks the attempt as failed and is raised on.
        """
        key = StageKey(
            self.study.protocol.digest,
            name,
            round_index,
            digest_json([self.roster, dict(inputs)]),
        )
        done = self.ledger.finished(key)
        if done is not None and done.output is not None:
            self.tell(name, round_index, "kept")
            return dict(self.objects.get_json(done.output))
        record = self.ledger.begin(key)
        self.tell(name, round_index, "begun")
        try:
            result = work()
        except BaseException as error:
            # The ledger outlives this machine. What a foreign exception says is not kept.
            told = error.sentence() if isinstance(error, VitraelError) else type(error).__name__
            self.ledger.fail(record, without_paths(told, home=self.home))
            raise
        output = self.objects.put_json(dict(result.document))
        self.ledger.finish(
            record, output, details=result.details, participants=tuple(result.participants)
        )
        self.tell(name, round_index, "finished")
        return dict(result.document)

    def tell(
        self, stage: str, round_index: int, event: str, *, done: int = 0, total: int = 0
    ) -> None:
        """Append one line to the progress file that ``vitrael demo`` and the portal follow."""
        line = {
            "utc": self.clock().isoformat(),
            "stage": stage,
            "round": round_index,
            "event": event,
            "done": done,
            "total": total,
        }
        with (self.home / "progress.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def without_paths(text: str, *, home: Path) -> str:
    """Return the text with ``…`` for the home, all below it, and every other absolute path.

    Elsewhere than below the home a path ends where a space, quote, comma, semicolon or colon is.
    """
    below_home = rf"{re.escape(str(home))}(?![^\s\"',;:/])(?:/{_PATH_CHARS})*"
    return re.sub(rf"{below_home}|(?<![\w.…])/+{_PATH_CHARS}", "…", text)


def open_run(home: Path, exchange: Exchange) -> StudyRun:
    """Return the run of the study that a coordinator's home folder holds."""
    study = load_study(home / "study.toml")
    members = load_roster(home / "roster.json")
    return StudyRun(
        home=home,
        study=study,
        keys=KeyPair.load(home / "keys"),
        members={name: members[name] for name in study.roster.sites},
        ledger=Ledger(open_database(home / "server.sqlite")),
        objects=ObjectStore(home / "objects"),
        exchange=exchange,
        clock=utc_now,
    )
