"""Gate: read the evaluation and how often its rows were looked at, judge it, file the verdict."""

from __future__ import annotations

import logging

from components.core.contracts import Evaluation, Verdict, WindowDocument
from components.core.errors import IntegrityError
from components.core.plans import Decision
from components.core.rematches import Rematch, judgement_name, list_attempts
from components.core.runs import Run, list_runs, open_run, perform
from components.gate.judgement import judge
from components.gate.levels import Looks

logger = logging.getLogger(__name__)


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


def _judge(record: Run, rung: int, rematch: int) -> Verdict:
    evaluation = record.need(f"evaluate-{judgement_name(rung, rematch)}", Evaluation)
    rungs = rung if rematch else len(record.need("decide", Decision).rungs)
    looks = count_looks(record, evaluation, max(rung, rungs), rematch)
    return judge(evaluation, record.config.gate, higher_rung_left=rung < rungs, looks=looks)


def count_looks(record: Run, evaluation: Evaluation, rungs: int, rematch: int = 0) -> Looks:
    """Which other runs of the model were judged on the same window, or against the same anchor.

    A rematch is judged as a run of its own would be that comes after: one attempt, and a look more for each judgement
    before it. A run that cannot be read is left out, with a warning: a damaged record shall not stop every promotion to
    come.
    """
    model, window = record.config.model, record.need("ingest", WindowDocument).id
    anchor = evaluation.anchor.version if evaluation.anchor else None
    same_window = same_anchor = rematch
    for run in list_runs(record.store):
        if run.run_id == record.run_id:
            continue
        try:
            if run.read("gate-1", Verdict) is None or run.parameters.model != model:
                continue  # nothing was judged; asked first, for it is so in most runs
            attempts = list_attempts(run)
            looks = 1 + sum(len(verdicts) - 1 for verdicts in attempts)
            same_window += looks * (_same_window(run, window) and not _passed(attempts))
            same_anchor += looks * (anchor is not None and _anchor_of(run) == anchor)
        except IntegrityError as error:
            logger.warning("run %s is not counted among those that looked at these rows: %s", run.run_id, error.found)
    return Looks(rungs=1 if rematch else rungs, same_window=same_window, same_anchor=same_anchor)


def _same_window(run: Run, window: str) -> bool:
    ingested = run.read("ingest", WindowDocument)
    return ingested is not None and ingested.id == window


def _passed(attempts: list[list[Verdict]]) -> bool:
    """Whether one of a run's attempts passed when it was last judged. Not whether it was promoted: a run that is killed
    in between is begun again, and its challenger must be as welcome as before."""
    return any(verdicts[-1].verdict == "promote" for verdicts in attempts)


def _anchor_of(run: Run) -> str | None:
    evaluation = run.read("evaluate-1", Evaluation)
    return evaluation.anchor.version if evaluation and evaluation.anchor else None
