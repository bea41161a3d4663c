"""One p-value from several detectors, and the smallest change that each could have shown. Values in, values out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from components.core.contracts import DriftView
from components.detect_drift.detectors import Detector
from components.detect_drift.relabelling import Sample, relabel

CPU = torch.device("cpu")
SHOWN_PERMUTATIONS = 999  # of views that raise no alarm: their p-values need no more
TIE = 1e-6  # of the spread of a statistic: closer values are equal, and the difference is rounding


@dataclass(frozen=True, kw_only=True)
class TestResult:
    """`views` with their own p-values, and the p-value of all together in (0, 1]; smaller is more evidence.
    `smallest_p_value` is the least that these samples and this many relabellings could have given."""

    views: tuple[DriftView, ...]
    p_value: float
    smallest_p_value: float


def two_sample_test(
    detectors: Sequence[Detector],
    reference: Sample,
    current: Sample,
    *,
    permutations: int,
    generator: torch.Generator,
    alpha: float = 0.05,
    device: torch.device = CPU,
) -> TestResult:
    """Test "nothing changed" from several points of view at once.

    The combined statistic is the smallest p-value over the views, each divided by its weight, itself compared with that
    of every relabelling: exact whatever the views have in common.

    Args:
        detectors: At least one of a weight above 0.
        reference: m rows.
        current: n rows.
        permutations: B >= 1.
        generator: Of the relabellings.
        alpha: Level at which the smallest change that a view could have shown is stated, in (0, 1).
        device: Where to compute; relabellings are the same on each.

    Returns:
        p-values (1 + hits) / (1 + B), never 0.

    Raises:
        ValueError: See `relabel` and `Detector.score`.

    Source:
        Minimum p: Westfall and Young, "Resampling-Based Multiple Testing" (1993); weights: Genovese, Roeder and
        Wasserman, "False discovery control with p-value weighting", Biometrika 93 (2006).
    """
    relabellings = relabel(reference, current, permutations, generator).to(device)
    past, now = reference.to(device), current.to(device)
    few = relabellings.first(SHOWN_PERMUTATIONS)
    scores = [d.fit(past).score(now, relabellings if d.weight > 0 else few) for d in detectors]
    for detector, score in zip(detectors, scores, strict=True):
        if not bool(score.statistics.isfinite().all()):
            raise ValueError(f"{detector.name}: values too large to compare")
    p_values = [p_values_of(score.statistics) for score in scores]
    weighted = [p / detector.weight for p, detector in zip(p_values, detectors, strict=True) if detector.weight > 0]
    smallest = torch.stack(weighted).amin(dim=0)
    combined = p_values_of(-smallest)
    alarms = smallest[combined + 1 / len(combined) <= alpha]  # an observation in its place would be one more
    critical = float(alarms.max()) if len(alarms) else 0.0
    views = tuple(
        DriftView(
            name=detector.name,
            p_value=float(p[0]),
            effect=float(score.effects[0]),
            unit=detector.unit,
            smallest_effect=_smallest_effect(score.effects, critical * (detector.weight or 1.0)),
            decides=detector.weight > 0,
        )
        for detector, score, p in zip(detectors, scores, p_values, strict=True)
    )
    return TestResult(
        views=views,
        p_value=float(combined[0]),
        smallest_p_value=max(1 / (1 + permutations), 1 / relabellings.distinct),
    )


def p_values_of(statistics: Tensor) -> Tensor:
    """Share of the values that are at least each value, itself included, in (0, 1]; shape (1 + B,) to the same."""
    slack = TIE * float(statistics.max() - statistics.min())
    ordered = (-statistics).sort().values
    hits = torch.searchsorted(ordered, slack - statistics, right=True)
    return hits.double() / len(statistics)  # float32 would put 5 of 100 above a level of 0.05


def _smallest_effect(effects: Tensor, critical: float) -> float | None:
    """Effect that no more than a share `critical` of the relabellings reach by chance; None where all share it."""
    extreme = effects[1:][p_values_of(effects)[1:] <= critical]
    return float(extreme.min()) if len(extreme) else None
