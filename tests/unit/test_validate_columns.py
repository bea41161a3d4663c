"""What the rules look at: repeats, near duplicates, and likes on both sides of the split, by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.validate.columns import DERIVED, History, derive_columns
from tests.unit.test_validation_suite import CONFIG, broken, check, hash_of, manifest

pd = pytest.importorskip("pandas")
pytestmark = pytest.mark.filterwarnings("ignore:module 'sre_:DeprecationWarning")  # great_expectations imports them

OTHER = {"train": "holdout", "holdout": "train"}


def seen(rows: int = 4, **columns: object) -> History:
    """The history of a champion whose images are none of `manifest`'s, with some columns replaced."""
    fresh: dict[str, object] = {
        "sha256": [f"past{n}" for n in range(rows)],
        "perceptual_hash": [hash_of(10_000 + n) for n in range(rows)],
    }
    return History(classes=("cat", "dog"), rows=manifest(rows).assign(**fresh).assign(**columns))


def values(frame: pd.DataFrame, column: str) -> list[object]:
    return [None if pd.isna(value) else value for value in frame[column]]


def test_every_promised_column_is_derived_and_the_manifest_is_kept():
    frame = manifest()
    derived = derive_columns(frame, History())
    assert list(derived.columns) == [*frame.columns, *DERIVED]
    pd.testing.assert_frame_equal(derived[frame.columns], frame)


def test_only_usable_rows_have_a_class_a_side_and_a_past():
    frame = manifest(4, status=["ok", "unreadable", "duplicate", "ok"], label=["cat", "cat", "cat", None])
    derived = derive_columns(frame, seen(sha256=list(frame["sha256"]), split=list(frame["split"])))
    assert values(derived, "usable") == [1, 0, 0, 1]
    assert values(derived, "class") == ["cat", None, None, None]
    assert values(derived, "side") == ["holdout", None, None, "train"]
    assert values(derived, "images_of_class") == [1.0, 1.0, 1.0, None]
    assert values(derived, "times_smallest") == [1.0, None, None, None]
    assert values(derived, "repeated") == [1.0, None, None, 1.0]
    assert values(derived, "near_duplicate") == [0.0, None, None, 0.0]


def test_an_image_that_the_champion_held_without_a_label_is_no_repeat():
    frame = manifest(2)
    past = seen(2, sha256=list(frame["sha256"]), label=[None, "cat"])
    assert values(derive_columns(frame, past), "repeated") == [0.0, 1.0]


def test_classes_are_compared_with_the_smallest():
    derived = derive_columns(manifest(6, label=["a", "b", "b", "b", "b", "b"]), History())
    assert values(derived, "images_of_class") == [1, 5, 5, 5, 5, 5]
    assert values(derived, "times_smallest") == [1.0, 5.0, 5.0, 5.0, 5.0, 5.0]


def test_an_image_that_has_changed_sides_leaks():
    frame = manifest(4, split=["train", "train", "holdout", "holdout"])
    past = seen(sha256=list(frame["sha256"]), split=["train", "holdout", "train", "holdout"])
    derived = derive_columns(frame, past)
    assert values(derived, "leak") == [None, "same image", "same image", None]
    assert values(derived, "repeated") == [1.0, 1.0, 1.0, 1.0]


def test_a_group_that_has_changed_sides_leaks():
    frame = manifest(4, split="train", group=["kept", "moved", "new", None])
    past = seen(split=["train", "holdout", "holdout", "holdout"], group=["kept", "moved", "gone", None])
    assert values(derive_columns(frame, past), "leak") == [None, "same group", None, None]


def test_the_oldest_side_counts_where_windows_disagree():
    frame = manifest(2, split="train", group=["a", "b"])
    past = seen(split=["train", "holdout", "holdout", "train"], group=["a", "a", "b", "b"])
    assert values(derive_columns(frame, past), "leak") == [None, "same group"]


def test_a_near_duplicate_of_a_known_image_leaks_only_across_the_split():
    frame = manifest(3, split=["train", "holdout", "train"])
    past = seen(2, perceptual_hash=[hash_of(0), hash_of(1)], split=["holdout", "holdout"])
    derived = derive_columns(frame, past)
    assert values(derived, "near_duplicate") == [1.0, 1.0, 0.0]
    assert values(derived, "leak") == ["near duplicate", None, None]


def test_near_duplicates_within_the_window_leak_only_across_the_split():
    hashes = [hash_of(0), hash_of(0), hash_of(1), hash_of(1), hash_of(2)]
    derived = derive_columns(
        manifest(5, perceptual_hash=hashes, split=["train", "holdout", "train", "train", "holdout"]), History()
    )
    assert values(derived, "near_duplicate") == [1.0, 1.0, 1.0, 1.0, 0.0]
    assert values(derived, "leak") == ["near duplicate", "near duplicate", None, None, None]


