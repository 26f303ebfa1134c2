"""``vitrael support-bundle``: one archive that tells how an installation is, and of nobody.

What goes in is listed, and everything else stays: versions, what the doctor found, the settings
with their names and secrets taken out, log lines whose every word stands in our own code, counts
and sizes. The parts of a home come from the entry points (group ``vitrael.support``) of this
distribution. No scan, no manifest, no key, no roster, no journal and no store goes in.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import re
import sqlite3
import stat
import tarfile
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final, get_args

import click

from vitrael.core.doctor import examine, load_offered
from vitrael.core.errors import UsageError, storage_error
from vitrael.core.logs import read_shared
from vitrael.core.messages import StageName
from vitrael.core.version import package_version

ENTRY_POINTS = "vitrael.support"
REMOVED: Final = "(removed)"
WORDS: Final = frozenset(get_args(StageName)) | {"node", "executor"}
"""The words of our log lines that may go: stages, and the two processes of a courier."""

Parts = Callable[[Path], Mapping[str, bytes]]
"""Returns file name -> content for a home; nothing for a home of another kind."""


@click.command("support-bundle")
@click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    required=True,
    envvar=("VITRAEL_SITE_HOME", "VITRAEL_SERVER_HOME"),
    show_envvar=True,
    help="Home folder of a site or of a coordinator.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("vitrael-support.tar.gz"),
    show_default=True,
    help="The archive; a file that exists is not replaced.",
)
@click.option("--dry-run", is_flag=True, help="List what would go in; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON on standard output.")
def support_bundle(home: Path, out: Path, *, dry_run: bool, as_json: bool) -> None:
    """Collect what support needs: versions, checks, settings, logs, counts. No patient data.

    Nothing is sent: the archive lies on this machine until you hand it to somebody. Look into it
    first: it is text.

    Example: vitrael support-bundle --home /srv/vitrael/north --out north.tar.gz
    """
    now = datetime.now(UTC)  # noqa: TID251 - the process boundary is where time comes in
    files = collect(home, now=now)
    if not dry_run:
        write_bundle(out, files, now=now)
    sizes = {name: len(data) for name, data in sorted(files.items())}
    if as_json:
        click.echo(json.dumps({"file": None if dry_run else str(out), "contents": sizes}))
        return
    for name, size in sizes.items():
        click.echo(f"{size:>10} B  {name}")
    click.echo("nothing was written" if dry_run else f"wrote {out}; nothing was sent", err=True)


def collect(home: Path, *, now: datetime) -> dict[str, bytes]:
    """Return file name -> content of a home's bundle."""
    files = {
        "versions.json": _json(versions()),
        "packages.txt": "\n".join(installed()).encode() + b"\n",
        "doctor.json": _json(doctor_lines(home, now=now)),
        "sizes.json": _json(sizes_of(home)),
    }
    for part in load_offered(ENTRY_POINTS):
        files |= part(home)
    return files


def write_bundle(out: Path, files: Mapping[str, bytes], *, now: datetime) -> None:
    """Write the archive for its user alone; raise UsageError rather than replace a file."""
    try:
        with out.open("xb") as file:
            out.chmod(0o600)
            with tarfile.open(fileobj=file, mode="w:gz") as archive:
                for name, data in sorted(files.items()):
                    entry = tarfile.TarInfo(f"vitrael-support/{name}")
                    entry.size, entry.mtime, entry.mode = len(data), int(now.timestamp()), 0o600
                    archive.addfile(entry, io.BytesIO(data))
    except FileExistsError as error:
        raise UsageError(f"{out} exists already", fix="name another file with --out") from error
    except OSError as error:
        out.unlink(missing_ok=True)
        raise storage_error(str(out), error) from error


