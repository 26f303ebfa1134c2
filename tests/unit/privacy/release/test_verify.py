"""Each refusal has its own message, and deploy/verify_release.py says the same."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vitrael.core.digest import digest_file
from vitrael.core.errors import VerificationError
from vitrael.privacy.keys import KeyPair
from vitrael.privacy.release.manifest import FileEntry, Reference, parse_manifest
from vitrael.privacy.release.sign import add_signature, sign_manifest
from vitrael.privacy.release.trust import save_trust
from vitrael.privacy.release.verify import verify_release

Releases = Any  # ReleaseFactory of conftest.py, which no test can import
IMAGE = "sub-syn0001/anat/sub-syn0001_T1w.nii.gz"


def _rewrite_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads((folder / "manifest.json").read_bytes())
    change(document)
    data = json.dumps(document, sort_keys=True, indent=1).encode() + b"\n"
    (folder / "manifest.json").write_bytes(data)


def _relist(folder: Path, releases: Releases, path: str) -> None:
    """Put a changed file's new digest into the manifest, and have the sites sign it."""
    manifest = parse_manifest((folder / "manifest.json").read_bytes())
    target = folder / path
    entry = FileEntry(digest=digest_file(target), size_bytes=target.stat().st_size)
    changed = manifest.model_copy(update={"files": {**manifest.files, path: entry}})
    (folder / "manifest.json").write_bytes(changed.to_bytes())
    releases.sign(folder, ("harbour", "north", "valley"))


def test_unchanged_release_verifies(
    pristine_release: Path, releases: Releases, alone: ModuleType
) -> None:
    verified = verify_release(pristine_release, releases.trust, expected=Reference("brain-demo", 1))
    assert verified.signed_by == ("harbour", "north", "valley")
    assert not verified.publishable
    manifest, signed_by = alone.verify(pristine_release, releases.trust.model_dump())
    assert tuple(signed_by) == verified.signed_by
    assert manifest["protocol"] == verified.protocol


def test_changed_byte_is_refused_by_the_name_of_its_file(
    release: Path, refuse: Callable[..., VerificationError]
) -> None:
    data = bytearray((release / IMAGE).read_bytes())
    data[40] ^= 1
    (release / IMAGE).write_bytes(data)
    assert refuse().what == f"{IMAGE} was changed"


def test_cut_file_is_refused(release: Path, refuse: Callable[..., VerificationError]) -> None:
    (release / "card.md").write_bytes((release / "card.md").read_bytes()[:-1])
    assert refuse().what == "card.md was changed"


def test_missing_file_is_refused(release: Path, refuse: Callable[..., VerificationError]) -> None:
    (release / "participants.tsv").unlink()
    assert refuse().what == "participants.tsv is missing"


def test_missing_manifest_is_refused(
    release: Path, refuse: Callable[..., VerificationError]
) -> None:
    (release / "manifest.json").unlink()
    assert refuse().what == "manifest.json is missing"


@pytest.mark.parametrize("path", ["extra.txt", "sub-syn0001/anat/more.nii.gz", "signatures/x.txt"])
def test_extra_file_is_refused(
    release: Path, refuse: Callable[..., VerificationError], path: str
) -> None:
    (release / path).write_bytes(b"x")
    assert refuse().what == f"{path} does not belong to the release"


def test_extra_folder_is_refused(release: Path, refuse: Callable[..., VerificationError]) -> None:
    (release / "empty").mkdir()
    assert refuse().what == "empty/ does not belong to the release"


def test_control_characters_of_a_file_name_stay_out_of_the_message(
    release: Path, refuse: Callable[..., VerificationError]
) -> None:
    (release / "\x1b[31mred").write_bytes(b"x")
    assert refuse().what == "\\x1b[31mred does not belong to the release"


def test_link_is_refused_even_to_the_right_bytes(
    release: Path, tmp_path: Path, refuse: Callable[..., VerificationError]
) -> None:
    (release / IMAGE).rename(tmp_path / "elsewhere")
    (release / IMAGE).symlink_to(tmp_path / "elsewhere")
    assert refuse().what == f"{IMAGE} is a link or a special file"


def test_linked_folder_is_refused(
    release: Path, tmp_path: Path, refuse: Callable[..., VerificationError]
) -> None:
    shutil.move(release / "signatures", tmp_path / "elsewhere")
    (release / "signatures").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert refuse().what == "signatures is a link or a special file"


def test_pipe_is_refused(release: Path, refuse: Callable[..., VerificationError]) -> None:
    os.mkfifo(release / "pipe")
    assert refuse().what == "pipe is a link or a special file"


def test_other_name_is_refused(refuse: Callable[..., VerificationError]) -> None:
    assert refuse(expected="heart-demo@1").what == "this is brain-demo@1, not heart-demo@1"


def test_downgrade_is_refused(refuse: Callable[..., VerificationError]) -> None:
    expected = "this is brain-demo@1, an older version than brain-demo@2"
    assert refuse(expected="brain-demo@2").what == expected


def test_refused_verdict_is_refused_whoever_signed(
    release: Path, releases: Releases, refuse: Callable[..., VerificationError]
) -> None:
    shutil.rmtree(release)
    releases.write(release, releases.contents(passes=False))
    assert refuse().what == "the release was refused by its gates"


