"""Triage: broken cameras, broken pipelines and wrong labels are told from a world that changed."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from components.core.config import DriftConfig
from components.core.contracts import DriftView, Fault
from components.detect_drift.conversions import CONVERSIONS, explain
from components.detect_drift.label_faults import Answers, find_label_faults, images_changed, permuted_labels
from components.detect_drift.triage import find_faults

CONFIG = DriftConfig()
CLASSES = ("cat", "dog", "owl", "bat", "elk", "ant")
TONES = {  # mean red, green, blue of the images of a class
    "cat": (0.6, 0.4, 0.2),
    "dog": (0.3, 0.4, 0.5),
    "owl": (0.5, 0.5, 0.3),
}
Columns = dict[str, np.ndarray]


def columns(rows: int, seed: int = 0) -> Columns:
    """Photographs of three classes, each of its own tint; half of them upright."""
    rng = np.random.default_rng(seed)
    labels = np.resize(list(TONES), rows)
    tint = np.array([TONES[label] for label in labels]) + rng.normal(0, 0.05, (rows, 3))
    upright = rng.random(rows) < 0.5
    return {
        "sha256": np.array([f"{seed:02d}{n:06d}" for n in range(rows)]),
        "label": labels,
        "group": np.full(rows, None),
        "status": np.full(rows, "ok", dtype=object),
        "width": np.where(upright, 60, 80),
        "height": np.where(upright, 80, 60),
        "quality": np.full(rows, 90.0),
        "mean": tint.mean(axis=1),
        "std": rng.uniform(0.15, 0.3, rows),
        "red": tint[:, 0],
        "green": tint[:, 1],
        "blue": tint[:, 2],
        "red_std": rng.uniform(0.2, 0.3, rows),
        "green_std": rng.uniform(0.15, 0.25, rows),
        "blue_std": rng.uniform(0.1, 0.2, rows),
        "skew": rng.normal(1.0, 0.3, rows),
        "black": np.zeros(rows),
        "peak": rng.uniform(0.8, 1.0, rows),
        "midtones": rng.uniform(0.5, 1.0, rows),
        "flat_tail": np.zeros(rows),
        "doubled": np.zeros(rows),
        "blockiness": rng.uniform(0.9, 1.1, rows),
        "perceptual_hash": np.array([rng.bytes(16) for _ in range(rows)], dtype=object),
    }


def table(values: Columns) -> pa.Table:
    nulls = {name: values["status"] == "unreadable" for name in values if name not in ("sha256", "label", "status")}
    arrays = {}
    for name, column in values.items():
        kept = [None if nulls.get(name, np.zeros(len(column), bool))[n] else v for n, v in enumerate(column.tolist())]
        arrays[name] = [None if isinstance(v, float) and np.isnan(v) else v for v in kept]
    types = {"group": pa.string(), "quality": pa.int16(), "perceptual_hash": pa.binary(16)}
    return pa.table({name: pa.array(v, types.get(name)) for name, v in arrays.items()})


REFERENCE = table(columns(400, seed=1))


def broken(change: Callable[[Columns, slice], None], share: float, rows: int = 100, seed: int = 2) -> pa.Table:
    values = columns(rows, seed)
    change(values, slice(0, round(share * rows)))
    return table(values)


def put(**new: object) -> Callable[[Columns, slice], None]:
    def change(values: Columns, part: slice) -> None:
        for name, value in new.items():
            values[name] = values[name].copy()
            values[name][part] = value

    return change


def exchange(values: Columns, part: slice) -> None:
    for one, other in (("red", "blue"), ("red_std", "blue_std")):
        first, second = values[one].copy(), values[other].copy()
        values[one][part], values[other][part] = second[part], first[part]


def invert(values: Columns, part: slice) -> None:
    for name in ("red", "green", "blue", "mean"):
        values[name][part] = 1 - values[name][part]
    values["skew"][part] *= -1


def lose_colour(values: Columns, part: slice) -> None:
    for one, other in (("red", "green"), ("blue", "green"), ("red_std", "green_std"), ("blue_std", "green_std")):
        values[one][part] = values[other][part]


ALONE = {
    "unreadable-images": put(status="unreadable"),
    "empty-images": put(std=0.001),
    "value-range": put(peak=0.06),
    "truncated-images": put(flat_tail=0.4),
    "enlarged-images": put(doubled=0.5),
    "duplicate-flood": put(perceptual_hash=b"the same picture"),
}
RELATIVE = {
    "colour-lost": lose_colour,
    "codec-change": put(quality=30),
    "wrong-size": put(width=120, height=60),
    "channel-swap": exchange,
    "inverted-images": invert,
}
OTHERS = [
    pytest.param("value-range", put(midtones=0.01), id="clipped"),
    pytest.param("codec-change", put(blockiness=2.0), id="blocks in files stored anew"),
    pytest.param("wrong-size", put(width=30, height=40), id="thumbnails"),
    pytest.param("duplicate-flood", put(perceptual_hash=b"the same picture", status="duplicate"), id="byte for byte"),
]


def names(faults: tuple[Fault, ...]) -> list[str]:
    return [fault.name for fault in faults]


@pytest.mark.parametrize("share", [0.4, 1.0])
@pytest.mark.parametrize(("name", "change"), [*(ALONE | RELATIVE).items(), *OTHERS])
def test_each_fault_is_named_with_its_share_and_examples(
    name: str, change: Callable[[Columns, slice], None], share: float
) -> None:
    window = broken(change, share)
    found = {fault.name: fault for fault in find_faults(window, REFERENCE, CONFIG)}
    assert name in found
    assert found[name].effect == pytest.approx(share, abs=0.06)
    assert " of the images " in found[name].sentence
    assert len(found[name].examples) == 8
    touched = set(window["sha256"].to_pylist()[: round(share * 100)])
    assert len(touched & set(found[name].examples)) >= 7


@pytest.mark.parametrize(("name", "change"), ALONE.items())
def test_absolute_signs_need_no_reference(name: str, change: Callable[[Columns, slice], None]) -> None:
    (fault,) = find_faults(broken(change, 0.5), None, CONFIG)
    assert fault.name == name
    assert fault.effect == pytest.approx(0.5)
    assert "reference" not in fault.sentence


@pytest.mark.parametrize("change", RELATIVE.values(), ids=RELATIVE)
def test_relative_signs_are_silent_without_a_reference(change: Callable[[Columns, slice], None]) -> None:
    assert find_faults(broken(change, 1.0), None, CONFIG) == ()
    assert find_faults(broken(change, 1.0), REFERENCE.slice(0, 0), CONFIG) == ()


# A reference has readable images only.
READABLE = {name: change for name, change in (ALONE | RELATIVE).items() if name != "unreadable-images"}


@pytest.mark.parametrize("change", READABLE.values(), ids=READABLE)
def test_what_the_reference_shows_too_is_no_fault(change: Callable[[Columns, slice], None]) -> None:
    reference = broken(change, 0.5, 400, seed=1)
    assert find_faults(broken(change, 0.5), reference, CONFIG) == ()


@pytest.mark.parametrize("seed", range(10, 20))
@pytest.mark.parametrize("rows", [1, 2, 10, 100, 400])
def test_the_same_world_is_quiet(rows: int, seed: int) -> None:
    assert find_faults(table(columns(rows, seed)), REFERENCE, CONFIG) == ()


def dim(values: Columns, factor: float) -> None:
    for name in ("mean", "std", "red", "green", "blue", "red_std", "green_std", "blue_std", "peak"):
        values[name] = values[name] * factor


def warm(values: Columns) -> None:
    for name, factor in (("red", 1.2), ("blue", 0.7), ("red_std", 1.2), ("blue_std", 0.7)):
        values[name] = values[name] * factor


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda v: dim(v, 0.5), id="darker"),
        pytest.param(lambda v: dim(v, 1.3), id="brighter"),
        pytest.param(warm, id="warm light"),
        pytest.param(lambda v: v.update(width=v["height"], height=v["width"]), id="turned by 90"),
        pytest.param(lambda v: v.update(width=3 * v["width"], height=3 * v["height"]), id="higher resolution"),
        pytest.param(lambda v: v.update(quality=v["quality"] - 15), id="quality 75"),
        pytest.param(lambda v: v.update(quality=np.full(100, np.nan)), id="now PNG"),
        pytest.param(lambda v: v.update(label=np.full(100, "new")), id="unknown class"),
        pytest.param(lambda v: v.update(label=np.full(100, None)), id="no labels yet"),
        pytest.param(lambda v: v.update(label=np.full(100, "cat")), id="labels that do not fit"),
    ],
)
def test_a_changed_world_is_no_fault(change: Callable[[Columns], None]) -> None:
    values = columns(100, seed=3)
    change(values)
    assert find_faults(table(values), REFERENCE, CONFIG) == ()


@pytest.mark.parametrize(("shown", "fault"), [(10, True), (9, False)])
def test_the_share_at_the_threshold_is_a_fault(shown: int, fault: bool) -> None:
    assert bool(find_faults(broken(put(flat_tail=0.4), shown / 100), REFERENCE, CONFIG)) is fault


@pytest.mark.parametrize("rows", [1, 2, 4, 8])
@pytest.mark.parametrize("bad", [1, 2])
def test_one_or_two_bad_images_are_an_accident(rows: int, bad: int) -> None:
    window = broken(put(flat_tail=0.4, std=0.001), min(1.0, bad / rows), rows)
    assert find_faults(window, REFERENCE, CONFIG) == ()
    assert find_faults(window, None, CONFIG) == ()


def test_examples_begin_with_the_clearest() -> None:
    values = columns(50, seed=4)
    values["flat_tail"][:10] = np.linspace(0.2, 0.9, 10)
    (fault,) = find_faults(table(values), REFERENCE, CONFIG)
    assert fault.examples == tuple(values["sha256"][9:1:-1])


def test_nothing_delivered_is_no_fault() -> None:
    assert find_faults(REFERENCE.slice(0, 0), REFERENCE, CONFIG) == ()


def test_nothing_readable_is_one() -> None:
    assert names(find_faults(broken(put(status="unreadable"), 1.0), REFERENCE, CONFIG)) == ["unreadable-images"]


def test_frames_of_declared_clips_are_no_flood() -> None:
    values = columns(100, seed=5)
    values["group"] = np.array([f"clip {n // 25}" for n in range(100)], dtype=object)
    values["perceptual_hash"] = np.array([b"clip of a dog %02d" % (n // 25) for n in range(100)], dtype=object)
    assert find_faults(table(values), None, CONFIG) == ()
    values["group"] = np.full(100, None)
    assert names(find_faults(table(values), None, CONFIG)) == ["duplicate-flood"]


def test_many_short_clips_are_no_flood() -> None:
    values = columns(200, seed=6)
    values["perceptual_hash"] = values["perceptual_hash"].repeat(4)[:200]  # fifty clips of four frames
    assert find_faults(table(values), None, CONFIG) == ()


def grey(values: Columns) -> Columns:
    lose_colour(values, slice(None))
    return values


def test_grey_images_have_no_channels_to_swap() -> None:
    reference = table(grey(columns(400, seed=1)))
    assert find_faults(table(grey(columns(100, seed=2))), reference, CONFIG) == ()


def test_one_class_cannot_tell_a_swap_from_a_tint() -> None:
    values, past = columns(200, seed=2), columns(600, seed=1)
    only, before = ({n: c[v["label"] == "cat"] for n, c in v.items()} for v in (values, past))
    exchange(only, slice(None))
    assert "channel-swap" not in names(find_faults(table(only), table(before), CONFIG))


def test_a_class_that_the_reference_hardly_shows_is_passed_over() -> None:
    values, past = columns(60, seed=2), columns(57, seed=1)  # 19 rows a class
    swap = CONVERSIONS[0]
    assert explain(swap, values, values["label"], past, past["label"]) is None


def test_wrapped_values_are_undone_exactly() -> None:
    pixels = np.random.default_rng(0).gamma(2, 30, (50, 300)).clip(0, 255).astype(np.uint8)
    wrapped = pixels * np.uint8(255)
    assert wrapped[pixels > 0].tolist() == (256 - pixels[pixels > 0].astype(int)).tolist()

    def moments(rows: np.ndarray) -> Columns:
        x = rows / 255
        centred = x - x.mean(axis=1, keepdims=True)
        std = x.std(axis=1)
        skew = (centred**3).mean(axis=1) / std**3
        return {"mean": x.mean(axis=1), "std": std, "skew": skew, "black": (rows == 0).mean(axis=1)}

    undo = next(c for c in CONVERSIONS if c.name == "wrapped-values").undo
    whole = moments(pixels)
    expected = np.stack([whole["mean"], whole["std"], whole["skew"]], axis=1)
    np.testing.assert_allclose(undo(moments(wrapped)), expected, atol=1e-9)


def confusion(assignment: list[int], right: int = 90, wrong: int = 2) -> np.ndarray:
    """Rows are the labels given; the champion answers class i with `assignment[i]`, mostly."""
    counts = np.full((len(assignment), len(assignment)), wrong)
    counts[range(len(assignment)), assignment] = right
    return counts


def renamed(counts: np.ndarray, accuracy: float = 0.95, changed: bool = False) -> Fault | None:
    return permuted_labels(counts, tuple("abcdefghij")[: len(counts)], accuracy, changed, 0.5)


def test_right_labels_are_no_fault() -> None:
    assert renamed(confusion([0, 1, 2, 3])) is None


def test_a_cyclic_renaming_is_a_fault_that_names_the_classes() -> None:
    # 3 x (90 + 2 + 2) rows; right by the names given: 6, by the best renaming: 270. Won back: 264 / 282.
    fault = permuted_labels(confusion([1, 2, 0]), CLASSES[:3], 0.95, False, 0.5)
    assert fault is not None
    assert fault.name == "permuted-labels"
    assert fault.effect == pytest.approx(264 / 282)
    for given, looks in (("cat", "dog"), ("dog", "owl"), ("owl", "cat")):
        assert f"'{given}' looks like '{looks}'" in fault.sentence


def test_only_the_first_four_renamings_are_spelt_out() -> None:
    fault = renamed(confusion([1, 2, 3, 4, 5, 0]))
    assert fault is not None
    assert fault.sentence.count("looks like") == 4
    assert "..." in fault.sentence


def test_two_of_ten_classes_exchanged_are_a_fault_within_themselves() -> None:
    fault = renamed(confusion([1, 0, *range(2, 10)], 50, 0))
    assert fault is not None
    assert fault.effect == 1.0
    assert "'a' looks like 'b', 'b' looks like 'a'" in fault.sentence
    assert "'c'" not in fault.sentence


def test_one_hard_class_is_no_renaming() -> None:
    counts = confusion([0, 1, 2], 50, 0)
    counts[0] = (10, 40, 0)  # cats look like dogs, dogs like dogs
    assert renamed(counts) is None


def test_classes_with_a_handful_of_rows_are_not_called_renamed() -> None:
    counts = confusion([0, 1, 2, 3], 50, 0)
    counts[0], counts[1] = (0, 4, 0, 0), (4, 0, 0, 0)
    assert renamed(counts) is None


def test_digits_upside_down_are_no_renaming() -> None:
    # 6 and 9 exchange, 0, 1 and 8 stay, the others become anything: renaming does not explain that.
    counts = np.zeros((10, 10), dtype=int)
    counts[[0, 1, 8, 6, 9], [0, 1, 8, 9, 6]] = 30
    for digit in (2, 3, 4, 5, 7):
        counts[digit] = np.random.default_rng(digit).multinomial(30, np.full(10, 0.1))
    assert renamed(counts, changed=True) is None


def test_a_renaming_that_explains_everything_is_one_though_the_images_changed_too() -> None:
    assert renamed(confusion([1, 0, 2, 3, 4], 50, 0), changed=True) is not None


@pytest.mark.parametrize("seed", range(5))
def test_noisy_labels_are_no_renaming(seed: int) -> None:
    counts = np.random.default_rng(seed).multinomial(400, [0.25] * 4, size=4)  # labels that say nothing at all
    assert renamed(counts) is None


def test_a_class_without_rows_is_not_named() -> None:
    counts = confusion([1, 0, 2], 50, 0)
    counts[2] = 0
    fault = permuted_labels(counts, CLASSES[:3], 0.95, False, 0.5)
    assert fault is not None
    assert "owl" not in fault.sentence


def test_no_rows_are_no_renaming() -> None:
    assert renamed(np.zeros((3, 3), dtype=int)) is None


def test_one_class_cannot_be_renamed() -> None:
    assert renamed(np.array([[40]])) is None


def answers(labels: np.ndarray, given: np.ndarray, sure: float = 0.95) -> Answers:
    """The champion answers `given`, with probability `sure`."""
    probabilities = np.full((len(given), 3), (1 - sure) / 2)
    probabilities[range(len(given)), given] = sure
    return Answers(labels=labels, probabilities=probabilities, sha256=tuple(f"{n:04d}" for n in range(len(given))))


TRUTH = np.resize([0, 1, 2], 300)


def mislabelled(share: float) -> np.ndarray:
    labels = TRUTH.copy()
    labels[: round(share * 300)] = (labels[: round(share * 300)] + 1) % 3
    return labels


def judge(window: Answers, changed: bool = False) -> tuple[Fault, ...]:
    return find_label_faults(window, answers(TRUTH, TRUTH), CLASSES[:3], changed, CONFIG)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.45])
def test_labels_that_a_sure_champion_contradicts_are_wrong(share: float) -> None:
    (fault,) = judge(answers(mislabelled(share), TRUTH))
    assert (fault.name, fault.effect) == ("wrong-labels", pytest.approx(share))
    assert f"{share:.1%} of them" in fault.sentence
    assert fault.examples == tuple(f"{n:04d}" for n in range(8))


@pytest.mark.parametrize(
    ("window", "changed"),
    [
        pytest.param(answers(TRUTH, TRUTH), False, id="right"),
        pytest.param(answers(mislabelled(0.03), TRUTH), False, id="below the threshold"),
        pytest.param(answers(mislabelled(0.45), TRUTH, sure=0.6), False, id="the champion is not sure"),
        pytest.param(answers(mislabelled(0.3), TRUTH), True, id="the images changed"),
        pytest.param(answers(mislabelled(0.04), TRUTH), True, id="changed, and a few labels"),
        pytest.param(answers(np.array([0, 1]), np.array([0, 2])), False, id="one of two"),
        pytest.param(answers(TRUTH[:0], TRUTH[:0]), False, id="no rows"),
    ],
)
def test_other_labels_are_not_called_wrong(window: Answers, changed: bool) -> None:
    assert judge(window, changed) == ()


def test_with_changed_images_more_contradiction_is_asked() -> None:
    (fault,) = judge(answers(mislabelled(0.45), TRUTH), changed=True)
    assert fault.name == "wrong-labels"
    assert "although the images changed too" in fault.sentence


@pytest.mark.parametrize(
    ("p_value", "effect", "changed"),
    [(0.002, 0.3, True), (0.002, 0.05, False), (0.004, 0.3, False), (0.5, 0.3, False)],
    ids=["surely and much", "surely but hardly", "chance of two looks", "by chance"],
)
def test_images_changed_if_they_did_so_surely_and_enough(p_value: float, effect: float, changed: bool) -> None:
    views = (
        DriftView(name="embeddings", p_value=p_value, effect=effect),
        DriftView(name="softmax", p_value=0.9, effect=0.0),
        DriftView(name="labels", p_value=0.002, effect=0.9),
    )
    assert images_changed(views, 0.005) is changed
    assert images_changed((), 0.005) is False


def test_a_full_renaming_is_named_before_wrong_labels() -> None:
    (fault,) = judge(answers((TRUTH + 1) % 3, TRUTH))
    assert fault.name == "permuted-labels"
    assert len(fault.examples) == 8


def test_a_reference_without_rows_tells_nothing() -> None:
    nothing = answers(TRUTH[:0], TRUTH[:0])
    assert find_label_faults(answers(mislabelled(0.4), TRUTH), nothing, CLASSES[:3], False, CONFIG) == ()
