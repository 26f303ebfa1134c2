"""What used a site's scans is listed, wherever it went; what did not is not; a recall blocks it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vitrael.core import cli
from vitrael.core.digest import Digest, digest_bytes
from vitrael.core.errors import StorageError, UsageError, VerificationError
from vitrael.server.db.engine import open_database
from vitrael.server.objects import ObjectStore
from vitrael.server.studies.ledger import Ledger, StageKey
from vitrael.server.studies.lineage import COMES_OF, trace_site

if TYPE_CHECKING:
    from tests.unit.conftest import ReleaseFactory

ALL = ("north", "harbour", "valley")
TRAINED = ("codec", "latents", "reid", "teacher")
ORDER = (
    *("consent", "canary", "codec", "codec", "latents", "reid", "calibration", "teacher"),
    *("teacher", "candidates", "screening", "student", "samples", "rescreening", "synthesis"),
    *("audit", "gates", "bundle", "signing", "publication"),
)
JUDGED = ("calibration", "screening", "rescreening", "audit")
ASKED = {"consent", "canary", "signing", *TRAINED, *JUDGED}
KEYS = {
    "codec": "codec",
    "latents": "codec",
    "reid": "encoder",
    "teacher": "denoiser",
    "student": "denoiser",
    "candidates": "images",
    "samples": "images",
    "synthesis": "samples",
}


def version_of(site: str, number: int = 1) -> Digest:
    return digest_bytes(f"{site}'s scans, version {number}".encode())


@dataclass
class Coordinator:
    """A home whose ledger is written by hand, in the form that the pipeline leaves it."""

    home: Path
    releases: ReleaseFactory
    ledger: Ledger = field(init=False)
    objects: ObjectStore = field(init=False)

    def __post_init__(self) -> None:
        from vitrael.privacy.release.trust import save_trust

        self.ledger = Ledger(open_database(self.home / "server.sqlite"))
        self.objects = ObjectStore(self.home / "objects")
        self.releases.coordinator.save(self.home / "keys")
        save_trust(self.releases.trust, self.home / "trust.json")

    def run(
        self,
        name: str,
        sites: tuple[str, ...] = ALL,
        *,
        absent: dict[str, set[str]] | None = None,
        versions: dict[str, Digest] | None = None,
        answered: dict[str, Digest] | None = None,
        roster: str = "",
        publish: bool = True,
        stages: tuple[str, ...] = ORDER,
    ) -> None:
        """Write down a whole study; ``answered`` is what answers say themselves, by stage."""
        protocol = digest_bytes(name.encode())
        own = digest_bytes(f"{name} {roster} {sites}".encode())
        manifest = self.publish(name) if publish else digest_bytes(own.encode())
        rounds: dict[str, int] = {}
        for stage in stages:
            rounds[stage] = number = rounds.get(stage, -1) + 1
            there = tuple(s for s in sites if s not in (absent or {}).get(f"{stage} {number}", ()))
            document = self.document(name, own, stage, number, manifest)
            if stage == "consent":
                known = {site: version_of(site) for site in sites} | (versions or {})
                document["consents"] = {s: {"cohort": {"digest": known[s]}} for s in sites}
            details: dict[str, Any] = {"roster": own}
            if stage in (answered or {}):
                details["answers"] = {site: {"cohort": (answered or {})[stage]} for site in there}
            self.write(protocol, stage, number, document, details, there if stage in ASKED else ())

    def document(
        self, name: str, own: str, stage: str, number: int, manifest: str
    ) -> dict[str, Any]:
        if stage in {"bundle", "publication"}:
            return {"release": f"{name}@1", "manifest": manifest}
        made = digest_bytes(f"{own} {stage} {number}".encode())
        return {KEYS.get(stage, "about"): made, "of": own}

    def write(
        self,
        protocol: Digest,
        stage: str,
        number: int,
        document: dict[str, Any],
        details: dict[str, Any],
        sites: tuple[str, ...],
    ) -> None:
        key = StageKey(protocol, stage, number, digest_bytes(json.dumps(details).encode()))
        record = self.ledger.begin(key, details=details)
        self.ledger.finish(record, self.objects.put_json(document), participants=sites)

    def publish(self, name: str) -> Digest:
        from vitrael.privacy.release.catalogue import publish

        folder = self.home / "bundles" / name
        self.releases.write(folder, self.releases.contents(name=name))
        return publish(folder, self.home / "catalogue", trust=self.releases.trust).manifest

    def stages(self, site: str, version: Digest | None = None) -> dict[str, list[str]]:
        """Return the affected stages by study."""
        found: dict[str, list[str]] = {}
        for made in trace_site(self.home, site, cohort_version=version).made:
            found.setdefault(made.study, []).append(f"{made.stage} {made.round}")
        return found


@pytest.fixture
def coordinator(tmp_path: Path, releases: ReleaseFactory) -> Coordinator:
    return Coordinator(tmp_path / "home", releases)


EVERYTHING = [
    *("codec 0", "codec 1", "latents 0", "reid 0", "calibration 0", "teacher 0", "teacher 1"),
    *("candidates 0", "student 0", "samples 0", "synthesis 0", "bundle 0"),
]


def test_every_study_of_the_site_is_listed_and_no_other(coordinator: Coordinator) -> None:
    coordinator.run("first")
    coordinator.run("second", ("harbour", "valley"))
    coordinator.run("third")
    assert coordinator.stages("north") == {"first@1": EVERYTHING, "third@1": EVERYTHING}
    assert set(coordinator.stages("valley")) == {"first@1", "second@1", "third@1"}
    assert coordinator.stages("stranger") == {}
    made = trace_site(coordinator.home, "north").made
    kinds = ["codec"] * 3 + ["patient encoder", "filter"] + ["teacher"] * 2
    kinds += ["candidates", "student", "samples", "samples", "release"]
    assert [m.kind for m in made[: len(kinds)]] == kinds
    assert [str(r) for r in trace_site(coordinator.home, "north").to_recall] == [
        "first@1",
        "third@1",
    ]


def test_only_what_used_the_version_is_listed(coordinator: Coordinator) -> None:
    coordinator.run("first")
    coordinator.run("second", versions={"north": version_of("north", 2)})
    assert set(coordinator.stages("north", version_of("north"))) == {"first@1"}
    assert set(coordinator.stages("north", version_of("north", 2))) == {"second@1"}
    assert coordinator.stages("north", version_of("north", 3)) == {}
    assert coordinator.stages("harbour", version_of("north")) == {}
    lineage = trace_site(coordinator.home, "north")
    assert lineage.versions == (version_of("north"), version_of("north", 2))


def test_answer_tells_its_version_before_the_consent_does(coordinator: Coordinator) -> None:
    # The site consented again in the midst of the study, with another version.
    newer = version_of("north", 2)
    coordinator.run("first", answered={"teacher": newer, "calibration": newer})
    listed = coordinator.stages("north", newer)["first@1"]
    before = {"codec", "latents", "reid"}
    assert listed == [stage for stage in EVERYTHING if stage.split()[0] not in before]


def test_what_came_before_the_site_is_not_listed(coordinator: Coordinator) -> None:
    away = {"codec 0", "codec 1", "latents 0", "reid 0", "calibration 0", "teacher 0"}
    coordinator.run("first", absent={stage: {"north"} for stage in away})
    listed = coordinator.stages("north")["first@1"]
    assert listed == ["teacher 1", *EVERYTHING[EVERYTHING.index("candidates 0") :]]
    made = {m.stage: m.directly for m in trace_site(coordinator.home, "north").made}
    assert made == {"teacher": True, **dict.fromkeys(("candidates", "student"), False),
                    "samples": False, "synthesis": False, "bundle": False}  # fmt: skip


def test_site_that_only_judged_is_in_the_student_and_not_in_the_teacher(
    coordinator: Coordinator,
) -> None:
    away = {f"{stage} {n}" for stage in TRAINED for n in (0, 1)}
    coordinator.run("first", absent={stage: {"north"} for stage in away})
    listed = coordinator.stages("north")["first@1"]
    assert listed == ["calibration 0", "student 0", "samples 0", "synthesis 0", "bundle 0"]


def test_consent_canary_and_signature_alone_make_nothing(coordinator: Coordinator) -> None:
    rest = {f"{stage} {n}" for stage in (*TRAINED, *JUDGED) for n in (0, 1)}
    coordinator.run("first", absent={stage: {"north"} for stage in rest})
    assert coordinator.stages("north") == {}


def test_site_that_left_the_roster_is_still_in_what_was_kept_of_it(
    coordinator: Coordinator,
) -> None:
    coordinator.run("first", roster="one", publish=False, stages=ORDER[:8])
    (one, *_) = {r.details["roster"] for r in coordinator.ledger.history(digest_bytes(b"first"))}
    coordinator.run(
        "first", ("harbour", "valley"), roster="two", stages=("consent", *ORDER[5:6], *ORDER[8:])
    )
    history = coordinator.ledger.history(digest_bytes(b"first"))
    two = history[-1].details["roster"]
    for record in history:
        if record.details["roster"] == one and record.key.stage in TRAINED:
            assert record.output is not None
            document = dict(coordinator.objects.get_json(record.output))
            details = {**record.details, "roster": two, "kept_from": one}
            key = (record.key.protocol, record.key.stage, record.key.round)
            coordinator.write(*key, document, details, record.participants)
    lineage = trace_site(coordinator.home, "north", cohort_version=version_of("north"))
    released = [m for m in lineage.made if m.kind == "release"]
    assert [(m.study, m.state, m.roster) for m in released] == [("first@1", "published", two)]
    assert trace_site(coordinator.home, "north", cohort_version=version_of("north", 2)).made == ()


def test_stage_that_nobody_knows_comes_of_everything_before(coordinator: Coordinator) -> None:
    coordinator.run("first", stages=(*ORDER, "unheard"))
    away = {f"{stage} {n}" for stage in ASKED for n in (0, 1)}
    coordinator.run("second", absent={s: {"north"} for s in away}, stages=(*ORDER, "unheard"))
    assert coordinator.stages("north") == {"first@1": [*EVERYTHING, "unheard 0"]}


def test_answer_whose_version_is_not_known_counts_for_every_version(
    coordinator: Coordinator,
) -> None:
    coordinator.run("first", stages=ORDER[1:])
    assert set(coordinator.stages("north", version_of("north", 9))) == {"first@1"}
    assert trace_site(coordinator.home, "north").versions == ()


def test_damaged_document_hides_nothing(coordinator: Coordinator) -> None:
    coordinator.run("first")
    for path in (coordinator.home / "objects").rglob("*"):
        if path.is_file():
            path.write_bytes(b"damaged")
    lineage = trace_site(coordinator.home, "north", cohort_version=version_of("north", 9))
    assert [f"{m.stage} {m.round}" for m in lineage.made] == EVERYTHING


def test_folder_without_a_ledger_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no home of a coordinator"):
        trace_site(tmp_path, "north")


# The commands


def run(*words: str | Path) -> int:
    return cli.run([str(word) for word in words])


def test_affected_tells_what_to_recall(
    coordinator: Coordinator, capsys: pytest.CaptureFixture[str]
) -> None:
    coordinator.run("first")
    coordinator.run("second", ("harbour", "valley"))
    ask = ("study", "affected", "--home", coordinator.home, "--site", "north")
    assert run(*ask) == 0
    said = capsys.readouterr()
    assert "first@1, protocol" in said.out
    assert "second@1" not in said.out
    assert said.err == "To recall: first@1\n"
    assert run(*ask, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["to_recall"] == ["first@1"]
    assert document["known_versions"] == [version_of("north")]
    assert {made["stage"] for made in document["affected"]} <= set(COMES_OF)
    assert run(*ask, "--cohort-version", version_of("north", 2)) == 0
    said = capsys.readouterr()
    assert (said.out, version_of("north") in said.err) == ("", True)
    assert run(*ask, "--cohort-version", "v1") == 2
    assert "names no version of a cohort" in capsys.readouterr().err
    assert run(*ask[:-1], "nobody") == 0
    assert capsys.readouterr().err == "Nothing was made with scans of nobody.\n"


def recall(coordinator: Coordinator, *more: str) -> int:
    words = ("--home", coordinator.home, "--reason", "a site withdrew")
    return run("release", "recall", "--affected-by", "north", *words, *more)


def test_recall_of_what_is_affected_blocks_its_download_and_no_other(
    coordinator: Coordinator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coordinator.run("first")
    coordinator.run("second", ("harbour", "valley"))
    coordinator.run("third")
    assert pull(coordinator, "first@1", tmp_path / "before") == 0
    capsys.readouterr()
    assert recall(coordinator) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        "first@1 would be recalled: a site withdrew",
        "third@1 would be recalled: a site withdrew",
    ]
    assert "add --yes" in said.err
    assert recall(coordinator, "--yes", "--dry-run") == 0
    capsys.readouterr()
    assert list(coordinator.home.rglob("RECALLED.json")) == []
    assert recall(coordinator, "--yes", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["releases"], document["published"]) == (["first@1", "third@1"], True)
    for name in ("first@1", "third@1"):
        assert pull(coordinator, name, tmp_path / name) == VerificationError.exit_code
        assert "a site withdrew" in capsys.readouterr().err
        assert not (tmp_path / name).exists()
    assert pull(coordinator, "second@1", tmp_path / "second") == 0
    capsys.readouterr()
    states = {m.study: m.state for m in trace_site(coordinator.home, "north").made}
    assert states == {"first@1": "recalled", "third@1": "recalled"}
    assert recall(coordinator, "--yes") == 0, "nothing is left to recall"
    assert "no published release" in capsys.readouterr().out


def test_all_is_recalled_before_mlflow_is_told(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Path) -> None:
        raise StorageError("the MLflow store cannot be opened")

    coordinator.run("first")
    coordinator.run("second")
    (coordinator.home / "mlflow").mkdir()
    monkeypatch.setattr("vitrael.server.registry.Registry.open", broken)
    assert recall(coordinator, "--yes") == 1
    assert len(list(coordinator.home.rglob("RECALLED.json"))) == 2


def pull(coordinator: Coordinator, name: str, to: Path) -> int:
    home = coordinator.home
    return run(
        "pull", name, "--from", home / "catalogue", "--trust", home / "trust.json", "--to", to
    )


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("first@1", "--affected-by", "north"),
        ("first@1", "--cohort-version", version_of("north")),
    ],
)
def test_recall_of_nothing_or_of_two_things_is_a_usage_error(
    words: tuple[str, ...], coordinator: Coordinator, capsys: pytest.CaptureFixture[str]
) -> None:
    coordinator.run("first")
    rest = ("--home", coordinator.home, "--reason", "a site withdrew", "--yes")
    assert run("release", "recall", *words, *rest) == 2
    assert "it is not clear what to recall" in capsys.readouterr().err
    assert list(coordinator.home.rglob("RECALLED.json")) == []
