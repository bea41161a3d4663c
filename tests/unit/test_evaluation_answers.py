"""What is read off the answers of models: slices, flips, old windows, the anchor. Worked by hand.

Also `answers_of`, which the tests of the page share.
"""

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
import torch

from components.core.config import EvaluationConfig, SliceColumn
from components.core.contracts import PairedOutcome
from components.core.errors import BrokenModel
from components.core.windows import SCHEMA, from_parquet, to_parquet
from components.evaluate.answers import Answers, Said
from components.evaluate.flips import FlipKind, negative_flip_rate, negative_flips, relative_negative_flips
from components.evaluate.measurement import measure_anchor, measure_holdout
from components.evaluate.slices import bands, score_slices
from components.evaluate.transfer import backward_transfer, forgetting, pair_windows

RIGHT, WRONG = True, False


def said(version: str, classes: str, answers: str, confidence: float = 0.75) -> Said:
    """Answers as letters of the model's classes."""
    places = torch.tensor([classes.index(answer) for answer in answers], dtype=torch.int64)
    return Said(
        version=version, classes=tuple(classes), answers=places, confidence=torch.full((len(answers),), confidence)
    )


def answers_of(
    labels: str,
    challenger: str,
    champion: str | None = None,
    anchor: str | None = None,
    *,
    classes: str = "abc",
    known: str = "abc",
    anchored: str = "abc",
    holdouts: Sequence[str] = (),
    windows: Sequence[str] = (),
    **columns: Sequence[Any],
) -> Answers:
    """Rows of one letter each: what is true, what each model says."""
    count = len(labels)
    rows = {
        "holdout": list(holdouts) or ["new"] * count,
        "window": list(windows) or ["w"] * count,
        "sha256": [f"{n:064d}" for n in range(count)],
        "label": list(labels),
        "group": [None] * count,
        "perceptual_hash": [None] * count,
        "source": [f"{label}/{n}.png" for n, label in enumerate(labels)],
        "width": [32] * count,
        "height": [32] * count,
        "mean": [0.5] * count,
        **{name: list(values) for name, values in columns.items()},
    }
    return Answers(
        rows=pa.table({name: pa.array(values) for name, values in rows.items()}),
        classes=tuple(classes),
        challenger=said("v3", classes, challenger, 0.875),
        champion=None if champion is None else said("v2", known, champion),
        anchor=None if anchor is None else said("v1", anchored, anchor, 0.5),
    )


# --- answers


def test_answers_of_models_with_other_heads_are_compared_by_name() -> None:
    answers = answers_of("abca", "abca", "bbaa", "caab", known="ba", anchored="cab")
    assert answers.champion is not None
    assert answers.anchor is not None
    assert answers.champion.answers.tolist() == [0, 0, 1, 1]
    assert answers.champion.among("abc").tolist() == [1, 1, 0, 0]
    assert answers.right(answers.champion).tolist() == [WRONG, RIGHT, WRONG, RIGHT]
    assert answers.right(answers.anchor).tolist() == [WRONG, WRONG, WRONG, WRONG]
    assert answers.known_to(answers.champion).tolist() == [True, True, False, True]
    assert said("v", "xa", "xa").among("abc").tolist() == [-1, 0]


def test_the_table_holds_all_and_survives_the_file() -> None:
    answers = answers_of("abc", "abb", "aab", known="ab", holdouts=["old", "new", "new"])
    data = to_parquet(answers.table())
    table = from_parquet(data)
    assert table.column_names == [
        *("holdout", "window", "sha256", "label", "group", "perceptual_hash", "source", "width", "height", "mean"),
        *("challenger", "challenger_confidence", "champion", "champion_confidence", "anchor", "anchor_confidence"),
    ]
    assert table["label"].to_pylist() == ["a", "b", "c"]
    assert table["challenger"].to_pylist() == ["a", "b", "b"]
    assert table["champion"].to_pylist() == ["a", "a", "b"]
    assert table["anchor"].to_pylist() == [None] * 3
    assert table["champion_confidence"].to_pylist() == [0.75] * 3
    assert table.schema.field("challenger_confidence").type == pa.float32()
    assert table.schema.field("anchor_confidence").type == pa.float32()
    assert table.schema.metadata == {b"challenger": b"v3", b"champion": b"v2"}
    assert to_parquet(answers.table()) == data


