"""Ingest: list the source, look at every image, pack a window."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from components.core.config import Config, IngestConfig, check_strategy, load_config
from components.core.contracts import RunParameters, WindowDocument
from components.core.logs import progress
from components.core.runs import Run, perform
from components.core.storage import ObjectStore, open_store, sha256_hex
from components.core.windows import ImageRow, Window, split_of, write_window
from components.ingest.inspection import inspect_image
from components.ingest.sources import SourceImage, list_images, names_window


def run(config_path: str, run_id: str, source: str, strategy: str) -> WindowDocument:
    """Begin a run: file its configuration and parameters, then turn its source into a window.

    Raises:
        SourceError: See `list_images`.
        ConfigurationError: The configuration or the strategy is wrong.
    """
    config = load_config(config_path)
    record = Run(open_store(config.store), run_id)
    parameters = RunParameters(
        run_id=run_id, model=config.model, dataset=config.dataset, source=source, strategy=strategy
    )
    record.begin(config, parameters)
    return perform("ingest", record, WindowDocument, lambda: _ingest(record, config, source, strategy))


def _ingest(record: Run, config: Config, source: str, strategy: str) -> WindowDocument:
    check_strategy(strategy)  # here, so that a typing error in the start form is filed with the run
    return ingest(record.store, config, source)


def ingest(store: ObjectStore, config: Config, source: str) -> WindowDocument:
    """Make the window of a source, or find it: the same images are the same window, however they are ordered.

    Args:
        source: A folder of class folders, or the id of a window that exists.

    Raises:
        SourceError: See `list_images`.
        ConfigurationError: There is no window of that id.
    """
    if names_window(source):
        return Window.open(store, config.dataset, source).document
    images = list_images(Path(source), config.ingest)
    with (
        warnings.catch_warnings(),  # around the threads, which share the filters: Pillow warns of what is checked here
        progress("reading images", len(images)) as advance,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        warnings.simplefilter("ignore")
        rows = []
        for row in pool.map(partial(_look_at, config=config.ingest), images):
            rows.append(row)
            advance(1)
    rows = mark_duplicates(rows)
    paths = {image.name: image.path for image in images}
    with progress("packing images", len(rows)) as advance:
        return write_window(
            store,
            config.dataset,
            source,
            rows,
            lambda row: paths[row.source].read_bytes(),
            shard_bytes=config.ingest.shard_bytes,
            progress=advance,
        )


def _look_at(image: SourceImage, config: IngestConfig) -> ImageRow:
    data = image.path.read_bytes()
    sha256 = sha256_hex(data)
    facts = inspect_image(data, config.max_pixels)
    return ImageRow(
        sha256=sha256,
        label=image.label,
        group=image.group,
        status="ok" if facts else "unreadable",
        split=split_of(sha256, image.group, config.holdout_fraction) if facts else "none",
        width=facts.width if facts else None,
        height=facts.height if facts else None,
        channels=facts.channels if facts else None,
        format=facts.format if facts else None,
        bytes=len(data),
        mean=facts.mean if facts else None,
        std=facts.std if facts else None,
        sharpness=facts.sharpness if facts else None,
        source=image.name,
    )


def mark_duplicates(rows: Iterable[ImageRow]) -> list[ImageRow]:
    """Keep the first of equal images (by name), and none of those that came under two labels.

    Returns:
        All rows; the others have status `duplicate` or `conflicting` and are on no side of the split.
    """
    first: dict[str, ImageRow] = {}
    labels: dict[str, set[str]] = {}
    ordered = sorted(rows, key=lambda r: r.source)
    for row in ordered:
        if row.status == "ok":
            first.setdefault(row.sha256, row)
            labels.setdefault(row.sha256, set()).add(row.label)
    marked = []
    for row in ordered:
        if row.status == "ok" and len(labels[row.sha256]) > 1:
            row = replace(row, status="conflicting", split="none")
        elif row.status == "ok" and first[row.sha256] is not row:
            row = replace(row, status="duplicate", split="none")
        marked.append(row)
    return marked
