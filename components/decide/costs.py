"""What a training will take, from what trainings have taken. Values in, values out.

A training's work is counted in pixels that pass through the network once, in millions; how long a million takes is
learnt from the run records: per strategy where it has run on this device, else from all of them. Not covered: pods that
wait for a node.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from components.core.config import TrainingConfig
from components.core.plans import PastTraining
from components.core.recipes import Recipe, StrategyName

TRAINED = 3.0  # a step is one forward pass and about two of them backward
HALF_TRAINED = 1.7  # the gradient stops at the last stage
ON_FEATURES = 0.02  # a step of the head alone
FIRST_PASS = 1.0
FISHER_PASS = 4.0  # one gradient for each row, which batches badly
RECENT = 5  # trainings of a strategy that count: machines and settings change


def training_work(recipe: Recipe, rows: int, training: TrainingConfig) -> float:
    """Work of a training, in millions of pixels that pass through the network once, forward.

    Args:
        recipe: What is trained, and for how long; with its search.
        rows: Training rows, replayed ones included.
        training: The image size, and how many rows Fisher information is computed of.
    """
    passes = rows * recipe.epochs * _cost_of_a_row(recipe)
    if recipe.layers == "head":
        passes += rows * FIRST_PASS
    if recipe.lwf:
        passes += rows * FIRST_PASS
    if recipe.ewc:
        passes += training.fisher_rows * FISHER_PASS
    if recipe.start == "meta":
        meta = recipe.meta
        inner = meta.shots * (meta.inner_steps if meta.algorithm != "anil" else 1)
        passes += meta.steps * meta.meta_batch * meta.ways * (inner + meta.queries) * TRAINED
    search = recipe.search
    passes += search.trials * min(search.rows, rows) * search.epochs * _cost_of_a_row(recipe)
    return passes * training.image_size**2 / 1e6


def training_seconds(
    strategy: StrategyName,
    work: float,
    trainings: Sequence[PastTraining],
    device: str | None,
    *,
    architecture: str,
) -> float | None:
    """Expected seconds of a training step, or None where nothing was trained with this network on the device yet.

    Args:
        strategy: Its own trainings count alone, once there are any: a constant error of `training_work` cancels.
        work: See `training_work`.
        trainings: Of the past, the latest last.
        device: On which it will run.
        architecture: Of the network.
    """
    here = [past for past in trainings if (past.device, past.architecture) == (device, architecture) and past.work > 0]
    if not here:
        return None
    own = [past for past in here if past.strategy == strategy]
    rate = median(past.seconds / past.work for past in (own or here)[-RECENT:])
    return work * rate + median(past.other_seconds for past in here[-RECENT:])


def _cost_of_a_row(recipe: Recipe) -> float:
    """Work of one row in one epoch."""
    if recipe.layers == "head":
        return ON_FEATURES
    return TRAINED if recipe.layers == "all" else HALF_TRAINED
