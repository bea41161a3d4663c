"""The demo: scikit-learn's handwritten digits arrive as six windows, and the pipeline does what it does.

This module only makes folders of images and starts runs, as any user could: nothing in the pipeline knows of it. The
digits are real scans (8x8 grey, 43 writers). Source: Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits",
UCI Machine Learning Repository (1998).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from components.core.contracts import RunReport
from components.core.errors import ConfigurationError
from pipelines.local import run_pipeline, say_on_stderr
from pipelines.status import print_runs, write_report

MARKER = ".retrain-demo"
Digits = tuple[np.ndarray, np.ndarray]  # images uint8 (n, 8, 8), digits int64 (n,)


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """One delivery: what it is called, what happens in it, and how it is written to a folder."""

    name: str
    story: str
    write: Callable[[Path], None]


def run_demo(folder: Path, *, as_json: bool) -> None:
    """Let six windows arrive, run the pipeline on each, print the table and the path of the report.

    Args:
        folder: Made anew; must not exist, or be from an earlier demo.
        as_json: Print one JSON object a window on standard output instead of the table.

    Raises:
        ConfigurationError: The folder holds something that is not a demo's.
    """
    taken = folder.is_symlink() or folder.is_file() or folder.resolve() == Path.cwd()
    foreign = folder.is_dir() and any(folder.iterdir()) and not (folder / MARKER).exists()
    if taken or foreign:
        raise ConfigurationError(
            f"{folder} is not a folder of an earlier demo",
            expected="a folder that may be made anew",
            next_command="retrain demo --folder OTHER",
        )
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / MARKER).touch()
    config = folder / "retrain.yaml"
    config.write_text(files("pipelines").joinpath("demo.yaml").read_text())
    reports: list[RunReport] = []
    for number, arrival in enumerate(arrivals(), start=1):
        source = folder / "incoming" / arrival.name
        arrival.write(source)
        say_on_stderr(f"\nWindow {number} of 6, {arrival.name}: {arrival.story}")
        report = run_pipeline(config, str(source), "auto", say_on_stderr, folder / "logs" / arrival.name)
        reports.append(report)
        if as_json:
            print(json.dumps(report.model_dump(mode="json"), ensure_ascii=False), flush=True)  # noqa: T201
    page = folder / "report.html"
    write_report(config, page)
    console = Console(stderr=as_json)
    print_runs(console, reports)
    console.print(f"\nReport with pictures: {page.absolute()}", soft_wrap=True)
    console.print(f"Look around: retrain status --config {config}", soft_wrap=True)


def arrivals() -> Iterator[Arrival]:
    """The six windows, in the order they arrive. No image comes twice."""
    low, high = _pools()
    first, more = _take(low, 440), _take(low, 180)
    faded, mixed, broken, lying = _take(low, 220), _take(low, 220), _take(low, 100), _take(low, 280)
    new_digits, broken_high, lying_high = _take(high, 200), _take(high, 40), _take(high, 100)
    yield Arrival(
        name="1-first",
        story="440 scans of the digits 0 to 7. There is no champion yet.",
        write=lambda to: write_folder(to, first),
    )
    yield Arrival(
        name="2-same-again",
        story="180 more scans from the same scanner.",
        write=lambda to: write_folder(to, more),
    )
    yield Arrival(
        name="3-new-scanner",
        story="220 scans from a scanner whose lamp is weak: grey paper, pale ink, lines shifted.",
        write=lambda to: write_folder(to, (weak_lamp(faded[0]), faded[1])),
    )
    yield Arrival(
        name="4-new-digits",
        story="200 scans of the digits 8 and 9, which nobody has shown before, among 220 others.",
        write=lambda to: write_folder(to, _join(new_digits, mixed)),
    )
    yield Arrival(
        name="5-broken",
        story="140 scans; some files are cut short, and the folders were named in the wrong order.",
        write=lambda to: write_broken_folder(to, _join(broken, broken_high)),
    )
    images, digits = _join(lying, lying_high)
    yield Arrival(
        name="6-sideways",
        story="380 scans of cards that lay on their side, under milky foil.",
        write=lambda to: write_folder(to, (sideways_under_foil(images), digits)),
    )


def weak_lamp(images: np.ndarray) -> np.ndarray:
    """Pale ink on grey paper, a pixel lower: uint8 (n, 8, 8) to the same."""
    return (np.roll(images, 1, axis=1) * 0.7 + 40).astype(np.uint8)


def sideways_under_foil(images: np.ndarray) -> np.ndarray:
    """Pale on grey and turned by 90 degrees: uint8 (n, 8, 8) to the same."""
    return (np.rot90(images, axes=(1, 2)) * 0.35 + 90).astype(np.uint8)


def write_folder(folder: Path, digits: Digits) -> None:
    """Write images as `folder/<digit>/<number>.png`."""
    for number, (image, digit) in enumerate(zip(*digits, strict=True)):
        path = folder / str(digit) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


def write_broken_folder(folder: Path, digits: Digits) -> None:
    """Write images under the wrong digit (each under the next one), every eighth file cut after 40 bytes."""
    images, labels = digits
    write_folder(folder, (images, (labels + 1) % 10))
    for path in sorted(folder.rglob("*.png"))[::8]:
        path.write_bytes(path.read_bytes()[:40])


def _pools() -> tuple[list[Digits], list[Digits]]:
    """Shuffled digits 0 to 7, and 8 to 9, each in a list of one so that `_take` can shorten it."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images, labels = (data.images[order] * 255 / 16).astype(np.uint8), data.target[order]
    return [(images[labels < 8], labels[labels < 8])], [(images[labels >= 8], labels[labels >= 8])]


def _take(pool: list[Digits], count: int) -> Digits:
    """Take the first `count` digits out of a pool."""
    images, labels = pool[0]
    assert len(labels) >= count, f"{len(labels)} digits left, {count} wanted"
    pool[0] = (images[count:], labels[count:])
    return images[:count], labels[:count]


def _join(first: Digits, second: Digits) -> Digits:
    return np.concatenate([first[0], second[0]]), np.concatenate([first[1], second[1]])
