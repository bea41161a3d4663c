"""Ingest of anything: what is delivered is counted once, and what is usable comes back byte by byte."""

from __future__ import annotations

import io
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from components.core.storage import sha256_hex
from components.core.windows import READING
from tests.unit.test_ingest import class_folders, taken

MODES = {
    "PNG": ("L", "RGB", "RGBA", "P", "1", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "BMP": ("L", "RGB", "P", "1"),
    "GIF": ("L", "P", "1"),
    "TIFF": ("L", "RGB", "RGBA", "P", "1", "I;16"),
    "WEBP": ("RGB", "RGBA"),
}
LABELS = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=20).filter(
    lambda text: "/" not in text and "\\" not in text and not text.startswith(".") and text not in IGNORED
)
IGNORED = ("Thumbs.db", "desktop.ini", "__MACOSX")


@st.composite
def images(draw: st.DrawFn) -> bytes:
    """A small image of any format and mode."""
    kind = draw(st.sampled_from(sorted(MODES)))
    mode = draw(st.sampled_from(MODES[kind]))
    size = (draw(st.integers(1, 40)), draw(st.integers(1, 40)))
    width = {"1": 0.125, "I;16": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}.get(mode, 1)
    row = int(-(-size[0] * width // 1))
    pattern = draw(st.binary(min_size=1, max_size=16))
    data = (pattern * (row * size[1] // len(pattern) + 1))[: row * size[1]]
    file = io.BytesIO()
    image = Image.frombytes(mode, size, data)
    if mode == "P":
        image.putpalette(bytes(range(256)) * 3)
    image.save(file, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return file.getvalue()


@st.composite
def deliveries(draw: st.DrawFn) -> list[tuple[str, bytes, bool]]:
    """Label, bytes, and whether they are an image, of each file: some of them twice, some under two labels."""
    labels = draw(st.lists(LABELS, min_size=1, max_size=4, unique=True))
    pool = [(data, True) for data in draw(st.lists(images(), min_size=1, max_size=6))]
    pool += [(b"\0garbage" + data, False) for data in draw(st.lists(st.binary(max_size=20), max_size=2))]
    if draw(st.booleans()):
        pool.append((b"", False))
    chosen = st.tuples(st.sampled_from(labels), st.sampled_from(pool))
    return [(label, *picked) for label, picked in draw(st.lists(chosen, min_size=1, max_size=14))]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(files=deliveries(), order=st.randoms(use_true_random=False))
def test_anything_delivered_is_counted_once_and_comes_back(files: list[tuple[str, bytes, bool]], order: object) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        named = {f"{label}/{n:02d}.png": data for n, (label, data, _) in enumerate(files)}
        window = taken(root, class_folders(root / "a", named), workers=1)
        rows = window.manifest().to_pylist()
        assert sorted(row["source"] for row in rows) == sorted(named), "every file is one row"
        assert sum(window.document.status_counts.values()) == window.document.rows == len(files)

        under: dict[bytes, set[str]] = defaultdict(set)
        for label, data, good in files:
            if good:
                under[data].add(label)
        garbage = [label for label, _, good in files if not good]
        copies = Counter(data for _, data, good in files if good)
        expected = Counter(unreadable=len(garbage))
        for data, count in copies.items():
            if len(under[data]) > 1:
                expected["conflicting"] += count
            else:
                expected["ok"] += 1
                expected["duplicate"] += count - 1
        assert window.document.status_counts == {status: n for status, n in expected.items() if n}
        assert all((row["status"] == "unreadable") == bool(row["reason"]) for row in rows)
        assert all((row["split"] == "none") == (row["status"] != "ok") for row in rows)

        usable = window.rows(columns=READING)
        found = {sha256_hex(data) for _, data in window.images(usable)}
        assert found == {sha256_hex(data) for data in copies if len(under[data]) == 1}
        assert all(row["label"] in under[named[row["source"]]] for row in usable.to_pylist())

        numbers = list(range(len(files)))
        order.shuffle(numbers)  # type: ignore[attr-defined]
        again = {f"{label}/{n:02d}.png": data for n, (label, data, _) in zip(numbers, files, strict=True)}
        assert taken(root / "b", class_folders(root / "again", again), workers=1).document.id == window.document.id
