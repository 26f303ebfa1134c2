"""A federation over real processes whose stewards only echo, and whose ServerApp is a test's."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.factories.enrollment import enroll_everywhere
from tests.factories.federation import SITES as ALL_SITES
from tests.factories.federation import STUDY
from vitrael.server.federation.layout import RehearsalLayout
from vitrael.server.proxy import find_nginx

SCRIPTS = Path(__file__).resolve().parents[1] / "federation"
SITES = ("north", "south")

ROUNDS = '''
import hashlib, json
from vitrael.core.digest import write_atomically
from vitrael.server.federation.app import make_app

def run(home, exchange):
    """Send the same bytes in each round; go on where an earlier run stopped."""
    path = home / "rounds.json"
    done = json.loads(path.read_text()) if path.exists() else []
    while len(done) < {rounds}:
        weights = hashlib.shake_128(b"{size}").digest({size})
        parcels = {{site: {{"envelope": site.encode(), "weights": weights}} for site in {sites}}}
        going = {{site: (lambda site=site: parcels[site]) for site in parcels}}
        answers = dict(exchange.send(going, deadline_s=120))
        done.append({{site: answers[site] == parcels[site] for site in parcels}})
        write_atomically(path, json.dumps(done).encode())
    return 6

app = make_app(run)
'''


def server_app(*, rounds: int, size: int = 1000) -> str:
    """Return the text of a ServerApp that sends parcels to and fro."""
    return ROUNDS.format(rounds=rounds, size=size, sites=SITES)


def enrolled(home: Path) -> Path:
    """Return a home whose two sites are enrolled, with a study that is offered."""
    everybody, ours = (str(list(sites)).replace("'", '"') for sites in (ALL_SITES, SITES))
    assert everybody in STUDY
    enroll_everywhere(home, SITES, study=STUDY.replace(everybody, ours).encode())
    return home


def layout_of(home: Path, app: str) -> RehearsalLayout:
    """Return the layout of an enrolled home in which a ServerApp of the test's own runs."""
    path = home.parent / "server_app.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(app)
    return RehearsalLayout(
        enrolled(home),
        SITES,
        coordinator=(sys.executable, str(SCRIPTS / "coordinator.py"), str(path)),
        steward=(sys.executable, str(SCRIPTS / "echo_steward.py")),
        nginx=find_nginx(),
        environment={**os.environ, "HOME": str(home.parent / "nobody")},
    )
