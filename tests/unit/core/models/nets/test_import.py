"""MONAI is imported without what it does not need, and nobody else is kept from importing that."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

from vitrael.core.models.nets import _NOT_NEEDED

INSTALLED = [name for name in _NOT_NEEDED if importlib.util.find_spec(name) is not None]

SCRIPT = """
import importlib, sys
import vitrael.core.models.nets
names = sys.argv[1].split(",")
assert "monai" in sys.modules
print([name for name in names if name in sys.modules])
importlib.import_module(names[0])
print([name for name in names if name in sys.modules][:1] == names[:1])
"""


def test_packages_that_are_not_needed_are_not_loaded_and_can_be_imported_afterwards() -> None:
    assert INSTALLED, "else the test shows nothing"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, ",".join(INSTALLED)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert (done.stdout.splitlines(), done.returncode) == (["[]", "True"], 0), done.stderr
