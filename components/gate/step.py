"""Gate: read the evaluation, judge it, file the verdict."""

from __future__ import annotations

from components.core.contracts import Evaluation, Verdict
from components.core.plans import Decision
from components.core.runs import Run, open_run, perform
from components.gate.checks import judge


def run(config_path: str, run_id: str, rung: int) -> Verdict:
    """Judge attempt number `rung` of a run. A challenger that fails is a verdict, not an error."""
    record = open_run(config_path, run_id)
    return perform(f"gate-{rung}", record, Verdict, lambda: _judge(record, rung))


def _judge(record: Run, rung: int) -> Verdict:
    evaluation = record.need(f"evaluate-{rung}", Evaluation)
    rungs = record.need("decide", Decision).rungs
    return judge(evaluation, record.config.gate, higher_rung_left=rung < len(rungs))
