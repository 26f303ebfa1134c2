"""Tables of a study of experts, as plain lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitrael.core.errors import StudyError
from vitrael.core.study import Study, load_study
from vitrael.server.db.engine import open_database
from vitrael.server.objects import ObjectStore
from vitrael.server.studies.ledger import Ledger


def read_comparison(home: Path) -> dict[str, Any]:
    """Return what the study of a home has compared last: ``table``, ``sites`` and ``experts``.

    Table and sites are empty where the experts of the panel are not those that were compared.
    Raises StudyError where the home's study is of no experts or has compared nothing yet.
    """
    study = load_study(home / "study.toml")
    _ = study.experts  # another study has none, and says so
    engine = open_database(home / "server.sqlite")
    try:
        history = Ledger(engine).history(study.protocol.digest)
    finally:
        engine.dispose()
    done = [r.output for r in history if (r.key.stage, r.status) == ("comparison", "finished")]
    if not done or done[-1] is None:
        raise StudyError(
            f"the study {study.protocol.name} has compared nothing yet",
            fix="see vitrael server status: how far it is, or why it ended",
        )
    objects = ObjectStore(home / "objects")
    document = objects.get_json(done[-1])
    panels = [r.output for r in history if (r.key.stage, r.status) == ("panel", "finished")]
    if panels and panels[-1] and objects.get_json(panels[-1])["experts"] != document["experts"]:
        document = {**document, "table": [], "sites": {}}
    return {**document, "sites": _in_order(document["sites"], study)}


def _in_order(sites: Mapping[str, Any], study: Study) -> dict[str, Any]:
    """Return what is told by site in the order of the roster: stored documents know another."""
    there = [site for site in study.roster.sites if site in sites]
    return {
        site: {
            **sites[site],
            "weights": {
                expert: sites[site]["weights"][expert]
                for expert in study.roster.sites
                if expert in sites[site]["weights"]
            },
        }
        for site in there
    }


def show_whole(comparison: Mapping[str, Any]) -> list[str]:
    """Return the lines of a comparison and, below, whose expert decides at which site."""
    sites = comparison["sites"]
    if not sites:
        return show_comparison(comparison["table"], sites=())
    experts = list(next(iter(sites.values()))["weights"])
    columns = [max(len(name), 5) for name in experts]
    width = max(len("weight of the expert of"), *map(len, sites))
    head = "  ".join(f"{name:>{n}}" for name, n in zip(experts, columns, strict=True))
    lines = [*show_comparison(comparison["table"], sites=tuple(sites)), ""]
    lines.append(f"{'weight of the expert of':<{width}}  {head}")
    for site, told in sites.items():
        each = "  ".join(
            f"{told['weights'][name]:>{n}.3f}" for name, n in zip(experts, columns, strict=True)
        )
        lines.append(f"{'at ' + site:<{width}}  {each}")
    shares = ", ".join(f"{site} {told['heaviest']:.0%}" for site, told in sites.items())
    return [*lines, f"Its own expert weighs most in: {shares}."]


def show_comparison(table: Sequence[Mapping[str, Any]], *, sites: Sequence[str]) -> list[str]:
    """Return the lines of a comparison: a row for each method, a column for each of ``sites``."""
    if not table:
        why = "nobody held them to pictures, or a site counted for others: it counts once a roster"
        return ["There is no table for the experts of the panel.", f"{why}."]
    width = max(len(row["method"]) for row in table)
    columns = [max(len(site), 5) for site in sites]
    head = "  ".join(f"{site:>{n}}" for site, n in zip(sites, columns, strict=True))
    lines = [f"{'':<{width}}  accuracy (95 % interval)   {head}"]
    for row in table:
        low, high = row["interval"]
        each = "  ".join(
            f"{row['sites'][site]:>{n}.3f}" for site, n in zip(sites, columns, strict=True)
        )
        lines.append(
            f"{row['method']:<{width}}  {row['accuracy']:.3f} ({low:.3f} to {high:.3f})     {each}"
        )
    lines.append(f"{table[0]['images']} pictures that nobody has learned from.")
    return lines
