"""Another version of the package, truly installed, beside a consent to the one before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import distribution
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vitrael.client.site.courier.spool import call_steward
from vitrael.core.messages import Reply
from vitrael.core.version import PACKAGE, lock_digest, package_version

if TYPE_CHECKING:
    from tests.unit.client.site.conftest import Home

LATER = "98.0.1"
PATIENCE_S = 60.0
_SITE = (sys.executable, "-c", "from vitrael.core.cli import main; main()", "site")


@pytest.fixture
def upgraded(tmp_path: Path) -> dict[str, str]:
    """The environment of a process that finds a later version of the package installed."""
    installed = distribution(PACKAGE)
    metadata = installed.read_text("METADATA") or ""
    later = metadata.replace(f"\nVersion: {package_version()}\n", f"\nVersion: {LATER}\n")
    assert later != metadata
    folder = tmp_path / "later" / f"{PACKAGE}-{LATER}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(later)
    (folder / "entry_points.txt").write_text(installed.read_text("entry_points.txt") or "")
    return {**os.environ, "PYTHONPATH": str(folder.parent)}


@contextmanager
def steward(home: Home, environment: dict[str, str]) -> Iterator[None]:
    command = (*_SITE, "run", "--home", str(home.path))
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "listens at" in line, line + process.stderr.read()
        yield
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE_S)


def ask_consent(home: Home) -> Reply:
    task = home.task({}, stage="consent")
    reply, _ = home.open(call_steward(home.path, home.parcel(task, {}), wait_s=PATIENCE_S))
    return reply


def test_an_upgraded_steward_obeys_once_its_operator_has_consented_again(
    home: Home, study_file: Path, upgraded: dict[str, str]
) -> None:
    home.clock.now = datetime.now(UTC)  # the processes read the true clock
    given = home.consent()
    assert (given.package_version, given.lock) == (package_version(), lock_digest())
    with steward(home, upgraded):
        reply = ask_consent(home)
        assert (reply.status, reply.package_version) == ("refused", LATER)
        assert f"consented to version {package_version()} of the package" in reply.reason
        assert f"version {LATER} is installed" in reply.reason
        done = subprocess.run(
            (*_SITE, "consent", str(study_file), "--home", str(home.path), "--yes", "--json"),
            env=upgraded,
            check=True,
            capture_output=True,
            text=True,
        )
        again = json.loads(done.stdout)
        assert (again["package_version"], again["protocol"]) == (LATER, given.protocol)
        assert again["lock"] != given.lock
        assert ask_consent(home).status == "done"
