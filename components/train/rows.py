"""Which rows train, and which are set aside to watch the training by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from components.core.datasets import ImageSet, Pixels
from components.core.storage import sha256_hex


@dataclass(frozen=True, kw_only=True)
class TrainingRows:
    """What a training learns from: images, labels int64 (n,), and of them the number that are replayed; and what it is
    watched by, possibly nothing."""

    images: Pixels
    labels: Tensor
    replayed: int
    validation_images: Pixels
    validation_labels: Tensor


def choose_rows(old: ImageSet, new: ImageSet, validation_fraction: float) -> TrainingRows:
    """Put old and new rows together, then set some aside, whole groups at a time.

    Args:
        old: Rows of the champion's windows that are to train again; possibly none.
        new: The window's.
        validation_fraction: Share that only watches, in [0, 1).
    """
    images = Pixels.concat([old.images, new.images])
    labels = torch.cat([old.labels, new.labels])
    aside = torch.cat([_set_aside(rows, validation_fraction) for rows in (old, new)])
    train, watch = (~aside).nonzero().flatten(), aside.nonzero().flatten()
    return TrainingRows(
        images=images.subset(train),
        labels=labels[train],
        replayed=int((train < len(old)).sum()),
        validation_images=images.subset(watch),
        validation_labels=labels[watch],
    )


def _set_aside(rows: ImageSet, fraction: float) -> Tensor:
    """Which rows watch, bool (n,), by content: the same ones in every attempt, and never half a clip.

    Not by the position that decides who is held out: among training rows, small positions are all taken.
    """
    if not fraction:
        return torch.zeros(len(rows), dtype=torch.bool)
    names = zip(rows.rows["group"].to_pylist(), rows.rows["sha256"].to_pylist(), strict=True)
    positions = [int(sha256_hex(f"validation {group or digest}".encode())[:13], 16) / 16**13 for group, digest in names]
    return torch.tensor(positions, dtype=torch.float64) < fraction
