"""One rung of a run's plan as a training: its data, its checkpoints, its result. Every process of a training opens one.

Not covered: the training itself (`strategies`), where it runs (`launch`), and the version that is made of the result
(`step`).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version as package_version

import pyarrow as pa
import pyarrow.compute as pc
import torch
from safetensors.torch import load as load_tensors

from components.core.config import Config
from components.core.contracts import Decision, Document, Rung
from components.core.datasets import ImageSet, PixelCache, Pixels, label_indices, load_images
from components.core.errors import ConfigurationError, RunFailed
from components.core.exemplars import load_exemplars
from components.core.metrics import training_metrics
from components.core.models import Classifier, ModelSpec, build_classifier, load_classifier, load_pretrained
from components.core.recipes import Recipe
from components.core.registry import Registry
from components.core.runs import Run
from components.core.windows import Split, Window
from components.train import distributed
from components.train.checkpoint import Attempt, Checkpoints, Progress, lost_seconds
from components.train.compute import choose_compute, settings
from components.train.interruption import Interruption, Preempted
from components.train.launch import pieces_needed
from components.train.loop import Watch
from components.train.memory import candidates, remembered
from components.train.randomness import Purpose, torch_generator
from components.train.replay import choose_replay
from components.train.rows import choose_rows
from components.train.strategies import MODEL, Task, train_challenger
from components.train.strategy import Tensors

logger = logging.getLogger(__name__)
FISHER = "fisher.safetensors"
# Settings that change how a training runs and not what comes out: with another value it still is the same training.
HOW_IT_RUNS = {
    *("strategies", "cpu_threads", "checkpoint_seconds", "max_preemptions", "max_errors"),
    *("launcher", "nodes", "trainjob_runtime"),
}
UNEQUAL = 3  # images of the largest class per image of the smallest, from which balancing them is worth a try
VALIDATION_FRACTION = 0.2  # of a trial's rows, where the recipe itself sets none aside
COLUMNS = ("sha256", "label", "group", "split", "source")


class Outcome(Document):
    """What came out of a training, beside the weights: see `TrainingSummary`."""

    spec: ModelSpec
    recipe: Recipe
    losses: tuple[float, ...]
    accuracies: tuple[float, ...]
    rows: int
    replayed_rows: int
    epochs: int
    device: str


@dataclass(frozen=True)
class Job:
    """A training of a run: rung `rung` (from 1) of its plan, on a window."""

    record: Run
    window: str
    rung: int

    @cached_property
    def config(self) -> Config:
        return self.record.config

    @cached_property
    def decision(self) -> Decision:
        return self.record.need("decide", Decision)

    @property
    def plan(self) -> Rung:
        return self.decision.rungs[self.rung - 1]

    @cached_property
    def registry(self) -> Registry:
        return Registry(self.record.store, self.config.model)

    @cached_property
    def cache(self) -> PixelCache:
        return PixelCache(self.config.store)

    @cached_property
    def old_windows(self) -> list[Window]:
        return [Window.open(self.record.store, self.config.dataset, w) for w in self.decision.old_windows]

    @cached_property
    def new_window(self) -> Window:
        return Window.open(self.record.store, self.config.dataset, self.window)

    @cached_property
    def champion(self) -> Classifier | None:
        return load_classifier(self.registry, self.decision.champion) if self.decision.champion else None

    @cached_property
    def checkpoints(self) -> Checkpoints:
        """Named by all that the result depends on, so that the same training is found again, from any run."""
        training = self.config.training
        what = {
            "window": self.window,
            "decision": self.decision.model_dump(mode="json", include={"champion", "old_windows", "classes"}),
            "recipe": self.plan.hyperparameters.model_dump(mode="json"),
            "head": training.strategies["head-only"].model_dump(mode="json"),
            "training": training.model_dump(mode="json", exclude=HOW_IT_RUNS),
            "package": package_version("retrain-pipeline"),
        }
        digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]
        return Checkpoints(
            self.record.store,
            self.config.model,
            digest,
            training.checkpoint_seconds,
            writer=distributed.is_first(),
        )

    def images(
        self,
        windows: Sequence[Window],
        split: Split,
        spec: ModelSpec,
        earlier: Sequence[Window] = (),
        columns: Sequence[str] = COLUMNS,
    ) -> ImageSet:
        """Labelled rows of windows, as the challenger sees them. See `load_images`."""
        return load_images(windows, split, spec, spec.classes, self.cache, earlier, columns).labelled()

    def new_rows(self, spec: ModelSpec) -> ImageSet:
        """Training rows of the window that no earlier window holds."""
        return self.images([self.new_window], "train", spec, earlier=self.old_windows)

    def old_rows(self, spec: ModelSpec, recipe: Recipe) -> ImageSet:
        """Rows of the champion's windows that train again: none, those replayed, or all."""
        if recipe.rows == "new" or not self.old_windows:
            return self.new_rows(spec).subset(torch.empty(0, dtype=torch.int64))
        if recipe.rows == "all":
            return self.images(self.old_windows, "train", spec)
        count = round(recipe.replay_fraction * sum(window.document.train_rows for window in self.old_windows))
        return self._draw(self.remembered(self.old_windows), count, spec)

    def memory(self, spec: ModelSpec, rows: int) -> ImageSet:
        """Some rows that stand for what the champion learnt, balanced over classes; the window's own may be among them,
        where the champion has seen it already."""
        version = self.decision.champion
        assert version is not None
        windows = self.registry.lineage(version).windows
        return self._draw(
            self.remembered([Window.open(self.record.store, self.config.dataset, w) for w in windows]), rows, spec
        )

    def remembered(self, windows: Sequence[Window]) -> pa.Table:
        """What the champion remembers of some of its windows: see `memory.remembered`."""
        if self.decision.champion is None:
            return candidates([], [], 0)
        return remembered(self.registry, self.decision.champion, windows, self.config.training.seed)

    def _draw(self, rows: pa.Table, count: int, spec: ModelSpec) -> ImageSet:
        """Open some of the remembered rows, balanced over classes; only these are decoded."""
        known = self.champion.spec.classes if self.champion else spec.classes
        rows = rows.filter(pc.is_in(rows["label"], pa.array(known, pa.string())))
        labels = label_indices(rows, spec.classes)
        generator = torch_generator(self.config.training.seed, Purpose.ROWS)
        drawn = rows.take(pa.array(choose_replay(labels, count, generator).numpy()))
        return self.open(drawn, spec)

    def open(self, rows: pa.Table, spec: ModelSpec) -> ImageSet:
        """Remembered rows as pixels."""
        identities = dict.fromkeys(rows["window"].to_pylist())
        windows = [Window.open(self.record.store, self.config.dataset, identity) for identity in identities]
        return load_exemplars(rows, windows, spec, spec.classes, self.cache, COLUMNS)

    def fisher(self) -> Tensors | None:
        """The champion's accumulated Fisher information, where its version has it."""
        version = self.decision.champion
        if version is None or FISHER not in self.registry.manifest(version).files:
            return None
        return dict(load_tensors(self.registry.read_file(version, FISHER)))

    def fresh(self, spec: ModelSpec) -> Classifier:
        """A classifier with the weights that a training from scratch begins with."""
        training = self.config.training
        model = build_classifier(spec, torch_generator(training.seed, Purpose.WEIGHTS))
        if training.pretrained is not None and self.plan.hyperparameters.start == "fresh":
            load_pretrained(model, training.pretrained, self.record.store)
        return model


