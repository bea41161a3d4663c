"""Train one rung of a run's plan in this process, alone or with others, and leave the result among its checkpoints.

Not covered: the data and their names (`job`), the training itself (`strategies`), how processes are started (`launch`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from components.core.datasets import ImageSet, Pixels
from components.core.errors import ConfigurationError, RunFailed
from components.core.metrics import training_metrics
from components.core.models import ModelSpec, build_classifier, load_pretrained
from components.core.recipes import Recipe
from components.core.runs import Run
from components.train import distributed
from components.train.checkpoint import Attempt, Progress, lost_seconds
from components.train.compute import choose_compute, settings
from components.train.interruption import Interruption, Preempted
from components.train.job import Job, Outcome
from components.train.launch import pieces_needed
from components.train.loop import Watch
from components.train.randomness import Purpose, torch_generator
from components.train.strategies import MODEL, Task, train_challenger
from components.train.tuning import searched_recipe

logger = logging.getLogger(__name__)


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
            recipe = checkpoints.document("recipe", Recipe, lambda: searched_recipe(task, checkpoints, interruption))
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
        processor=compute.processor,
        gpus=distributed.world_size() if compute.device.type == "cuda" else 0,
    )
    checkpoints.document("outcome", Outcome, lambda: outcome)
    checkpoints.stage("finished", lambda: {MODEL + n: v for n, v in trained.model.state_dict().items()})


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
