"""Evaluate: champion, challenger and anchor on the old and the new holdout, in one pod."""

from __future__ import annotations

import logging

from components.core.contracts import Evaluation
from components.core.datasets import PixelCache
from components.core.errors import BrokenModel, IntegrityError
from components.core.plans import Decision
from components.core.registry import Registry
from components.core.runs import Run, open_run, perform
from components.core.windows import Window, to_parquet
from components.evaluate.anchor import find_anchor
from components.evaluate.answers import Answers, Said
from components.evaluate.costs import measure_costs
from components.evaluate.loading import load_version
from components.evaluate.measurement import measure_anchor, measure_holdout
from components.evaluate.page import draw_page
from components.evaluate.panel import Panel
from components.evaluate.rows import ROW_COLUMNS, read_holdout, sample_rows
from components.evaluate.slices import SLICE_COLUMNS

logger = logging.getLogger(__name__)
PAGE, ANSWERS = "evaluate-{}.html", "answers-{}.parquet"


def run(config_path: str, run_id: str, window: str, challenger: str, rung: int) -> tuple[Evaluation, str]:
    """Score the models on the holdouts of the champion's windows and of this window.

    Returns:
        The scores, and their page as HTML. Both are of the run record: a step that is run again hands out what is
        filed.

    Raises:
        BrokenModel: A model's answers are none.
        IntegrityError: Files of the champion or the challenger, or images, are not what was written.
    """
    record = open_run(config_path, run_id)
    evaluation = perform(f"evaluate-{rung}", record, Evaluation, lambda: _evaluate(record, window, challenger, rung))
    return evaluation, record.store.get(record.key(PAGE.format(rung))).decode()


def _evaluate(record: Run, window_id: str, version: str, rung: int) -> Evaluation:
    config, decision = record.config, record.need("decide", Decision)
    registry = Registry(record.store, config.model)
    challenger = load_version(registry, version)
    champion = load_version(registry, decision.champion) if decision.champion else None
    windows = [Window.open(record.store, config.dataset, w) for w in (*decision.old_windows, window_id)]
    columns = tuple(dict.fromkeys((*ROW_COLUMNS, *SLICE_COLUMNS, *config.evaluation.slices)))
    rows = read_holdout(windows[:-1], windows[-1], challenger.spec.classes, columns)
    panel = Panel(windows, rows, challenger.spec.classes, PixelCache(config.store), config.evaluation.batch_size)
    anchor, anchor_windows = _ask_anchor(registry, decision.champion, panel)
    answers = Answers(
        rows=rows,
        classes=challenger.spec.classes,
        challenger=panel.ask(version, challenger),
        champion=panel.ask(decision.champion, champion) if decision.champion and champion else None,
        anchor=anchor,
    )
    *champion_cost, challenger_cost = measure_costs(
        [model for model in (champion, challenger) if model], config.evaluation.latency_repeats
    )
    evaluation = Evaluation(
        champion=decision.champion,
        challenger=version,
        old=measure_holdout(answers.of("old"), config.evaluation) if decision.old_windows else None,
        new=measure_holdout(answers.of("new"), config.evaluation),
        anchor=measure_anchor(answers, anchor_windows),
        champion_cost=champion_cost[0] if champion_cost else None,
        challenger_cost=challenger_cost,
        answers=record.key(ANSWERS.format(rung)),
        sample=sample_rows(rows),
    )
    # Before the record: where that stands, these do.
    record.store.put(record.key(ANSWERS.format(rung)), to_parquet(answers.table()))
    record.store.put(record.key(PAGE.format(rung)), draw_page(evaluation, answers, anchor_windows).encode())
    return evaluation


def _ask_anchor(registry: Registry, champion: str | None, panel: Panel) -> tuple[Said | None, tuple[str, ...]]:
    """What the anchor says, and the windows it was trained on; None where there is none, or it cannot be asked: what
    is long past must not stop the evaluation of what is new."""
    found = find_anchor(registry, champion) if champion else None
    if found is None:
        return None, ()
    version, lineage = found
    try:
        return panel.ask(version, load_version(registry, version)), lineage.windows
    except (BrokenModel, IntegrityError) as error:
        logger.warning("evaluate: no anchor, %s cannot be asked: %s", version, error.found)
        return None, ()
