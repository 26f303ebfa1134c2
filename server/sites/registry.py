"""Who may take part, in the coordinator's database: invitations, requests, approvals, words.

Each act is one transaction. Its line stands in the journal, and ``roster.json`` in the home, before
the transaction ends. When any of the three cannot be written nothing has happened: the roster is
written anew and the journal says that the act was not finished; of a process that is killed just
then the next act says it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from functools import cached_property
from typing import Self

from sqlalchemy import Select, select, update
from sqlalchemy.orm import Session

from vitrael.core.digest import digest_bytes
from vitrael.core.errors import AuthError, UsageError, VitraelError
from vitrael.core.text import one_line
from vitrael.privacy.enrollment import MOST_REASON, JoinRequest, SiteWord, join_fingerprint
from vitrael.privacy.journal import Entry, Event, Journal
from vitrael.privacy.keys import KeyPair, PublicKeys, load_roster, save_roster
from vitrael.server.config import ServerSettings
from vitrael.server.db.engine import explain_failures, open_database
from vitrael.server.db.heads import JournalHead
from vitrael.server.db.sites import EnrollmentRow, InvitationRow
from vitrael.server.settings import utc_now
from vitrael.server.sites.acts import take_back, write_act
from vitrael.server.sites.clocks import check_clock
from vitrael.server.sites.records import (
    Enrollment,
    Issued,
    OpenInvitation,
    Status,
    read_enrollment,
)
from vitrael.server.sites.requests import (
    check_issued,
    check_unspent,
    compare_fingerprints,
    find_waiting,
    new_row,
    with_keys,
)
from vitrael.server.sites.words import remember_word

TOKEN_LIFETIME = timedelta(hours=24)
_SEEN_AGAIN = timedelta(seconds=60)
_CURRENT = ("pending", "enrolled")


class Registry:
    """The sites of one coordinator; a context manager that closes the database."""

    def __init__(
        self,
        settings: ServerSettings,
        *,
        clock: Callable[[], datetime] = utc_now,
        dry_run: bool = False,
    ) -> None:
        """Open ``server.sqlite`` of the home, made when missing.

        With ``dry_run`` every act is checked and answered as it would be, and nothing is kept.
        """
        self.settings = settings
        self._clock = clock
        self._dry_run = dry_run
        self._engine = open_database(settings.database)
        self._journal = Journal(settings.journal, clock=clock, witness=JournalHead(self._engine))

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the database."""
        self.close()

    def close(self) -> None:
        """Close the database."""
        self._engine.dispose()

    def now(self) -> datetime:
        """Return the time by which enrollments and tokens are judged."""
        return self._clock()

    # What stands in the registry.

    def enrollments(self, site: str | None = None) -> list[Enrollment]:
        """Return all enrollments that there ever were, oldest first, or those of one site."""
        query = select(EnrollmentRow).order_by(EnrollmentRow.id)
        with self._reading() as session:
            rows = session.scalars(query if site is None else query.filter_by(site=site))
            return [read_enrollment(row) for row in rows]

    def fingerprint(self, enrollment: Enrollment) -> str:
        """Return the fingerprint that the site's operator reads out.

        Raises AuthError when the coordinator's keys, which it covers as well, cannot be read.
        """
        return join_fingerprint(enrollment.keys, enrollment.node, coordinator=self._coordinator)

    @cached_property
    def _coordinator(self) -> PublicKeys:
        return KeyPair.load(self.settings.keys).public

    def open_invitations(self) -> list[OpenInvitation]:
        """Return the invitations that can still be used."""
        with self._reading() as session:
            return [
                OpenInvitation(row.site, row.expires_utc)
                for row in session.scalars(_unused().order_by(InvitationRow.id))
                if row.expires_utc > self._clock()
            ]

    def members(self) -> dict[str, PublicKeys]:
        """Return the keys of all sites that may take part now, by name."""
        with self._reading() as session:
            return _members(session, self._clock())

    # What the operator does.

    def invite(self, site: str) -> Issued:
        """Return a token for a site that is not enrolled; an older one of the site is void.

        Raises UsageError for a site that has keys already.
        """
        with self._writing() as session:
            if session.scalar(_rows(site, "enrolled")) is not None:
                raise UsageError(
                    f"site {site} is enrolled already",
                    fix=f"for new keys run `vitrael server sites rotate {site}`",
                )
            return self._issue(session, site, event="invite")

    def rotate(self, site: str) -> Issued:
        """Return a token for new keys of an enrolled site, whose enrollment may have expired.

        The keys that it has hold until new ones are approved. Raises UsageError for a site that
        has none.
        """
        with self._writing() as session:
            if session.scalar(_rows(site, "enrolled")) is None:
                raise UsageError(
                    f"site {site} is not enrolled",
                    fix=f"invite it with `vitrael server invite {site}`",
                )
            return self._issue(session, site, event="rotate")

    def approve(self, site: str, *, fingerprint: str) -> Enrollment:
        """Return the enrollment, which holds from now on; older keys of the site no longer do.

        Raises UsageError when the site has not asked, AuthError unless its keys have the
        fingerprint that was read out; white space and case do not count.
        """
        with self._writing() as session:
            row, now = session.scalar(_rows(site, "pending")), self._clock()
            if row is None:
                raise UsageError(
                    f"nobody asks to join as {site}",
                    fix="wait until the site has run `vitrael site join`, or invite it",
                )
            wanted = self.fingerprint(read_enrollment(row))
            compare_fingerprints(site, wanted=wanted, heard=fingerprint)
            self._void(session, site)
            _end(session.scalars(_rows(site, "enrolled")), "replaced", reason="", now=now)
            session.flush()  # of a site at most one row is enrolled, at every moment
            row.status, row.approved_utc = "enrolled", now
            row.expires_utc = now + timedelta(days=self.settings.document.enrollment_days)
            session.flush()
            self._note(session, "approve", to=site, reason=f"fingerprint {wanted}")
            self._write_roster(session)
            return read_enrollment(row)

    def revoke(self, site: str, *, reason: str) -> list[Enrollment]:
        """End a site's enrollment, request and invitation; return the enrollments that ended.

        Raises UsageError when there is nothing to end.
        """
        reason = one_line(reason, MOST_REASON)
        with self._writing() as session:
            rows = list(session.scalars(_rows(site, *_CURRENT)))
            if not rows and session.scalar(_unused(site)) is None:
                raise UsageError(
                    f"there is nothing of site {site} to revoke",
                    fix="look at `vitrael server sites list`",
                )
            self._void(session, site)
            _end(rows, "revoked", reason=reason, now=self._clock())
            session.flush()
            self._note(session, "revoke", to=site, reason=reason)
            self._write_roster(session)
            return [read_enrollment(row) for row in rows]

    # What sites say.

    def receive(self, request: JoinRequest) -> Enrollment:
        """Return the request of a site as it now waits for approval.

        What is signed and proved in it must have been checked. With the same token and keys the
        answer is the same again, for the first one may have been lost on its way. Raises AuthError
        for a token that is unknown, foreign, void, used or expired, for a wrong clock, and for
        keys that were brought before.
        """
        with self._writing() as session:
            now = self._clock()
            token = digest_bytes(request.token.encode())
            issued = session.scalar(select(InvitationRow).filter_by(token=token))
            invitation = check_issued(issued, request)
            check_clock(request.utc, site=request.site, now=now)
            row = session.scalar(with_keys(request).filter_by(invitation_id=invitation.id))
            if row is None:
                check_unspent(invitation, now=now)
                row = find_waiting(session, request)
                if row is None:
                    waiting = session.scalars(_rows(request.site, "pending"))
                    _end(waiting, "replaced", reason="", now=now)
                    session.flush()  # of a site at most one row is pending, at every moment
                    row = new_row(request, invitation, now=now)
                    session.add(row)
                row.invitation_id, row.joined_utc, row.seen_utc = invitation.id, now, now
                row.package_version, invitation.used_utc = request.package_version, now
                session.flush()
                said = f"fingerprint {self.fingerprint(read_enrollment(row))}"
                self._note(session, "join", origin=request.site, reason=said)
            return read_enrollment(row)

    def hear(self, enrollment: Enrollment, word: SiteWord) -> Enrollment:
        """Take in a word that the enrollment's key has signed; return the enrollment as it is then.

        Raises AuthError for a word that is too old or from a clock that is wrong, for one that was
        heard before or was said too often today, and for a withdrawal by keys that nobody has
        approved.
        """
        with self._writing() as session:
            now = self._clock()
            check_clock(word.utc, site=word.site, now=now)
            remember_word(session, word, now=now)
            row = session.get_one(EnrollmentRow, enrollment.id)
            row.seen_utc = now
            if word.kind == "withdraw":
                if row.status == "pending":
                    raise AuthError(
                        f"the keys of site {word.site} are not approved yet",
                        fix="withdraw with the keys that gave the consent, or stop the steward",
                    )
                site, protocol = word.site, str(word.protocol)
                self._note(session, "withdraw", origin=site, reason=word.reason, protocol=protocol)
            elif word.kind == "leave":
                self._leave(session, row, reason=word.reason, now=now)
            return read_enrollment(row)

    # What Flower's SuperLink knows.

    def keep_node(self, enrollment: Enrollment, node_id: int) -> None:
        """Remember by which number the SuperLink knows a site's node."""
        with self._writing() as session:
            session.get_one(EnrollmentRow, enrollment.id).node_id = str(node_id)

    def note_seen(self, enrollments: Iterable[Enrollment]) -> None:
        """Remember that these sites are connected now, to the minute."""
        now = self._clock()
        late = [e.id for e in enrollments if e.seen_utc is None or now - e.seen_utc > _SEEN_AGAIN]
        if late:
            with self._writing() as session:
                query = update(EnrollmentRow).where(EnrollmentRow.id.in_(late))
                session.execute(query.values(seen_utc=now))

    def keep_roster(self) -> None:
        """Write ``roster.json`` anew if it is not what holds now: enrollments expire."""
        if self._stored_roster() != self.members():
            with self._writing() as session:
                self._write_roster(session)

    def _issue(self, session: Session, site: str, *, event: Event) -> Issued:
        now, token = self._clock(), secrets.token_hex(32)
        expires = now + TOKEN_LIFETIME
        self._void(session, site)
        session.add(
            InvitationRow(
                site=site,
                token=digest_bytes(token.encode()),
                created_utc=now,
                expires_utc=expires,
            )
        )
        session.flush()
        until = expires.isoformat(timespec="seconds")
        self._note(session, event, to=site, reason=f"good until {until}")
        return Issued(site, token, expires)

    def _void(self, session: Session, site: str) -> None:
        for row in session.scalars(_unused(site)):
            row.void_utc = self._clock()

    def _leave(self, session: Session, row: EnrollmentRow, *, reason: str, now: datetime) -> None:
        """End all of a site; by keys that nobody has approved no more than their own request."""
        rows: Sequence[EnrollmentRow] = [row]
        if row.status == "enrolled":
            rows = list(session.scalars(_rows(row.site, *_CURRENT)))
            self._void(session, row.site)
        elif row.status != "pending":
            return
        _end(rows, "left", reason=reason, now=now)
        session.flush()
        self._note(session, "leave", origin=row.site, reason=reason)
        self._write_roster(session)

    def _note(
        self,
        session: Session,
        event: Event,
        *,
        to: str = "",
        origin: str = "",
        reason: str,
        protocol: str = "",
    ) -> None:
        entry = Entry(event=event, to=to, origin=origin, reason=reason, protocol=protocol)
        if not self._dry_run:
            path = self.settings.journal
            write_act(entry, session, engine=self._engine, path=path, clock=self._clock)

    def _write_roster(self, session: Session) -> None:
        if not self._dry_run:
            save_roster(_members(session, self._clock()), self.settings.home / "roster.json")

    def _stored_roster(self) -> dict[str, PublicKeys] | None:
        try:
            return load_roster(self.settings.home / "roster.json")
        except AuthError:
            return None

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        options = self._engine.execution_options(read_only=True)
        with explain_failures(), Session(options) as session, session.begin():
            yield session

    @contextmanager
    def _writing(self) -> Iterator[Session]:
        with explain_failures(), Session(self._engine) as session:
            try:
                yield session
                if self._dry_run:
                    session.rollback()
                else:
                    session.commit()
            except BaseException:
                session.rollback()
                self._take_back(session.info.get("noted"))
                raise

    def _take_back(self, noted: Entry | None) -> None:
        """Say in the journal that an act was not finished, and write the roster that holds."""
        if noted is None:
            return
        with suppress(VitraelError, OSError):  # what has ended the act is told; it comes first
            self._journal.append(take_back(noted))
        with suppress(VitraelError, OSError):
            self.keep_roster()


def _rows(site: str, *statuses: str) -> Select[EnrollmentRow]:
    return select(EnrollmentRow).where(
        EnrollmentRow.site == site, EnrollmentRow.status.in_(statuses)
    )


def _unused(site: str | None = None) -> Select[InvitationRow]:
    query = select(InvitationRow).filter_by(used_utc=None, void_utc=None)
    return query if site is None else query.filter_by(site=site)


def _members(session: Session, now: datetime) -> dict[str, PublicKeys]:
    rows = session.scalars(select(EnrollmentRow).filter_by(status="enrolled"))
    found = [read_enrollment(row) for row in rows]
    return {one.site: one.keys for one in sorted(found, key=_by_site) if one.holds(now)}


def _by_site(enrollment: Enrollment) -> str:
    return enrollment.site


def _end(rows: Iterable[EnrollmentRow], status: Status, *, reason: str, now: datetime) -> None:
    for row in rows:
        row.status, row.reason, row.ended_utc = status, reason, now
