from __future__ import annotations

import ast
import io
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

from vitrael.server.federation.bundle import CLIENT_SHIM, SERVER_SHIM, write_bundle

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatch:DeprecationWarning")


def test_flower_takes_the_bundle_and_it_holds_the_shims_alone(tmp_path: Path) -> None:
    content = build_fab_from_disk(write_bundle(tmp_path / "bundle"))
    with zipfile.ZipFile(io.BytesIO(content)) as fab:
        modules = {name for name in fab.namelist() if name.endswith(".py")}
        assert modules == {
            "vitrael_study/__init__.py",
            "vitrael_study/client_app.py",
            "vitrael_study/server_app.py",
        }
        assert fab.read("vitrael_study/client_app.py").decode() == CLIENT_SHIM


@pytest.mark.parametrize("shim", [SERVER_SHIM, CLIENT_SHIM])
def test_a_shim_does_nothing_but_import_what_is_installed(shim: str) -> None:
    docstring, *imported, exported = ast.parse(shim).body
    assert isinstance(docstring, ast.Expr)
    assert isinstance(exported, ast.Assign)
    assert imported
    for statement in imported:
        assert isinstance(statement, ast.ImportFrom)
        assert statement.module is not None
        assert statement.module.startswith("vitrael.")


def test_the_courier_s_shim_reaches_no_server_code() -> None:
    assert "vitrael.server" not in CLIENT_SHIM


def test_the_same_bundle_is_the_same_bytes(tmp_path: Path) -> None:
    first = build_fab_from_disk(write_bundle(tmp_path / "a"))
    assert build_fab_from_disk(write_bundle(tmp_path / "b")) == first
    assert build_fab_from_disk(write_bundle(tmp_path / "c", server_app="app = 1\n")) != first
