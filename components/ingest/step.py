"""Ingest: read the delivery batch by batch, look at every image once, pack a window."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from components.core.claims import NEW, ClaimLog
from components.core.config import Config, check_strategy, load_config
from components.core.contracts import RunParameters, WindowDocument, describe_deliveries
from components.core.errors import ConfigurationError, SourceError
from components.core.logs import progress
from components.core.probe import check_store
from components.core.run_claims import claim_number, claimed, join_claim, run_arguments, take_new
from components.core.runs import Run, perform
from components.core.storage import ObjectStore, open_store
from components.core.windows import Window
from components.ingest.deliveries import Deliveries
from components.ingest.packing import write_window
from components.ingest.processes import Workers
from components.ingest.sources import absolute_source, list_batches, names_window
from components.ingest.workers import SPOOLED, read_batches, spool_folder

WORKER_BYTES = 4 * 2**30  # address space of a worker beyond what it is forked with: a batch, a row group, allocators
BYTES_PER_PIXEL = 32  # an image decoded, converted, turned and counted


def run(config_path: str, run_id: str, source: str, strategy: str, *, planning: bool = False) -> WindowDocument:
    """Begin a run: file its configuration and parameters, then turn its source into a window.

    Args:
        config_path: The configuration file.
        run_id: The new run's.
        source: See `find_deliveries` and `ingest`.
        strategy: auto, the name of one, or plan:DIGEST.
        planning: Whether the run ends with its plan.

    Raises:
        SourceError: See `list_batches`.
        ConfigurationError: The configuration or the strategy is wrong; see `find_deliveries`.
        UnsoundStore: Nothing could be promoted on this store.
    """
    config = load_config(config_path)
    record = Run(open_store(config.store), run_id)
    parameters = RunParameters(
        run_id=run_id, model=config.model, dataset=config.dataset, source=source, strategy=strategy, planning=planning
    )
    record.begin(config, parameters)
    return perform("ingest", record, WindowDocument, lambda: _ingest(record, config, parameters))


def find_deliveries(record: Run, config: Config, source: str, *, planning: bool) -> tuple[str, ...]:
    """What a source stands for. What a claim took, or takes for this run, is entered as this run's.

    Args:
        record: The run.
        config: Names the model, and where deliveries arrive.
        source: `new` for all that was delivered below `trigger.source` and that no run has taken; `batch:N` for what
            the claim of that number took; else itself.
        planning: Whether to look only: nothing is claimed then.

    Raises:
        ConfigurationError: There is no such claim, another run is at it, or `trigger.source` is not there.
    """
    log = ClaimLog(record.store, config.model)
    if source == NEW and planning:
        state = log.read()
        return state.next_batch(Deliveries(config).complete(state.taken))
    if source == NEW:
        incoming = Deliveries(config)
        incoming.check()
        arguments = run_arguments(config, NEW, record.parameters.strategy)
        return take_new(log, incoming.complete, record.run_id, arguments)
    number = claim_number(source)
    if number is None:
        return (source,)
    return claimed(log, number) if planning else join_claim(log, number, record.run_id)


def _ingest(record: Run, config: Config, asked: RunParameters) -> WindowDocument:
    check_strategy(asked.strategy, config)  # here, so that a typing error in the start form is filed with the run
    check_store(record.store)  # not only before the promotion, when everything is paid for
    deliveries = find_deliveries(record, config, asked.source, planning=asked.planning)
    window = ingest(record.store, config, *deliveries)
    # The window may have come before, from elsewhere: this run tells what it was given.
    return window.model_copy(update={"source": describe_deliveries(deliveries)})


def ingest(store: ObjectStore, config: Config, *deliveries: str) -> WindowDocument:
    """Make one window of deliveries, or find it: the same images are the same window, however they are ordered.

    Killed at any moment, it goes on where it was when it is called again on the same machine.

    Args:
        deliveries: See `list_batches`, in any order; or one id of a window that exists. Of none comes the window
            without images.

    Raises:
        SourceError: See `list_batches`.
        ConfigurationError: There is no window of that id, or no room for the bytes of the delivery.
    """
    if len(deliveries) == 1 and names_window(deliveries[0]):
        return Window.open(store, config.dataset, deliveries[0]).document
    sources = sorted(absolute_source(delivery) for delivery in deliveries)
    memory = WORKER_BYTES + BYTES_PER_PIXEL * config.ingest.max_pixels
    with (
        _room_in(config.store.cache_folder),
        spool_folder(config.store.cache_folder, "\n".join(sources), config.ingest) as folder,
        Workers(config.ingest.workers, memory) as workers,
    ):
        rows = mark_duplicates(_read(workers, sources, config, folder))
        told = describe_deliveries(sources)
        with progress("packing images", len(rows)) as advance:
            return write_window(store, config.dataset, told, rows, folder, workers, config.ingest.shard_bytes, advance)


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


def _read(workers: Workers, deliveries: Sequence[str], config: Config, folder: Path) -> pa.Table:
    tables: list[pa.Table] = []
    with progress("reading images") as advance:
        for delivery in deliveries:
            before = len(tables)
            for table in read_batches(workers, list_batches(delivery, config), folder, config.ingest):
                tables.append(_named_after(delivery, table) if len(deliveries) > 1 else table)
                advance(len(table))
            if not any(len(table) for table in tables[before:]):
                raise SourceError(
                    f"{delivery} holds no images", expected="labelled images", next_command="check what was delivered"
                )
    return pa.concat_tables(tables) if tables else SPOOLED.empty_table()


def _named_after(delivery: str, rows: pa.Table) -> pa.Table:
    """Rows whose `source` says which of several deliveries they came with."""
    name = delivery.rpartition("/")[2]
    sources = pc.binary_join_element_wise(name, rows["source"], "/")
    return rows.set_column(rows.schema.get_field_index("source"), "source", sources)


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
