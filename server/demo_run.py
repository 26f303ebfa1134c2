"""The running part of ``vitrael demo``: rehearse, record in MLflow, say what came of it."""

from __future__ import annotations

import json
import math
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrael.core.data.phantoms.echo_sites import TABLE
from vitrael.core.errors import EXIT_OK, EXIT_PARTIAL
from vitrael.core.messages import IN_VOTES, STAGES, stages_of
from vitrael.core.protocols import MOST_VOTES, ExpertsProtocol
from vitrael.core.study import Study
from vitrael.privacy.release.manifest import RECALLED
from vitrael.server.demo import HOSPITALS, PREPARED
from vitrael.server.demo_pooled import compare_pooled
from vitrael.server.federation import flower_home
from vitrael.server.federation.exchange import ABSENT_S
from vitrael.server.federation.layout import RehearsalLayout
from vitrael.server.progress import Progress
from vitrael.server.registry import Registry, ui_command, ui_page
from vitrael.server.rehearsal import rehearse
from vitrael.server.studies.recording import Recorder
from vitrael.server.studies.tables import read_comparison, show_whole

_BY_ROUNDS = frozenset({"codec", "reid", "teacher"})
"""Stages of rounds that the protocol counts; the others ask each site once."""
_STARTING_S = 600.0
_FUSION_S = 600.0
"""What the coordinator itself does in a study of experts: a hundred times what was measured."""
_VOXELS_A_SECOND = 50_000
"""What the coordinator brings through a network at least: a fortieth of what was measured."""


@dataclass(frozen=True, slots=True)
class DemoOutcome:
    """What came of a demo, for people and for programs."""

    document: dict[str, Any]
    text: str


def run_demo(layout: RehearsalLayout, study: Study, *, began: float) -> tuple[DemoOutcome, int]:
    """Run what is left of a prepared home's study; return its outcome and the exit code.

    ``began`` is the moment, by ``time.monotonic``, from which its seconds are counted. 7 stands
    for a study that would end with 0 and had to leave unreadable scans out.
    """
    home = layout.home
    experts = isinstance(study.protocol, ExpertsProtocol)
    progress = Progress(sites=len(study.roster.sites), experts=experts, began=began)
    code = rehearse(layout, on_event=progress.follow, timeout_s=longest_run_s(study))
    Recorder(home).catch_up()
    document = json.loads((home / "outcome.json").read_bytes())
    experiment = Registry.open(home).experiment(study.protocol.name, study.digest)
    commands = {**_commands(home, document), "mlflow_page": ui_page(experiment)}
    seconds = round(time.monotonic() - began)
    release = document.get("release")
    recalled = {} if release is None else {"recalled": _is_recalled(home, release)}
    outcome = {**document, "home": str(home), "seconds": seconds, **recalled, **commands}
    if experts and code in {EXIT_OK, EXIT_PARTIAL}:
        progress.say("training one network on all phantom pictures, which only a demo can")
        outcome["pooled"] = _compare_pooled(layout, study)
    if code == EXIT_OK and _unreadable(home):
        code = EXIT_PARTIAL
    return DemoOutcome(outcome, _tell(outcome, study)), code


def longest_run_s(study: Study) -> float:
    """Return the seconds after which a run of a study hangs: no patience of ours is longer.

    Each exchange may take its deadline, and the wait for a site before it; all rounds of a
    screening together bring at most as many images as four of the first. The coordinator trains the
    student and draws candidates and samples; where arms are compared, once more for these.
    """
    if isinstance(study.protocol, ExpertsProtocol):
        return _longest_experts_s(study, study.protocol)
    protocol, generator = study.synthesis, study.synthesis.generator
    exchanges = len({*stages_of(protocol)} - _BY_ROUNDS)
    exchanges += sum(config.rounds for config in protocol.trained.values())
    exchanges += len(IN_VOTES) * (MOST_VOTES - 1)
    most = protocol.distillation.most_votes
    images = (
        generator.student.training.length_images
        + most["screening"] * generator.teacher.sampling_steps
        + most["rescreening"] * generator.student.sampling_steps
    )
    if compared := protocol.distillation.compared:
        steps = generator.teacher.sampling_steps + 2 * generator.student.sampling_steps
        images += generator.student.training.length_images + compared * steps
    own_s = images * math.prod(protocol.data.grid_vox) / _VOXELS_A_SECOND
    return _STARTING_S + exchanges * (protocol.federation.deadline_s + ABSENT_S) + own_s


