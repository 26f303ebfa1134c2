"""What sites measured of what they tell: checked when it comes, and laid out for the report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from vitrael.server.report.experts import RISKS, RiskRow


def check_risk(body: Mapping[str, Any]) -> None:
    """Raise ValueError for what no report could show."""
    metrics, counts = body.get("metrics", {}), body.get("counts", {})
    known = {f"{name}{suffix}" for name in RISKS for suffix in ("", ".low", ".high", ".n")}
    whole = (
        isinstance(metrics, Mapping)
        and isinstance(counts, Mapping)
        and not {*metrics, *counts} - known
        and all(type(v) in (int, float) and math.isfinite(v) for v in metrics.values())
        and all(type(n) is int and n >= 0 for n in counts.values())
        and isinstance(body.get("reason", ""), str)
    )
    if not whole:
        msg = "what is told of risks is no measurement of them"
        raise ValueError(msg)


def lay_out_risks(site: str, told: Iterable[Mapping[str, Any]]) -> list[RiskRow]:
    """Return the rows of a site, those of each set of experts together."""
    return [
        RiskRow(
            site=site,
            experts=tuple(each.get("experts", ())),
            name=name,
            what=what,
            value=each["metrics"][name],
            low=each["metrics"].get(f"{name}.low"),
            high=each["metrics"].get(f"{name}.high"),
            n=int(each.get("counts", {}).get(f"{name}.n", 0)),
        )
        for each in told
        for name, what in RISKS.items()
        if name in each.get("metrics", {})
    ]


def find_unmeasured(told: Iterable[Mapping[str, Any]]) -> str:
    """Return why nothing was measured at a site, or nothing where something was."""
    bodies = list(told)
    if any(each.get("metrics") for each in bodies):
        return ""
    reasons = {str(each.get("reason") or "nothing was told of it") for each in bodies}
    return "; ".join(sorted(reasons)) or "nothing was told of it"
