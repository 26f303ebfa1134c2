"""What the commands of a site share: the present time, private files, and options."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import click

from vitrael.core.errors import ProcessError, UsageError

EXIT_ENDED = 128 + signal.SIGTERM
"""What a shell calls the end by SIGTERM."""
_START_AGAIN = "start it again; what was finished is kept"

SCANS = click.argument(
    "path", type=click.Path(path_type=Path, exists=True, file_okay=False, readable=True)
)
HOME = click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False, readable=False),  # the courier lists no home
    default=Path("vitrael-site"),
    show_default=True,
    envvar="VITRAEL_SITE_HOME",
    show_envvar=True,
    help="The site's home folder.",
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Write JSON on standard output.")


def refuse_nan(_ctx: click.Context, _param: click.Parameter, days: float | None) -> float | None:
    """Return the number; a range lets NaN pass, which is neither below nor above anything."""
    if days is not None and days != days:  # noqa: PLR0124 - NaN alone differs from itself
        raise click.BadParameter("nan is no number of days.")
    return days


def utc_now() -> datetime:
    """Return the present time; everything below the command line has it injected."""
    return datetime.now(UTC)  # noqa: TID251 - the process boundary is where time comes in


def demand_owner(home: Path) -> None:
    """Raise UsageError for a home of another user, whose steward could not use what is written.

    The folder of its keys tells whose it is: the home itself may be root's.
    """
    try:
        owner = (home / "keys").stat().st_uid
    except OSError:
        return  # nothing is there yet, or what opens it says what is wrong
    if owner != os.geteuid():
        raise UsageError(
            f"the home {home} is of the user {_name_of(owner)}",
            why=f"this command runs as {_name_of(os.geteuid())}: the steward could not use what it "
            "writes",
            fix=f"sudo -u {_name_of(owner)} vitrael ...",
        )


def _name_of(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"#{user}"


@contextlib.contextmanager
def private_files() -> Iterator[None]:
    """Let whatever a command writes be for its user alone: store, log, records, progress."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


@contextlib.contextmanager
def ended_in_order() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does: its processes first, and nothing half written.

    Raises ProcessError then, with the exit code that a shell gives to such an end.
    """
    ended = False

    def end(number: int, _frame: object) -> None:
        nonlocal ended
        ended = True
        signal.signal(number, signal.SIG_IGN)  # another one would disturb the tidying up
        raise SystemExit

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except SystemExit:
        if not ended:
            raise
        error = ProcessError("the command was ended", why="SIGTERM came", fix=_START_AGAIN)
        error.exit_code = EXIT_ENDED
        raise error from None
    finally:
        if not ended:
            signal.signal(signal.SIGTERM, before)
