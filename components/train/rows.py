"""Which rows train, and which are set aside to watch the training by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from components.core.datasets import ImageSet, Pixels
from components.core.storage import sha256_hex

LEAST_ROWS = 2  # to train on: batch norm needs two


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
    aside = _set_aside(old, new, validation_fraction)
    train, watch = (~aside).nonzero().flatten(), aside.nonzero().flatten()
    return TrainingRows(
        images=images.subset(train),
        labels=labels[train],
        replayed=int((train < len(old)).sum()),
        validation_images=images.subset(watch),
        validation_labels=labels[watch],
    )


def _set_aside(old: ImageSet, new: ImageSet, fraction: float) -> Tensor:
    """Which rows watch, bool (n,), by content: the same ones in every attempt, and never half a clip.

    Where all rows are of a few clips, so that one side would be empty, images are set aside one by one; and none where
    that does not help either.
    """
    none = torch.zeros(len(old) + len(new), dtype=torch.bool)
    digests = [digest for rows in (old, new) for digest in rows.rows["sha256"].to_pylist()]
    groups = [group for rows in (old, new) for group in rows.rows["group"].to_pylist()]
    for names in ([group or digest for group, digest in zip(groups, digests, strict=True)], digests):
        aside = torch.tensor([_position(name) < fraction for name in names], dtype=torch.bool)
        if fraction and bool(aside.any()) and int((~aside).sum()) >= LEAST_ROWS:
            return aside
    return none


def _position(name: str) -> float:
    """Where a group or an image stands, in [0, 1). Not the position that decides who is held out: of training rows, the
    small ones are all taken."""
    return float(int(sha256_hex(f"validation {name}".encode())[:13], 16) / 16**13)