def train_rung(record: Run, window: str, rung: int, interruption: Interruption) -> None:
    """Train, unless the result is there already, and leave it among the checkpoints.

    Raises:
        Preempted: Told to stop; a checkpoint is kept.
        ConfigurationError: The loss diverged, or the recipe does not fit the architecture.
        RunFailed: It was cut off more often than `training.max_preemptions`.
    """
    job = Job(record, window, rung)
    checkpoints, training = job.checkpoints, job.config.training
    if checkpoints.has("finished"):
        return
    check_budget(checkpoints.attempts(), job)
    with settings(threads=training.cpu_threads, deterministic=training.deterministic):
        _train(job, interruption)


@contextmanager
def _attempt(job: Job) -> Iterator[None]:
    """File how a try at a training ends."""
    checkpoints = job.checkpoints
    attempt = checkpoints.begin_attempt()
    if attempt.number > 1 and distributed.is_first():
        logger.info("train: attempt %d goes on from step %d", attempt.number, attempt.began_at_step)
    try:
        yield
    except Preempted as stopped:
        checkpoints.end_attempt("preempted", stopped.step)
        raise
    except torch.OutOfMemoryError:
        checkpoints.end_attempt("out of memory")
        raise
    except FloatingPointError as error:
        checkpoints.end_attempt("error")
        raise ConfigurationError(
            f"training diverged: {error}",
            expected="a finite loss",
            next_command=f"lower training.strategies.{job.plan.strategy}.learning_rate",
        ) from error
    except Exception:
        checkpoints.end_attempt("error")
        raise
    checkpoints.end_attempt("finished")