def test_an_exact_repeat_is_not_counted_as_a_near_duplicate_too():
    frame = manifest(2)
    past = seen(
        2, sha256=list(frame["sha256"]), perceptual_hash=list(frame["perceptual_hash"]), split=list(frame["split"])
    )
    derived = derive_columns(frame, past)
    assert values(derived, "repeated") == [1.0, 1.0]
    assert values(derived, "near_duplicate") == [0.0, 0.0]
    assert values(derived, "leak") == [None, None]


def test_what_the_champion_could_not_use_is_not_its_past():
    frame = manifest(2, split="train")
    past = seen(2, sha256=list(frame["sha256"]), split="holdout", status=["conflicting", "ok"], label=["cat", None])
    assert values(derive_columns(frame, past), "repeated") == [0.0, 0.0]
    assert values(derive_columns(frame, past), "leak") == [None, None]


def test_windows_from_before_perceptual_hashes_are_compared_by_content_only():
    frame = manifest(2, split="train")
    old = manifest(2, split="holdout").drop(columns="perceptual_hash")
    past = History(rows=pd.concat([old, seen(1).rows], ignore_index=True))
    assert values(derive_columns(frame, past), "leak") == ["same image", "same image"]


@pytest.mark.parametrize(
    ("past", "name", "found"),
    [
        pytest.param(
            seen(51, sha256=list(manifest(51)["sha256"]), split=list(manifest(51)["split"])),
            "few repeats",
            "found 51 rows (51.0 %), such as '0.png', '1.png', '2.png'",
            id="repeats",
        ),
        pytest.param(
            seen(2, sha256=list(manifest(2)["sha256"]), split="train"),
            "no leakage",
            "found 1 row (1.0 %), 'same image' (1), such as '0.png'",
            id="leakage",
        ),
        pytest.param(
            seen(21, perceptual_hash=list(manifest(21)["perceptual_hash"]), split=list(manifest(21)["split"])),
            "few near duplicates",
            "found 21 rows (21.0 %)",
            id="near duplicates",
        ),
        pytest.param(
            History(classes=("cat",)),
            "known classes",
            "expected images of the champion's 1 classes only, found 50 rows (50.0 %), 'dog' (50), such as",
            id="a new class",
        ),
        pytest.param(
            History(classes=("cat", "dog", "hen", "owl", "elk", "ant")),
            "no class missing",
            "found none of 'ant', 'elk', 'hen' and 1 more",
            id="missing classes",
        ),
    ],
)
def test_what_the_champion_knows_otherwise_is_a_warning(past: History, name: str, found: str):
    report = check(manifest(), history=past)
    assert report.word == "valid"
    assert list(broken(manifest(), history=past)) == [name]
    assert found in report.sentence


@pytest.mark.parametrize(
    "past",
    [
        pytest.param(seen(), id="nothing in common"),
        pytest.param(seen(50, sha256=list(manifest(50)["sha256"]), split=list(manifest(50)["split"])), id="half"),
        pytest.param(
            seen(20, perceptual_hash=list(manifest(20)["perceptual_hash"]), split=list(manifest(20)["split"])),
            id="near",
        ),
    ],
)
def test_thresholds_on_the_past_may_be_met_exactly(past: History):
    assert broken(manifest(), history=past) == {}


def test_a_class_whose_images_are_all_unusable_is_missing():
    frame = manifest(
        status=["unreadable" if n == 0 else "ok" for n in range(100)], label=["owl", *["cat", "dog"] * 49, "cat"]
    )
    failures = broken(frame, history=History(classes=("cat", "dog", "owl")))
    assert set(failures) == {"no class missing", "enough of each class"}


sides = st.sampled_from(["train", "holdout"])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), sides), min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(0, 5), sides)),
)
def test_a_row_leaks_exactly_when_its_like_is_on_the_other_side(
    window: list[tuple[int, str]], past: list[tuple[int, str]]
):
    """Images are their perceptual hash only: contents and groups all differ."""
    frame = manifest(len(window), perceptual_hash=[hash_of(n) for n, _ in window], split=[side for _, side in window])
    known = seen(len(past), perceptual_hash=[hash_of(n) for n, _ in past], split=[side for _, side in past])
    expected = [(n, OTHER[side]) in {*window, *past} for n, side in window]
    assert list(derive_columns(frame, known)["leak"].notna()) == expected


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), min_size=1, max_size=30))
def test_imbalance_is_that_of_usable_rows(rows: list[tuple[str, bool]]):
    frame = manifest(
        len(rows), label=[label for label, _ in rows], status=["ok" if usable else "duplicate" for _, usable in rows]
    )
    counts = pd.Series([label for label, usable in rows if usable]).value_counts()
    worst = derive_columns(frame, History())["times_smallest"].max()
    assert (worst == counts.max() / counts.min()) if len(counts) else pd.isna(worst)


def test_a_single_class_is_balanced():
    assert broken(manifest(label="cat"), CONFIG) == {}
