"""Compare a window with the champion's reference: did something change, what, and what did it cost? Values in, out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import ceil
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from components.core.config import DriftConfig
from components.core.contracts import DriftReport, Interval, MovedClass
from components.core.models import Features, best_device
from components.core.reference import Reference
from components.core.statistics import newcombe_interval
from components.core.units import independent_units
from components.detect_drift.alarms import raise_alarm, test_level
from components.detect_drift.combination import two_sample_test
from components.detect_drift.detectors import (
    ClassifierDetector,
    CountDetector,
    Detector,
    KernelDetector,
    MarginalDetector,
)
from components.detect_drift.features import Seen
from components.detect_drift.label_faults import Answers, find_label_faults, images_changed
from components.detect_drift.naming import name_change
from components.detect_drift.novelty import TAIL, NoveltyDetector, class_distances
from components.detect_drift.relabelling import Sample, shared_noise
from components.detect_drift.severity import estimate_drop

# Of the manifest: what light, optics and sensor change, and what codecs and senders do.
PROPERTIES = ("mean", "std", "sharpness", "skew", "red", "green", "blue", "width", "height")
LEAST_ROWS = 10  # of a class, before a share of it means anything
EXAMPLES, MOST_CLASSES = 16, 10
REDUCED = 0.9  # of the reference's median side: images that arrive below it have fewer pixels, not some cropped ones
# The most take some 500 MB. Windows that come every hour would need more: there, several must agree before an alarm.
LEAST_PERMUTATIONS, MOST_PERMUTATIONS = 999, 50_000
PERMUTATIONS_PER_LEVEL = 20  # so that a p-value near the level is known to a quarter of it


def compare(
    champion: str,
    classes: tuple[str, ...],
    reference: Reference,
    window: Seen,
    changed_before: Sequence[bool],
    config: DriftConfig,
) -> DriftReport:
    """Test a window against a reference sample and judge its labels; its images are judged by `triage`.

    Args:
        champion: Version of the champion.
        classes: Its classes.
        reference: Its sample.
        window: What it sees of the window.
        changed_before: Whether each earlier window changed against this champion, oldest first.
        config: Budget of alarms, thresholds.

    Returns:
        The report, its `faults` those of the labels only, with all of `furthest_unlabelled`.

    Raises:
        ValueError: Features that are not finite, or not of this champion.
    """
    report = DriftReport(
        champion=champion,
        rows=len(window.labels),
        unlabelled=window.rows["label"].null_count,
        new_classes=_new_classes(window),
    )
    if not len(window.labels) or not len(reference.labels):
        report = report.model_copy(update={"undecided": "there is nothing to compare"})
    else:
        report = report.model_copy(
            update={
                **_differences(reference, window, changed_before, config),
                **_what_moved(reference, window, classes),
                **_what_it_means(reference, window),
            }
        )
    known = window.labels >= 0
    if not bool(known.any()) or not len(reference.labels):
        return report
    drop, interval, scores = _accuracy_drop(reference, window, known)
    changed = images_changed(report.views, report.level or 0.0)
    now, then = _answers(window.features, window.labels, window.rows), _answers(reference.features, reference.labels)
    return report.model_copy(
        update={
            "reference_accuracy": scores[0],
            "window_accuracy": scores[1],
            "accuracy_drop": drop,
            "accuracy_drop_interval": interval,
            "faults": find_label_faults(now, then, classes, changed, config),
        }
    )


def standard_detectors(labelled: bool) -> list[Detector]:
    """The points of view: those that decide together see the most, the others show what moved.

    Each view that counts costs the others power. A classifier of all features, a kernel and novelty, which counts
    double because only it sees few images of an unknown class, find more than all eight do (drift_power.py).

    Args:
        labelled: Whether all images of a window have their label: one still to come would look like a change.
    """
    views: list[Detector] = [
        ClassifierDetector("all features", ("embeddings", "early layers", "properties")),
        KernelDetector("embeddings"),
        NoveltyDetector("novelty", ("softmax", "embeddings", "early layers"), weight=2.0),
        KernelDetector("early layers", weight=0.0, standardised=True),
        MarginalDetector("softmax", weight=0.0),
        MarginalDetector("properties", weight=0.0),
        CountDetector("answers", weight=0.0),
    ]
    return [*views, CountDetector("labels")] if labelled else views


def _differences(
    reference: Reference, window: Seen, changed_before: Sequence[bool], config: DriftConfig
) -> dict[str, object]:
    """Fields of the report that the two-sample test fills."""
    past = _sample(reference.features, reference.labels, reference.rows)
    now = _sample(window.features, window.labels, window.rows)
    units = [len(sample.units.unique()) if sample.units is not None else 0 for sample in (past, now)]
    if min(units) < 2:
        whose = "window" if units[1] < 2 else "reference"
        return {"undecided": f"all images of the {whose} belong together, and two independent ones are needed"}
    views = standard_detectors(labelled=not window.rows["label"].null_count)
    level = test_level(config, shared_noise(*units))
    permutations = min(MOST_PERMUTATIONS, max(LEAST_PERMUTATIONS, ceil(PERMUTATIONS_PER_LEVEL / level)))
    content = crc32("".join(window.rows["sha256"].to_pylist()).encode())
    generator = torch.Generator().manual_seed(config.seed + content)  # other rows of the reference for each window
    result = two_sample_test(
        views, past, now, permutations=permutations, generator=generator, alpha=level, device=best_device()
    )
    drifted, undecided = result.p_value <= level, None
    if not drifted and sum(view.weight for view in views) * result.smallest_p_value > level:
        undecided = f"{units[1]} independent images or groups of images are too few for a level of {level:.2g}"
        if permutations == MOST_PERMUTATIONS:
            undecided = f"no single window can reach a level of {level:.2g}: raise drift.alarm_windows"
    recent = [*changed_before, drifted][-config.alarm_memory :]
    return {
        "views": result.views,
        "p_value": result.p_value,
        "level": level,
        "drifted": drifted,
        "alarm": raise_alarm(drifted, changed_before, config),
        "recent_changes": sum(recent),
        "alarm_windows": config.alarm_windows,
        "undecided": undecided,
    }


def _sample(features: Features, labels: Tensor, rows: pa.Table) -> Sample:
    """Rows as the detectors want them. An unknown class is one of its own."""
    unknown = features.probabilities.shape[1]
    return Sample(
        {
            "embeddings": features.embeddings,
            "early layers": features.early,
            "softmax": features.probabilities,
            "answers": features.probabilities.argmax(dim=1),
            "properties": _properties(rows),
            "labels": torch.where(labels < 0, unknown, labels),
        },
        units=torch.from_numpy(independent_units(rows)),
    )


def _properties(rows: pa.Table) -> Tensor:
    """Properties of the manifest, float32 (n, p). What an image does not have counts as less than anything."""
    columns = [pc.fill_null(rows[name].cast(pa.float32()), float(-(2**20))).to_numpy() for name in PROPERTIES]
    return torch.from_numpy(np.stack(columns, axis=1))


def _what_moved(reference: Reference, window: Seen, classes: tuple[str, ...]) -> dict[str, object]:
    """Fields of the report about classes and images: those furthest from the reference."""
    then, now = reference.features, window.features
    # One half of the reference says what is usual, the other how far from it the champion's own images lie: rows are
    # nearer to a mean that they were counted in.
    halves = [torch.arange(start, len(reference.labels), 2) for start in (0, 1)]
    pooled = [
        torch.cat([*(past[half] for half in halves), current])
        for past, current in (
            (then.embeddings, now.embeddings),
            (then.early, now.early),
            (then.probabilities, now.probabilities),
        )
    ]
    answers = pooled.pop().argmax(dim=1)
    distances = class_distances(pooled, answers, known=len(halves[0]))
    usual = len(halves[0])
    if not len(halves[1]):
        return {}
    far = distances > distances[usual : len(reference.labels)].quantile(TAIL)
    moved = [_moved_class(name, answers == n, far, usual, len(reference.labels)) for n, name in enumerate(classes)]
    far, current = far[len(reference.labels) :], distances[len(reference.labels) :]
    digests, labels = window.rows["sha256"].to_pylist(), window.rows["label"].to_pylist()
    order = current.argsort(descending=True).tolist()
    return {
        "moved_classes": tuple(sorted(filter(None, moved), key=lambda m: (-m.novel, m.name))[:MOST_CLASSES]),
        "moved_images": tuple(digests[n] for n in order[:EXAMPLES] if far[n]),
        "furthest_unlabelled": tuple(digests[n] for n in order if labels[n] is None),
    }


def _moved_class(name: str, here: Tensor, far: Tensor, usual: int, reference: int) -> MovedClass | None:
    """How many more images with this answer are far out, beyond chance; None where they are not.

    Args:
        name: The class.
        here: Which rows have this answer, bool (N,): those that say what is usual, the reference's others, the rest.
        far: Which rows are far out, bool (N,).
        usual: Rows of the first kind.
        reference: Rows of the first two kinds.
    """
    now, then = far[reference:][here[reference:]], far[usual:reference][here[usual:reference]]
    counts = (int(now.sum()), len(now)), (int(then.sum()), len(then))
    if min(len(now), len(then)) < LEAST_ROWS or newcombe_interval(*counts, 0.95).lower <= 0:
        return None
    return MovedClass(name=name, images=len(now), novel=float(now.float().mean() - then.float().mean()))


def _what_it_means(reference: Reference, window: Seen) -> dict[str, object]:
    """Fields of the report that rehearsed changes fill: kind, and accuracy lost as far as it shows without labels."""
    changes = reference.changes
    if changes is None:
        return {}
    sides = [
        np.median(np.sqrt(rows["width"].to_numpy().astype(float) * rows["height"].to_numpy()))
        for rows in (reference.rows, window.rows)
    ]
    seen = window.features
    estimate = estimate_drop(changes, seen.probabilities, seen.early, seen.pixels)
    named = name_change(changes, seen.early, seen.pixels, reduced=bool(sides[1] < REDUCED * sides[0]))
    return {
        "change": named.kind if named else None,
        "estimated_drop": estimate.drop if estimate else None,
        "estimated_drop_interval": estimate.interval if estimate else None,
    }


def _new_classes(window: Seen) -> dict[str, int]:
    names = zip(window.rows["label"].to_pylist(), (window.labels >= 0).tolist(), strict=True)
    return dict(sorted(Counter(name for name, known in names if name is not None and not known).items()))


def _answers(features: Features, labels: Tensor, rows: pa.Table | None = None) -> Answers:
    """What the champion says of the rows whose class it knows."""
    known = labels >= 0
    named = [] if rows is None else rows.filter(pa.array(known.numpy()))["sha256"].to_pylist()
    return Answers(
        labels=labels[known].numpy(), probabilities=features.probabilities[known].numpy(), sha256=tuple(named)
    )


def _accuracy_drop(reference: Reference, window: Seen, known: Tensor) -> tuple[float, Interval, tuple[float, float]]:
    """Drop, its 95 % interval, and the accuracies on reference and window."""
    then = reference.features.probabilities.argmax(1) == reference.labels
    now = window.features.probabilities[known].argmax(1) == window.labels[known]
    before, after = (int(then.sum()), len(then)), (int(now.sum()), len(now))
    scores = before[0] / before[1], after[0] / after[1]
    return scores[0] - scores[1], newcombe_interval(before, after, 0.95), scores