def check_budget(attempts: Sequence[Attempt], job: Job) -> None:
    """Decide whether a training may go on after what happened to it; errors and preemptions are counted apart.

    Raises:
        RunFailed: It was cut off too often.
    """
    training = job.config.training
    errors = sum(attempt.ended == "error" for attempt in attempts)
    cut_off = sum(attempt.ended in (None, "preempted") for attempt in attempts)
    if errors and errors % (training.max_errors + 1) == 0 and attempts[-1].ended == "error":
        logger.warning("train: %d attempts ended in an error; starting afresh, without their checkpoints", errors)
        job.checkpoints.forget_steps()
    if cut_off > training.max_preemptions:
        raise RunFailed(
            f"this training was cut off {cut_off} times",
            expected=f"at most {training.max_preemptions} (training.max_preemptions)",
            next_command="look why the pods are lost (kubectl get events), then raise training.max_preemptions",
        )


def _train(job: Job, interruption: Interruption) -> None:
    checkpoints, training = job.checkpoints, job.config.training
    compute = choose_compute(training)
    with distributed.first_alone(distributed.is_first_of_node()):  # decodes what is not in the cache
        spec = _spec(job)
        recipe = job.plan.hyperparameters
        new, old = job.new_rows(spec), job.old_rows(spec, recipe)
    with distributed.first_alone(distributed.is_first()):
        spec = checkpoints.document("spec", ModelSpec, lambda: _normalised(job, spec, [old, new]))
    task = Task(
        spec=spec,
        champion=job.champion,
        fresh=lambda: job.fresh(spec),
        old=old,
        new=new,
        memory=lambda: job.memory(spec, training.exemplars if recipe.start == "meta" else training.fisher_rows),
        fisher=job.fisher() if recipe.ewc else None,
        recipe=recipe,
        head=training.strategies["head-only"],
        batch_size=training.batch_size,
        seed=training.seed,
        compute=compute,
        pieces=pieces_needed(checkpoints),
    )
    with _watching(job, interruption) as watch, _attempt(job):
        with distributed.first_alone(distributed.is_first()):
            recipe = checkpoints.document("recipe", Recipe, lambda: _searched(job, task, interruption))
        trained = train_challenger(replace(task, recipe=recipe), checkpoints, watch)
    outcome = Outcome(
        spec=spec,
        recipe=recipe,
        losses=tuple(trained.losses),
        accuracies=tuple(trained.accuracies),
        rows=trained.rows,
        replayed_rows=trained.replayed_rows,
        epochs=trained.epochs,
        device=compute.description,
    )
    checkpoints.document("outcome", Outcome, lambda: outcome)
    checkpoints.stage("finished", lambda: {MODEL + n: v for n, v in trained.model.state_dict().items()})


