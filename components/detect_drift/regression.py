"""Whether the champion is worse here than the one before it: what a rollback is offered on.

The one before is asked only where the champion has measurably lost; that costs one more pass over the window.
"""

from __future__ import annotations

import logging

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from components.core.config import Config
from components.core.contracts import DriftReport, PreviousChampion
from components.core.errors import RetrainError
from components.core.models import ModelSpec
from components.core.registry import Registry
from components.core.succession import read_succession
from components.core.units import independent_units
from components.core.windows import SCHEMA, Known, Window
from components.detect_drift.features import see_window

logger = logging.getLogger(__name__)
Mask = NDArray[np.bool_]


def compare_previous(
    registry: Registry, report: DriftReport, window: Window, config: Config
) -> PreviousChampion | None:
    """Ask the champion before the present one about the labelled images of a window that are new to both.

    Returns:
        None where the champion has not lost so much that training is weighed (`decision.train_at_drop`), where there
        is no champion before it, or where that one has seen the window, or cannot be asked, which is logged: what is
        past must not stop the run.
    """
    if not _has_lost(report, config.decision.train_at_drop) or report.champion is None:
        return None
    previous = read_succession(registry.ledger()).previous
    if previous is None:
        return None
    try:
        return _compare(registry, report.champion, previous, window, config)
    except RetrainError as error:
        logger.warning("detect_drift: the champion before, %s, cannot be asked: %s", previous, error)
        return None


def _has_lost(report: DriftReport, threshold: float) -> bool:
    """Whether the champion does worse here than on its reference, by more than chance explains, on sound data."""
    drop, interval = report.accuracy_drop, report.accuracy_drop_interval
    return drop is not None and interval is not None and drop >= threshold and interval.lower > 0 and not report.faults


def _compare(
    registry: Registry, champion: str, previous: str, window: Window, config: Config
) -> PreviousChampion | None:
    learnt = dict.fromkeys(name for version in (champion, previous) for name in registry.lineage(version).windows)
    if window.document.id in registry.lineage(previous).windows:
        return None  # it would be praised for what it has learnt by heart
    known = Known(Window.open(registry.store, config.dataset, name) for name in learnt if name != window.document.id)
    rows = known.new_rows(window, None, SCHEMA.names)
    now, knows = _answers(registry, champion, window, rows, config)
    then, knew = _answers(registry, previous, window, rows, config)
    both = knows & knew
    units = independent_units(rows.filter(pa.array(both)))
    return PreviousChampion(
        version=previous,
        rows=int(both.sum()),
        correct=int(then[both].sum()),
        champion_correct=int(now[both].sum()),
        p_value=sign_test(then[both], now[both], units),
    )


def _answers(registry: Registry, version: str, window: Window, rows: pa.Table, config: Config) -> tuple[Mask, Mask]:
    """Where a version is right, and where it knows the class; bool (n,) each."""
    classes = ModelSpec.model_validate_json(registry.read_file(version, "model.json"), extra="ignore").classes
    seen = see_window(registry, version, classes, window, rows, config)
    right: Mask = (seen.features.probabilities.argmax(1) == seen.labels).numpy()
    knows: Mask = (seen.labels >= 0).numpy()
    return right, knows


def sign_test(previous: Mask, champion: Mask, units: NDArray[np.int64]) -> float:
    """How probable it is that the previous champion is right so much more often, if both were equally good.

    Exact and one-sided, over independent units: each is for whoever has more of its rows right. Where every row is a
    unit of its own this is McNemar's test.

    Args:
        previous: Where it is right, bool (n,).
        champion: The same of the present one.
        units: Equal for rows that depend on each other, int64 (n,).

    Returns:
        p-value in (0, 1]; 1 where the two do not differ.

    Source:
        Dixon & Mood, "The statistical sign test", JASA 41 (1946); McNemar, Psychometrika 12 (1947).
    """
    from scipy.stats import binomtest

    _, unit = np.unique(units, return_inverse=True)
    balance = np.bincount(unit, weights=previous.astype(float) - champion.astype(float))
    better, differ = int((balance > 0).sum()), int((balance != 0).sum())
    return float(binomtest(better, differ, alternative="greater").pvalue) if differ else 1.0
