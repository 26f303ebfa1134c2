"""What the processes of a study say of their progress: the new lines of ``progress.jsonl``."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(slots=True)
class Tail:
    """What is new at the end of a ``progress.jsonl``."""

    path: Path
    offset: int = 0

    @classmethod
    def at_end(cls, path: Path) -> Tail:
        """Return the tail of a file that skips what the file holds now."""
        return cls(path, path.stat().st_size if path.exists() else 0)

    def new_lines(self) -> list[dict[str, Any]]:
        """Return the whole lines since the last call that are JSON objects."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read()
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self.offset += len(whole)
        found = []
        for line in whole.splitlines():
            with contextlib.suppress(ValueError):
                value = json.loads(line)
                if isinstance(value, dict):
                    found.append(value)
        return found
