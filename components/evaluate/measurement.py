"""All that is measured on one holdout, put together."""

from __future__ import annotations

import torch

from components.core.config import EvaluationConfig
from components.core.contracts import AnchorScores, HoldoutScores
from components.evaluate.answers import Answers, Said
from components.evaluate.calibration import Bin, calibration_error, fill_bins
from components.evaluate.scores import pair, score_holdout
from components.evaluate.slices import score_slices
from components.evaluate.transfer import pair_windows


def measure_holdout(answers: Answers, config: EvaluationConfig) -> HoldoutScores:
    """Score the rows of one holdout."""
    champion = answers.champion
    before = champion.among(answers.classes) if champion else None
    known = len(champion.classes) if champion else 0
    after = answers.challenger.among(answers.classes)
    scores = score_holdout(answers.labels, after, before, answers.classes, known, answers.groups)
    now, was = confidence_bins(answers)
    return scores.model_copy(
        update={
            "by_window": pair_windows(answers, champion) if champion else {},
            "slices": score_slices(answers, config.slices, config.min_slice_rows),
            "calibration_error": calibration_error(now),
            "champion_calibration_error": calibration_error(was),
        }
    )


def confidence_bins(answers: Answers) -> tuple[list[Bin], list[Bin]]:
    """Challenger's and champion's rows by confidence, of classes that the champion knows; all rows, and no champion's,
    while there is none."""
    champion = answers.champion
    known = answers.known_to(champion) if champion else torch.ones(len(answers), dtype=torch.bool)

    def bins(said: Said) -> list[Bin]:
        return fill_bins(said.confidence[known], answers.right(said)[known])

    return bins(answers.challenger), bins(champion) if champion else []


def measure_anchor(answers: Answers, windows: tuple[str, ...]) -> AnchorScores | None:
    """Compare the challenger with the anchor on the rows of the anchor's windows, of classes that the anchor knows.

    Args:
        answers: Of both holdouts.
        windows: That the anchor was trained on.
    """
    anchor = answers.anchor
    if anchor is None:
        return None
    own = torch.tensor([window in windows for window in answers.column("window")], dtype=torch.bool)
    rows = own & answers.known_to(anchor)
    paired = pair(answers.right(anchor)[rows], answers.right(answers.challenger)[rows], answers.groups[rows])
    return AnchorScores(version=anchor.version, paired=paired)
