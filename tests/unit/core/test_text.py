"""Text of another side is shown as one line that no terminal obeys."""

import pytest
from pydantic import TypeAdapter, ValidationError

from vitrael.core.text import Sentence, one_line

HOSTILE = ["a\x1b[2Kb", "a\nb", "a\rb", "a\x00b", "a\x9bb", "a\u202eb", "a\u2028b", "a\ud800b"]


@pytest.mark.parametrize("text", HOSTILE)
def test_line_holds_nothing_that_cannot_be_printed(text: str) -> None:
    assert not text.isprintable()

    line = one_line(text, 100)

    assert line.isprintable()
    assert len(line) == len(text)
    assert line[0] == "a"
    assert line[-1] == "b"


def test_line_is_cut_at_its_length_and_plain_text_stays_as_it_is() -> None:
    assert one_line("é" * 501, 500) == "é" * 500
    assert one_line("north: disk full", 500) == "north: disk full"
    assert one_line("", 10) == ""


@pytest.mark.parametrize("text", HOSTILE)
def test_sentence_with_a_character_that_cannot_be_printed_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Sentence).validate_python(text)

    assert TypeAdapter(Sentence).validate_python("a plain sentence, é") == "a plain sentence, é"