def test_rows_of_a_holdout_keep_their_answers() -> None:
    answers = answers_of("abca", "abca", "aaaa", "cccc", holdouts=["old", "new", "old", "new"])
    old = answers.of("old")
    assert old.column("label") == ["a", "c"]
    assert old.challenger.answers.tolist() == [0, 2]
    assert old.anchor is not None
    assert len(old.anchor.confidence) == len(old) == 2


# --- slices


def test_slices_by_hand() -> None:
    # Rows 0 to 3 small, 4 to 7 large. On the large ones the challenger lost two answers and mended one.
    answers = answers_of(
        "abababab",
        "ababbaab",
        "abababba",
        classes="ab",
        known="ab",
        width=[8] * 4 + [32] * 4,
        height=[8] * 4 + [50] * 4,
    )
    slices = {(one.by, one.value): one for one in score_slices(answers, (), 1)}
    assert set(slices) == {("class", "a"), ("class", "b"), ("resolution", "8 pixels"), ("resolution", "40 pixels")}
    assert slices["resolution", "8 pixels"].paired == PairedOutcome(both_right=4)
    large = slices["resolution", "40 pixels"]
    assert (large.rows, large.correct) == (4, 2)
    assert large.paired == PairedOutcome(only_champion_right=2, only_challenger_right=2)
    assert slices["class", "a"].paired == PairedOutcome(
        both_right=2, only_champion_right=1, only_challenger_right=1, both_wrong=0
    )


def test_slices_count_all_rows_and_pair_only_classes_that_both_know() -> None:
    answers = answers_of("aacc", "accc", "aaab", known="ab", channels=[1, 3, 1, 3])
    grey = next(one for one in score_slices(answers, ("channels",), 1) if one.value == "1")
    assert (grey.rows, grey.correct, grey.paired) == (2, 2, PairedOutcome(both_right=1))
    new = next(one for one in score_slices(answers, (), 1) if one.value == "c")
    assert (new.rows, new.correct, new.paired) == (2, 2, PairedOutcome())


def test_small_slices_and_slices_of_everything_are_left_out() -> None:
    answers = answers_of("aaab", "aaab", "aaab", mode=["L", "L", "RGB", None])
    assert {(s.by, s.value) for s in score_slices(answers, ("mode",), 2)} == {("class", "a"), ("mode", "L")}
    assert {(s.by, s.value) for s in score_slices(answers, ("mode",), 3)} == {("class", "a")}
    assert score_slices(answers_of("aaaa", "aaaa", "aaaa"), (), 1) == ()
    assert score_slices(answers_of("", "", ""), (), 1) == ()


def test_slices_without_a_champion_have_no_pairs() -> None:
    (a, _) = score_slices(answers_of("ab", "aa"), (), 1)
    assert (a.rows, a.correct, a.paired) == (1, 1, PairedOutcome())


def test_bands_are_quarters() -> None:
    values = np.random.default_rng(0).permutation(400) / 10
    named = bands(values.tolist())
    counts = {name: named.count(name) for name in named}
    assert counts == {"up to 9.9": 100, "9.9 to 19.9": 100, "19.9 to 29.9": 100, "above 29.9": 100}
    assert named[int(np.argmin(values))] == "up to 9.9"
    assert {name for name, value in zip(named, values, strict=True) if value == 19.9} == {"9.9 to 19.9"}


def test_few_values_are_bands_by_themselves() -> None:
    assert bands([1, 3, 3, None], unit="planes") == ["1 planes", "3 planes", "3 planes", None]


def test_bands_of_equal_numbers_are_none() -> None:
    assert bands([5.0] * 9) == [None] * 9
    assert bands([None, float("nan")]) == [None, None]
    assert bands([]) == []


def test_bands_of_mostly_equal_numbers() -> None:
    assert bands([1, 2, 3, 4, *[9] * 40])[-1] == "above 4"
    assert bands([*[0] * 40, 1, 2, 3, 4])[:1] == ["up to 0"]
    assert set(bands([*[0] * 40, 1, 2, 3, 4])) == {"up to 0", "above 0"}


