"""Gate: read the evaluation and how often its rows were looked at, judge it, file the verdict."""

from __future__ import annotations

from components.core.contracts import Evaluation, Verdict
from components.core.plans import Decision
from components.core.runs import Run, open_run, perform
from components.gate.judgement import judge
from components.gate.looks import count_looks, note_look


def run(config_path: str, run_id: str, rung: int) -> Verdict:
    """Judge attempt number `rung` of a run. A challenger that fails is a verdict, not an error."""
    record = open_run(config_path, run_id)
    return perform(f"gate-{rung}", record, Verdict, lambda: _judge(record, rung))


def _judge(record: Run, rung: int) -> Verdict:
    config, evaluation = record.config, record.need(f"evaluate-{rung}", Evaluation)
    rungs = len(record.need("decide", Decision).rungs)
    note_look(record, evaluation, passed=False)
    verdict = judge(
        evaluation,
        config.gate,
        higher_rung_left=rung < rungs,
        looks=count_looks(record, evaluation, max(rung, rungs)),
        holdout_fraction=config.ingest.holdout_fraction,
    )
    if rung == 1 and verdict.verdict == "promote":
        note_look(record, evaluation, passed=True)
    return verdict