def versions() -> dict[str, str]:
    """Return the versions of the package and of what it runs on."""
    return {
        "vitrael": package_version(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def installed() -> list[str]:
    """Return the distributions of this Python, each ``name==version``."""
    return sorted({f"{one.name}=={one.version}" for one in metadata.distributions() if one.name})


def doctor_lines(home: Path, *, now: datetime) -> list[dict[str, object]]:
    """Return what the doctor found, without its sentences: they name hosts and files."""
    kept = ("level", "network")
    return [
        {"name": name, **{key: asdict(finding)[key] for key in kept}}
        for name, finding in examine(home, now=now)
    ]


def sizes_of(home: Path) -> dict[str, dict[str, int]]:
    """Return how many files and bytes each folder of a home holds that has a name of ours."""
    told = {}
    for name in (
        *("cohorts", "records", "updates", "spool", "studies", "flower", "objects", "catalogue"),
        *("mlflow", "logs", "checkpoints"),
    ):
        if (home / name).is_dir():
            sizes = list(_sizes_below(home / name))
            told[name] = {"files": len(sizes), "bytes": sum(sizes)}
    return told


def _sizes_below(folder: Path) -> Iterable[int]:
    """Yield the size of each file; one that vanishes, or is another user's, is left out."""
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                status = Path(place, name).lstat()
                if stat.S_ISREG(status.st_mode):
                    yield status.st_size


def redact(document: Mapping[str, Any], kept: Mapping[str, str]) -> dict[str, object]:
    """Return the values of a document at the dotted paths of ``kept``, and nothing else of it.

    Numbers and switches go as they are, a word where it matches the pattern at its path; a value
    that does not is replaced by ``REMOVED``.
    """
    told: dict[str, object] = {}
    for path, pattern in kept.items():
        value: object = document
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None:
            told[path] = _shown(value, pattern)
    return told


def settings_part(path: Path, kept: Mapping[str, str]) -> dict[str, bytes]:
    """Return what may go of a TOML file, under its own name with ``.json``."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return {f"{path.name}.json": _json({"unreadable": type(error).__name__})}
    return {f"{path.name}.json": _json(redact(document, kept))}


def log_part(path: Path, *, name: str) -> dict[str, bytes]:
    """Return what may go of a log of ours, and how many of its lines were none of ours."""
    lines: list[dict[str, object]] = []
    dropped = 0
    try:
        for one in (path.with_name(path.name + ".1"), path):
            if one.is_file():
                more, less = read_shared(one, words=WORDS)
                lines, dropped = lines + more, dropped + less
    except OSError as error:  # the folder of another user of the site
        return {f"logs/{name}.json": _json({"unreadable": type(error).__name__})}
    if not lines and not dropped:
        return {}
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    return {f"logs/{name}.jsonl": text.encode(), f"logs/{name}.dropped.json": _json(dropped)}


def journal_part(path: Path, events: Iterable[str]) -> dict[str, bytes]:
    """Return how many lines and bytes a journal has for each event of ``events``."""
    known = frozenset(events)
    lines: Counter[str] = Counter()
    sent: Counter[str] = Counter()
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return {}
    except OSError as error:
        return {"journal.json": _json({"unreadable": type(error).__name__})}
    with file:
        for data in file:
            try:
                line = json.loads(data)
                event, size = str(line["event"]), int(line["bytes"])
            except (ValueError, KeyError, TypeError, RecursionError):
                event, size = "unreadable", 0
            event = event if event in known else "unreadable"
            lines[event] += 1
            sent[event] += size
    told = {event: {"lines": lines[event], "bytes": sent[event]} for event in sorted(lines)}
    return {"journal.json": _json(told)}


def store_part(path: Path, tables: Iterable[str]) -> dict[str, bytes]:
    """Return how many rows each of ``tables`` has in an SQLite file, which is only read."""
    if not path.exists():
        return {}
    counts: dict[str, int | str] = {}
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as store:
            there = {row[0] for row in store.execute("SELECT name FROM sqlite_master")}
            for table in sorted(there & set(tables)):
                query = f'SELECT COUNT(*) FROM "{table}"'  # noqa: S608 - a name of our own code
                counts[table] = int(store.execute(query).fetchone()[0])
    except sqlite3.Error as error:
        counts["unreadable"] = type(error).__name__
    return {f"{path.stem}-rows.json": _json(counts)}


def _shown(value: object, pattern: str) -> object:
    if isinstance(value, list):
        return [_shown(one, pattern) for one in value]
    if isinstance(value, bool | int | float):
        return value
    return value if isinstance(value, str) and re.fullmatch(pattern, value) else REMOVED


def _json(value: object) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode() + b"\n"
