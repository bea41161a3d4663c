"""What could be wrong with the ground that the pipeline stands on. Each check is a function that yields findings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console
from rich.markup import escape

from components.core.config import Config, StoreConfig, load_config
from components.core.contention import race_store
from components.core.probe import Finding, probe_optional, probe_required
from components.core.storage import open_store


def examine(config_path: Path, *, race: bool) -> list[Finding]:
    """Look at everything, with `race` also at writers that come at once.

    Raises:
        ConfigurationError: The configuration cannot be read, or the store does not answer.
    """
    config = load_config(config_path)
    return [*_store(config), *([race_store(config.store)] if race else [])]


def _store(config: Config) -> Iterator[Finding]:
    store = open_store(config.store)
    store.check_reachable(write=True)
    yield Finding(name="store", passed=True, required=True, sentence=f"{store.uri} answers.")
    yield from probe_required(store)
    yield from probe_optional(store)
    yield encryption(config.store)


def encryption(config: StoreConfig) -> Finding:
    """Whether what goes to the store and comes from it can be read on the way."""
    address = urlsplit(config.endpoint_url or "https://")
    here = address.hostname in ("localhost", "127.0.0.1", "::1") or "://" not in config.uri
    clear = address.scheme == "http" and not here
    told = "Images and models travel in the clear: http." if clear else "Images and models travel encrypted."
    sentence = "The store is on this machine." if here else told
    return Finding(name="TLS", passed=not clear, required=False, sentence=sentence)


def print_findings(findings: list[Finding]) -> None:
    """Print a line for each, and what they come to."""
    console = Console()
    for finding in findings:
        mark = "[green]ok[/green]  " if finding.passed else "[red]FAIL[/red]" if finding.required else "warn"
        console.print(f"{mark} {finding.name}: {escape(finding.sentence)}", highlight=False, soft_wrap=True)
    failed = [finding.name for finding in findings if finding.required and not finding.passed]
    console.print(f"nothing is promoted on this store: {', '.join(failed)}" if failed else "fit for promotions")
