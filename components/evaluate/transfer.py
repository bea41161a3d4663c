"""What learning a new window does to the old ones. Values in, values out."""

from __future__ import annotations

from collections.abc import Mapping

from components.core.contracts import PairedOutcome
from components.evaluate.answers import Answers, Said
from components.evaluate.scores import pair
from components.evaluate.slices import as_text, members

ByWindow = Mapping[str, PairedOutcome]


def pair_windows(answers: Answers, before: Said) -> dict[str, PairedOutcome]:
    """Compare an earlier model with the challenger on each window, oldest first.

    Args:
        answers: Rows of any windows. Those of classes that the earlier model does not know are left out, and windows
            without any other with them.
        before: What the earlier model says of the same rows; it stands in the champion's place.
    """
    known, was, now = answers.known_to(before), answers.right(before), answers.right(answers.challenger)
    windows = members(as_text(answers.column("window")))
    rows = {window: here[known[here]] for window, here in windows.items()}
    return {window: pair(was[here], now[here], answers.groups[here]) for window, here in rows.items() if len(here)}


def backward_transfer(by_window: ByWindow) -> float | None:
    """The mean over windows, each counting the same, of the accuracy now less that before, in [-1, 1].

    Of one update: what the paper takes over all of a model's history. None without a window.

    Source:
        Lopez-Paz and Ranzato, "Gradient Episodic Memory for Continual Learning", NeurIPS 2017.
    """
    changes = [_change(paired) for paired in by_window.values() if paired.rows]
    return sum(changes) / len(changes) if changes else None


def forgetting(*earlier: ByWindow) -> float | None:
    """The mean over windows of the accuracy of the best earlier model less that now, in [-1, 1]. None without a window.

    Args:
        earlier: The same windows, with another earlier model each; a window may be missing in some.

    Source:
        Chaudhry et al., "Riemannian Walk for Incremental Learning", ECCV 2018.
    """
    worst: dict[str, float] = {}
    for by_window in earlier:
        for window, paired in by_window.items():
            if paired.rows:
                worst[window] = max(worst.get(window, -1.0), -_change(paired))
    return sum(worst.values()) / len(worst) if worst else None


def _change(paired: PairedOutcome) -> float:
    return (paired.only_challenger_right - paired.only_champion_right) / paired.rows