@pytest.mark.parametrize("name", get_args(SliceColumn))
def test_slices_can_be_cut_by_every_column_that_the_configuration_takes(name: str) -> None:
    kind = SCHEMA.field(name).type
    values = ["x", "y"] * 20 if pa.types.is_string(kind) else list(range(40))
    answers = answers_of("ab" * 20, "ab" * 20, "ab" * 20, **{name: pa.array(values, kind).to_pylist()})
    assert len([one for one in score_slices(answers, (name,), 5) if one.by == name]) in (2, 4)


# --- flips


def test_flips_by_hand() -> None:
    paired = PairedOutcome(both_right=60, only_champion_right=5, only_challenger_right=15, both_wrong=20)
    assert negative_flip_rate(paired) == pytest.approx(0.05)
    # The champion is right on 65 %, the challenger wrong on 25 %: 16.25 % by chance.
    assert relative_negative_flips(paired) == pytest.approx(0.05 / (0.65 * 0.25))
    assert negative_flip_rate(PairedOutcome()) is None
    assert relative_negative_flips(PairedOutcome(both_right=3)) is None
    assert relative_negative_flips(PairedOutcome()) is None


def test_independent_models_break_what_chance_breaks() -> None:
    was, now = torch.rand(2, 100_000, generator=torch.Generator().manual_seed(0)) < torch.tensor([[0.8], [0.9]])
    counts = [int((x & y).sum()) for x, y in ((was, now), (was, ~now), (~was, now), (~was, ~now))]
    names = ("both_right", "only_champion_right", "only_challenger_right", "both_wrong")
    assert relative_negative_flips(PairedOutcome(**dict(zip(names, counts, strict=True)))) == pytest.approx(1, abs=0.02)


def test_kinds_of_flips_are_counted() -> None:
    answers = answers_of("aaabbc", "bbcbac", "aabbba")
    assert negative_flips(answers) == [
        FlipKind(label="a", answer="b", rows=2),
        FlipKind(label="b", answer="a", rows=1),
    ]
    assert negative_flips(answers_of("ab", "ba")) == []


# --- old windows


WINDOWS = ["first"] * 4 + ["second"] * 2


def test_backward_transfer_by_hand() -> None:
    # First window: champion 4 of 4, challenger 3; second: champion 0 of 2, challenger 1.
    answers = answers_of("aabbab", "aabaaa", "aabbba", windows=WINDOWS)
    assert answers.champion is not None
    by_window = pair_windows(answers, answers.champion)
    assert by_window == {
        "first": PairedOutcome(both_right=3, only_champion_right=1),
        "second": PairedOutcome(only_challenger_right=1, both_wrong=1),
    }
    assert backward_transfer(by_window) == pytest.approx((-1 / 4 + 1 / 2) / 2)
    assert forgetting(by_window) == pytest.approx((1 / 4 - 1 / 2) / 2)


def test_forgetting_is_against_the_best_earlier_model() -> None:
    champion = {"first": PairedOutcome(both_right=8, only_challenger_right=1, both_wrong=1), "second": PairedOutcome()}
    anchor = {"first": PairedOutcome(both_right=9, only_champion_right=1)}
    assert forgetting(champion) == pytest.approx(-0.1)
    assert forgetting(champion, anchor) == pytest.approx(0.1)
    assert backward_transfer({}) is forgetting() is forgetting({"empty": PairedOutcome()}) is None


def test_windows_of_classes_that_the_earlier_model_does_not_know_are_left_out() -> None:
    answers = answers_of("aacc", "aacc", "aaaa", known="ab", windows=["first"] * 2 + ["second"] * 2)
    assert answers.champion is not None
    assert list(pair_windows(answers, answers.champion)) == ["first"]


# --- a holdout, and the anchor


def test_a_holdout_has_all_its_scores() -> None:
    answers = answers_of("aabbcc", "aabacc", "abbbab", known="ab")
    scores = measure_holdout(answers, EvaluationConfig(min_slice_rows=2))
    assert (scores.rows, scores.correct) == (6, 5)
    assert scores.paired == PairedOutcome(both_right=2, only_champion_right=1, only_challenger_right=1)
    assert scores.by_window == {"w": scores.paired}
    assert [one.value for one in scores.slices] == ["a", "b", "c"]
    # On the four rows of a and b both have three right: the challenger says 0.875, the champion 0.75.
    assert scores.calibration_error == pytest.approx(0.125)
    assert scores.champion_calibration_error == pytest.approx(0)


