"""From a recipe to a challenger: rows, start, strategies, steps. The whole of a training on one screen.

Values in, values out; what takes long is kept by stages, so that it is not done twice. Not covered: where data comes
from and where results go (`step`), and which recipe is used (`decide`).
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from components.core.datasets import ImageSet, Pixels
from components.core.errors import ConfigurationError
from components.core.logs import progress
from components.core.models import Classifier, ModelSpec, check_growing_size, stages, trainable_from
from components.core.recipes import LoopConfig, Recipe
from components.train import distributed
from components.train.adaptation import Interpolation, KeepBatchNorm
from components.train.checkpoint import Keeper, NoCheckpoints, Progress
from components.train.compute import Compute
from components.train.logistic import fit_logistic
from components.train.loop import Watch, accuracy, fit
from components.train.objective import effective_weights
from components.train.regularisers import EWC, L1SP, L2SP, Distillation
from components.train.rows import TrainingRows, choose_rows
from components.train.starts import Start, start_model
from components.train.strategy import Situation, Strategy, Tensors

MODEL = "model."
LOSSES = "losses"  # of fitting a grown head


class Stages(Keeper, Protocol):
    """Checkpoints that also keep what was computed before the steps."""

    def stage(self, name: str, make: Callable[[], Tensors]) -> Tensors:
        """What is kept under a name, or else what `make` gives, which is then kept."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a training works on.

    Attributes:
        spec: What the challenger looks like; its classes are the champion's first.
        champion: None for the first model.
        fresh: Makes a classifier of `spec` with fresh (or pretrained) weights.
        old: Rows of the champion's windows that train again. Labels of all rows index `spec.classes`.
        new: Training rows of the window.
        memory: Rows that stand for what the champion learnt, for its Fisher information and for episodes.
        fisher: The champion's accumulated Fisher information, by parameter, where its version has it.
        recipe: How.
        head: How a head that has grown is fitted before the rest moves.
        batch_size: Rows that go through the network at once.
        seed: Of everything that is drawn.
        compute: Device and precision.
        pieces: Into how many parts a batch is cut to fit into memory.
    """

    spec: ModelSpec
    champion: Classifier | None
    fresh: Callable[[], Classifier]
    old: ImageSet
    new: ImageSet
    memory: Callable[[], ImageSet]
    recipe: Recipe
    head: LoopConfig
    batch_size: int
    seed: int
    fisher: Tensors | None = None
    compute: Compute = field(default_factory=Compute)
    pieces: int = 1

    @property
    def looking_rows(self) -> int:
        """Rows that go through a network at once when nothing is learnt."""
        return max(1, max(256, self.batch_size) // self.pieces)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A challenger with how it came about: `losses` are the mean of each epoch, nats (those of a grown head first),
    `accuracies` those on the rows set aside; `epochs` is how many passes were taken."""

    model: Classifier
    losses: list[float]
    accuracies: list[float]
    rows: int
    replayed_rows: int
    epochs: int


def train_challenger(task: Task, checkpoints: Stages = NoCheckpoints(), watch: Watch = Watch()) -> Trained:  # noqa: B008
    """Train. The champion's own weights are never touched.

    Raises:
        FloatingPointError, Preempted, torch.OutOfMemoryError: See `fit`.
        ConfigurationError: The recipe asks for what the architecture does not have.
    """
    recipe = task.recipe
    rows = choose_rows(task.old, task.new, recipe.validation_fraction)
    if len(rows.labels) < 2:
        raise ConfigurationError(
            f"{len(rows.labels)} rows to train on",
            expected="two at least",
            next_command="lower validation_fraction of the strategy, or wait for more images",
        )
    strategies, size_at = strategies_of(recipe, task.fisher), _growing_size(task)
    model = _fresh_model(task)
    with distributed.first_alone(distributed.is_first()):
        kept = checkpoints.stage("prepared", lambda: _prepare(task, model, rows, strategies))
    kept = {name: value.to(task.compute.device) for name, value in kept.items()}
    model.load_state_dict({n.removeprefix(MODEL): v for n, v in kept.items() if n.startswith(MODEL)})
    for strategy in strategies:
        strategy.begin(model, kept)
    done = _take_steps(task, model, rows, strategies, checkpoints, watch, size_at)
    for strategy in strategies:
        strategy.finish(model)
    return Trained(
        model=model.eval(),
        losses=[*kept[LOSSES].tolist(), *done.losses],
        accuracies=list(done.accuracies),
        rows=len(rows.labels),
        replayed_rows=rows.replayed,
        epochs=recipe.epochs if recipe.solver == "lbfgs" else len(done.losses),
    )