def test_signed_release_without_a_verdict_is_refused(
    release: Path, releases: Releases, refuse: Callable[..., VerificationError]
) -> None:
    (release / "verdict.json").write_text("[]")
    _relist(release, releases, "verdict.json")
    assert refuse().what == "evidence.json or verdict.json holds none"


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("verdict.json", "evidence", "sha256:" + "0" * 64),
        ("verdict.json", "policy", "public"),
        ("verdict.json", "publishable", True),
        ("evidence.json", "protocol", "sha256:" + "0" * 64),
        ("evidence.json", "measurements", []),
    ],
)
def test_verdict_of_something_else_is_refused_whoever_signed(
    name: str,
    field: str,
    value: object,
    release: Path,
    releases: Releases,
    refuse: Callable[..., VerificationError],
) -> None:
    document = json.loads((release / name).read_bytes())
    assert document[field] != value
    (release / name).write_text(json.dumps({**document, field: value}))
    _relist(release, releases, name)
    assert refuse().what == "evidence, verdict and manifest do not belong together"


@pytest.mark.parametrize(
    "path",
    [
        "../outside",
        "/etc/passwd",
        "a/../../b",
        "a//b",
        "a\\b",
        "./a",
        "signatures/extra",
        "manifest.json",
        "recalled.json",
        "name\n",
        "",
        "a" * 201,
        "CARD.md",
        "card.md/below",
    ],
)
def test_path_that_leaves_the_folder_or_clashes_is_refused(
    release: Path, refuse: Callable[..., VerificationError], path: str
) -> None:
    entry = {"digest": "sha256:" + "0" * 64, "size_bytes": 1}
    _rewrite_manifest(release, lambda document: document["files"].update({path: entry}))
    assert refuse().what == "manifest.json is not well formed"


@pytest.mark.parametrize(
    "change",
    [
        {"version": 0},
        {"version": True},
        {"version": "1"},
        {"publishable": 1},
        {"publishable": "yes"},
        {"name": "Brain"},
        {"name": 3},
        {"policy": ""},
        {"protocol": "sha256:0"},
        {"roster": None},
        {"format": "vitrael-release/2"},
        {"files": {}},
        {"files": []},
        {"more": 1},
    ],
)
def test_malformed_manifest_is_refused(
    release: Path, refuse: Callable[..., VerificationError], change: dict[str, Any]
) -> None:
    _rewrite_manifest(release, lambda document: document.update(change))
    assert refuse().what == "manifest.json is not well formed"


@pytest.mark.parametrize("data", [b"", b"{", b"[" * 50_000, b"null", b"\xff\xfe", b"NaN"])
def test_manifest_that_is_no_document_is_refused(
    release: Path, refuse: Callable[..., VerificationError], data: bytes
) -> None:
    (release / "manifest.json").write_bytes(data)
    assert refuse().what == "manifest.json is not well formed"


def test_manifest_in_another_spelling_is_refused(
    release: Path, refuse: Callable[..., VerificationError]
) -> None:
    document = json.loads((release / "manifest.json").read_bytes())
    (release / "manifest.json").write_text(json.dumps(document))
    assert refuse().why == "its bytes are not in canonical form"


def test_folder_that_is_not_there_is_refused(
    release: Path, refuse: Callable[..., VerificationError]
) -> None:
    shutil.rmtree(release)
    assert refuse().what.startswith("there is no release at")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipping_any_byte_of_any_file_is_refused(
    release: Path, releases: Releases, alone: ModuleType, data: st.DataObject
) -> None:
    paths = sorted(path for path in release.rglob("*") if path.is_file())
    path = data.draw(st.sampled_from(paths))
    original = path.read_bytes()
    place = data.draw(st.integers(0, len(original) - 1))
    changed = bytearray(original)
    changed[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(changed)
    try:
        with pytest.raises(VerificationError) as library:
            verify_release(release, releases.trust)
        with pytest.raises(alone.RefusedError, match=re.escape(library.value.what)):
            alone.verify(release, releases.trust.model_dump())
    finally:
        path.write_bytes(original)


def test_script_ends_with_the_documented_exit_codes(
    release: Path,
    releases: Releases,
    alone: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trust = tmp_path / "trust.json"
    save_trust(releases.trust, trust)
    monkeypatch.setattr(sys, "argv", ["verify_release.py", str(release), str(trust)])
    assert alone.main() == 0
    assert "NOT FOR PUBLICATION" in capsys.readouterr().out
    (release / "card.md").unlink()
    assert alone.main() == 4
    assert capsys.readouterr().err == "Refused: card.md is missing.\n"
    trust.write_text("{}")
    assert alone.main() == 3


def test_script_imports_nothing_but_the_standard_library_and_cryptography(root: Path) -> None:
    text = (root / "deploy" / "verify_release.py").read_text()
    modules = set(re.findall(r"^\s*(?:from|import) ([a-z_0-9]+)", text, flags=re.MULTILINE))
    assert modules - sys.stdlib_module_names == {"cryptography"}


def test_release_signed_again_by_other_keys_is_refused(
    release: Path, refuse: Callable[..., VerificationError]
) -> None:
    _forge(release)
    manifest = (release / "manifest.json").read_bytes()
    for site in ("harbour", "north", "valley"):
        signature = sign_manifest(manifest, KeyPair.create().signing, site=site)
        add_signature(release, signature, site=site)
    assert refuse().what == "the signature of harbour is by a foreign key"


def _forge(folder: Path) -> None:
    (folder / "card.md").write_text("all is well")
    entry = {"digest": digest_file(folder / "card.md"), "size_bytes": len("all is well")}
    _rewrite_manifest(folder, lambda document: document["files"].update({"card.md": entry}))
