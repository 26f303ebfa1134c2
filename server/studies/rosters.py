"""The members of a study with their keys, as they were when it began last.

``roster.json`` holds who is enrolled now. A site that has left it since is still a member of a
study that began with it: it is asked nothing more, and its name, key and digest stand in what was
finished. So a study that is opened again is the one that it was, whoever left or has new keys
since; what the operator starts anew takes the keys of then.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vitrael.core.errors import ConfigError
from vitrael.core.study import Study
from vitrael.privacy.keys import PublicKeys, load_roster, save_roster


def find_members(home: Path, study: Study) -> dict[str, PublicKeys]:
    """Return the members of a study's roster with their keys, in the study's order.

    Raises ConfigError for one that is not enrolled, unless it was when the study began.
    """
    known = load_roster(home / "roster.json") | find_kept(home, study)
    if missing := [site for site in study.roster.sites if site not in known]:
        raise ConfigError(
            f"site {missing[0]} of the study's roster is not enrolled",
            why="roster.json does not hold its keys",
            fix="enroll it, or take it off the roster",
        )
    return {site: known[site] for site in study.roster.sites}


def find_kept(home: Path, study: Study) -> dict[str, PublicKeys]:
    """Return the members with which a study began last, none when it never did."""
    path = _place(home, study)
    return load_roster(path) if path.exists() else {}


def keep_members(home: Path, study: Study, members: Mapping[str, PublicKeys]) -> None:
    """Write down with whom a study begins."""
    if find_kept(home, study) != members:
        save_roster(members, _place(home, study))


def _place(home: Path, study: Study) -> Path:
    return home / "rosters" / f"{study.digest.removeprefix('sha256:')}.json"
