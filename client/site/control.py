"""Acts of the site's operator: pause, resume, stop a study, leave, release or reject a result.

Each is committed to the store, where the steward sees it at once, and written into the journal.
None needs the network or a steward that runs.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from vitrael.client.site.decisions import Held, State
from vitrael.client.site.store import Store
from vitrael.core.digest import Digest
from vitrael.core.errors import ConsentError, UsageError
from vitrael.privacy.journal import Clock, Entry, Event, Journal

LONGEST_REASON = 500


class Control:
    """What an operator may decide."""

    def __init__(self, store: Store, journal: Journal, *, clock: Clock) -> None:
        """Take store and journal of the site; ``settle`` is called before any act."""
        self._store = store
        self._decisions = store.decisions
        self._journal = journal
        self._clock = clock

    def settle(self) -> list[str]:
        """Write the lines that killed commands still owe to the journal; return what they say.

        Raises StorageError when store or journal cannot be written.
        """
        with self._store.acting():
            owed = self._decisions.owed()
            for number, entry in owed:
                self._journal.append(entry)
                self._decisions.settled(number)
        return [entry.reason for _, entry in owed]

    def pause(self, *, reason: str = "") -> bool:
        """Refuse all new tasks from now on; return whether it was not so before."""
        return self._set_paused(self._now(), "paused", reason)

    def resume(self) -> bool:
        """Take tasks again; return whether the site was paused. ConsentError when it has left."""
        self.demand_member()
        return self._set_paused("", "resumed", "")

    def stop(self, protocol: Digest, *, reason: str = "") -> None:
        """Take the consents to a protocol back, and what is held for it: nothing more leaves."""
        entry = Entry(event="withdrawn", protocol=protocol, reason=reason)
        self._act(entry, lambda: self._decisions.withdraw(protocol, self._now(), owed=entry))

    def leave(self, *, reason: str = "") -> None:
        """Take every consent back, for good: all tasks are refused from now on."""
        entry = Entry(event="left", reason=reason)
        self._act(entry, lambda: self._decisions.leave(self._now(), owed=entry))

    def release(self, held: Held) -> None:
        """Let a held result leave, also one that was rejected, when it is asked for again."""
        self._decide(held, "released", reason="")

    def reject(self, held: Held, *, reason: str) -> None:
        """Never let a held result leave; UsageError for one that was released."""
        if held.state == "released":
            raise UsageError(
                f"result {held.id} was released already",
                why="it may have left",
                fix="`vitrael site stop STUDY` lets nothing more of its study leave",
            )
        self._decide(held, "rejected", reason=reason)

    def demand_member(self) -> None:
        """Raise ConsentError when the site has left the federation."""
        if left := self._decisions.standing().left_utc:
            raise ConsentError(
                "this site has left the federation",
                why=f"its operator did so at {left}",
                fix="to come back, ask the coordinator for an invitation and join in a new home",
            )

    def _set_paused(self, utc: str, event: Event, reason: str) -> bool:
        if bool(self._decisions.standing().paused_utc) == bool(utc):
            return False
        entry = Entry(event=event, reason=reason)
        self._act(entry, lambda: self._decisions.set_paused(utc, owed=entry))
        return True

    def _decide(self, held: Held, state: State, *, reason: str) -> None:
        event: Event = "released" if state == "released" else "rejected"
        entry = Entry(
            event=event,
            protocol=held.protocol,
            stage=held.stage,
            round=held.round,
            reason=reason,
        )
        act = self._decisions.decide
        self._act(entry, lambda: act(held.id, state, reason=reason, owed=entry))

    def _act(self, entry: Entry, commit: Callable[[], int]) -> None:
        with self._store.acting():
            number = commit()
            self._journal.append(entry)
            self._decisions.settled(number)

    def _now(self) -> str:
        return self._clock().isoformat(timespec="seconds")


def days_left(expires_utc: str, *, now: datetime) -> float:
    """Return how many days a consent still holds; negative once it has expired."""
    return (datetime.fromisoformat(expires_utc) - now).total_seconds() / 86_400
