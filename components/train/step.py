"""Train: load the plan, the champion and the windows; run one rung of the plan; save the challenger as a version."""

from __future__ import annotations

import time
from importlib.metadata import version as package_version

import torch

from components.core.config import Config
from components.core.contracts import Decision, Lineage, Rung, TrainingSummary
from components.core.datasets import PixelCache, Pixels, load_images
from components.core.errors import ConfigurationError
from components.core.models import (
    Classifier,
    ModelSpec,
    best_device,
    load_classifier,
    save_classifier,
)
from components.core.reference import build_reference
from components.core.registry import Registry
from components.core.runs import Run, open_run, perform
from components.core.windows import SCHEMA, Window
from components.train.strategies import STRATEGIES, Task


def run(config_path: str, run_id: str, window: str, rung: int) -> TrainingSummary:
    """Train rung number `rung` (from 1) of the run's plan on a window, and save the challenger."""
    record = open_run(config_path, run_id)
    return perform(f"train-{rung}", record, TrainingSummary, lambda: _train(record, window, rung))


def _train(record: Run, window_id: str, rung: int) -> TrainingSummary:
    config, decision = record.config, record.need("decide", Decision)
    plan = decision.rungs[rung - 1]
    registry = Registry(record.store, config.model)
    champion = load_classifier(registry, decision.champion) if decision.champion else None
    new_window = Window.open(record.store, config.dataset, window_id)
    old_windows = [Window.open(record.store, config.dataset, w) for w in decision.old_windows]

    spec = _spec(config, plan, decision, champion)
    cache = PixelCache(config.store)
    old = load_images(old_windows, "train", spec, spec.classes, cache).labelled()
    new = load_images([new_window], "train", spec, spec.classes, cache, earlier=old_windows).labelled()
    if champion is None or plan.strategy == "retrain":
        spec = _normalised(spec, [old.images, new.images])
    device = best_device()
    if config.training.cpu_threads:
        torch.set_num_threads(config.training.cpu_threads)
    started = time.monotonic()
    task = Task(
        spec=spec,
        champion=champion,
        old=old,
        new=new,
        loop=plan.hyperparameters,
        head_loop=config.training.head_only,
        batch_size=config.training.batch_size,
        replay_fraction=config.training.replay_fraction,
        generator=torch.Generator().manual_seed(config.training.seed),
        device=device,
    )
    try:
        trained = STRATEGIES[plan.strategy](task)
    except FloatingPointError as error:
        raise ConfigurationError(
            f"training diverged: {error}",
            expected="a finite loss",
            next_command=f"lower training.{plan.strategy.replace('-', '_')}.learning_rate",
        ) from error
    seconds = time.monotonic() - started

    lineage = Lineage(
        parent=decision.champion,
        windows=(*decision.old_windows, window_id),
        strategy=plan.strategy,
        hyperparameters=plan.hyperparameters,
        seed=config.training.seed,
        package=package_version("retrain-pipeline"),
    )
    holdout = load_images([*old_windows, new_window], "holdout", spec, spec.classes, cache, columns=SCHEMA.names)
    sampling = torch.Generator().manual_seed(config.training.seed)
    version = registry.save_version(
        {
            **save_classifier(trained.model),
            **build_reference(
                trained.model,
                holdout.labelled(),
                config.evaluation.batch_size,
                config.drift.rehearsal_images,
                sampling,
            ),
            "lineage.json": lineage.model_dump_json(indent=1).encode(),
        }
    )
    return TrainingSummary(
        version=version,
        strategy=plan.strategy,
        rows=trained.rows,
        replayed_rows=trained.replayed_rows,
        classes=spec.classes,
        losses=tuple(trained.losses),
        seconds=seconds,
        images_per_second=trained.rows * plan.hyperparameters.epochs / seconds,
        device=str(device),
    )


def _spec(config: Config, plan: Rung, decision: Decision, champion: Classifier | None) -> ModelSpec:
    """What the challenger looks like: the champion's shape when it is updated, the configured one when it is fresh."""
    if champion is not None and plan.strategy != "retrain":
        return champion.spec.model_copy(update={"classes": decision.classes})
    return ModelSpec(
        architecture=config.training.architecture,
        classes=decision.classes,
        image_size=config.training.image_size,
        channels=config.training.channels,
        mean=(0.5,) * config.training.channels,
        std=(0.5,) * config.training.channels,
    )


def _normalised(spec: ModelSpec, sets: list[Pixels]) -> ModelSpec:
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
