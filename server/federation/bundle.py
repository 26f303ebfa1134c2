"""The app folder that Flower ships to its nodes: shims around what is installed there.

Flower cannot run a ClientApp that it has not shipped. So the bundle holds two small modules
that import the installed ``vitrael``, and no code that does anything.
"""

from __future__ import annotations

from pathlib import Path

from vitrael.core.digest import write_atomically

SERVER_SHIM = '''"""The installed ServerApp over the installed pipeline."""

from vitrael.server.federation.app import make_app
from vitrael.server.studies.pipeline import run_study

app = make_app(run_study)
'''

CLIENT_SHIM = '''"""The installed courier."""

from vitrael.client.site.courier.app import app

__all__ = ["app"]
'''

_PROJECT = """\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "vitrael-study"
version = "0.1.0"
description = "Shims around the installed vitrael."
dependencies = ["flwr>=1.41,<2"]

[tool.flwr.app]
publisher = "vitrael"

[tool.flwr.app.components]
serverapp = "vitrael_study.server_app:app"
clientapp = "vitrael_study.client_app:app"

[tool.flwr.app.config]
home = ""
"""


def write_bundle(
    folder: Path, *, server_app: str = SERVER_SHIM, client_app: str = CLIENT_SHIM
) -> Path:
    """Write the bundle and return its folder.

    ``server_app`` and ``client_app`` are the texts of the two modules, each with an ``app``; a
    rehearsal of something other than a study brings its own.
    """
    files = {
        "pyproject.toml": _PROJECT,
        "vitrael_study/__init__.py": '"""Shims around the installed vitrael."""\n',
        "vitrael_study/server_app.py": server_app,
        "vitrael_study/client_app.py": client_app,
    }
    for name, text in files.items():
        write_atomically(folder / name, text.encode())
    return folder