def strategies_of(recipe: Recipe, fisher: Tensors | None = None) -> list[Strategy]:
    """The strategies that a recipe combines, in the order in which they act."""
    offered: list[tuple[object, Callable[[], Strategy]]] = [
        (recipe.batch_norm == "keep", KeepBatchNorm),
        (recipe.l1_sp, lambda: L1SP(recipe.l1_sp)),
        (recipe.l2_sp, lambda: L2SP(recipe.l2_sp)),
        (recipe.ewc, lambda: EWC(recipe.ewc, fisher)),
        (recipe.lwf, lambda: Distillation(recipe.lwf, recipe.lwf_temperature)),
        (recipe.keep_champion, lambda: Interpolation(recipe.keep_champion)),
    ]
    return [make() for wanted, make in offered if wanted]


def _fresh_model(task: Task) -> Classifier:
    """Fresh weights, with what the recipe does not move frozen: whether it can be is known before anything is done."""
    model = task.fresh().to(task.compute.device)
    if task.recipe.layers == "head":
        model.body.requires_grad_(False)
    elif task.recipe.layers != "all":
        stage = stages(model)[-1] if task.recipe.layers == "last" else task.recipe.layers
        trainable_from(model, stage)
    return model


def _prepare(task: Task, fresh: Classifier, rows: TrainingRows, strategies: list[Strategy]) -> Tensors:
    """What precedes the steps: the start, a grown head fitted alone, and what the strategies compute once."""
    recipe, device = task.recipe, task.compute.device
    memory = None
    if recipe.start == "meta":
        old = task.memory()
        memory = (old.images, old.labels.to(device))
    champion = deepcopy(task.champion).to(device).eval() if task.champion else None
    start = Start(spec=task.spec, champion=champion, fresh=fresh, memory=memory, seed=task.seed)
    model = start_model(recipe, start).to(device)
    losses: tuple[float, ...] = ()
    grown = champion is not None and len(task.spec.classes) > len(champion.spec.classes)
    if recipe.layers != "head" and (grown or recipe.start == "meta"):
        # At a low rate fresh rows of the head would not come up, and would pull noise through the body meanwhile:
        # Kumar et al., "Fine-Tuning can Distort Pretrained Features", ICLR 2022.
        losses = _fit_head(task, model, rows, task.head, []).losses
    prepared: Tensors = {}
    if champion is not None:
        situation = Situation(
            champion=champion,
            images=rows.images,
            labels=rows.labels.to(device),
            memory=lambda: _of_memory(task),
            batch_rows=task.looking_rows,
        )
        for strategy in strategies:
            prepared |= strategy.prepare(situation)
    weights = {MODEL + name: value for name, value in model.state_dict().items()}
    return {**prepared, **weights, LOSSES: torch.tensor(losses, dtype=torch.float64)}


def _of_memory(task: Task) -> tuple[Pixels, Tensor]:
    memory = task.memory()
    return memory.images, memory.labels


