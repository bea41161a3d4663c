"""Detect drift: features of the window from the champion, tests against its reference sample, triage."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load as load_tensors
from torch import Tensor

from components.core.config import DriftConfig
from components.core.contracts import DriftReport, Interval
from components.core.datasets import ImageSet, PixelCache, load_images
from components.core.models import Features, best_device, extract_features, load_classifier
from components.core.registry import Registry
from components.core.runs import Run, open_run, perform
from components.core.statistics import newcombe_interval
from components.core.windows import SCHEMA, Window, from_parquet
from components.detect_drift.detectors import TestResult, gaussian_gram, label_gram, standardise, two_sample_test
from components.detect_drift.label_faults import Answers, find_label_faults, images_changed
from components.detect_drift.triage import find_faults

PROPERTIES = ("mean", "std", "sharpness")  # of the manifest, compared as one view


def run(config_path: str, run_id: str, window: str) -> DriftReport:
    """Compare a window with the champion's reference. Drift and faults are verdicts, not errors.

    Raises:
        IntegrityError: The champion's files are not what was written.
    """
    record = open_run(config_path, run_id)
    return perform("detect_drift", record, DriftReport, lambda: _detect(record, window))


def _detect(record: Run, window_id: str) -> DriftReport:
    config = record.config
    registry = Registry(record.store, config.model)
    champion = registry.champion()
    window = Window.open(record.store, config.dataset, window_id)
    delivered = window.manifest()
    if champion is None:
        faults = find_faults(delivered, None, config.drift)
        return DriftReport(champion=None, rows=window.document.usable, faults=faults)
    model = load_classifier(registry, champion.version)
    reference = load_reference(registry, champion.version)
    faults = find_faults(delivered, reference.rows, config.drift)
    lineage = registry.lineage(champion.version)
    known = [Window.open(record.store, config.dataset, w) for w in lineage.windows if w != window_id]
    cache = PixelCache(config.store)
    images = load_images([window], None, model.spec, model.spec.classes, cache, known, SCHEMA.names)
    if not len(images):
        return DriftReport(champion=champion.version, rows=0, faults=faults)
    features = extract_features(model.to(best_device()), images.images.batches(config.evaluation.batch_size))
    report = compare(champion.version, reference, features, images, config.drift)
    return report.model_copy(update={"faults": (*faults, *report.faults)})


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The champion's sample of m held-out rows: `features` float32, `labels` int64 (m,) indexing its classes, and the
    manifest's `rows`."""

    features: Features
    labels: Tensor
    rows: pa.Table


def load_reference(registry: Registry, version: str) -> Reference:
    """Read the reference sample of a version.

    Raises:
        IntegrityError: See `Registry.read_file`.
    """
    tensors = load_tensors(registry.read_file(version, "reference.safetensors"))
    rows = from_parquet(registry.read_file(version, "reference.parquet"))
    labels = tensors.pop("labels")
    return Reference(features=Features(**tensors), labels=labels, rows=rows)


def compare(
    champion: str, reference: Reference, features: Features, images: ImageSet, config: DriftConfig
) -> DriftReport:
    """Test a window's features against a reference sample and judge its labels; its images are judged by `triage`.

    With fewer than two rows on either side nothing can be told: the report says so by having no p-value.

    Args:
        champion: Version of the champion.
        reference: The champion's sample.
        features: What the champion says of the window's images.
        images: The window's rows; labels index the champion's classes, -1 for classes it does not know.
        config: Rates, sizes, thresholds.
    """
    if min(len(images), len(reference.labels)) < 2:
        return DriftReport(champion=champion, rows=len(images))
    known = images.labels >= 0
    result = _test(reference, features, images, config)
    names = zip(images.rows["label"].to_pylist(), known.tolist(), strict=True)
    new_classes = Counter(name for name, k in names if name is not None and not k)
    report = DriftReport(
        champion=champion,
        rows=len(images),
        views=result.views,
        p_value=result.p_value,
        drifted=result.p_value <= config.alpha,
        new_classes=dict(sorted(new_classes.items())),
    )
    if not bool(known.any()):
        return report
    drop, interval, scores = _accuracy_drop(reference, features, images.labels, known)
    changed = images_changed(result.views, config.alpha)
    window, past = _answers(features, images.labels, images.rows), _answers(reference.features, reference.labels)
    return report.model_copy(
        update={
            "reference_accuracy": scores[0],
            "window_accuracy": scores[1],
            "accuracy_drop": drop,
            "accuracy_drop_interval": interval,
            "faults": find_label_faults(window, past, images.classes, changed, config),
        }
    )


def _test(reference: Reference, features: Features, images: ImageSet, config: DriftConfig) -> TestResult:
    generator = torch.Generator().manual_seed(config.seed)
    past = _sample(len(reference.labels), config.max_rows, generator)
    now = _sample(len(images), config.max_rows, generator)
    labels = torch.where(images.labels < 0, len(images.classes), images.labels)

    def pooled(then: Tensor, current: Tensor) -> Tensor:
        return torch.cat([then[past], current[now]])

    then = reference.features
    grams = {
        "embeddings": gaussian_gram(pooled(then.embeddings, features.embeddings)),
        "early layers": gaussian_gram(standardise(pooled(then.early, features.early))),
        "softmax": gaussian_gram(pooled(then.probabilities, features.probabilities)),
        "properties": gaussian_gram(standardise(pooled(_properties(reference.rows), _properties(images.rows)))),
    }
    if not images.rows["label"].null_count:  # labels that are still to come would look like a change of the classes
        grams["labels"] = label_gram(pooled(reference.labels, labels), len(images.classes) + 1)
    return two_sample_test(grams, len(past), config.permutations, generator)


def _answers(features: Features, labels: Tensor, rows: pa.Table | None = None) -> Answers:
    """What the champion says of the rows whose class it knows."""
    known = labels >= 0
    named = [] if rows is None else rows.filter(pa.array(known.numpy()))["sha256"].to_pylist()
    return Answers(
        labels=labels[known].numpy(), probabilities=features.probabilities[known].numpy(), sha256=tuple(named)
    )


def _properties(rows: pa.Table) -> Tensor:
    return torch.tensor(np.stack([rows[name].to_numpy() for name in PROPERTIES], axis=1), dtype=torch.float32)


def _sample(rows: int, most: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(rows, generator=generator)[:most]


def _accuracy_drop(
    reference: Reference, features: Features, labels: Tensor, known: Tensor
) -> tuple[float, Interval, tuple[float, float]]:
    """Drop, its 95 % interval, and the accuracies on reference and window."""
    then = reference.features.probabilities.argmax(1) == reference.labels
    now = features.probabilities[known].argmax(1) == labels[known]
    before, after = (int(then.sum()), len(then)), (int(now.sum()), len(now))
    scores = before[0] / before[1], after[0] / after[1]
    return scores[0] - scores[1], newcombe_interval(before, after, 0.95), scores
