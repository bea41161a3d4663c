"""Roll back from the command line: what the target is worth today beside the champion, then the record."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from components.core.contracts import LedgerRecord
from components.core.errors import BrokenModel, ConfigurationError, DataError
from components.core.events import announce
from components.core.registry import Registry
from components.core.succession import promotion_of, read_succession
from components.promote.rollback import find_done, find_target, roll_back
from pipelines.status import need_reason, open_configured, user

if TYPE_CHECKING:
    from components.evaluate.rescore import Rescored

UNSCORED = " (unscored)"


def print_rollback(config_path: Path, name: str | None, reason: str, *, unscored: bool, as_json: bool) -> None:
    """Verify, load and score a former champion, make it the champion in the name of the user of this machine, and print
    both versions' scores on the same rows.

    Args:
        config_path: The configuration file.
        name: The start of the target's id; None: the champion before the present one.
        reason: Why; goes into the ledger.
        unscored: Whether the target is not to be scored, which goes into the ledger too.
        as_json: One JSON object instead of text.

    Raises:
        ConfigurationError: See `find_target` and `roll_back`; the target cannot be scored; the reason is empty.
        BrokenModel: The target does not load, or answers otherwise than when it was promoted.
        IntegrityError: Its files are not what was written.
    """
    told = need_reason(reason, example="misses the night shift's images") + (UNSCORED if unscored else "")
    config, store = open_configured(config_path, write=True)
    registry, actor = Registry(store, config.model), user()
    ledger = registry.ledger()
    done, scores = find_done(ledger, name, actor=actor, reason=told), None
    if done is None:
        target, champion = find_target(ledger, name), read_succession(ledger).standing[-1]
        promotion = promotion_of(ledger, target)
        registry.verify_version(target)
        if promotion and promotion.evidence and not unscored:
            registry.evidence(promotion.evidence).verify()
        from components.evaluate.loading import load_version
        from components.evaluate.rescore import rescore

        load_version(registry, target)
        if not unscored:
            try:
                scores = rescore(registry, promotion, champion, config)
            except BrokenModel:
                raise
            except (ConfigurationError, DataError) as error:
                raise _cannot_score(target, error) from error
            _check_agreement(target, scores)
        record = roll_back(registry, target, champion=champion, actor=actor, reason=told)
    else:
        record = done
    if record.kind == "rollback":  # again, too: the event has one id, and the first try may have been cut off
        announce(config, record)
    if as_json:
        document = {
            "changed": done is None,
            "record": record.model_dump(mode="json"),
            "scores": asdict(scores) if scores else None,
        }
        print(json.dumps(document, ensure_ascii=False))  # noqa: T201
        return
    _print(record, scores, changed=done is None)


def _cannot_score(target: str, error: ConfigurationError | DataError) -> ConfigurationError:
    return ConfigurationError(
        f"version {target} cannot be scored: {error.found}",
        expected="the rows that it was promoted on, in their windows",
        next_command=f"{error.next_command}; or roll back without: --unscored",
    )


def _check_agreement(target: str, scores: Rescored) -> None:
    if not scores.agrees:
        raise BrokenModel(
            f"version {target} answers {scores.turned} of {scores.rows} rows otherwise than when it was promoted "
            f"({scores.target} right, {scores.recorded} on record)",
            expected="the answers on record, but for what rounding turns",
            next_command=f"retrain verify {target}, then another target: retrain rollback --to VERSION --reason TEXT",
        )


def _print(record: LedgerRecord, scores: Rescored | None, *, changed: bool) -> None:
    console = Console()
    if scores:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0))
        table.add_column("champion")
        table.add_column("version")
        table.add_column(f"right of {scores.rows} rows", justify="right")
        for when, version, right in (
            ("before", record.champion_before, scores.champion),
            ("from now on", record.version, scores.target),
        ):
            told = "cannot be asked" if right is None else f"{right} ({right / max(1, scores.rows):.1%})"
            table.add_row(when, (version or "")[:12], told)
        console.print(table)
        console.print(f"The rows that {(record.version or '')[:12]} was promoted on; {scores.recorded} on record.\n")
    if changed:
        sentence = f"rolled back to {record.version} by {record.actor} (ledger record {record.number})"
    else:
        sentence = f"{record.version} is champion already (ledger record {record.number}, {record.actor}): no change"
    console.print(sentence, highlight=False, soft_wrap=True)
