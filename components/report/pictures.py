"""Pictures for the report: what the champion knows beside what arrived, and accuracies over the runs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from components.core.contracts import RunReport
from components.core.thumbnails import thumbnail
from components.core.windows import Window

MOST_CLASSES = 40  # the page is one file: 40 classes of 16 pictures are a few megabytes


@dataclass(frozen=True, kw_only=True)
class ClassPictures:
    """One class: data URIs of images from the champion's windows and from the new window."""

    label: str
    known: list[str]
    arrived: list[str]


def compare_classes(known: Sequence[Window], arrived: Window, images_per_class: int) -> list[ClassPictures]:
    """Pick the first images of each class by digest (arbitrary, but the same every time).

    At most `MOST_CLASSES` classes are shown: those the champion does not know, then the largest of the new window.
    """
    sizes = arrived.document.class_counts
    familiar = {label for window in known for label in window.document.class_counts}
    shown = sorted({*familiar, *sizes}, key=lambda label: (label in familiar, -sizes.get(label, 0), label))[
        :MOST_CLASSES
    ]
    left = _thumbnails(known, set(shown), images_per_class)
    right = _thumbnails([arrived], set(shown), images_per_class)
    return [
        ClassPictures(label=label, known=left.get(label, []), arrived=right.get(label, [])) for label in sorted(shown)
    ]


def _thumbnails(windows: Sequence[Window], labels: set[str], images_per_class: int) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for window in windows:
        counts = {label: len(uris) for label, uris in found.items()}
        wanted: list[int] = []
        rows = window.rows()
        names = rows["label"].to_pylist()
        for position, label in enumerate(names):
            if label in labels and counts.get(label, 0) < images_per_class:
                counts[label] = counts.get(label, 0) + 1
                wanted.append(position)
        for position, data in window.images(rows.take(pa.array(wanted, pa.int64()))):
            found.setdefault(names[wanted[position]], []).append(thumbnail(data))
    return found


def accuracy_chart(reports: Sequence[RunReport]) -> str:
    """Accuracies of champion and challenger on both holdouts, run by run, as SVG text."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "retrain"
    figure = Figure(figsize=(max(5.0, 1.5 * len(reports)), 2.8), layout="constrained")
    styles = {
        "champion_old": ("s", "#7a869a", "champion, old holdout"),
        "champion_new": ("o", "#c77d0a", "champion, new holdout"),
        "challenger_old": ("s", "#1f6feb", "challenger, old holdout"),
        "challenger_new": ("o", "#1a7f37", "challenger, new holdout"),
    }
    axes = figure.subplots()
    for offset, (key, (marker, colour, label)) in zip((-0.15, -0.05, 0.05, 0.15), styles.items(), strict=True):
        values = [getattr(r.accuracy, key) for r in reports]
        points = [(i + offset, 100 * value) for i, value in enumerate(values) if value is not None]
        axes.plot(*zip(*points, strict=True) if points else ([], []), marker, color=colour, label=label)
    axes.set_xticks(range(len(reports)), [f"{r.outcome}\n{(r.window or '')[:8]}" for r in reports], fontsize=8)
    axes.set_xlim(-0.5, max(1, len(reports)) - 0.5)
    axes.set_ylim(0, 103)
    axes.set_ylabel("accuracy, %")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue().partition("<svg")[2].join(["<svg", ""])
