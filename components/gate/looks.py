"""Who looked at which rows: one small object a run, written before its verdict is filed, found by one listing."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from components.core.contracts import Document, Evaluation
from components.core.errors import IntegrityError
from components.core.runs import Run
from components.core.storage import get_json, to_json
from components.gate.levels import Looks

logger = logging.getLogger(__name__)
LEAST_SHARED = 4  # of 64: see _overlap


class FailedLook(Document):
    """A run that was judged and has not passed: a sample of the rows that it was judged on (`Evaluation.sample`)."""

    sample: tuple[str, ...]


def count_looks(record: Run, evaluation: Evaluation, rungs: int) -> Looks:
    """How many other runs of the model were judged on rows of the same window and did not pass, and how many against
    the same anchor.

    A look that cannot be read is left out, with a warning: a damaged object shall not stop every promotion to come.
    """
    same_window, own = 0, _failed(record, record.run_id)
    for listed in record.store.list_objects(_failed(record, "")):
        if listed.key == own:
            continue
        try:
            look = get_json(record.store, listed.key, FailedLook)
        except IntegrityError as error:
            logger.warning("not counted among those that looked at these rows: %s", error.found)
            continue
        same_window += look is not None and _overlap(look.sample, evaluation.sample)
    against = {listed.key for listed in record.store.list_objects(_anchor(record, evaluation, ""))}
    return Looks(
        rungs=rungs,
        same_window=same_window,
        same_anchor=len(against - {_anchor(record, evaluation, record.run_id)}) if evaluation.anchor else 0,
    )


def _overlap(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether windows share enough rows, by their samples: about a twentieth of what they have together. A picture that
    comes with every delivery, such as a test card, makes no two of them the same."""
    return len(set(first) & set(second)) >= min(LEAST_SHARED, len(first), len(second)) > 0


def note_look(record: Run, evaluation: Evaluation, *, passed: bool) -> None:
    """Write down that a run was judged; noting it again changes what was noted. Noted as failed before it is judged:
    of two runs at the same time at least one sees the other."""
    if evaluation.anchor:
        record.store.put(_anchor(record, evaluation, record.run_id), b"")
    if passed:
        record.store.delete(_failed(record, record.run_id))
    else:
        record.store.put(_failed(record, record.run_id), to_json(FailedLook(sample=evaluation.sample)))


def _failed(record: Run, run_id: str) -> str:
    return f"looks/{record.config.model}/failed/{run_id}"


def _anchor(record: Run, evaluation: Evaluation, run_id: str) -> str:
    anchor = evaluation.anchor.version if evaluation.anchor else "none"
    return f"looks/{record.config.model}/anchors/{anchor}/{run_id}"
