"""Who looked at which rows: one small object a run, written before its verdict is filed, found by one listing."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from components.core.contracts import Document, Evaluation
from components.core.errors import IntegrityError
from components.core.rematches import judgement_name
from components.core.runs import Run
from components.core.storage import get_json, to_json
from components.gate.levels import Looks

logger = logging.getLogger(__name__)
LEAST_SHARED = 4  # of 64: see _overlap


class FailedLook(Document):
    """A run that was judged and has not passed: a sample of the rows that it was judged on (`Evaluation.sample`)."""

    sample: tuple[str, ...]


def count_looks(record: Run, evaluation: Evaluation, rungs: int, rematch: int = 0) -> Looks:
    """How many other runs of the model were judged on rows of the same window and did not pass, and how many against
    the same anchor.

    A rematch is judged as a run of its own would be that comes after: one attempt, and a look more for each judgement
    before it. A look that cannot be read is left out, with a warning: a damaged object shall not stop every promotion
    to come.
    """
    same_window = rematch
    for listed in record.store.list_objects(_failed(record, "")):
        if _of(listed.key, record):
            continue
        try:
            look = get_json(record.store, listed.key, FailedLook)
        except IntegrityError as error:
            logger.warning("not counted among those that looked at these rows: %s", error.found)
            continue
        same_window += look is not None and _overlap(look.sample, evaluation.sample)
    same_anchor = rematch
    if evaluation.anchor:
        against = record.store.list_objects(_anchor(record, evaluation.anchor.version, ""))
        same_anchor += sum(not _of(listed.key, record) for listed in against)
    return Looks(rungs=1 if rematch else rungs, same_window=same_window, same_anchor=same_anchor)


def _overlap(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether windows share enough rows, by their samples: about a twentieth of what they have together. A picture that
    comes with every delivery, such as a test card, makes no two of them the same."""
    return len(set(first) & set(second)) >= min(LEAST_SHARED, len(first), len(second)) > 0


def note_look(record: Run, evaluation: Evaluation, rematch: int = 0) -> None:
    """Write down, before it is judged, that a run is: of two at the same time at least one sees the other. Noted as
    failed; noting it again changes nothing."""
    failed = to_json(FailedLook(sample=evaluation.sample))
    for name in dict.fromkeys((judgement_name(record.run_id), judgement_name(record.run_id, rematch))):
        record.store.put(_failed(record, name), failed)
        if evaluation.anchor:
            record.store.put(_anchor(record, evaluation.anchor.version, name), b"")


def forget_failure(record: Run) -> None:
    """The run passed at its first attempt."""
    record.store.delete(_failed(record, record.run_id))


def _failed(record: Run, name: str) -> str:
    return f"looks/{record.config.model}/failed/{name}"


def _anchor(record: Run, anchor: str, name: str) -> str:
    return f"looks/{record.config.model}/anchors/{anchor}/{name}"


def _of(key: str, record: Run) -> bool:
    """Whether a look is one of this run, first judgement or rematch."""
    name = key.rpartition("/")[2]
    return name == record.run_id or name.startswith(f"{record.run_id}-rematch-")
