"""Answers that turn: right before and wrong now (negative flips), and the other way round. Values in, values out.

A challenger that is better on the whole still breaks what people rely on where it flips answers to wrong ones.

Source:
    Yan et al., "Positive-Congruent Training: Towards Regression-Free Model Updates", CVPR 2021.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from components.core.contracts import PairedOutcome
from components.evaluate.answers import Answers


@dataclass(frozen=True, kw_only=True)
class FlipKind:
    """`rows` of class `label` that the champion knew and the challenger calls `answer`."""

    label: str
    answer: str
    rows: int


def negative_flip_rate(paired: PairedOutcome) -> float | None:
    """The share of rows that only the champion has right, in [0, 1]; None without a row."""
    return paired.only_champion_right / paired.rows if paired.rows else None


def relative_negative_flips(paired: PairedOutcome) -> float | None:
    """Negative flips, in units of those of two models of these accuracies that err independently; None where these
    would have none."""
    if not paired.rows:
        return None
    champion_right = paired.both_right + paired.only_champion_right
    challenger_wrong = paired.only_champion_right + paired.both_wrong
    independent = champion_right * challenger_wrong / paired.rows
    return paired.only_champion_right / independent if independent else None


def negative_flips(answers: Answers) -> list[FlipKind]:
    """Which classes the challenger takes for which where the champion was right, the most frequent first."""
    if answers.champion is None:
        return []
    flipped = answers.where(answers.right(answers.champion) & ~answers.right(answers.challenger))
    said = [flipped.challenger.classes[n] for n in flipped.challenger.answers.tolist()]
    counts = Counter(zip(map(str, flipped.column("label")), said, strict=True))
    kinds = [FlipKind(label=label, answer=answer, rows=rows) for (label, answer), rows in counts.items()]
    return sorted(kinds, key=lambda kind: (-kind.rows, kind.label, kind.answer))
