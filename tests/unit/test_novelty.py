"""Novelty: distances against numpy, ranks against scipy, a case by hand, and what is and is not new."""

from math import log
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom, rankdata
from torch import Tensor
from torch.nn.functional import one_hot

from components.detect_drift.combination import p_values_of
from components.detect_drift.detectors import Scores
from components.detect_drift.novelty import SHRINKAGE, NoveltyDetector, class_distances, ranks_of
from components.detect_drift.relabelling import Sample, relabel

pytestmark = pytest.mark.usefixtures("one_thread")

DETECTOR = NoveltyDetector("novelty", ("softmax", "embeddings"))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blobs(rows: int, seed: int, classes: int = 3, columns: int = 6) -> tuple[Tensor, Tensor]:
    """Embeddings around a centre for each class, and the classes."""
    answers = torch.arange(rows) % classes
    centres = 6 * torch.eye(max(columns, classes))[:classes, :columns]
    return centres[answers] + torch.randn(rows, columns, generator=seeded(seed)), answers


def scored(reference: tuple[Tensor, Tensor], current: tuple[Tensor, Tensor], permutations: int = 199) -> Scores:
    then, now = (
        Sample({"embeddings": rows, "softmax": one_hot(answers, 20).float()}) for rows, answers in (reference, current)
    )
    return DETECTOR.fit(then).score(now, relabel(then, now, permutations, seeded(0)))


def p_value(scores: Scores) -> float:
    return float(p_values_of(scores.statistics)[0])


def exact_distances(features: list[Tensor], answers: Tensor) -> np.ndarray[Any, Any]:
    """The definition in float64: blocks standardised, class means removed, one covariance, shrunk."""
    blocks = []
    for block in features:
        rows = block.double().numpy()
        spread = rows.std(axis=0)
        blocks.append(np.where(spread > 0, (rows - rows.mean(axis=0)) / np.where(spread > 0, spread, 1), 0))
    rows = np.concatenate([block / np.sqrt(block.shape[1]) for block in blocks], axis=1)
    for answer in answers.unique().numpy():
        rows[answers.numpy() == answer] -= rows[answers.numpy() == answer].mean(axis=0)
    covariance = rows.T @ rows / len(rows)
    covariance += SHRINKAGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    distances: np.ndarray[Any, Any] = np.einsum("nd,nd->n", rows @ np.linalg.inv(covariance), rows)
    return distances


