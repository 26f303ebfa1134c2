"""Holds what a finished rehearsal must show; the argument is the file whose last line is its JSON.

Run it from the root: ``python -m tests.federation.check_rehearsal FILE``. The coordinator of the
rehearsal's home is started once more behind nginx, and a fourth SuperNode, which nobody enrolled,
knocks with a key of its own and the coordinator's certificate.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from tests.factories.strangers import REFUSED, Stranger, hidden_paths
from vitrael.core.errors import NetworkError
from vitrael.core.study import load_study
from vitrael.server.demo import demo_layout
from vitrael.server.proxy import demand_nginx
from vitrael.server.rehearsal import Rehearsal
from vitrael.server.sites.nodes import find_superlink


def main(output: Path) -> None:
    """Knock at the door of a rehearsal that has ended with a released set."""
    outcome = json.loads(output.read_text(encoding="utf-8").splitlines()[-1])
    assert outcome["outcome"] == "pass", outcome["reason"]
    home = Path(outcome["home"])
    assert (home / "proxy" / "access.log").exists(), "nginx did not stand in front"
    study = load_study(home / "study.toml")
    layout = demo_layout(home, study, port=None, nginx=demand_nginx())
    with tempfile.TemporaryDirectory() as folder, Rehearsal(layout) as rehearsal:
        rehearsal.start_coordinator()
        refuse_the_stranger(rehearsal, Stranger.of(home, Path(folder)), sites=study.roster.sites)
    sites = len(study.roster.sites)
    print(f"rehearsal: {sites} sites, and a fourth SuperNode got nothing")  # noqa: T201


def refuse_the_stranger(
    rehearsal: Rehearsal, stranger: Stranger, *, sites: tuple[str, ...]
) -> None:
    """Assert that whoever nobody enrolled can neither join nor look nor order."""
    said = stranger.run_supernode()
    assert said.returncode != 0
    assert REFUSED in said.stdout + said.stderr, said.stdout + said.stderr
    with stranger.client() as client:
        for path in hidden_paths():
            assert client.post(path).status_code == 404, path
    try:
        stranger.control().nodes()
    except NetworkError:
        pass
    else:
        raise AssertionError("a stranger can list the nodes")
    known = {node.name for node in find_superlink(rehearsal.settings).nodes()}
    assert known == set(sites), known


if __name__ == "__main__":
    main(Path(sys.argv[1]))