def _searched(job: Job, task: Task, interruption: Interruption) -> Recipe:
    """The recipe, after a search for better hyperparameters where one is asked for.

    Trials train on some of the rows, for fewer epochs, and are judged on rows set aside. The search keeps its own
    journal beside the checkpoints.
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
        return max(train_challenger(trial_task(task, candidate), watch=watch).accuracies)

    trial = trial_task(task, recipe)
    if not len(choose_rows(trial.old, trial.new, trial.recipe.validation_fraction).validation_labels):
        logger.warning("train: no search: too few rows to set some aside")
        return recipe
    counts = torch.cat([task.old.labels, task.new.labels]).bincount()
    found = search(
        recipe,
        evaluate,
        store=job.record.store,
        prefix=f"{job.checkpoints.prefix}/search",
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


@contextmanager
def _watching(job: Job, interruption: Interruption) -> Iterator[Watch]:
    """What the loop asks and tells: whether to stop, and the metrics, which the first process serves meanwhile."""
    if not distributed.is_first():
        yield Watch(stop_asked=lambda: interruption.asked)
        return
    metrics = training_metrics(job.config.model)
    attempts = job.checkpoints.attempts()
    metrics.world_size.set(distributed.world_size())
    metrics.resumes.inc(len(attempts))
    metrics.lost.set(lost_seconds(attempts))
    job.checkpoints.on_kept = metrics.checkpoint.set_to_current_time

    def on_epoch(progress: Progress) -> None:
        accuracy = progress.accuracies[-1] if progress.accuracies else None
        metrics.on_epoch(len(progress.losses), progress.losses[-1], accuracy)
        if torch.cuda.is_available():
            metrics.memory.set(torch.cuda.max_memory_allocated())
        seen = "" if accuracy is None else f", {accuracy:.1%} right of the rows set aside"
        logger.info("train: epoch %d: loss %.3f%s", len(progress.losses), progress.losses[-1], seen)

    try:
        yield Watch(on_rows=metrics.on_rows, on_epoch=on_epoch, stop_asked=lambda: interruption.asked)
    finally:
        metrics.stop()


def _spec(job: Job) -> ModelSpec:
    """What the challenger looks like: the champion's shape when it is updated, the configured one when it is fresh.

    The size of its input is always the configured one.
    """
    training, champion = job.config.training, job.champion
    if champion is not None and job.plan.hyperparameters.start != "fresh":
        return champion.spec.model_copy(update={"classes": job.decision.classes, "image_size": training.image_size})
    return ModelSpec(
        architecture=training.architecture,
        classes=job.decision.classes,
        image_size=training.image_size,
        channels=training.channels,
        mean=(0.5,) * training.channels,
        std=(0.5,) * training.channels,
    )


def _normalised(job: Job, spec: ModelSpec, sets: Sequence[ImageSet]) -> ModelSpec:
    """How inputs are scaled: as the champion's are, as pretrained weights expect, or by the images' own statistics."""
    if job.champion is not None and job.plan.hyperparameters.start != "fresh":
        return spec
    if job.config.training.pretrained is not None:
        model = build_classifier(spec, torch_generator(0, Purpose.WEIGHTS))
        known = load_pretrained(model, job.config.training.pretrained, job.record.store)
        if known is not None:
            return spec.model_copy(update={"mean": known.mean, "std": known.std})
    return measure_normalisation(spec, [rows.images for rows in sets])


def measure_normalisation(spec: ModelSpec, sets: Sequence[Pixels]) -> ModelSpec:
    """Mean and standard deviation of each channel, from histograms of the 256 values: no copy of the images is made."""
    counts = torch.zeros(spec.channels, 256, dtype=torch.float64)
    for images in sets:
        for batch in images.batches(1024):
            for channel in range(spec.channels):
                counts[channel] += torch.bincount(batch[:, channel].flatten(), minlength=256)
    values, weights = torch.arange(256) / 255.0, counts / counts.sum(dim=1, keepdim=True)
    mean = (weights * values).sum(dim=1)
    std = (weights * (values - mean[:, None]).square()).sum(dim=1).sqrt().clamp(min=1e-3)
    return spec.model_copy(update={"mean": tuple(mean.tolist()), "std": tuple(std.tolist())})