def test_a_holdout_without_a_champion_is_calibrated_on_all_rows() -> None:
    scores = measure_holdout(answers_of("aabb", "aabb"), EvaluationConfig())
    assert scores.calibration_error == pytest.approx(0.125)
    assert (scores.champion_calibration_error, scores.champion_confusion, scores.by_window) == (None, None, {})


@pytest.mark.parametrize("champion", [None, ""])
def test_an_empty_holdout_has_no_scores(champion: str | None) -> None:
    scores = measure_holdout(answers_of("", "", champion), EvaluationConfig())
    assert (scores.rows, scores.accuracy, scores.calibration_error, scores.slices) == (0, None, None, ())
    assert (scores.by_class, scores.by_window) == ({}, {})


def test_a_holdout_of_new_classes_only_pairs_nothing() -> None:
    scores = measure_holdout(answers_of("ccc", "cca", "aba", known="ab"), EvaluationConfig(min_slice_rows=1))
    assert scores.paired == PairedOutcome()
    assert {name: (c.rows, c.correct) for name, c in scores.new_classes.items()} == {"c": (3, 2)}
    assert (scores.calibration_error, scores.by_class, scores.by_window) == (None, {}, {})


def test_identical_models_differ_nowhere() -> None:
    answers = answers_of("aabbc", "abbcc", "abbcc")
    scores = measure_holdout(answers, EvaluationConfig(min_slice_rows=1))
    everywhere = [
        scores.paired,
        *scores.by_class.values(),
        *scores.by_window.values(),
        *(s.paired for s in scores.slices),
    ]
    assert {(p.only_champion_right, p.only_challenger_right) for p in everywhere} == {(0, 0)}
    assert scores.champion_confusion == scores.confusion
    assert negative_flips(answers) == []


def test_a_champion_that_answers_another_class_is_broken() -> None:
    answers = answers_of("ab", "ab", "ab", classes="ab", known="ab")
    assert answers.champion is not None
    strange = Answers(
        rows=answers.rows,
        classes=answers.classes,
        challenger=answers.challenger,
        champion=said("v2", "axb", "xb"),  # three classes, of which the challenger lacks one
    )
    with pytest.raises(BrokenModel, match="answer -1"):
        measure_holdout(strange, EvaluationConfig())


def test_the_anchor_is_compared_on_its_windows_and_classes() -> None:
    # The anchor knows a and b, and the first window: rows 0 to 3, of which row 3 is a class of later.
    answers = answers_of(
        *("aabcab", "abbcaa", "aabbab", "bbabab"), anchored="ab", windows=WINDOWS, holdouts=["old"] * 4 + ["new"] * 2
    )
    anchor = measure_anchor(answers, ("first",))
    assert anchor is not None
    assert anchor.version == "v1"
    assert anchor.paired == PairedOutcome(only_challenger_right=2, both_wrong=1)
    both = measure_anchor(answers, ("first", "second"))
    assert both is not None
    assert both.paired.rows == 5
    assert measure_anchor(answers_of("a", "a", "a"), ("w",)) is None


def test_an_anchor_without_rows_has_none() -> None:
    anchor = measure_anchor(answers_of("ab", "ab", "ab", "ab"), ("gone",))
    assert anchor is not None
    assert anchor.paired == PairedOutcome()


def test_rows_of_one_clip_tell_less_in_every_score() -> None:
    said = {"labels": "aaaabbbbcccc", "challenger": "bbbbbbbbcccc", "champion": "aaaabbbbaaaa", "known": "ab"}
    single = measure_holdout(answers_of(**said), EvaluationConfig())
    grouped = measure_holdout(answers_of(**said, group=list("ppppqqqqrrrr")), EvaluationConfig())
    assert (single.paired.design_effect, single.design_effect, single.new_classes["c"].design_effect) == (1, 1, 1)
    assert grouped.paired.design_effect > 3.5
    assert grouped.design_effect > 3.5
    assert grouped.by_class["a"].design_effect == grouped.new_classes["c"].design_effect == pytest.approx(4)
    assert grouped.paired.model_copy(update={"design_effect": 1.0}) == single.paired
