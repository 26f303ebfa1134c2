"""The pages say what the code does: what leaves, what settings hold, what lies in a home."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from vitrael.client.site.rules import RULES, StageRule
from vitrael.client.site.settings import Limits
from vitrael.core.messages import StageName

PAGE = "docs/privacy/what-leaves-a-site.md"
THREATS = "docs/privacy/threat-model.md"
FEWEST_PROOFS = 10
SITES = "docs/tutorial/sites.md"
COORDINATORS = "docs/tutorial/coordinator.md"
OF_A_STEWARD = {"steward.json", "steward.sock"}


def sections(text: str) -> dict[str, str]:
    """Return the part below each heading of a stage."""
    found = re.finditer(r"^### `(\w+)`$(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    return {match[1]: match[2] for match in found}


def rows(text: str) -> set[str]:
    """Return the first cells of the page's table."""
    return set(re.findall(r"^\| (\w+) \|", text, re.MULTILINE))


def names(rule: StageRule) -> Iterator[str]:
    """Yield all that a rule lets out by name."""
    yield from rule.body.model_fields
    yield from rule.labels
    yield from rule.like_input
    yield from rule.own_weights
    for attachment, arrays in rule.arrays.items():
        yield from (attachment, *arrays)


def unsaid(rule: StageRule, section: str) -> list[str]:
    """Return the names of a rule that stand in no code of its section; a star is no whole name."""
    said = [word for word in re.findall(r"`([^`]+)`", section) if word.strip("*")]
    return [name for name in names(rule) if not any(fnmatchcase(name, word) for word in said)]


@pytest.mark.parametrize("stage", RULES)
def test_all_that_may_leave_stands_on_the_page(stage: StageName, root: Path) -> None:
    text = (root / PAGE).read_text(encoding="utf-8")
    assert unsaid(RULES[stage], sections(text)[stage]) == []


def test_page_has_every_stage_and_no_other(root: Path) -> None:
    text = (root / PAGE).read_text(encoding="utf-8")
    assert list(sections(text)) == list(RULES)
    assert rows(text) - {"stage"} == set(RULES)


def missing_tests(root: Path, text: str) -> list[str]:
    """Return the tests that a page names by path and name and that do not exist."""
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    found: dict[str, set[str]] = {}
    for path in {path for path, _ in named}:
        file = root / path
        tree = ast.parse(file.read_text(encoding="utf-8") if file.is_file() else "")
        found[path] = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    return [f"{path}::{name}" for path, name in named if name not in found[path]]


@pytest.mark.parametrize("page", [PAGE, THREATS])
def test_every_test_that_a_page_names_exists(page: str, root: Path) -> None:
    text = (root / page).read_text(encoding="utf-8")
    assert len(re.findall(r"`tests/", text)) > FEWEST_PROOFS
    assert missing_tests(root, text) == []


def test_named_test_that_is_missing_is_noticed(root: Path) -> None:
    here = "tests/architecture/test_docs.py"
    named = f"`{here}::test_that_is_not_there` `{here}::missing_tests` `tests/gone.py::test_x`"
    gone = [f"{here}::test_that_is_not_there", "tests/gone.py::test_x"]
    assert missing_tests(root, named) == gone


@pytest.mark.parametrize("stage", RULES)
def test_every_stage_names_what_shows_it(stage: StageName, root: Path) -> None:
    section = sections((root / PAGE).read_text(encoding="utf-8"))[stage]
    assert "Shown by" in section


@pytest.mark.parametrize(
    ("stage", "word"),
    [
        ("consent", "consent"),
        ("codec", "curve_loss"),
        ("teacher", "denoiser"),
        ("latents", "ceiling.square"),
        ("screening", "keep"),
        ("audit", "membership.placebo_error"),
        ("audit", "plants.*.dropped"),
    ],
)
def test_word_that_is_left_out_is_noticed(stage: StageName, word: str, root: Path) -> None:
    section = sections((root / PAGE).read_text(encoding="utf-8"))[stage]
    assert f"`{word}`" in section
    assert unsaid(RULES[stage], section.replace(f"`{word}`", "`*`")) != []


def test_new_field_is_noticed(root: Path) -> None:
    section = sections((root / PAGE).read_text(encoding="utf-8"))["latents"]
    wider = StageRule(RULES["latents"].body, labels=frozenset({"patients.age"}))
    assert unsaid(wider, section) == ["patients.age"]


@pytest.mark.parametrize("key", [*Limits.model_fields])
def test_key_that_a_site_may_write_stands_on_the_page(key: str, root: Path) -> None:
    rows = re.findall(r"^\| (`.*?) \|", (root / SITES).read_text(encoding="utf-8"), re.MULTILINE)
    assert any(f"`{key}`" in row for row in rows)
    assert not any("`surname`" in row for row in rows)


def unlisted(sources: str, page: str) -> set[str]:
    """Return what a program keeps in the coordinator's home that no listing of a page names."""
    kept = set(re.findall(r'\bhome / "([\w.-]+)"', sources)) - OF_A_STEWARD
    blocks = re.findall(r"^```(\w*)$(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    listings = "".join(text for language, text in blocks if not language)
    return kept - {name.rstrip("/") for name in listings.split()}


def test_all_that_lies_in_a_coordinators_home_stands_on_the_page(root: Path) -> None:
    paths = sorted((root / "server").rglob("*.py"))
    sources = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    page = (root / COORDINATORS).read_text(encoding="utf-8")
    assert unlisted(sources, page) == set()
    assert unlisted(sources, page.replace("flower/ sites.json", "")) == {"flower", "sites.json"}
