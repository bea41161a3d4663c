"""Gate: read the evaluation, judge it, file the verdict."""

from __future__ import annotations

import logging

from components.core.contracts import Evaluation, Outcome, Verdict, WindowDocument
from components.core.errors import IntegrityError
from components.core.plans import Decision
from components.core.runs import Run, list_runs, open_run, perform
from components.gate.judgement import judge

logger = logging.getLogger(__name__)


def run(config_path: str, run_id: str, rung: int) -> Verdict:
    """Judge attempt number `rung` of a run. A challenger that fails is a verdict, not an error."""
    record = open_run(config_path, run_id)
    return perform(f"gate-{rung}", record, Verdict, lambda: _judge(record, rung))


def _judge(record: Run, rung: int) -> Verdict:
    evaluation = record.need(f"evaluate-{rung}", Evaluation)
    rungs = len(record.need("decide", Decision).rungs)
    return judge(
        evaluation,
        record.config.gate,
        higher_rung_left=rung < rungs,
        rungs=max(rung, rungs),
        earlier_runs=count_earlier_runs(record),
    )


def count_earlier_runs(record: Run) -> int:
    """Other runs of the model that were judged on the same window and promoted nothing.

    A run that cannot be read is left out, with a warning: a damaged record shall not stop every promotion to come.
    """
    window = record.need("ingest", WindowDocument).id
    count = 0
    for run in list_runs(record.store):
        if run.run_id == record.run_id:
            continue
        try:
            count += _judged_in_vain(run, record.config.model, window)
        except IntegrityError as error:
            logger.warning("run %s is not counted as a look at this window: %s", run.run_id, error.found)
    return count


def _judged_in_vain(run: Run, model: str, window: str) -> bool:
    if run.read("gate-1", Verdict) is None:  # the first thing to ask: most runs of a store skipped
        return False
    ingested, outcome = run.read("ingest", WindowDocument), run.read("outcome", Outcome)
    promoted = outcome is not None and outcome.outcome == "promoted"
    return run.parameters.model == model and ingested is not None and ingested.id == window and not promoted
