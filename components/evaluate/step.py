"""Evaluate: both models on the old and the new holdout, in one pod."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from components.core.contracts import Evaluation, HoldoutScores
from components.core.datasets import PixelCache, Pixels, load_images
from components.core.models import Classifier, best_device, load_classifier
from components.core.plans import Decision
from components.core.registry import Registry
from components.core.runs import Run, open_run, perform
from components.core.windows import Window
from components.evaluate.scores import score_holdout


def run(config_path: str, run_id: str, window: str, challenger: str, rung: int) -> Evaluation:
    """Score champion and challenger on the holdouts of the champion's windows and of this window."""
    record = open_run(config_path, run_id)
    return perform(f"evaluate-{rung}", record, Evaluation, lambda: _evaluate(record, window, challenger))


def _evaluate(record: Run, window_id: str, version: str) -> Evaluation:
    config, decision = record.config, record.need("decide", Decision)
    registry = Registry(record.store, config.model)
    challenger = load_classifier(registry, version)
    champion = load_classifier(registry, decision.champion) if decision.champion else None
    old = [Window.open(record.store, config.dataset, w) for w in decision.old_windows]
    new = Window.open(record.store, config.dataset, window_id)

    cache = PixelCache(config.store)

    def score(windows: Sequence[Window], earlier: Sequence[Window]) -> HoldoutScores:
        return _score(windows, earlier, champion, challenger, cache, config.evaluation.batch_size)

    return Evaluation(
        champion=decision.champion,
        challenger=version,
        old=score(old, ()) if old else None,
        new=score([new], old),
    )


def _score(
    windows: Sequence[Window],
    earlier: Sequence[Window],
    champion: Classifier | None,
    challenger: Classifier,
    cache: PixelCache,
    batch_size: int,
) -> HoldoutScores:
    classes = challenger.spec.classes
    answers: list[Tensor | None] = []
    labels = torch.empty(0, dtype=torch.int64)
    for model in (challenger, champion):
        if model is None:
            answers.append(None)
            continue
        # Each model sees its own input size.
        holdout = load_images(windows, "holdout", model.spec, classes, cache, earlier).labelled()
        labels = holdout.labels
        answers.append(answer(model, holdout.images, batch_size))
    assert answers[0] is not None
    known_classes = len(champion.spec.classes) if champion else 0
    return score_holdout(labels, answers[0], answers[1], classes, known_classes)


@torch.inference_mode()
def answer(model: Classifier, images: Pixels, batch_size: int) -> Tensor:
    """The class a model gives each image: int64 indices into its classes, shape (n,), on the CPU."""
    device = best_device()
    model = model.to(device).eval()
    batches = [model(batch.to(device)).argmax(1).cpu() for batch in images.batches(batch_size)]
    return torch.cat(batches) if batches else torch.empty(0, dtype=torch.int64)
