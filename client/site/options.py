"""What the commands of a site share: the present time, private files, and options."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime

import click

AS_JSON = click.option("--json", "as_json", is_flag=True, help="Write JSON on standard output.")


def utc_now() -> datetime:
    """Return the present time; everything below the command line has it injected."""
    return datetime.now(UTC)  # noqa: TID251 - the process boundary is where time comes in


@contextlib.contextmanager
def private_files() -> Iterator[None]:
    """Let whatever a command writes be for its user alone: store, log, records, progress."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)
