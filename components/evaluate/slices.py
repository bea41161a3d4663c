"""Parts of a holdout: a mean over all rows hides a camera or a class that got worse. Values in, values out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from components.core.contracts import PairedOutcome, SliceScores
from components.evaluate.answers import Answers
from components.evaluate.scores import pair

BANDS = 4  # quarters of the rows
SLICE_COLUMNS = ("width", "height", "mean")  # what the bands of resolution and brightness are made of


def score_slices(answers: Answers, columns: Sequence[str], min_rows: int) -> tuple[SliceScores, ...]:
    """Compare both models on the rows of each class, window, band of resolution and brightness, and more columns.

    Args:
        answers: Of one holdout, whose rows have `SLICE_COLUMNS` and the columns.
        columns: Of the manifest. Numbers are cut into bands, all else is taken as it is; null is in no slice.
        min_rows: Slices with fewer are left out, and those of all rows: they are no part.
    """
    now = answers.right(answers.challenger)
    was, both = None, torch.zeros(len(answers), dtype=torch.bool)
    if answers.champion is not None:
        was, both = answers.right(answers.champion), answers.known_to(answers.champion)
    slices = []
    for by, values in _partitions(answers, columns):
        for value, here in members(values).items():
            if not min_rows <= len(here) < len(answers):
                continue
            known = here[both[here]]
            paired = PairedOutcome() if was is None else pair(was[known], now[known], answers.groups[known])
            correct = int(now[here].sum())
            slices.append(SliceScores(by=by, value=value, rows=len(here), correct=correct, paired=paired))
    return tuple(slices)


def _partitions(answers: Answers, columns: Sequence[str]) -> Iterator[tuple[str, list[str | None]]]:
    yield "class", as_text(answers.column("label"))
    yield "window", as_text(answers.column("window"))
    sides = [np.array(answers.column(name), dtype=float) for name in ("width", "height")]
    yield "resolution", bands(np.sqrt(sides[0] * sides[1]).tolist(), unit="pixels")
    yield "brightness", bands(answers.column("mean"))
    for name in columns:
        values = answers.column(name)
        number = any(isinstance(value, int | float) for value in values)
        yield name, bands(values) if number else as_text(values)


def bands(values: Sequence[object], unit: str = "") -> list[str | None]:
    """Name the quarter that each number is in.

    Args:
        values: Numbers; None and NaN are in no band.
        unit: Said behind the number.

    Returns:
        `up to X`, `X to Y` and so on, `above Z`: the middle ones have their upper end and not their lower. Where many
        numbers are equal there are fewer bands; numbers of at most four values are bands by themselves. None for all
        where all are equal: that is no part of a holdout.
    """
    numbers = np.array([np.nan if value is None else value for value in values], dtype=float)
    there = numbers[~np.isnan(numbers)]
    distinct = np.unique(there)
    if len(distinct) < 2:
        return [None] * len(numbers)
    said = f" {unit}" if unit else ""
    if len(distinct) <= BANDS:
        named = dict(zip(distinct, _tell_apart(distinct.tolist()), strict=True))
        return [None if np.isnan(number) else f"{named[number]}{said}" for number in numbers]
    # An edge is a number that is there; the largest is none, or nothing would be above it.
    edges = np.unique(np.quantile(there, np.arange(1, BANDS) / BANDS, method="lower"))
    edges = edges[edges < distinct[-1]] if edges[0] < distinct[-1] else distinct[-2:-1]
    ends = _tell_apart(edges.tolist())
    names = [f"up to {ends[0]}{said}", *(f"{low} to {high}{said}" for low, high in pairwise(ends))]
    names.append(f"above {ends[-1]}{said}")
    return [
        None if np.isnan(number) else names[place]
        for number, place in zip(numbers, np.searchsorted(edges, numbers), strict=True)
    ]


def _tell_apart(numbers: Sequence[float]) -> list[str]:
    """Distinct numbers with as few digits as keep them distinct, at least four."""
    for digits in range(4, 18):
        told = [f"{number:.{digits}g}" for number in numbers]
        if len(set(told)) == len(told):
            break
    return told


def as_text(values: Sequence[object]) -> list[str | None]:
    """Values as they are written; None stays."""
    return [None if value is None else str(value) for value in values]


def members(values: Sequence[str | None]) -> dict[str, Tensor]:
    """Each value, in the order in which they come, and its rows, int64; None is no value."""
    rows: dict[str, list[int]] = {}
    for row, value in enumerate(values):
        if value is not None:
            rows.setdefault(value, []).append(row)
    return {value: torch.tensor(places) for value, places in rows.items()}
