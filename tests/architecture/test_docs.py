"""The pages say what the code does: what leaves, what settings hold, what lies in a home."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from vitrael.client.site.outbox import RULES, StageRule
from vitrael.client.site.settings import Limits
from vitrael.core.messages import StageName

PAGE = "docs/privacy/what-leaves-a-site.md"
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
    listings = "".join(re.findall(r"^```$(.*?)^```$", page, re.MULTILINE | re.DOTALL))
    return kept - {name.rstrip("/") for name in listings.split()}


def test_all_that_lies_in_a_coordinators_home_stands_on_the_page(root: Path) -> None:
    paths = sorted((root / "server").rglob("*.py"))
    sources = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    page = (root / COORDINATORS).read_text(encoding="utf-8")
    assert unlisted(sources, page) == set()
    assert unlisted(sources, page.replace("flower/ sites.json", "")) == {"flower", "sites.json"}
