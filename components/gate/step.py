"""Gate: read the evaluation and how often its rows were looked at, judge it, file the verdict."""

from __future__ import annotations

import logging

from components.core.config import MAX_RUNGS
from components.core.contracts import Evaluation, Verdict, WindowDocument
from components.core.errors import IntegrityError
from components.core.plans import Decision
from components.core.runs import Run, list_runs, open_run, perform
from components.gate.judgement import judge
from components.gate.levels import Looks

logger = logging.getLogger(__name__)


def run(config_path: str, run_id: str, rung: int) -> Verdict:
    """Judge attempt number `rung` of a run. A challenger that fails is a verdict, not an error."""
    record = open_run(config_path, run_id)
    return perform(f"gate-{rung}", record, Verdict, lambda: _judge(record, rung))


def _judge(record: Run, rung: int) -> Verdict:
    evaluation = record.need(f"evaluate-{rung}", Evaluation)
    rungs = len(record.need("decide", Decision).rungs)
    looks = count_looks(record, evaluation, max(rung, rungs))
    return judge(evaluation, record.config.gate, higher_rung_left=rung < rungs, looks=looks)


def count_looks(record: Run, evaluation: Evaluation, rungs: int) -> Looks:
    """Which other runs of the model were judged on the same window, or against the same anchor.

    A run that cannot be read is left out, with a warning: a damaged record shall not stop every promotion to come.
    """
    model, window = record.config.model, record.need("ingest", WindowDocument).id
    anchor = evaluation.anchor.version if evaluation.anchor else None
    same_window = same_anchor = 0
    for run in list_runs(record.store):
        if run.run_id == record.run_id:
            continue
        try:
            if run.read("gate-1", Verdict) is None or run.parameters.model != model:
                continue  # nothing was judged; asked first, for it is so in most runs
            same_window += _same_window(run, window) and not _passed(run)
            same_anchor += anchor is not None and _anchor_of(run) == anchor
        except IntegrityError as error:
            logger.warning("run %s is not counted among those that looked at these rows: %s", run.run_id, error.found)
    return Looks(rungs=rungs, same_window=same_window, same_anchor=same_anchor)


def _same_window(run: Run, window: str) -> bool:
    ingested = run.read("ingest", WindowDocument)
    return ingested is not None and ingested.id == window


def _passed(run: Run) -> bool:
    """Whether one of the run's attempts passed. Not whether it was promoted: a run that is killed in between is begun
    again, and its challenger must be as welcome as before."""
    verdicts = (run.read(f"gate-{rung}", Verdict) for rung in range(1, MAX_RUNGS + 1))
    return any(verdict is not None and verdict.verdict == "promote" for verdict in verdicts)


def _anchor_of(run: Run) -> str | None:
    evaluation = run.read("evaluate-1", Evaluation)
    return evaluation.anchor.version if evaluation and evaluation.anchor else None
