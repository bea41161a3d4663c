"""The figures of a verdict, by name, for the comparison of runs."""

from __future__ import annotations

from math import isfinite

from components.core.contracts import Evaluation, Verdict


def list_figures(verdict: Verdict, evaluation: Evaluation) -> dict[str, float]:
    """What a verdict rests on.

    Returns:
        Of each check, under its name: `passed` (0 or 1), the measured value, its bound, and the threshold that the
        bound must reach (accuracies and differences of accuracies in [-1, 1], larger is better); the level of the
        attempt; the rows of each holdout, and those on which one of both is right; the images a hold waits for.
    """
    found: dict[str, float | None] = {
        "passed": float(verdict.verdict == "promote"),
        "level": verdict.level,
        "images_to_decide": verdict.images_to_decide,
        "new_rows": evaluation.new.rows,
    }
    for side, scores in (("old", evaluation.old), ("new", evaluation.new)):
        if scores is not None and scores.paired.rows:
            found[f"{side}_compared_rows"] = scores.paired.rows
            found[f"{side}_gained_rows"] = scores.paired.only_challenger_right
            found[f"{side}_lost_rows"] = scores.paired.only_champion_right
    for check in verdict.checks:
        name = check.name.replace(" ", "_")
        found |= {
            f"{name}_passed": float(check.passed),
            f"{name}_value": check.value,
            f"{name}_bound": check.bound,
            f"{name}_threshold": check.threshold,
        }
    return {name: float(value) for name, value in found.items() if value is not None and isfinite(value)}
