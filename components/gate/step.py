"""Gate: read the evaluation and how often its rows were looked at, judge it, file the verdict."""

from __future__ import annotations

from components.core.contracts import Evaluation, Verdict
from components.core.plans import Decision
from components.core.rematches import Rematch, judgement_name
from components.core.runs import Run, open_run, perform
from components.gate.figures import list_figures
from components.gate.judgement import judge
from components.gate.looks import count_looks, forget_failure, note_look


def run(config_path: str, run_id: str, rung: int, rematch: Rematch | None = None) -> Verdict:
    """Judge attempt number `rung` of a run. A challenger that fails is a verdict, not an error.

    Args:
        config_path: The configuration file.
        run_id: The run.
        rung: Which attempt of the plan, from 1.
        rematch: The judgement to make where it is not the first of the attempt: it has no rung to escalate to.
    """
    record, number = open_run(config_path, run_id), rematch.number if rematch else 0
    return perform(f"gate-{judgement_name(rung, number)}", record, Verdict, lambda: _judge(record, rung, number))


def figures(config_path: str, run_id: str, rung: int, verdict: Verdict) -> dict[str, float]:
    """What the first judgement of an attempt rests on, by name; see `list_figures`."""
    return list_figures(verdict, open_run(config_path, run_id).need(f"evaluate-{rung}", Evaluation))


def _judge(record: Run, rung: int, rematch: int) -> Verdict:
    config, evaluation = record.config, record.need(f"evaluate-{judgement_name(rung, rematch)}", Evaluation)
    rungs = rung if rematch else len(record.need("decide", Decision).rungs)
    note_look(record, evaluation, rematch)
    verdict = judge(
        evaluation,
        config.gate,
        higher_rung_left=rung < rungs,
        looks=count_looks(record, evaluation, max(rung, rungs), rematch),
        holdout_fraction=config.ingest.holdout_fraction,
    )
    if (rung, rematch, verdict.verdict) == (1, 0, "promote"):
        forget_failure(record)
    return verdict
