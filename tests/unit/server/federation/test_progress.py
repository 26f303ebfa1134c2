from __future__ import annotations

from pathlib import Path

from vitrael.server.federation.progress import Tail


def test_whole_new_lines_are_told_once(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    assert Tail.at_end(path).new_lines() == []
    path.write_text('{"done": 1}\n')
    old, new = Tail(path), Tail.at_end(path)
    with path.open("a") as file:
        file.write('{"done": 2}\nno json\n[3]\n{"do')
    assert old.new_lines() == [{"done": 1}, {"done": 2}]
    assert new.new_lines() == [{"done": 2}]
    assert new.new_lines() == []
    with path.open("a") as file:
        file.write('ne": 4}\n')
    assert new.new_lines() == [{"done": 4}]
