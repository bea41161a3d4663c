"""Ingest: read the delivery batch by batch, look at every image once, pack a window."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from components.core.config import Config, check_strategy, load_config
from components.core.contracts import RunParameters, WindowDocument
from components.core.errors import ConfigurationError, SourceError
from components.core.logs import progress
from components.core.probe import check_store
from components.core.runs import Run, perform
from components.core.storage import ObjectStore, open_store
from components.core.windows import Window
from components.ingest.packing import write_window
from components.ingest.processes import Workers
from components.ingest.sources import absolute_source, list_batches, names_window
from components.ingest.workers import read_batches, spool_folder

WORKER_BYTES = 4 * 2**30  # address space of a worker beyond what it is forked with: a batch, a row group, allocators
BYTES_PER_PIXEL = 32  # an image decoded, converted, turned and counted


def run(config_path: str, run_id: str, source: str, strategy: str, *, planning: bool = False) -> WindowDocument:
    """Begin a run: file its configuration and parameters, then turn its source into a window.

    Args:
        config_path: The configuration file.
        run_id: The new run's.
        source: See `ingest`.
        strategy: auto, the name of one, or plan:DIGEST.
        planning: Whether the run ends with its plan.

    Raises:
        SourceError: See `list_batches`.
        ConfigurationError: The configuration or the strategy is wrong.
        UnsoundStore: Nothing could be promoted on this store.
    """
    config = load_config(config_path)
    record = Run(open_store(config.store), run_id)
    parameters = RunParameters(
        run_id=run_id, model=config.model, dataset=config.dataset, source=source, strategy=strategy, planning=planning
    )
    record.begin(config, parameters)
    return perform("ingest", record, WindowDocument, lambda: _ingest(record, config, source, strategy))


def _ingest(record: Run, config: Config, source: str, strategy: str) -> WindowDocument:
    check_strategy(strategy, config)  # here, so that a typing error in the start form is filed with the run
    check_store(record.store)  # not only before the promotion, when everything is paid for
    return ingest(record.store, config, source)


def ingest(store: ObjectStore, config: Config, source: str) -> WindowDocument:
    """Make the window of a source, or find it: the same images are the same window, however they are ordered.

    Killed at any moment, it goes on where it was when it is called again on the same machine.

    Args:
        source: See `list_batches`; or the id of a window that exists.

    Raises:
        SourceError: See `list_batches`.
        ConfigurationError: There is no window of that id, or no room for the bytes of the delivery.
    """
    if names_window(source):
        return Window.open(store, config.dataset, source).document
    source = absolute_source(source)
    memory = WORKER_BYTES + BYTES_PER_PIXEL * config.ingest.max_pixels
    with (
        _room_in(config.store.cache_folder),
        spool_folder(config.store.cache_folder, source, config.ingest) as folder,
        Workers(config.ingest.workers, memory) as workers,
    ):
        rows = mark_duplicates(_read(workers, source, config, folder))
        with progress("packing images", len(rows)) as advance:
            return write_window(
                store, config.dataset, source, rows, folder, workers, config.ingest.shard_bytes, advance
            )


@contextmanager
def _room_in(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise ConfigurationError(
            f"no room left in {cache}",
            expected="room for the bytes of the delivery, and a shard for each worker",
            next_command="name a folder on a larger disk as store.cache",
        ) from error


def _read(workers: Workers, source: str, config: Config, folder: Path) -> pa.Table:
    with progress("reading images") as advance:
        tables = []
        for table in read_batches(workers, list_batches(source, config), folder, config.ingest):
            tables.append(table)
            advance(len(table))
    rows = pa.concat_tables(tables)
    if not len(rows):
        raise SourceError(
            f"{source} holds no images", expected="labelled images", next_command="check what was delivered"
        )
    return rows


def mark_duplicates(rows: pa.Table) -> pa.Table:
    """Keep the first of equal images (a labelled one if there is one, then by group), and none under two labels.

    Names decide nothing: the same images under other names must be the same window.

    Args:
        rows: With the columns `sha256`, `label`, `group`, `status`, `split` and `source`, in any order.

    Returns:
        The rows in order of name; the others have status `duplicate` or `conflicting` and are on no side of the split.
    """
    rows = rows.sort_by("source")
    digests, labels, groups = (rows[name].to_pylist() for name in ("sha256", "label", "group"))
    status, split = rows["status"].to_pylist(), rows["split"].to_pylist()
    first: dict[str, int] = {}
    conflicting: set[str] = set()
    usable = [n for n, word in enumerate(status) if word == "ok"]
    for n in sorted(usable, key=lambda n: (labels[n] is None, groups[n] or "")):
        known = first.setdefault(digests[n], n)
        if labels[n] is not None and labels[n] != labels[known]:
            conflicting.add(digests[n])
    for n in usable:
        if digests[n] in conflicting:
            status[n], split[n] = "conflicting", "none"
        elif first[digests[n]] != n:
            status[n], split[n] = "duplicate", "none"
    for name, values in (("status", status), ("split", split)):
        rows = rows.set_column(rows.schema.get_field_index(name), name, pa.array(values, pa.string()))
    return rows
