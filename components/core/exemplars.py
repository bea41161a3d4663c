"""Exemplars: which images of its windows a version remembers, so that the next training can replay them.

Only their names are kept; the images stay in the windows. Not covered: which ones are chosen (`train.replay`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc
import torch

from components.core.datasets import ROW_COLUMNS, ImageSet, PixelCache, load_images
from components.core.errors import IntegrityError
from components.core.models import ModelSpec
from components.core.registry import EXEMPLARS, Registry
from components.core.windows import Window, from_parquet, to_parquet

SCHEMA = pa.schema(
    [
        ("window", pa.string()),  # where the image is; no two rows are of one image
        ("sha256", pa.string()),
        ("label", pa.string()),
        ("rank", pa.int32()),  # how many of the same label were chosen before it
        ("priority", pa.float64()),  # in (0, 1), drawn once for an image (see `train.replay`)
    ]
)


def rank_exemplars(chosen: pa.Table) -> pa.Table:
    """Number the images of each label in the order in which they were chosen.

    Args:
        chosen: In the order of choice, with the columns of `SCHEMA` but for `rank`, and possibly others.

    Returns:
        The same rows, columns as in `SCHEMA`.
    """
    before: Counter[str] = Counter()
    ranks = []
    for label in chosen["label"].to_pylist():
        ranks.append(before[label])
        before[label] += 1
    columns = {name: pa.array(ranks, pa.int32()) if name == "rank" else chosen[name] for name in SCHEMA.names}
    return pa.table(columns).cast(SCHEMA)


def write_exemplars(exemplars: pa.Table) -> bytes:
    """Exemplars as a file of a version, `EXEMPLARS`: the same bytes for the same rows."""
    return to_parquet(exemplars.select(SCHEMA.names))


def read_exemplars(registry: Registry, version: str) -> pa.Table:
    """Read the exemplars of a version, columns as in `SCHEMA`, in the order of choice.

    Raises:
        IntegrityError: See `Registry.read_file`.
    """
    return from_parquet(registry.read_file(version, EXEMPLARS), SCHEMA.names)


def load_exemplars(
    exemplars: pa.Table,
    windows: Sequence[Window],
    spec: ModelSpec,
    classes: Sequence[str],
    cache: PixelCache,
    columns: Sequence[str] = ROW_COLUMNS,
) -> ImageSet:
    """Open the exemplars as pixels; no other image is decoded, see `only` of `load_images`.

    Args:
        exemplars: All of a version's, or some, in any order.
        windows: Those that they lie in; others are not looked into.
        spec: Gives size and channels.
        classes: What the labels index; -1 where one is not among them.
        cache: Where decoded images are kept.
        columns: Wanted in `rows`, see `load_images`.

    Returns:
        One row for each exemplar, in their order.

    Raises:
        IntegrityError: An exemplar is not in its window, or its window is not among these; also see `Window.images`.
    """
    wide = tuple(dict.fromkeys(("sha256", *columns)))
    sets: list[ImageSet] = []
    place: dict[tuple[str, str], int] = {}
    for window in windows:
        wanted = exemplars["sha256"].filter(pc.equal(exemplars["window"], window.document.id)).to_pylist()
        if wanted:
            found = load_images([window], "train", spec, classes, cache, columns=wide, only=wanted)
            for digest in found.rows["sha256"].to_pylist():
                place[window.document.id, digest] = len(place)
            sets.append(found)
    names = list(zip(exemplars["window"].to_pylist(), exemplars["sha256"].to_pylist(), strict=True))
    if missing := [name for name in names if name not in place]:
        raise _missing(*missing[0])
    images = ImageSet.concat(sets or [load_images([], "train", spec, classes, cache, columns=wide)])
    images = images.subset(torch.tensor([place[name] for name in names], dtype=torch.int64))
    return replace(images, rows=images.rows.select(list(columns)))


def _missing(window: str, digest: str) -> IntegrityError:
    return IntegrityError(
        f"no training image {digest} in window {window}, as far as windows were opened",
        expected="the exemplars of a version in the windows that it was trained on",
        next_command="restore the window from a backup, or train in full: `retrain run FOLDER --strategy retrain`",
    )