def _longest_experts_s(study: Study, protocol: ExpertsProtocol) -> float:
    rounds = protocol.rounds(sites=len(study.roster.sites))
    exchanges = len(STAGES["experts"]) + sum(rounds.values())
    return _STARTING_S + exchanges * (protocol.federation.deadline_s + ABSENT_S) + _FUSION_S


def program() -> str:
    """Return the command of this installation with its path: its folder may be on no PATH."""
    return flower_home.program("vitrael")


def _unreadable(home: Path) -> int:
    """Return how many scans were left out, at the parting or the intake: nobody could use them."""
    note = json.loads((home / PREPARED).read_bytes())
    own = (int(site["unreadable"]) for site in note["scans"].values())
    return int(note.get("unparted", 0)) + sum(own)


def _is_recalled(home: Path, release: str) -> bool:
    """Return whether the catalogue holds a recall: a finished demo may be run again later."""
    return (home / "catalogue" / release.replace("@", "/") / RECALLED).exists()


def _commands(home: Path, document: dict[str, Any]) -> dict[str, str]:
    commands = {"mlflow": ui_command(home)}
    if "panel" in document:
        commands["predict"] = shlex.join([program(), "model", "predict", document["panel"], "FILE"])
    elif document["outcome"] == "pass":
        name, _, version = document["release"].partition("@")
        trust = ["--trust", str(home / "trust.json")]
        target = str(home / f"pulled-{name}-{version}")
        source = ["--from", str(home / "catalogue")]
        pull = [program(), "pull", document["release"], *source, *trust, "--to", target]
        commands["pull"] = shlex.join(pull)
        commands["verify"] = shlex.join([program(), "verify", target, *trust])
        commands["load"] = f"from vitrael.client.researcher import load; load({target!r})"
    return commands


def _compare_pooled(layout: RehearsalLayout, study: Study) -> dict[str, Any] | None:
    """Return what one network does that has all phantom pictures; None for other pictures."""
    folders = {site: layout.home / HOSPITALS / site for site in study.roster.sites}
    if not all((folder / TABLE).is_file() for folder in folders.values()):
        return None
    return compare_pooled(folders, study)


def _tell_experts(outcome: dict[str, Any]) -> str:
    home = Path(outcome["home"])
    comparison = read_comparison(home)
    if outcome.get("pooled"):
        comparison["table"] = [*comparison["table"], outcome["pooled"]]
    lines = ["", *show_whole(comparison), ""]
    if outcome["status"] == "partial":
        lines.append(f"A site was absent from a round: {outcome['sentence']}")
    lines += [f"Report:   {outcome['report']}", f"Panel:    {outcome['panel']}"]
    lines += [f"Predict:  {outcome['predict']}"]
    lines += [f"MLflow:   {outcome['mlflow']}", f"          and then {outcome['mlflow_page']}"]
    return "\n".join(lines)


def _tell(outcome: dict[str, Any], study: Study) -> str:
    if "panel" in outcome:
        return _tell_experts(outcome)
    lines = [""]
    if outcome["outcome"] == "pass":
        volumes = study.synthesis.distillation.released
        sites = len(study.roster.sites)
        mark = "" if outcome["publishable"] else " A rehearsal: not for publication."
        lines.append(
            f"Released {outcome['release']}: {volumes} synthetic volumes, "
            f"signed by {sites} of {sites} sites.{mark}"
        )
        if outcome["recalled"]:
            lines.append("It was recalled since: pull and verify refuse it.")
    else:
        lines.append(f"Refused under the policy {outcome['policy']}. Nothing may be published.")
        if outcome["unscreened"]:
            lines.append(f"The {outcome['unscreened']} candidates and samples are unscreened.")
        marks = {"refused": "refused", "not estimable": "could not be estimated"}
        lines += [
            f"  {marks[kind]}: {sentence}"
            for kind, sentence in outcome["findings"]
            if kind in marks
        ]
    if outcome.get("status") == "partial":
        lines.append(f"A site was absent from a round: {outcome['sentence']}")
    lines += ["", f"Report:   {outcome['report']}", f"MLflow:   {outcome['mlflow']}"]
    lines.append(f"          and then {outcome['mlflow_page']}")
    if "pull" in outcome:
        lines += [f"Download: {outcome['pull']}", f"Verify:   {outcome['verify']}"]
        lines.append(f"Load:     {outcome['load']}")
    return "\n".join(lines)
