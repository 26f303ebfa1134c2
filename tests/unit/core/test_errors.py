"""An error is one sentence of what, why and what to do, with a documented exit code."""

from __future__ import annotations

import errno
import os
import re

import pytest

from vitrael.core import errors
from vitrael.core.errors import StudyError, VitraelError

FAMILY = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, VitraelError)
]


def test_sentence_says_what_why_and_what_to_do() -> None:
    error = VitraelError("the door is shut", why="it was closed", fix="open it")
    assert str(error) == "the door is shut: it was closed. To do: open it."


def test_sentence_leaves_out_what_is_not_known() -> None:
    assert str(VitraelError("the door is shut")) == "the door is shut."
    assert str(VitraelError("the door is shut", why="wind")) == "the door is shut: wind."
    assert str(VitraelError("the door is shut", fix="open it")) == (
        "the door is shut. To do: open it."
    )


def test_sentence_ends_in_one_full_stop() -> None:
    error = VitraelError("the door is shut.", why="it was closed.", fix="open it.")
    assert not re.search(r"\.\.", str(error))


@pytest.mark.parametrize("family_member", FAMILY)
def test_exit_code_is_the_one_the_tree_documents(family_member: type[VitraelError]) -> None:
    tree = (errors.__doc__ or "").splitlines()
    documented = 1
    for ancestor in reversed(family_member.__mro__):
        for line in tree:
            if found := re.search(rf"\b{ancestor.__name__}\s+exit (\d)", line):
                documented = int(found.group(1))
    assert family_member.exit_code == documented


@pytest.mark.parametrize("family_member", FAMILY)
def test_every_error_is_drawn_in_the_tree(family_member: type[VitraelError]) -> None:
    assert re.search(rf"\b{family_member.__name__}\b", errors.__doc__ or "")


def test_exit_codes_of_the_families_differ() -> None:
    codes = [errors.UsageError, errors.ConfigError, errors.AuthError, errors.NetworkError]
    assert [error.exit_code for error in codes] == [2, 3, 4, 5]
    assert (errors.EXIT_REFUSED, errors.EXIT_PARTIAL, errors.EXIT_INTERRUPTED) == (6, 7, 130)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_full_disk_is_told_in_one_way_and_without_a_path(code: int) -> None:
    error = errors.storage_error("the store", OSError(code, os.strerror(code), "/srv/secret"))
    assert error.sentence().startswith("the store cannot be written: there is no disk space left.")
    assert "/srv" not in error.sentence()


def test_disk_that_is_not_full_is_not_called_full() -> None:
    error = errors.storage_error("the store", PermissionError(errno.EACCES, "Permission denied"))
    assert (error.what, error.why) == (
        "the store cannot be read or written",
        "Permission denied",
    )


REMEDIES = {
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room on the disk",
    errno.EACCES: "let this user read and write there",
    errno.EPERM: "let this user read and write there",
    errno.EROFS: "let this user read and write there",
    errno.EIO: "check the disk",
}


@pytest.mark.parametrize("code", REMEDIES)
def test_remedy_fits_what_the_disk_said(code: int) -> None:
    refusal = OSError(code, os.strerror(code))
    said = errors.storage_error("the store", refusal).fix
    assert {remedy for remedy in REMEDIES.values() if remedy in said} == {REMEDIES[code]}
    own = errors.storage_error("the store", refusal, fix="call somebody").fix
    assert (own == "call somebody") == (code not in errors.CLOSED)


def test_parts_stay_apart_for_json() -> None:
    error = StudyError("a", why="b", fix="c")
    assert (error.what, error.why, error.fix) == ("a", "b", "c")