@pytest.mark.parametrize(("rows", "columns", "classes"), [(30, 1, 1), (200, 6, 3), (500, 40, 5), (60, 100, 2)])
def test_distances_agree_with_numpy(rows: int, columns: int, classes: int) -> None:
    generator = seeded(rows)
    answers = torch.randint(0, classes, (rows,), generator=generator)
    mixed = torch.randn(rows, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    features = [mixed + 5 * answers[:, None], 100 * torch.randn(rows, 2, generator=generator)]
    wanted = exact_distances(features, answers)
    assert np.allclose(class_distances(features, answers).numpy(), wanted, rtol=5e-3, atol=1e-4 * wanted.mean())


def test_distances_of_one_column_by_hand() -> None:
    # -1, 1 of one class and 9, 11 of another: all 1 from their class's mean, which is the only variance there is. Its
    # unit cancels but for the shrinkage: 1 / (1 + s).
    rows, answers = torch.tensor([[-1.0], [1.0], [9.0], [11.0]]), torch.tensor([0, 0, 7, 7])
    assert class_distances([rows], answers).tolist() == pytest.approx([1 / (1 + SHRINKAGE)] * 4, rel=1e-4)


@pytest.mark.parametrize(("scale", "offset"), [(1e-6, 0.0), (1e6, 0.0), (1.0, 1000.0), (1e3, -1e5)])
def test_distances_do_not_depend_on_unit_and_origin(scale: float, offset: float) -> None:
    rows, answers = blobs(200, 1)
    plain, moved = class_distances([rows], answers), class_distances([scale * rows + offset], answers)
    assert torch.allclose(moved, plain, rtol=2e-2, atol=1e-2)


def test_names_of_the_answers_do_not_matter() -> None:
    rows, answers = blobs(100, 1)
    assert torch.equal(class_distances([rows], answers), class_distances([rows], 5 + 100 * answers))


@pytest.mark.parametrize("classes", [1, 2])
def test_rows_that_do_not_differ_from_their_mean_are_at_no_distance(classes: int) -> None:
    answers = torch.arange(50) % classes
    rows = 0.37 + answers[:, None].float().expand(50, 3)
    assert class_distances([rows], answers).tolist() == [0.0] * 50


def test_constant_columns_change_no_distance() -> None:
    rows, answers = blobs(200, 1)
    wide = torch.cat([rows, torch.full((200, 2), 0.37)], dim=1)
    # A block counts as one, however many columns it has: the shrinkage is of the mean variance.
    assert torch.allclose(class_distances([wide], answers), class_distances([rows], answers), rtol=1e-2)


def test_ranks_by_hand() -> None:
    # Of four: 1 is first (0 below, 1 up to), 2 stands twice (1 below, 3 up to), 3 is last.
    assert ranks_of(torch.tensor([3.0, 1.0, 2.0, 2.0])).tolist() == [7 / 8, 1 / 8, 4 / 8, 4 / 8]


def test_ranks_agree_with_scipy_and_lie_inside_the_unit_interval() -> None:
    values = torch.randint(0, 40, (300,), generator=seeded(1)).float()
    found = ranks_of(values)
    assert np.allclose(found.numpy(), (rankdata(values.numpy()) - 0.5) / 300, atol=1e-6)
    assert float(found.min()) > 0
    assert float(found.max()) < 1
    assert ranks_of(torch.zeros(5)).tolist() == [0.5] * 5


def test_statistic_and_effect_by_hand() -> None:
    # 40 images about 0: 38 in one place, and two of the window at +-1. The two are the furthest, with the middle of the
    # ranks 38 and 40 of 40, 0.975, and the others share 19 of 40, 0.475. Two of 20 against none of 20.
    near = torch.zeros(20)
    far = torch.cat([near[:18], torch.tensor([-1.0, 1.0])])
    answers = torch.zeros(20, dtype=torch.int64)
    scores = scored((near[:, None], answers), (far[:, None], answers))
    assert float(scores.statistics[0]) == pytest.approx(0.1 * (log(0.525) - log(0.025)), rel=1e-4)
    assert float(scores.effects[0]) == pytest.approx(0.1, rel=1e-4)


def test_a_class_that_was_never_seen_is_new() -> None:
    rows, answers = blobs(100, 2)
    rows[:15] = torch.tensor([0.0, 0, 0, 0, 7, 0]) + torch.randn(15, 6, generator=seeded(3))
    scores = scored(blobs(400, 1), (rows, answers))
    assert p_value(scores) == pytest.approx(1 / 200)
    assert 0.08 < float(scores.effects[0]) < 0.2


def test_the_same_world_has_nothing_new() -> None:
    runs = 200
    ps = [p_value(scored(blobs(150, seed), blobs(60, 1000 + seed), 99)) for seed in range(runs)]
    for level in (0.05, 0.2):
        alarms = sum(p <= level for p in ps)
        assert binom.ppf(0.005, runs, level) <= alarms <= binom.ppf(0.995, runs, level)


def test_other_shares_of_known_classes_are_not_new() -> None:
    rows, answers = blobs(300, 2)
    only = answers < 1
    ps = [p_value(scored(blobs(400, seed), (rows[only], answers[only]), 99)) for seed in range(10)]
    assert sum(p <= 0.05 for p in ps) <= 3


def test_a_window_that_lies_nearer_than_the_reference_is_not_new() -> None:
    rows, answers = blobs(100, 2)
    centres, _ = blobs(3, 5)
    scores = scored(blobs(400, 1), (0.3 * rows + 0.7 * (6 * torch.eye(6)[:3])[answers], answers))
    assert len(centres) == 3
    assert p_value(scores) > 0.9
    assert float(scores.effects[0]) < 0.01


def test_many_images_of_one_new_kind_are_new_although_they_are_all_alike() -> None:
    """A covered lens: a third of the window is the same frame, which is not far from itself."""
    rows, answers = blobs(120, 2)
    rows[:40], answers[:40] = torch.tensor([0.0, 0, 0, 0, 0, 12]), 0
    assert p_value(scored(blobs(600, 1), (rows, answers))) <= 0.01


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(broken: float) -> None:
    rows, answers = blobs(50, 1)
    rows[3, 3] = broken
    with pytest.raises(ValueError, match="not finite"):
        scored(blobs(50, 2), (rows, answers))


def test_answers_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="rows"):
        Sample({"embeddings": torch.zeros(50, 2), "answers": torch.zeros(49, dtype=torch.int64)})


def test_what_is_doubtful_is_new_even_in_the_middle_of_a_class() -> None:
    then, now = blobs(300, 1), blobs(100, 2)
    sure = torch.cat([one_hot(then[1], 4).float(), one_hot(now[1], 4).float()])
    doubtful = sure.clone()
    doubtful[300:340] = 0.4 * sure[300:340] + 0.15  # entropy of (0.55, 0.15, 0.15, 0.15), answers as before
    for probabilities, quiet in ((sure, True), (doubtful, False)):
        reference = Sample({"embeddings": then[0], "softmax": probabilities[:300]})
        current = Sample({"embeddings": now[0], "softmax": probabilities[300:]})
        p = p_value(DETECTOR.fit(reference).score(current, relabel(reference, current, 199, seeded(0))))
        assert p > 0.05 if quiet else p == pytest.approx(0.005)
