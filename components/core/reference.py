"""The reference sample of a version: what its champion saw of held-out images, so that old images are not read again.

Training writes it, drift detection compares windows with it. Not covered: the comparison (`detect_drift`).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import pyarrow as pa
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from components.core.changes import LEAST_ROWS, PREFIX, ChangeTable, rehearse_changes
from components.core.datasets import ImageSet
from components.core.models import Classifier, Features, extract_features
from components.core.registry import Registry
from components.core.units import independent_units
from components.core.windows import from_parquet, to_parquet

logger = logging.getLogger(__name__)
# The reference's own chance is in every comparison with it: at 2,000 rows, windows of 500 alarmed in 4 to 13 % where
# 5 % were asked for, by which rows had been drawn. More rows would cost more than they steady.
REFERENCE_ROWS = 10_000


@dataclass(frozen=True, kw_only=True)
class Reference:
    """m held-out rows: `features`, `labels` int64 (m,) indexing the champion's classes, the manifest's `rows`, and what
    the champion made of the same images changed on purpose (None where these were too few, or none were asked for)."""

    features: Features
    labels: Tensor
    rows: pa.Table
    changes: ChangeTable | None


def build_reference(
    model: Classifier, holdout: ImageSet, batch_size: int, rehearsed: int, generator: torch.Generator
) -> dict[str, bytes]:
    """Draw the sample and describe it, as files of a version.

    Args:
        model: The challenger, on the device to compute on.
        holdout: Labelled rows with all columns of the manifest, none of them trained on.
        batch_size: Images that go through the network at once.
        rehearsed: Images that are changed on purpose, at most.
        generator: Of the sample and its changes.
    """
    sample = holdout.subset(_draw_units(holdout.rows, generator))
    features = extract_features(model, sample.images.batches(batch_size) if len(sample) else [_black(model)])
    features = features.subset(torch.arange(len(sample)))  # none where nothing is held out
    tensors = features.tensors()
    if not bool(features.probabilities.isfinite().all()):
        logger.warning("train: the challenger's answers are not finite; no change is rehearsed with it")
    elif min(len(sample), rehearsed) >= LEAST_ROWS:
        changes = rehearse_changes(model, sample.images, sample.labels, generator, most_rows=rehearsed)
        tensors |= changes.to_tensors()
    return {
        "reference.safetensors": save_tensors({**tensors, "labels": sample.labels}),
        "reference.parquet": to_parquet(sample.rows),
    }


def _black(model: Classifier) -> Tensor:
    return torch.zeros(1, model.spec.channels, model.spec.image_size, model.spec.image_size, dtype=torch.uint8)


def _draw_units(rows: pa.Table, generator: torch.Generator) -> Tensor:
    """Whole units, drawn at random until `REFERENCE_ROWS` are reached: windows have theirs whole, too."""
    units = torch.from_numpy(independent_units(rows)).unique(return_inverse=True)[1]
    order = torch.randperm(int(units.max()) + 1 if len(units) else 0, generator=generator)
    before = units.bincount()[order].cumsum(0) - units.bincount()[order]
    wanted = torch.zeros(len(order), dtype=torch.bool)
    wanted[order[before < REFERENCE_ROWS]] = True
    return wanted[units].nonzero().flatten()[: 2 * REFERENCE_ROWS]


def load_reference(registry: Registry, version: str) -> Reference:
    """Read the reference sample of a version.

    Raises:
        IntegrityError: See `Registry.read_file`.
    """
    tensors = load_tensors(registry.read_file(version, "reference.safetensors"))
    rehearsed = {name for name in tensors if name.startswith(PREFIX)}
    return Reference(
        features=Features.from_tensors({n: t for n, t in tensors.items() if n not in {*rehearsed, "labels"}}),
        labels=tensors["labels"],
        rows=from_parquet(registry.read_file(version, "reference.parquet")),
        changes=ChangeTable.from_tensors(tensors) if rehearsed else None,
    )
