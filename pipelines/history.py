"""The ledger of a model as people read it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from components.core.contracts import LedgerRecord
from components.core.registry import Registry
from pipelines.status import open_configured


def read_history(config_path: Path) -> list[LedgerRecord]:
    """The whole ledger, oldest first, its chain checked on the way.

    Raises:
        IntegrityError: A record is missing, or is not the one that the record after it follows.
        ConfigurationError: The configuration cannot be read, or the store does not answer.
    """
    config, store = open_configured(config_path)
    return Registry(store, config.model).ledger()


def print_history(records: Sequence[LedgerRecord]) -> None:
    """Print records as a table, newest last, each with its reason below. Versions, runs and windows by their start."""
    console = Console()
    if not records:
        console.print("the ledger is empty: retrain run FOLDER makes the first champion")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for title in ("#", "when (UTC)", "kind", "version", "before", "run", "window", "actor"):
        table.add_column(title, no_wrap=title != "actor")
    for record in records:
        table.add_row(
            str(record.number),
            f"{record.created:%Y-%m-%d %H:%M}",
            record.kind,
            *(_start(name) for name in (record.version, record.champion_before, record.run_id, record.window)),
            escape(record.actor),
        )
    console.print(table)
    for record in records:
        console.print(f"\n[bold]{record.number}[/bold] {escape(record.reason)}", highlight=False)
    checked = "each checked against the one after it; retrain verify checks the last"
    console.print(f"\n[dim]{len(records)} records, {checked}.[/dim]")


def _start(name: str | None) -> str:
    return escape(name[:8]) if name else "–"
