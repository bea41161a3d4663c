"""Pictures for the report: what the champion knows beside what arrived, and accuracies over the runs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from components.core.contracts import RunReport
from components.core.pixels import eight_bits
from components.core.windows import ImageRow, Window

THUMBNAIL_PIXELS = 96


@dataclass(frozen=True, kw_only=True)
class ClassPictures:
    """One class: data URIs of images from the champion's windows and from the new window."""

    label: str
    known: list[str]
    arrived: list[str]


def compare_classes(known: Sequence[Window], arrived: Window, images_per_class: int) -> list[ClassPictures]:
    """Pick the first images of each class by digest (arbitrary, but the same every time)."""
    left = _thumbnails(known, images_per_class)
    right = _thumbnails([arrived], images_per_class)
    return [
        ClassPictures(label=label, known=left.get(label, []), arrived=right.get(label, []))
        for label in sorted({*left, *right})
    ]


def _thumbnails(windows: Sequence[Window], images_per_class: int) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for window in windows:
        wanted: list[ImageRow] = []
        counts = {label: len(uris) for label, uris in found.items()}
        for row in window.rows():
            if counts.get(row.label, 0) < images_per_class:
                counts[row.label] = counts.get(row.label, 0) + 1
                wanted.append(row)
        for row, data in window.images(wanted):
            found.setdefault(row.label, []).append(thumbnail(data))
    return found


def thumbnail(data: bytes) -> str:
    """An image as a small PNG data URI."""
    with Image.open(io.BytesIO(data)) as image:
        small = eight_bits(image, "L" if image.mode in ("L", "1") or image.mode.startswith("I") else "RGB")
        small.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    buffer = io.BytesIO()
    small.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


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
        points = [(i + offset, 100 * r.accuracy[key]) for i, r in enumerate(reports) if key in r.accuracy]
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
