"""What the champion says of a window's images, computed once for each champion and window, and kept in the store."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from components.core.config import Config
from components.core.datasets import PixelCache, label_indices, load_images
from components.core.errors import IntegrityError
from components.core.logs import progress
from components.core.models import Features, best_device, extract_features, load_classifier
from components.core.registry import Registry
from components.core.storage import KeyMissing, ObjectStore, sha256_hex
from components.core.windows import Window

logger = logging.getLogger(__name__)
EXTRACTION = 1  # goes up whenever `extract_features` gives other values


@dataclass(frozen=True, kw_only=True)
class Seen:
    """n images of a window as the champion sees them.

    Attributes:
        features: What it says of them.
        labels: Indices into its classes, -1 for classes it does not know and labels still to come; int64 (n,).
        rows: Of the manifest, all columns.
    """

    features: Features
    labels: Tensor
    rows: pa.Table


def see_window(
    registry: Registry, version: str, classes: tuple[str, ...], window: Window, rows: pa.Table, config: Config
) -> Seen:
    """What the champion sees of some rows of a window: kept in the store, or from one pass over all usable images.

    Args:
        registry: Where the champion is.
        version: The champion.
        classes: Its classes.
        window: The window.
        rows: Of its manifest, all columns: those wanted, in the order wanted.
        config: Cache and batch size.

    Raises:
        IntegrityError: The champion's files or the images are not what was written, or its weights are broken.
    """
    key = f"models/{registry.model}/features/{version}/{window.document.id}-{EXTRACTION}.safetensors"
    tensors = _read(registry.store, key)
    if tensors is None:
        tensors = _extract(registry, version, window, config)
        data = save_tensors(tensors)
        registry.store.put(key, sha256_hex(data).encode() + data)
    place = {digest: n for n, digest in enumerate(window.rows(columns=("sha256",))["sha256"].to_pylist())}
    index = torch.tensor([place[digest] for digest in rows["sha256"].to_pylist()], dtype=torch.int64)
    features = Features.from_tensors(tensors).subset(index)
    if not all(bool(rows.isfinite().all()) for rows in vars(features).values()):
        raise IntegrityError(
            f"champion {version} gives values that are not finite",
            expected="a network whose features and answers are numbers",
            next_command="retrain run SOURCE --strategy retrain, on data that the champion was not trained on",
        )
    return Seen(features=features, labels=label_indices(rows, classes), rows=rows)


def _read(store: ObjectStore, key: str) -> dict[str, Tensor] | None:
    """What was kept, or None where nothing was, or no longer as it was written: it can be computed again."""
    try:
        stored = store.get(key)
    except KeyMissing:
        return None
    digest, data = stored[:64], stored[64:]
    if sha256_hex(data).encode() != digest:
        logger.warning("detect_drift: %s is damaged and is computed again", key)
        return None
    return load_tensors(data)


def _extract(registry: Registry, version: str, window: Window, config: Config) -> dict[str, Tensor]:
    model = load_classifier(registry, version).to(best_device())
    images = load_images([window], None, model.spec, model.spec.classes, PixelCache(config.store)).images
    with progress("looking at images", len(images)) as advance:

        def batches() -> Iterator[Tensor]:
            for batch in images.batches(config.evaluation.batch_size):
                yield batch
                advance(len(batch))

        return extract_features(model, batches()).tensors()
