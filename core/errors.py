"""Every error that Vitrael raises on purpose, each with what, why, and what to do.

::

    VitraelError                 exit 1
    ├── UsageError               exit 2   the command was called wrongly
    ├── ConfigError              exit 3   a document is wrong: file, key, remedy
    │   └── StudyError
    ├── AuthError                exit 4   a key, signature or consent does not hold
    │   ├── EnvelopeError                 a task that this site must not obey
    │   ├── ConsentError
    │   └── VerificationError             a release that does not verify
    ├── NetworkError             exit 5   try again
    ├── RefusedError             exit 6   a study that no gate can judge any more
    ├── DataError                exit 1   a scan, cohort or tensor that cannot be used
    │   ├── ScanError
    │   ├── CohortError
    │   └── WeightsError
    ├── StorageError             exit 1   disk space, locked or damaged state
    ├── ProcessError             exit 1   one of our processes ended or did not answer
    ├── TaskStopped              exit 1   a task was told to stop and can go on later
    └── QuorumError              exit 1   a round with too few sites

A gate that refuses is no error: it is a Verdict, and the command ends with exit code 6.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping

EXIT_OK = 0
EXIT_REFUSED = 6
EXIT_PARTIAL = 7
EXIT_INTERRUPTED = 130

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a system says when a file cannot grow: no space, no quota, no larger file."""

CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)
"""What a system says when somebody may not write: no right, no right ever, a disk to be read."""


class VitraelError(Exception):
    """A broken promise, told in one sentence: what happened, why, and what to do."""

    exit_code = 1

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        """Keep the three parts apart, so that ``--json`` can show them as fields."""
        self.what = what
        self.why = why
        self.fix = fix
        self.finished: Mapping[str, object] = {}
        """What was done before it, as JSON; ``--json`` shows it beside the error."""
        super().__init__(self.sentence())

    def sentence(self) -> str:
        """Return ``what: why. To do: fix.`` with the empty parts left out."""
        text = f"{self.what}: {self.why}" if self.why else self.what
        text = text.rstrip(".") + "."
        return f"{text} To do: {self.fix.rstrip('.')}." if self.fix else text


class UsageError(VitraelError):
    """The command was called with arguments that do not go together."""

    exit_code = 2


class ConfigError(VitraelError):
    """A configuration document cannot be used."""

    exit_code = 3


class StudyError(ConfigError):
    """A study document is wrong."""


class AuthError(VitraelError):
    """A key, a signature or a consent does not hold."""

    exit_code = 4


class EnvelopeError(AuthError):
    """A task envelope that a site must not obey."""


class ConsentError(AuthError):
    """A task that no consent of this site covers."""


class VerificationError(AuthError):
    """A release that does not verify."""


class NetworkError(VitraelError):
    """The other side could not be reached; trying again may help."""

    exit_code = 5


class RefusedError(VitraelError):
    """The work was done, and what came of it is refused before any gate is asked."""

    exit_code = EXIT_REFUSED


class DataError(VitraelError):
    """Data that cannot be used."""


class ScanError(DataError):
    """One scan that cannot be used; the message never names a patient."""


class CohortError(DataError):
    """A cohort that cannot be used."""


class WeightsError(DataError):
    """Tensors whose names, shapes, dtypes or values are not the expected ones."""


class StorageError(VitraelError):
    """Disk space is missing, or stored state is locked or damaged."""


def storage_error(
    what: str,
    error: OSError,
    *,
    fix: str = "",
) -> StorageError:
    """Return the StorageError for what the disk said of ``what``; no path stands in it.

    ``fix`` is the remedy where it is not a missing right; without one it fits what was said.
    """
    full = error.errno in DISK_FULL
    if error.errno in CLOSED:
        fix = "let this user read and write there, on a disk that is mounted for writing; then run "
        fix += "the command again"
    elif not fix:
        first = "make room on the disk" if full else "check the disk"
        fix = f"{first} and run the command again; what was finished is kept"
    return StorageError(
        f"{what} cannot be written" if full else f"{what} cannot be read or written",
        why="there is no disk space left" if full else error.strerror or type(error).__name__,
        fix=fix,
    )


class ProcessError(VitraelError):
    """One of the processes of a study ended or did not answer in time."""


class TaskStopped(VitraelError):  # noqa: N818 - not an error: what was done so far is kept
    """The process was told to end in the middle of a task, which goes on when it is asked again."""


class QuorumError(VitraelError):
    """Fewer sites answered than the study demands."""

    def __init__(
        self,
        what: str,
        *,
        why: str = "",
        fix: str = "",
        absences: Mapping[str, object] | None = None,
    ) -> None:
        """Keep beside the sentence who was absent and why, for the participation record."""
        super().__init__(what, why=why, fix=fix)
        self.absences = dict(absences or {})
