"""Which images of a window to label, where labels are wanted: a list that can be filled in and delivered.

Images to learn from are taken by what they tell, the furthest from what the champion knows first. Those that are held
out are drawn at random: a model that is judged on hand-picked images is judged on another world. Not covered: whether
labels are wanted, and how many (`rules`).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from math import ceil, log

from components.core.config import GateConfig, IngestConfig
from components.core.contracts import DriftReport
from components.core.plans import Decision
from components.core.registry import Registry
from components.core.runs import Run
from components.core.windows import Known, Window

LIST = "to_label.csv"
FURTHEST = "to learn from: among the furthest from what the champion knows"
ANY = "to learn from: drawn at random"
JUDGING = "to judge by: drawn at random among those that are held out"


def least_held_out(config: GateConfig) -> int:
    """Held-out rows below which no model, however good, is shown to reach `gate.min_accuracy`: at least 1.

    Source:
        n right answers of n show an accuracy of alpha ** (1 / n) (Clopper and Pearson, Biometrika 26 (1934)). The gate
        shares alpha among attempts, so it may need some more.
    """
    return max(1, ceil(log(config.alpha) / log(config.min_accuracy))) if config.min_accuracy else 1


def file_list(record: Run, window_id: str, plan: Decision) -> None:
    """Write the list of the images that a plan wants labels for."""
    evidence, config = plan.evidence, record.config
    assert evidence is not None, "a plan that was just made has its evidence"
    registry = Registry(record.store, config.model)
    past = registry.lineage(plan.champion).windows if plan.champion else ()
    known = Known(Window.open(record.store, config.dataset, name) for name in past if name != window_id)
    columns = ("sha256", "label", "split", "source")
    rows = known.new_rows(Window.open(record.store, config.dataset, window_id), None, columns).to_pylist()
    rows = [row for row in rows if row["label"] is None]  # in order of digest, which is none
    far = record.need("detect_drift", DriftReport).furthest_unlabelled
    chosen = choose_images(
        to_train=_far_first([row["sha256"] for row in rows if row["split"] == "train"], far),
        to_hold_out=[row["sha256"] for row in rows if row["split"] == "holdout"],
        count=plan.labels_wanted,
        least_held_out=evidence.least_held_out - evidence.held_out,
    )
    places = {row["sha256"]: (row["source"], row["split"]) for row in rows}
    lines = [(places[digest][0], digest, _why(digest, places[digest][1], far)) for digest in chosen]
    record.store.put(record.key(LIST), render_list(lines, config.ingest).encode())


def choose_images(*, to_train: Sequence[str], to_hold_out: Sequence[str], count: int, least_held_out: int) -> list[str]:
    """Take so many of both sides of the split as the window has of them, but enough that are held out.

    Args:
        to_train: Digests, those that tell most first.
        to_hold_out: Digests, in an order that tells nothing of them.
        count: How many are wanted.
        least_held_out: How many at least of those to hold out.

    Returns:
        `count` digests, or all there are, those to train on first.
    """
    images = len(to_train) + len(to_hold_out)
    share = round(count * len(to_hold_out) / images) if images else 0
    held_out = max(min(count, max(share, least_held_out)), count - len(to_train))
    return [*to_train[: count - min(held_out, len(to_hold_out))], *to_hold_out[:held_out]]


def render_list(lines: Sequence[tuple[str, str, str]], config: IngestConfig) -> str:
    """The list as a table that ingest takes, once its empty column of labels is filled in and it lies where the images
    are.

    Args:
        lines: Path below the source, SHA-256 and why, of each image.
        config: What ingest calls the columns of paths and labels.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([config.path_column, config.label_column, "sha256", "why"])
    writer.writerows([path, "", digest, why] for path, digest, why in lines)
    return file.getvalue()


def _far_first(digests: Sequence[str], far: Sequence[str]) -> list[str]:
    place = {digest: n for n, digest in enumerate(far)}
    return sorted(digests, key=lambda digest: place.get(digest, len(far)))


def _why(digest: str, split: str, far: Sequence[str]) -> str:
    if split == "holdout":
        return JUDGING
    return FURTHEST if digest in far else ANY
