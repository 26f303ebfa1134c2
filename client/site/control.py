"""Acts of the site's operator: pause, resume, stop a study, leave, release or reject a result.

Each is committed to the store, where the steward sees it at once, and written into the journal.
None needs the network or a steward that runs. What only takes away holds also where the journal
cannot be written: its line is then owed, and the next command writes it. What gives holds once its
line is written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from vitrael.client.site.decisions import Held
from vitrael.client.site.store import Store
from vitrael.core.digest import Digest
from vitrael.core.errors import ConsentError, StorageError, UsageError
from vitrael.privacy.journal import Clock, Entry, Journal

COME_BACK: Final = (
    "to come back, ask the coordinator for an invitation and join in a new home; copy "
    "keys/split.key, withdrawn.json, cohorts/told.json and cohorts/*/versions.json into it first, "
    "or patients change their names, those who were withdrawn come back, counts may be told that "
    "differ by few, and a withdrawal names too few versions"
)
"""What a site does that has left."""


class Control:
    """What an operator may decide."""

    def __init__(self, store: Store, journal: Journal, *, clock: Clock) -> None:
        """Take store and journal of the site; ``settle`` is called before any act."""
        self._store = store
        self._decisions = store.decisions
        self._journal = journal
        self._clock = clock
        self.unwritten: StorageError | None = None
        """Why the journal lacks the line of an act that holds; None while it has them all."""

    def settle(self) -> list[str]:
        """Write the lines that killed commands still owe to the journal; return what they say.

        Raises StorageError when store or journal cannot be written.
        """
        with self._store.acting():
            return self._settle()

    def pause(self, *, reason: str = "") -> bool:
        """Refuse all new tasks from now on; return whether it was not so before."""
        if self._decisions.standing().paused_utc:
            return False
        entry = Entry(event="paused", reason=reason)
        self._take_away(lambda: self._decisions.pause(self._now(), owed=entry))
        return True

    def resume(self) -> bool:
        """Take tasks again; return whether the site was paused. ConsentError when it has left."""
        self.demand_member()
        if not self._decisions.standing().paused_utc:
            return False
        self._give(Entry(event="resumed"), lambda owed: self._decisions.resume(settles=owed))
        return True

    def stop(self, protocol: Digest, *, reason: str = "") -> None:
        """Take the consents to a protocol back, and what is held for it: nothing more leaves."""
        entry = Entry(event="withdrawn", protocol=protocol, reason=reason)
        self._take_away(lambda: self._decisions.withdraw(protocol, self._now(), owed=entry))

    def leave(self, *, reason: str = "") -> None:
        """Take every consent back, for good: all tasks are refused from now on."""
        entry = Entry(event="left", reason=reason)
        self._take_away(lambda: self._decisions.leave(self._now(), owed=entry))

    def release(self, held: Held) -> None:
        """Let a held result leave, also one that was rejected, when it is asked for again."""
        entry = Entry(event="released", protocol=held.protocol, stage=held.stage, round=held.round)
        self._give(entry, lambda owed: self._decisions.release(held.id, settles=owed))

    def reject(self, held: Held, *, reason: str) -> None:
        """Never let a held result leave; UsageError for one that was released."""
        entry = Entry(
            event="rejected",
            protocol=held.protocol,
            stage=held.stage,
            round=held.round,
            reason=reason,
        )

        def commit() -> None:
            if not self._decisions.reject(held.id, reason=reason, owed=entry):
                raise UsageError(
                    f"result {held.id} was released already",
                    why="it may have left",
                    fix="`vitrael site stop STUDY` lets nothing more of its study leave",
                )

        self._take_away(commit)

    def demand_member(self) -> None:
        """Raise ConsentError when the site has left the federation."""
        if left := self._decisions.standing().left_utc:
            raise ConsentError(
                "this site has left the federation",
                why=f"its operator did so at {left}",
                fix=COME_BACK,
            )

    def _give(self, entry: Entry, commit: Callable[[int], None]) -> None:
        """Do what lets tasks or results go, once its line stands in the journal."""
        said = f"not finished, and does not hold: {_describe(entry)}"
        unfinished = entry.model_copy(update={"event": "repaired", "reason": said})
        with self._store.acting():
            self._settle()
            owed = self._decisions.owe(unfinished)
            self._journal.append(entry)
            commit(owed)

    def _take_away(self, commit: Callable[[], None]) -> None:
        with self._store.acting():
            commit()
            try:
                self._settle()
            except StorageError as error:
                self.unwritten = error

    def _settle(self) -> list[str]:
        owed = self._decisions.owed()
        for number, entry in owed:
            self._journal.append(entry)
            self._decisions.settled(number)
        return [_describe(entry) for _, entry in owed]

    def _now(self) -> str:
        return self._clock().isoformat(timespec="seconds")


def _describe(entry: Entry) -> str:
    """Return what a line says: event, stage and reason, as far as it has them."""
    stage = f"{entry.stage} {entry.round + 1}" if entry.stage else ""
    head = " of ".join(filter(None, (str(entry.event), stage)))
    return ": ".join(filter(None, (head, entry.reason)))
