"""What a training will take, from what trainings have taken. Values in, values out.

A training's work is counted in forward passes of one image at the configured size; how long one takes is learnt from
the run records: per strategy where it has run on this device, else from all of them. Not covered: pods that wait for a
node.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from components.core.plans import PastTraining
from components.core.recipes import Recipe, StrategyName

TRAINED = 3.0  # a step is one forward pass and about two of them backward
HALF_TRAINED = 1.7  # the gradient stops at the last stage
ON_FEATURES = 0.02  # a step of the head alone
FIRST_PASS = 1.0
FISHER_PASS = 4.0  # one gradient for each row, which batches badly
RECENT = 5  # trainings of a strategy that count: machines and settings change


def training_work(recipe: Recipe, rows: int, fisher_rows: int) -> float:
    """Work of a training, in forward passes of one image.

    Args:
        recipe: What is trained, and for how long; with its search.
        rows: Training rows, replayed ones included.
        fisher_rows: Of which the Fisher information is computed, where the recipe needs it.
    """
    work = rows * recipe.epochs * _cost_of_a_row(recipe)
    if recipe.layers == "head":
        work += rows * FIRST_PASS
    if recipe.lwf:
        work += rows * FIRST_PASS
    if recipe.ewc:
        work += fisher_rows * FISHER_PASS
    if recipe.start == "meta":
        meta = recipe.meta
        inner = meta.shots * (meta.inner_steps if meta.algorithm != "anil" else 1)
        work += meta.steps * meta.meta_batch * meta.ways * (inner + meta.queries) * TRAINED
    search = recipe.search
    return work + search.trials * min(search.rows, rows) * search.epochs * _cost_of_a_row(recipe)


def training_seconds(
    strategy: StrategyName, work: float, trainings: Sequence[PastTraining], device: str | None
) -> float | None:
    """Expected seconds of a training, or None where nothing was trained on the device yet.

    Args:
        strategy: Its own trainings count alone, once there are any: a constant error of `training_work` cancels.
        work: See `training_work`.
        trainings: Of the past, the latest last.
        device: On which it will run.
    """
    here = [past for past in trainings if past.device == device and past.work > 0]
    own = [past for past in here if past.strategy == strategy]
    rates = [past.seconds / past.work for past in (own or here)[-RECENT:]]
    return work * median(rates) if rates else None


def _cost_of_a_row(recipe: Recipe) -> float:
    """Work of one row in one epoch."""
    if recipe.layers == "head":
        return ON_FEATURES
    return TRAINED if recipe.layers == "all" else HALF_TRAINED
