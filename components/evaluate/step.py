"""Evaluate: champion, challenger and anchor on the old and the new holdout, in one pod."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass

from components.core.contracts import Evaluation
from components.core.datasets import PixelCache
from components.core.errors import BrokenModel, IntegrityError
from components.core.plans import Decision
from components.core.registry import Registry
from components.core.rematches import Rematch, judgement_name
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


@dataclass(frozen=True, kw_only=True)
class Match:
    """Whom the challenger is compared with, on which old windows, and the name that it is filed under."""

    name: str
    champion: str | None
    old_windows: tuple[str, ...]


def run(
    config_path: str, run_id: str, window: str, challenger: str, rung: int, rematch: Rematch | None = None
) -> tuple[Evaluation, str]:
    """Score the models on the holdouts of the champion's windows and of this window.

    Args:
        config_path: The configuration file.
        run_id: The run.
        window: Id of the window.
        challenger: Its version.
        rung: Which attempt of the plan, from 1.
        rematch: The champion to compare with, where it is not the plan's any more; the old holdout is then that of its
            windows.

    Returns:
        The scores, and their page as HTML. Both are of the run record: a step that is run again hands out what is
        filed.

    Raises:
        BrokenModel: A model's answers are none.
        IntegrityError: Files of the champion or the challenger, or images, are not what was written.
    """
    record = open_run(config_path, run_id)
    match = _match(record, window, rung, rematch)
    work = functools.partial(_evaluate, record, window, challenger, match)
    evaluation = perform(f"evaluate-{match.name}", record, Evaluation, work)
    return evaluation, record.store.get(record.key(PAGE.format(match.name))).decode()


def _match(record: Run, window: str, rung: int, rematch: Rematch | None) -> Match:
    """The plan's champion on the plan's windows; in a rematch the new one on all of its own but the current one."""
    if rematch is None:
        plan = record.need("decide", Decision)
        return Match(name=judgement_name(rung), champion=plan.champion, old_windows=plan.old_windows)
    known: tuple[str, ...] = ()
    if rematch.champion:
        known = Registry(record.store, record.config.model).lineage(rematch.champion).windows
    return Match(
        name=judgement_name(rung, rematch.number),
        champion=rematch.champion,
        old_windows=tuple(name for name in known if name != window),
    )


def _evaluate(record: Run, window_id: str, version: str, match: Match) -> Evaluation:
    config, registry = record.config, Registry(record.store, record.config.model)
    challenger = load_version(registry, version)
    champion = load_version(registry, match.champion) if match.champion else None
    windows = [Window.open(record.store, config.dataset, w) for w in (*match.old_windows, window_id)]
    columns = tuple(dict.fromkeys((*ROW_COLUMNS, *SLICE_COLUMNS, *config.evaluation.slices)))
    # In a rematch the champion may know a class that came in after the challenger was planned: its rows count.
    classes = tuple(dict.fromkeys((*(champion.spec.classes if champion else ()), *challenger.spec.classes)))
    rows = read_holdout(windows[:-1], windows[-1], classes, columns)
    panel = Panel(windows, rows, classes, PixelCache(config.store), config.evaluation.batch_size)
    anchor, anchor_windows = _ask_anchor(registry, match.champion, panel)
    answers = Answers(
        rows=rows,
        classes=classes,
        challenger=panel.ask(version, challenger),
        champion=panel.ask(match.champion, champion) if match.champion and champion else None,
        anchor=anchor,
    )
    *champion_cost, challenger_cost = measure_costs(
        [model for model in (champion, challenger) if model], config.evaluation.latency_repeats
    )
    evaluation = Evaluation(
        champion=match.champion,
        challenger=version,
        old=measure_holdout(answers.of("old"), config.evaluation) if match.old_windows else None,
        new=measure_holdout(answers.of("new"), config.evaluation),
        anchor=measure_anchor(answers, anchor_windows),
        champion_cost=champion_cost[0] if champion_cost else None,
        challenger_cost=challenger_cost,
        answers=record.key(ANSWERS.format(match.name)),
        sample=sample_rows(rows),
    )
    # Before the record: where that stands, these do.
    record.store.put(record.key(ANSWERS.format(match.name)), to_parquet(answers.table()))
    record.store.put(record.key(PAGE.format(match.name)), draw_page(evaluation, answers, anchor_windows).encode())
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
