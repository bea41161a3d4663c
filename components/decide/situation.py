"""The situation that a window creates, as a few numbers: what makes one case like another. Values in, values out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import fsum, log, log10
from statistics import NormalDist

from components.core.config import DecisionConfig
from components.core.plans import Evidence

# Standard deviations from the middle to either bound: of the 95 % interval of a measured drop, of the 90 % one of an
# estimated drop.
MEASURED_REACH, ESTIMATED_REACH = NormalDist().inv_cdf(0.975), NormalDist().inv_cdf(0.95)
LEAST_DEVIATION = 0.001  # of a drop: no holdout tells it better


def describe_situation(evidence: Evidence, config: DecisionConfig) -> dict[str, float]:
    """Describe where a plan stands.

    Args:
        evidence: Of a window, with a champion.
        config: Says from how many images on a new class counts.

    Returns:
        `drop`: accuracy lost, in [-1, 1], see `believed_drop`. `unknown`: share of the window's images
        that are of classes to be learnt, in [0, 1]. `volume`: log10 of new training rows per old one. `rows`: log10 of
        the new ones. `imbalance`: 1 less the evenness of the window's classes (entropy over its maximum), in [0, 1].
        `drifted`, `resized`: 0 or 1.
    """
    images = max(1, sum(evidence.window_classes.values()))
    return {
        "drop": believed_drop(evidence).value,
        "unknown": sum(learnable_classes(evidence, config).values()) / images,
        "volume": log10(max(1, evidence.new_rows) / max(1, evidence.old_rows)),
        "rows": log10(max(1, evidence.new_rows)),
        "imbalance": 1.0 - evenness(evidence.window_classes),
        "drifted": float(evidence.drifted),
        "resized": float(evidence.champion_image_size not in (None, evidence.image_size)),
    }


@dataclass(frozen=True, kw_only=True)
class Believed:
    """A value and its standard deviation."""

    value: float
    deviation: float


def believed_drop(evidence: Evidence) -> Believed:
    """Accuracy that the champion lost here: what was measured and what was estimated without labels, each with the
    weight of its precision; 0 where there is neither."""
    told = (
        (evidence.drop, evidence.drop_interval, MEASURED_REACH),
        (evidence.estimated_drop, evidence.estimated_drop_interval, ESTIMATED_REACH),
    )
    known = [
        (drop, max(LEAST_DEVIATION, (bounds.upper - bounds.lower) / (2 * reach)))
        for drop, bounds, reach in told
        if drop is not None and bounds is not None
    ]
    if not known:
        return Believed(value=0.0, deviation=0.0)
    precision = fsum(deviation**-2 for _, deviation in known)
    value = fsum(drop * deviation**-2 for drop, deviation in known) / precision
    return Believed(value=value, deviation=precision**-0.5)


def _unknown_share(evidence: Evidence) -> float:
    """Share of the window's images whose class the champion does not know."""
    known = sum(n for label, n in evidence.window_classes.items() if label in evidence.champion_classes)
    return 1.0 - known / max(1, sum(evidence.window_classes.values()))


def headroom(evidence: Evidence) -> float:
    """The most that the mean of both holdouts' accuracies can grow by, in [0, 1]."""
    known = 1.0 - _unknown_share(evidence)
    old, new = evidence.reference_accuracy, evidence.window_accuracy
    return 1.0 - ((old or 0.0) + (new or 0.0) * known) / 2


def evenness(counts: Mapping[str, int]) -> float:
    """Entropy of the classes over its maximum (Pielou 1966), in [0, 1]; 1 where all are equally frequent."""
    present = [count for count in counts.values() if count]
    if len(present) < 2:
        return 1.0
    total = sum(present)
    return -sum(count / total * log(count / total) for count in present) / log(len(present))


def learnable_classes(evidence: Evidence, config: DecisionConfig) -> dict[str, int]:
    """Classes of the window that the champion does not know and that have enough images to learn, with their counts."""
    least = config.min_new_class_images if evidence.champion else 1
    unknown = {c: n for c, n in evidence.window_classes.items() if c not in evidence.champion_classes}
    return {c: n for c, n in sorted(unknown.items()) if n >= least}
