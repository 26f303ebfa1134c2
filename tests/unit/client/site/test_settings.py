"""site.toml is read strictly, and what is wrong is named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vitrael.client.site.settings import load_settings
from vitrael.core.errors import AuthError, ConfigError, UsageError
from vitrael.core.study import Performance

if TYPE_CHECKING:
    from tests.unit.client.site.conftest import Home


def test_performance_is_the_studys_unless_the_site_says_otherwise(home: Home) -> None:
    assert home.settings.document.performance is None
    (home.path / "site.toml").write_text('name = "north"\n[performance]\nthreads = 3\n')
    own = load_settings(home.path, device="cuda").document.performance
    assert own is not None
    assert (own.threads, own.device) == (3, "cuda")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('name = "North"', "name"),
        ('name = "north"\nfast = 1', r"fast: the key is unknown"),
        ('nme = "north"', r"nme \(and 1 more\): the key is unknown"),
        ("", r"name: the key is missing"),
        ('name = "north"\n[performance]\nthreads = 0', r"performance\.threads"),
        ("name = ", "not TOML"),
    ],
)
def test_wrong_document_is_refused_by_its_key(home: Home, text: str, said: str) -> None:
    (home.path / "site.toml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_settings(home.path)


def test_missing_home_is_refused(home: Home) -> None:
    with pytest.raises(UsageError, match=r"no home of a site.*--home"):
        load_settings(home.path / "elsewhere")


def test_home_without_its_document_is_not_enrolled(home: Home) -> None:
    (home.path / "site.toml").unlink()
    with pytest.raises(UsageError, match=r"is not enrolled yet: it holds no site\.toml"):
        load_settings(home.path)


@pytest.mark.parametrize("length", [0, 1, 31, 33])
def test_split_key_that_is_not_whole_is_refused(home: Home, length: int) -> None:
    (home.path / "keys" / "split.key").write_bytes(bytes(length))
    with pytest.raises(AuthError, match=rf"is damaged: it holds {length} bytes.*from a backup"):
        home.settings.read_split_key()


def test_missing_split_key_is_refused(home: Home) -> None:
    assert len(home.settings.read_split_key()) == 32
    (home.path / "keys" / "split.key").unlink()
    with pytest.raises(AuthError, match="splits"):
        home.settings.read_split_key()


def test_split_key_open_to_others_is_refused(home: Home) -> None:
    (home.path / "keys" / "split.key").chmod(0o604)
    with pytest.raises(AuthError, match=r"604.*chmod 600"):
        home.settings.read_split_key()


@pytest.mark.parametrize("mode", [None, 0o604])
def test_path_of_the_split_key_is_not_told(home: Home, mode: int | None) -> None:
    path = home.path / "keys" / "split.key"
    path.unlink() if mode is None else path.chmod(mode)
    with pytest.raises(AuthError, match=r"keys/split\.key") as caught:
        home.settings.read_split_key()
    assert str(home.path) not in caught.value.sentence()  # a task that needs it sends the sentence


def test_site_that_sets_its_threads_keeps_the_studys_device(home: Home) -> None:
    asked = {"device": "cuda", "threads": 2, "bf16": "off"}
    study = home.study.model_copy(update={"performance": Performance.model_validate(asked)})
    context = home.context(
        settings=load_settings(home.path, threads=8),
        study=study,
        load_cohort=lambda *_: pytest.fail("no scan is needed"),
    )
    assert (context.device, context.threads, context.bf16) == ("cuda", 8, "off")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('[schedule]\nhours = "25:00-01:00"', "schedule.hours: it is not written as it must be"),
        ('[network]\nproxy = "proxy:3128"', "network.proxy: it is not written as it must be"),
        ('cohort = "Main"', "cohort: it is no name as studies have them"),
    ],
)
def test_text_of_a_wrong_form_is_not_taken_for_a_wrong_name(
    tmp_path: Path, line: str, why: str
) -> None:
    (tmp_path / "site.toml").write_text(f'name = "north"\n{line}\n')
    with pytest.raises(ConfigError, match=re.escape(why)):
        load_settings(tmp_path)
