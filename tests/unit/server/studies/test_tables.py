"""What a study of experts has compared is shown as a table, in the order of its roster."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.factories.experts_study import write_study
from tests.factories.federation import SITES, STUDY
from vitrael.core import cli
from vitrael.core.digest import digest_bytes
from vitrael.core.errors import StudyError
from vitrael.core.metrics.comparison import METHODS
from vitrael.core.study import load_study
from vitrael.server.config import ServerDocument
from vitrael.server.db.engine import open_database
from vitrael.server.objects import ObjectStore
from vitrael.server.settings import utc_now
from vitrael.server.sites.founding import found_coordinator
from vitrael.server.studies.ledger import Ledger, StageKey
from vitrael.server.studies.tables import read_comparison, show_comparison, show_whole

WEIGHTS = {
    "valley": {"valley": 0.9, "north": 0.07, "harbour": 0.03},
    "harbour": {"valley": 0.2, "north": 0.2, "harbour": 0.6},
    "north": {"valley": 0.05, "north": 0.85, "harbour": 0.1},
}
"""Site -> weight of each expert there; a stored document knows no order."""


def compared(*methods: str, sites: Sequence[str] = tuple(WEIGHTS)) -> dict[str, Any]:
    """Return what stage ``comparison`` leaves."""
    rows = [
        {
            "method": method,
            "accuracy": 0.5 + 0.1 * place,
            "interval": [0.4 + 0.1 * place, 0.6 + 0.1 * place],
            "images": 40,
            "sites": {site: 0.25 + 0.25 * number for number, site in enumerate(sites)},
            "by_view": {"A4C": 0.5, "PLAX": 0.75},
        }
        for place, method in enumerate(methods)
    ]
    told = {site: {"images": 20, "heaviest": 0.8, "weights": WEIGHTS[site]} for site in sites}
    return {"table": rows, "sites": told, "experts": list(sites)}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home whose study of experts has compared nothing."""
    (tmp_path / "study.toml").write_text(write_study())
    return tmp_path


def leave(home: Path, document: dict[str, Any], *, number: int = 0, end: str = "finish") -> None:
    """Let stage ``comparison`` leave a document, or fail after it was stored."""
    output = ObjectStore(home / "objects").put_json(document)
    engine = open_database(home / "server.sqlite")
    ledger, protocol = Ledger(engine), load_study(home / "study.toml").protocol.digest
    key = StageKey(protocol, "comparison", 0, digest_bytes(f"inputs {number}".encode()))
    record = ledger.begin(key, details={"roster": digest_bytes(b"roster")})
    if end == "finish":
        ledger.finish(record, output)
    else:
        ledger.fail(record, "too few answered")
    engine.dispose()


def words(line: str) -> list[str]:
    return line.split()


def test_sites_and_experts_stand_in_the_order_of_the_roster(home: Path) -> None:
    leave(home, compared("fusion"))
    told = read_comparison(home)
    assert list(told["sites"]) == list(SITES)
    assert [list(site["weights"]) for site in told["sites"].values()] == [list(SITES)] * 3
    assert {site: one["weights"] for site, one in told["sites"].items()} == WEIGHTS
    assert list(WEIGHTS) != list(SITES)  # the control: they were stored in another
    lines = show_whole(told)
    assert words(lines[0])[-3:] == list(SITES)
    place = next(n for n, line in enumerate(lines) if line.startswith("weight of the expert"))
    assert words(lines[place])[-3:] == list(SITES)
    assert [words(line)[1] for line in lines[place + 1 : place + 4]] == list(SITES)


def test_every_number_stands_under_the_name_that_it_belongs_to(home: Path) -> None:
    leave(home, compared("fusion", "own expert"))
    lines = show_whole(read_comparison(home))
    fusion = next(line for line in lines if line.startswith("fusion"))
    assert fusion.split("  ")[0] == "fusion"
    assert "0.500 (0.400 to 0.600)" in fusion
    assert words(fusion)[-3:] == ["0.750", "0.500", "0.250"]  # north was stored last
    ends = [lines[0].index(site) + len(site) for site in SITES]
    assert [len(fusion[:end].rstrip()) for end in ends] == ends
    (north,) = (line for line in lines if line.startswith("at north"))
    assert words(north)[-3:] == ["0.850", "0.100", "0.050"]
    assert "40 pictures that nobody has learned from." in lines
    assert lines[-1] == "Its own expert weighs most in: north 80%, harbour 80%, valley 80%."


def test_each_method_that_was_tried_has_its_row(home: Path) -> None:
    leave(home, compared(*METHODS[:6]))
    lines = show_whole(read_comparison(home))
    assert [line.partition("  ")[0] for line in lines[1:7]] == list(METHODS[:6])
    assert not any(METHODS[6] in line for line in lines)  # the control


def test_site_with_a_long_name_keeps_its_column(home: Path) -> None:
    table = compared("fusion", sites=("north",))["table"]
    name = "university-hospital-of-the-far-north"
    table[0]["sites"] = {name: 0.25}
    head, row, _ = show_comparison(table, sites=(name,))
    assert len(head) == len(row)
    assert row.endswith(" 0.250")


def test_empty_table_says_that_nothing_could_be_held_to_anything(home: Path) -> None:
    nothing = "There is no table for the experts of the panel."
    leave(home, {"table": [], "sites": {}, "experts": list(SITES)})
    assert show_whole(read_comparison(home))[0] == nothing
    assert nothing not in show_whole(compared("fusion"))  # the control


def test_last_comparison_that_was_finished_is_shown(home: Path) -> None:
    leave(home, compared("fusion"))
    leave(home, compared("fusion", "own expert"), number=1)
    leave(home, compared("own expert"), number=2, end="fail")
    methods = [row["method"] for row in read_comparison(home)["table"]]
    assert methods == ["fusion", "own expert"]


def test_site_that_left_the_roster_has_no_column(home: Path) -> None:
    leave(home, compared("fusion"))
    (home / "study.toml").write_text(write_study(("north", "valley")))
    told = read_comparison(home)
    assert list(told["sites"]) == ["north", "valley"]
    assert list(told["sites"]["north"]["weights"]) == ["north", "valley"]
    assert "harbour" not in "".join(show_whole(told))


def test_study_that_has_compared_nothing_is_refused(home: Path) -> None:
    with pytest.raises(StudyError, match="tiny-views has compared nothing yet"):
        read_comparison(home)
    leave(home, compared("fusion"), end="fail")
    with pytest.raises(StudyError, match="tiny-views has compared nothing yet"):
        read_comparison(home)
    leave(home, compared("fusion"))  # the control
    assert read_comparison(home)["table"]


def test_study_of_a_synthetic_set_has_no_table(home: Path) -> None:
    (home / "study.toml").write_text(STUDY)
    with pytest.raises(StudyError, match="tiny trains no experts"):
        read_comparison(home)


def test_home_without_a_study_has_no_table(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="cannot be read"):
        read_comparison(tmp_path)


def test_command_shows_the_table_and_says_the_same_in_json(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found_coordinator(home, ServerDocument(address="127.0.0.1:9"), now=utc_now())
    asked = ["study", "table", "--home", str(home)]
    assert cli.run(asked) == 3
    assert "has compared nothing yet" in capsys.readouterr().err
    leave(home, compared("fusion"))
    assert cli.run(asked) == 0
    assert capsys.readouterr().out.splitlines() == show_whole(read_comparison(home))
    assert cli.run([*asked, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == read_comparison(home)
    assert list(document["sites"]) == list(SITES)
