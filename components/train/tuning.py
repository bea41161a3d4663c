"""The recipe of a training after a search for better hyperparameters, where one is asked for: what a trial trains on.

Not covered: what is varied, and which trial wins (`search`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import torch

from components.core.datasets import ImageSet
from components.core.recipes import Recipe
from components.train.checkpoint import Checkpoints
from components.train.interruption import Interruption, Preempted
from components.train.loop import Watch
from components.train.randomness import Purpose, torch_generator
from components.train.rows import choose_rows
from components.train.strategies import Task, train_challenger

logger = logging.getLogger(__name__)
UNEQUAL = 3  # images of the largest class per image of the smallest, from which balancing them is worth a try
VALIDATION_FRACTION = 0.2  # of a trial's rows, where the recipe itself sets none aside


def searched_recipe(task: Task, checkpoints: Checkpoints, interruption: Interruption) -> Recipe:
    """The recipe, after a search for better hyperparameters where one is asked for.

    Trials train on some of the rows, for fewer epochs, and are judged on rows set aside. The search keeps its own
    journal beside the checkpoints, so that one that was cut off goes on.

    Raises:
        Preempted: Told to stop; the trial that ran begins anew.
    """
    recipe = task.recipe
    if not recipe.search.trials:
        return recipe
    from components.train.search import search  # Optuna, which few trainings need

    def evaluate(candidate: Recipe, report: Callable[[int, float], None]) -> float:
        watch = Watch(
            on_epoch=lambda progress: report(len(progress.accuracies), progress.accuracies[-1]),
            stop_asked=lambda: interruption.asked,
        )
        try:
            return max(train_challenger(trial_task(task, candidate), watch=watch).accuracies)
        except Preempted:
            raise Preempted from None  # the step of a trial says nothing of the training's

    trial = trial_task(task, recipe)
    if not len(choose_rows(trial.old, trial.new, trial.recipe.validation_fraction).validation_labels):
        logger.warning("train: no search: too few rows to set some aside")
        return recipe
    counts = torch.cat([task.old.labels, task.new.labels]).bincount()
    found = search(
        recipe,
        evaluate,
        store=checkpoints.store,
        prefix=f"{checkpoints.prefix}/search",
        seed=task.seed,
        unequal_classes=bool(counts.max() > UNEQUAL * counts[counts > 0].min()),
    )
    logger.info("train: %s", found.sentence)
    return found.recipe


def trial_task(task: Task, candidate: Recipe) -> Task:
    """A training of a search: on at most `search.rows` rows, old and new alike, for at most `search.epochs` epochs."""
    config = candidate.search
    share = min(1.0, config.rows / max(1, len(task.old) + len(task.new)))

    def some(rows: ImageSet, number: int) -> ImageSet:
        order = torch.randperm(len(rows), generator=torch_generator(task.seed, Purpose.ROWS, number))
        return rows.subset(order[: round(share * len(rows))].sort().values)

    changes = {
        "epochs": min(config.epochs, candidate.epochs),
        "validation_fraction": candidate.validation_fraction or VALIDATION_FRACTION,
    }
    return replace(task, recipe=candidate.model_copy(update=changes), old=some(task.old, 10), new=some(task.new, 11))