def _take_steps(
    task: Task,
    model: Classifier,
    rows: TrainingRows,
    strategies: list[Strategy],
    checkpoints: Stages,
    watch: Watch,
    size_at: Callable[[int], int] | None,
) -> Progress:
    recipe = task.recipe
    if recipe.layers == "head":
        return _fit_head(task, model, rows, recipe, strategies, checkpoints, watch)
    with progress("training", len(rows.labels) * recipe.epochs) as advance:
        return fit(
            model,
            rows.images,
            rows.labels,
            recipe,
            batch_size=task.batch_size,
            seed=task.seed,
            classes=len(task.spec.classes),
            compute=task.compute,
            strategies=strategies,
            validation=(rows.validation_images, rows.validation_labels) if recipe.validation_fraction else None,
            checkpoints=checkpoints,
            pieces=task.pieces,
            size_at=size_at,
            watch=_also(watch, advance),
        )


def _fit_head(
    task: Task,
    model: Classifier,
    rows: TrainingRows,
    config: LoopConfig,
    strategies: list[Strategy],
    checkpoints: Stages = NoCheckpoints(),  # noqa: B008
    watch: Watch = Watch(),  # noqa: B008
) -> Progress:
    """Fit the head on features of the body that are computed once, not in every epoch."""
    features = embed(model, rows.images, task.looking_rows)
    labels, compute = rows.labels.to(task.compute.device), Compute(device=task.compute.device)
    validation = None
    if config.validation_fraction:
        validation = (embed(model, rows.validation_images, task.looking_rows), rows.validation_labels)
    if isinstance(config, Recipe) and config.solver == "lbfgs":
        counts = torch.bincount(labels, minlength=len(task.spec.classes)).double()
        weights = effective_weights(counts) if config.balance == "loss" else None
        losses = fit_logistic(
            model.head, features, labels, l2=config.weight_decay, iterations=config.epochs, weights=weights
        )
        accuracies = (accuracy(model.head, *validation, compute),) if validation else ()
        return Progress(losses=tuple(losses), accuracies=accuracies)
    with progress("training the head", len(labels) * config.epochs) as advance:
        return fit(
            model.head,
            features,
            labels,
            config,
            batch_size=feature_batch(len(labels), task.batch_size),
            seed=task.seed,
            classes=len(task.spec.classes),
            compute=compute,
            strategies=strategies,
            validation=validation,
            checkpoints=checkpoints,
            watch=_also(watch, advance),
        )


def feature_batch(rows: int, batch_size: int) -> int:
    """Rows of a step on cached features: as many as leave 20 steps an epoch, from `batch_size` to 1,024.

    A head's step costs what starting it costs, however many rows it has.
    """
    return max(batch_size, min(1024, rows // 20))


@torch.no_grad()
def embed(model: Classifier, images: Pixels, batch_rows: int) -> Tensor:
    """Features of all images, float32 (n, width), on the model's device: one pass in evaluation mode."""
    model.eval()
    device = model.head.weight.device
    parts = [torch.empty(0, model.head.in_features, device=device)]
    with progress("computing features", len(images)) as advance:
        for batch in images.batches(batch_rows):
            placed = batch.to(device).contiguous(memory_format=torch.channels_last)
            parts.append(model.embed(placed).float())
            advance(len(batch))
    return torch.cat(parts)


def _growing_size(task: Task) -> Callable[[int], int] | None:
    """Side of the images by epoch, where it grows: in even steps over the first half of the epochs."""
    if task.recipe.resolution == "direct":
        return None
    last = task.spec.image_size
    first = last // 2 if task.recipe.start == "fresh" or task.champion is None else task.champion.spec.image_size
    check_growing_size(task.spec, first)
    growing = max(1, task.recipe.epochs // 2)
    return lambda epoch: last if epoch >= growing else round(first + (last - first) * epoch / growing)


def _also(watch: Watch, advance: Callable[[int], object]) -> Watch:
    """The same watch, which advances a progress bar too."""

    def on_rows(rows: int) -> None:
        advance(rows)
        watch.on_rows(rows)

    return replace(watch, on_rows=on_rows)
