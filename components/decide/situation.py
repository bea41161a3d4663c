"""The situation that a window creates, as a few numbers: what makes one case like another. Values in, values out."""

from __future__ import annotations

from collections.abc import Mapping
from math import log, log10

from components.core.config import DecisionConfig
from components.core.plans import Evidence


def describe_situation(evidence: Evidence, config: DecisionConfig) -> dict[str, float]:
    """Describe where a plan stands.

    Args:
        evidence: Of a window, with a champion.
        config: Says from how many images on a new class counts.

    Returns:
        `drop`: accuracy lost, in [-1, 1], measured, else as estimated, else 0. `unknown`: share of the window's images
        that are of classes to be learnt, in [0, 1]. `volume`: log10 of new training rows per old one. `rows`: log10 of
        the new ones. `imbalance`: 1 less the evenness of the window's classes (entropy over its maximum), in [0, 1].
        `drifted`, `resized`: 0 or 1.
    """
    drop = evidence.drop if evidence.drop is not None else evidence.estimated_drop
    images = max(1, sum(evidence.window_classes.values()))
    return {
        "drop": drop if drop is not None else 0.0,
        "unknown": sum(learnable_classes(evidence, config).values()) / images,
        "volume": log10(max(1, evidence.new_rows) / max(1, evidence.old_rows)),
        "rows": log10(max(1, evidence.new_rows)),
        "imbalance": 1.0 - evenness(evidence.window_classes),
        "drifted": float(evidence.drifted),
        "resized": float(evidence.champion_image_size not in (None, evidence.image_size)),
    }


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
