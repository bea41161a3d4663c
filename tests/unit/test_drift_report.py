"""The drift report of synthetic windows: quiet, moved, relabelled, half labelled, groups, budgets, words."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save as save_tensors
from torch import Tensor
from torch.nn.functional import one_hot

from components.core.changes import LEAST_ROWS, rehearse_changes
from components.core.config import DriftConfig
from components.core.contracts import DriftReport, Interval
from components.core.datasets import ImageSet, Pixels
from components.core.errors import IntegrityError
from components.core.models import Features, ModelSpec, build_classifier, extract_features
from components.core.reference import Reference, build_reference, load_reference
from components.core.registry import Registry
from components.core.storage import DirectoryStore
from components.core.units import independent_units
from components.core.windows import SCHEMA, to_parquet
from components.detect_drift.comparison import compare, standard_detectors
from components.detect_drift.features import Seen
from tests.unit.conftest import image_row

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = ("cat", "dog", "owl")
Columns = dict[str, Any]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sample(
    seed: int, rows: int = 120, shift: float = 0.0, right: float = 0.95, sure: bool | None = None, clip: int = 1
) -> dict[str, Tensor]:
    """A champion's view of images: labels, features that move by `shift`, answers right with probability `right`.

    It is `sure` of its wrong answers, as of the right ones, unless the images moved: a changed world makes it waver.
    Of each `clip` images that follow each other the features are nearly the same.
    """
    generator = seeded(seed)
    labels = torch.arange(rows) % 3
    other = (labels + torch.randint(1, 3, (rows,), generator=generator)) % 3
    answers = torch.where(torch.rand(rows, generator=generator) < right, labels, other)
    wavers = (answers != labels) & (not (shift == 0.0 if sure is None else sure))
    spread = torch.where(wavers, 0.4, 0.7)[:, None]

    def features(columns: int) -> Tensor:
        own = torch.randn(rows, columns, generator=generator)
        scenes = torch.randn(rows, columns, generator=generator)[torch.arange(rows) // clip]
        return shift + (own if clip == 1 else scenes + 0.05 * own)

    return {
        "labels": labels,
        "embeddings": features(4),
        "early": features(6),
        "probabilities": spread * one_hot(answers, 3).float() + (1 - spread) / 3,
        "pixels": features(5),
        "properties": features(3),
    }


def hashes(rows: int, seed: int = 0) -> list[bytes]:
    """Perceptual hashes of images that have nothing to do with each other."""
    drawn = np.random.default_rng(seed).integers(0, 256, (rows, 16), dtype=np.uint8)
    return [one.tobytes() for one in drawn]


def rows_of(seen: dict[str, Tensor], names: list[str | None], changes: Columns | None = None) -> pa.Table:
    """Rows of the manifest that look like the sample; `changes` are columns by name."""
    columns: Columns = {"perceptual_hash": hashes(len(names)), **(changes or {})}
    rows = [
        image_row(n, name, mean=mean, std=std, sharpness=sharp, **{key: column[n] for key, column in columns.items()})
        for n, (name, (mean, std, sharp)) in enumerate(zip(names, seen["properties"].tolist(), strict=True))
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def true_names(seen: dict[str, Tensor]) -> list[str | None]:
    return [CLASSES[i] for i in seen["labels"].tolist()]


def features_of(seen: dict[str, Tensor]) -> Features:
    return Features(**{name: seen[name] for name in ("embeddings", "early", "probabilities", "pixels")})


def window(seen: dict[str, Tensor], names: list[str | None] | None = None, changes: Columns | None = None) -> Seen:
    """A window that was seen so; `names` are the labels delivered, by default the true ones."""
    names = true_names(seen) if names is None else names
    labels = [CLASSES.index(name) if name in CLASSES else -1 for name in names]
    return Seen(
        features=features_of(seen), labels=torch.tensor(labels, dtype=torch.int64), rows=rows_of(seen, names, changes)
    )


def reference(seen: dict[str, Tensor], changes: Columns | None = None) -> Reference:
    rows = rows_of(seen, true_names(seen), changes)
    return Reference(features=features_of(seen), labels=seen["labels"], rows=rows, changes=None)


def report(
    seen: dict[str, Tensor],
    names: list[str | None] | None = None,
    config: DriftConfig | None = None,
    before: tuple[bool, ...] = (),
    past: Reference | None = None,
    changes: Columns | None = None,
) -> DriftReport:
    past = reference(sample(0, rows=200)) if past is None else past
    return compare("v1", CLASSES, past, window(seen, names, changes), before, config or DriftConfig())


# --- words


def test_the_same_world_is_stable() -> None:
    found = report(sample(1))
    assert (found.word, found.drifted, found.alarm, found.undecided) == ("stable", False, False, None)
    assert found.accuracy_drop == pytest.approx(0, abs=0.06)
    assert (found.new_classes, found.faults) == ({}, ())
    assert found.p_value is not None
    assert found.level is not None
    assert 0.01 < found.level <= 1 / 52 + 1e-9
    assert [view.name for view in found.views] == [view.name for view in standard_detectors(labelled=True)]
    assert f"The images look like the reference (p = {found.p_value:.2g}, level {found.level:.2g})." in found.sentence
    assert "It would have taken" in found.sentence


@pytest.mark.parametrize("right", [0.9, 0.4])
def test_moved_images_are_drift_and_no_fault(right: float) -> None:
    found = report(sample(1, shift=2.0, right=right))
    assert (found.word, found.drifted, found.alarm) == ("drifted", True, True)
    assert found.faults == ()
    assert "The images differ from the reference" in found.sentence
    assert "most clearly in" in found.sentence
    assert all(0 < view.p_value <= 1 and view.effect >= 0 for view in found.views)


def test_labels_that_a_champion_contradicts_with_certainty_are_a_fault_even_where_the_images_moved() -> None:
    found = report(sample(1, shift=2.0, right=0.4, sure=True))
    assert [fault.name for fault in found.faults] == ["wrong-labels"]
    assert set(found.faults[0].examples) <= {image_row(n)["sha256"] for n in range(120)}


def test_a_drop_is_measured_against_the_reference() -> None:
    found = report(sample(1, shift=2.0, right=0.4))
    assert found.accuracy_drop is not None
    assert found.accuracy_drop_interval is not None
    assert found.reference_accuracy is not None
    assert found.window_accuracy is not None
    assert found.accuracy_drop == pytest.approx(found.reference_accuracy - found.window_accuracy)
    assert 0.3 < found.accuracy_drop_interval.lower < found.accuracy_drop < 0.8


def test_renamed_labels_are_a_fault() -> None:
    seen = sample(1)
    turned: list[str | None] = [CLASSES[(i + 1) % 3] for i in seen["labels"].tolist()]
    found = report(seen, turned)
    assert found.word == "broken"
    assert [fault.name for fault in found.faults] == ["permuted-labels"]


def test_wrong_labels_on_the_same_images_are_a_fault() -> None:
    draw: list[str | None] = [CLASSES[i] for i in torch.randint(0, 3, (120,), generator=seeded(5)).tolist()]
    found = report(sample(1), draw)
    assert [fault.name for fault in found.faults] == ["wrong-labels"]


def test_classes_that_the_champion_does_not_know_are_counted_and_do_not_lower_its_accuracy() -> None:
    seen = sample(1, right=1.0)
    names: list[str | None] = ["bat" if i < 30 else CLASSES[label] for i, label in enumerate(seen["labels"].tolist())]
    found = report(seen, names)
    assert found.word == "new-classes"
    assert found.new_classes == {"bat": 30}
    assert found.window_accuracy == 1.0
    assert {view.name: view.p_value for view in found.views}["labels"] <= 0.01
    assert "New classes: bat (30 images)." in found.sentence


def test_a_window_of_new_classes_only_has_no_accuracy() -> None:
    found = report(sample(1), ["bat"] * 120)
    assert found.word == "new-classes"
    assert (found.accuracy_drop, found.window_accuracy) == (None, None)
    assert found.p_value is not None


def test_an_empty_window_gives_a_report_without_figures() -> None:
    found = report(sample(1, rows=0))
    assert (found.rows, found.p_value, found.level, found.accuracy_drop, found.views) == (0, None, None, None, ())
    assert (found.drifted, found.alarm, found.moved_classes, found.moved_images) == (False, False, (), ())


def test_one_image_is_no_window() -> None:
    found = report(sample(1, rows=1))
    assert (found.word, found.drifted, found.alarm, found.p_value, found.views) == ("undecided", False, False, None, ())
    assert "cannot be told" in found.sentence


def test_a_reference_of_nothing_is_no_verdict() -> None:
    found = report(sample(1), past=reference(sample(0, rows=0)))
    assert (found.p_value, found.drifted, found.accuracy_drop) == (None, False, None)


def test_the_report_is_the_same_twice_and_is_read_back_the_same() -> None:
    for shift in (0.0, 1.0):
        found = report(sample(1, shift=shift))
        assert found == report(sample(1, shift=shift))
        assert DriftReport.model_validate_json(found.model_dump_json()) == found


def test_another_seed_gives_another_p_value_of_about_that_size() -> None:
    first, second = (report(sample(4), config=DriftConfig(seed=seed)) for seed in (0, 1))
    assert first.p_value is not None
    assert second.p_value is not None
    assert first.p_value != second.p_value
    assert first.p_value == pytest.approx(second.p_value, abs=0.1)


# --- the budget of alarms


@pytest.mark.parametrize(
    ("config", "level"),
    [
        (DriftConfig(), 1 / 52),
        (DriftConfig(alarms_per_year=2.0), 2 / 52),
        (DriftConfig(windows_per_year=365.0), 1 / 365),
        (DriftConfig(windows_per_year=1.0, alarms_per_year=3.0), 0.5),
    ],
)
def test_the_budget_of_alarms_gives_the_level(config: DriftConfig, level: float) -> None:
    found = report(sample(1), config=config)
    assert found.level is not None
    assert 0.3 * level < found.level <= level * (1 + 1e-6)  # less, because the reference is small, too
    assert found.p_value is not None
    assert found.drifted == (found.p_value <= level)


@pytest.mark.parametrize("windows_per_year", [12.0, 52.0, 365.0])
@pytest.mark.parametrize("alarm_windows", [1, 2])
def test_a_window_that_moved_beyond_doubt_is_drift_under_every_budget(
    windows_per_year: float, alarm_windows: int
) -> None:
    config = DriftConfig(windows_per_year=windows_per_year, alarm_windows=alarm_windows, alarm_memory=2)
    found = report(sample(1, shift=6.0, right=0.4), config=config, before=(True,))
    assert (found.drifted, found.alarm, found.undecided, found.faults) == (True, True, None, ())
    assert found.p_value is not None
    assert found.level is not None
    assert 0 < found.p_value <= found.level / 5


def test_few_false_alarms_in_many_quiet_windows() -> None:
    config = DriftConfig(windows_per_year=10.0)
    past = reference(sample(0, rows=300))
    found = [report(sample(seed, rows=60), config=config, past=past) for seed in range(10, 40)]
    assert sum(one.drifted for one in found) <= 8  # binomial (30, 0.1), 0.998 quantile
    assert 0.25 < sum(one.p_value or 0 for one in found) / 30 < 0.75


@pytest.mark.parametrize(
    ("before", "alarm"),
    [((), False), ((False, True), True), ((True, False), True), ((True, False, False), False), ((True, True), True)],
)
def test_two_of_three_windows_make_an_alarm(before: tuple[bool, ...], alarm: bool) -> None:
    config = DriftConfig(alarm_windows=2, alarm_memory=3)
    found = report(sample(1, shift=2.0), config=config, before=before)
    assert (found.drifted, found.alarm) == (True, alarm)
    assert found.level is not None
    assert found.level > 2 / 52, "each window is tested less strictly"
    assert report(sample(1), config=config, before=(True, True)).alarm is False


# --- too few units


def test_a_few_clips_are_undecided_however_many_frames_they_have() -> None:
    clips = [f"clip {n // 60}" for n in range(120)]
    few = reference(sample(0, rows=120), {"group": clips})
    found = report(sample(1, shift=3.0), past=few, changes={"group": clips})
    assert found.word == "undecided"
    assert found.undecided is not None
    assert "2 independent images or groups of images are too few" in found.undecided
    assert f"Whether the images changed cannot be told: {found.undecided}." in found.sentence
    assert (found.drifted, found.alarm) == (False, False)


@pytest.mark.parametrize(("past_clips", "clips"), [(5, 2), (8, 2), (9, 2), (10, 2), (11, 2), (5, 3), (6, 3)])
def test_what_is_undecided_raises_no_alarm(past_clips: int, clips: int) -> None:
    past = reference(sample(0, rows=10 * past_clips), {"group": [str(n // 10) for n in range(10 * past_clips)]})
    moved = sample(1, rows=10 * clips, shift=30.0)
    found = report(
        moved, [None] * (10 * clips), past=past, changes={"group": [str(n // 10) for n in range(10 * clips)]}
    )
    assert not (found.undecided and (found.alarm or found.drifted)), found


def test_one_clip_is_undecided() -> None:
    found = report(sample(1), changes={"group": ["one"] * 120})
    assert (found.word, found.p_value) == ("undecided", None)
    assert "all images of the window belong together" in found.sentence


# --- images that depend on each other


def test_clips_of_the_same_world_are_quiet_and_as_single_images_are_not() -> None:
    config = DriftConfig(windows_per_year=10.0)
    past = sample(0, rows=240, clip=12)
    clips = [str(n // 12) for n in range(240)]
    grouped = alone = 0
    for seed in range(1, 11):
        now = sample(seed, rows=120, clip=12)
        grouped += report(now, past=reference(past, {"group": clips}), changes={"group": clips}, config=config).drifted
        alone += report(now, past=reference(past), config=config).drifted
    assert grouped <= 4  # binomial (10, 0.1), 0.998 quantile
    assert alone >= 8


def test_near_duplicates_are_one_unit_where_there_is_no_group() -> None:
    config = DriftConfig(windows_per_year=10.0)
    past = sample(0, rows=240, clip=12)

    def of_clips(rows: int, seed: int) -> Columns:
        """Each frame one bit from the others of its clip."""
        scenes = np.random.default_rng(seed).integers(0, 256, (rows // 12, 16), dtype=np.uint8)
        frames = scenes[np.arange(rows) // 12]
        frames[:, 0] ^= (np.uint8(1) << (np.arange(rows) % 4).astype(np.uint8)).astype(np.uint8)
        return {"perceptual_hash": [frame.tobytes() for frame in frames]}

    then = reference(past, of_clips(240, 1))
    drifted = sum(
        report(sample(seed, rows=120, clip=12), past=then, changes=of_clips(120, 2), config=config).drifted
        for seed in range(1, 11)
    )
    assert drifted <= 4


def test_units_are_groups_and_near_duplicates_of_what_has_none() -> None:
    first, second = hashes(2)
    near = bytes([first[0] ^ 1]) + first[1:]
    groups = ["a", None, "b", None, None, "a", None]
    seen = sample(1, rows=7)
    changes = {"group": groups, "perceptual_hash": [first, first, first, second, near, second, second]}
    units = independent_units(rows_of(seen, true_names(seen), changes)).tolist()
    assert units[0] == units[5]  # one group
    assert units[1] == units[4]  # near duplicates
    assert units[3] == units[6]  # equal hashes
    assert len({units[0], units[1], units[2], units[3]}) == 4


def test_images_with_nothing_in_common_are_units_of_their_own() -> None:
    seen = sample(1, rows=50)
    assert len(set(independent_units(rows_of(seen, true_names(seen))).tolist())) == 50


# --- what moved


def test_the_class_and_the_images_that_moved_are_named() -> None:
    seen = sample(1, right=1.0)
    odd = [n for n in range(120) if n % 3 == 2][:20]  # half of the owls
    seen["embeddings"][odd] += 9.0
    found = report(seen)
    assert found.moved_classes[0].name == "owl"
    assert found.moved_classes[0].images == 40
    assert found.moved_classes[0].novel == pytest.approx(0.5, abs=0.1)
    assert sorted(found.moved_classes, key=lambda moved: -moved.novel) == list(found.moved_classes)
    assert all(moved.novel < 0.2 for moved in found.moved_classes[1:])
    assert len(found.moved_images) == len(set(found.moved_images)) == 16
    assert set(found.moved_images) <= {image_row(n)["sha256"] for n in odd}


def test_the_furthest_image_comes_first() -> None:
    seen = sample(1)
    for far, row in enumerate((50, 20, 80)):
        seen["embeddings"][row] += 10.0 * (4 - far)
    assert report(seen).moved_images[:3] == tuple(image_row(n)["sha256"] for n in (50, 20, 80))


def test_nothing_that_moved_is_near_the_reference() -> None:
    found = report(sample(1, right=1.0))
    assert found.moved_classes == ()


def test_a_quiet_window_of_wide_features_has_nothing_that_moved() -> None:
    """Rows that a covariance was fitted to lie nearer by it than others do, the more the wider they are."""
    seen, past = sample(1, rows=300, right=1.0), sample(0, rows=600)
    for number, given in enumerate((seen, past)):
        given["embeddings"] = torch.randn(len(given["labels"]), 150, generator=seeded(50 + number))
    found = report(seen, past=reference(past))
    assert found.word == "stable"
    assert found.moved_classes == ()


def test_classes_of_a_few_answers_are_not_judged() -> None:
    seen = sample(1, rows=24, right=1.0)
    assert report(seen).moved_classes == ()  # eight of each


def test_identical_features_move_nothing() -> None:
    seen = sample(0, rows=200)
    found = report(seen, past=reference(seen))
    assert found.word == "stable"
    assert found.p_value is not None
    assert found.p_value > 0.4
    assert found.moved_classes == ()


# --- the smallest change that would have been seen


def test_a_change_above_the_smallest_effect_alarms_and_one_below_does_not() -> None:
    quiet = {view.name: view.smallest_effect for view in report(sample(1, rows=200)).views}
    assert quiet["all features"] is not None
    found = [report(sample(1, rows=200, shift=shift)) for shift in (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8)]
    effects = [{view.name: view.effect for view in one.views}["all features"] for one in found]
    assert effects == sorted(effects)
    for one, effect in zip(found, effects, strict=True):
        if effect > 1.3 * quiet["all features"]:
            assert one.drifted
    assert not found[0].drifted
    assert effects[0] < quiet["all features"]
    assert found[-1].drifted


def test_larger_windows_see_smaller_changes() -> None:
    few, many = ({view.name: view.smallest_effect for view in report(sample(1, rows=rows)).views} for rows in (40, 600))
    for name in ("all features", "embeddings", "properties"):
        small, large = many[name], few[name]
        assert small is not None
        assert large is not None
        assert small < large


# --- constant and missing columns


def test_properties_that_never_vary_are_no_drift() -> None:
    """Grey images of one camera: red, green and blue are null, width and height are the same."""
    for seed, rows in ((1, 37), (2, 120), (3, 150)):
        seen, past = sample(seed, rows=rows), sample(0, rows=200)
        for given in (seen, past):
            given["properties"] = torch.full_like(given["properties"], 0.37)
        found = report(seen, past=reference(past))
        by_name = {view.name: view for view in found.views}
        assert by_name["properties"].p_value == 1.0
        assert by_name["properties"].effect < 1e-3
        assert found.word == "stable"


def test_properties_that_went_missing_are_drift() -> None:
    past = reference(sample(0, rows=200), {"skew": [0.1] * 200})
    found = report(sample(1), past=past)
    assert {view.name: view.p_value for view in found.views}["properties"] <= 0.01


@pytest.mark.parametrize("name", ["embeddings", "early", "probabilities"])
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused(name: str, broken: float) -> None:
    seen = sample(1)
    seen[name][5, 1] = broken
    with pytest.raises(ValueError, match="not finite"):
        report(seen)


def test_features_of_another_champion_are_refused() -> None:
    seen = sample(1)
    seen["embeddings"] = seen["embeddings"][:, :3]
    with pytest.raises(ValueError, match="cannot be compared"):
        report(seen)


# --- labels that are still to come


@pytest.mark.parametrize("late", [1, 60, 110])
def test_labels_that_are_still_to_come_are_no_new_class_and_no_change_of_the_classes(late: int) -> None:
    seen = sample(1, right=1.0)
    names = [None if i < late else name for i, name in enumerate(true_names(seen))]
    found = report(seen, names)
    assert (found.word, found.new_classes, found.faults) == ("stable", {}, ())
    assert [view.name for view in found.views] == [view.name for view in standard_detectors(labelled=False)]
    assert "labels" not in {view.name for view in found.views}
    assert (found.rows, found.window_accuracy) == (120, 1.0)


def test_new_classes_among_late_labels_are_counted_without_them() -> None:
    seen = sample(1)
    names = [None if i < 40 else "bat" if i < 55 else name for i, name in enumerate(true_names(seen))]
    assert report(seen, names).new_classes == {"bat": 15}


def test_images_without_a_label_are_tested_for_drift() -> None:
    found = report(sample(1, shift=2.0), [None] * 120)
    assert found.word == "drifted"
    assert (found.accuracy_drop, found.window_accuracy, found.new_classes) == (None, None, {})


def test_renamed_labels_are_a_fault_where_half_of_them_are_still_to_come() -> None:
    seen = sample(1)
    turned = [None if n % 2 else CLASSES[(i + 1) % 3] for n, i in enumerate(seen["labels"].tolist())]
    assert [fault.name for fault in report(seen, turned).faults] == ["permuted-labels"]


# --- what the change means: a real network, and changes rehearsed on it


def pictures(rows: int, seed: int) -> Tensor:
    """Grey images of bright squares of three sizes."""
    generator = seeded(seed)
    images = torch.randint(60, 100, (rows, 1, 16, 16), generator=generator)
    for n, place in enumerate(torch.randint(2, 6, (rows,), generator=generator).tolist()):
        images[n, :, place : place + 3 + 2 * (n % 3), place : place + 4] += 90
    return images.to(torch.uint8)


@pytest.fixture(scope="module")
def champion() -> tuple[Any, Reference]:
    torch.set_num_threads(1)
    spec = ModelSpec(architecture="small-cnn", classes=CLASSES, image_size=16, channels=1, mean=(0.4,), std=(0.2,))
    model = build_classifier(spec, seeded(0))
    model.train()
    with torch.no_grad():
        for seed in range(30):
            model(pictures(32, 100 + seed))
    model.eval()
    images = pictures(150, 0)
    features = extract_features(model, images.split(50))
    labels = features.probabilities.argmax(dim=1)
    changes = rehearse_changes(model, images, labels, seeded(1))
    seen = {"properties": torch.zeros(150, 3), "labels": labels}
    rows = rows_of(seen, true_names(seen))
    return model, Reference(features=features, labels=labels, rows=rows, changes=changes)


def looked_at(model: Any, images: Tensor) -> Seen:
    features = extract_features(model, images.split(50))
    labels = torch.full((len(images),), -1)
    rows = rows_of({"properties": torch.zeros(len(images), 3)}, [None] * len(images))
    return Seen(features=features, labels=labels, rows=rows)


def test_a_quiet_window_has_an_estimate_and_no_kind_of_change(champion: tuple[Any, Reference]) -> None:
    model, past = champion
    found = compare("v1", CLASSES, past, looked_at(model, pictures(90, 7)), (), DriftConfig())
    assert (found.word, found.change, found.accuracy_drop) == ("stable", None, None)
    assert found.estimated_drop is not None
    assert isinstance(found.estimated_drop_interval, Interval)
    assert found.estimated_drop_interval.lower <= found.estimated_drop <= found.estimated_drop_interval.upper
    assert "Estimated without labels: the champion loses" in found.sentence


def test_a_rehearsed_change_is_drift_and_is_named(champion: tuple[Any, Reference]) -> None:
    model, past = champion
    brighter = (pictures(90, 7).int() + 60).clamp(max=255).to(torch.uint8)
    found = compare("v1", CLASSES, past, looked_at(model, brighter), (), DriftConfig())
    assert (found.word, found.alarm) == ("drifted", True)
    assert found.change is not None
    assert past.changes is not None
    assert found.change in past.changes.kinds
    assert f"a change of kind '{found.change}'" in found.sentence


def test_a_reference_is_built_and_read_back(champion: tuple[Any, Reference], tmp_path: Path) -> None:
    model, past = champion
    images = pictures(LEAST_ROWS, 3)
    rows = past.rows.slice(0, len(images))
    holdout = ImageSet(
        images=Pixels([images], torch.arange(len(images))),
        labels=past.labels[: len(images)],
        classes=CLASSES,
        rows=rows,
    )
    registry = Registry(DirectoryStore(tmp_path / "store"), "m")
    found = load_reference(registry, registry.save_version(build_reference(model, holdout, 32, 1000, seeded(0))))
    assert found.rows.equals(rows)
    assert torch.equal(found.labels, past.labels[: len(images)])
    wanted = extract_features(model, images.split(32))
    assert torch.allclose(found.features.early, wanted.early, atol=1e-5)
    assert torch.allclose(found.features.embeddings, wanted.embeddings, atol=2e-3, rtol=2e-3)  # kept as float16
    assert found.changes is not None
    assert len(found.changes.kinds) == len(found.changes.accuracies)


@pytest.mark.parametrize(("few", "rehearsed"), [(LEAST_ROWS - 1, 1000), (LEAST_ROWS, 0)], ids=["few", "unasked"])
def test_a_reference_of_few_images_has_no_rehearsal(
    champion: tuple[Any, Reference], tmp_path: Path, few: int, rehearsed: int
) -> None:
    model, past = champion
    holdout = ImageSet(
        images=Pixels([pictures(few, 3)], torch.arange(few)),
        labels=past.labels[:few],
        classes=CLASSES,
        rows=past.rows.slice(0, few),
    )
    registry = Registry(DirectoryStore(tmp_path / "store"), "m")
    found = load_reference(registry, registry.save_version(build_reference(model, holdout, 32, rehearsed, seeded(0))))
    assert found.changes is None
    report_of = compare("v1", CLASSES, found, looked_at(model, pictures(40, 7)), (), DriftConfig())
    assert (report_of.change, report_of.estimated_drop) == (None, None)


# --- the reference in a version


def files_of(seen: dict[str, Tensor]) -> dict[str, bytes]:
    tensors = {**features_of(seen).tensors(), "labels": seen["labels"]}
    rows = to_parquet(rows_of(seen, true_names(seen)))
    return {"reference.safetensors": save_tensors(tensors), "reference.parquet": rows}


def test_a_reference_that_was_saved_is_read_back(tmp_path: Path) -> None:
    seen = sample(3)
    seen["embeddings"] = seen["embeddings"].half().float()
    registry = Registry(DirectoryStore(tmp_path / "store"), "m")
    found = load_reference(registry, registry.save_version(files_of(seen)))
    for name in ("embeddings", "early", "probabilities", "pixels"):
        assert torch.equal(getattr(found.features, name), seen[name])
    assert torch.equal(found.labels, seen["labels"])
    assert found.rows.equals(rows_of(seen, true_names(seen)))
    assert report(sample(1), past=found) == report(sample(1), past=reference(seen))


@pytest.mark.parametrize("name", ["reference.safetensors", "reference.parquet"])
@pytest.mark.parametrize("tamper", [lambda path: path.write_bytes(path.read_bytes() + b"!"), Path.unlink])
def test_a_tampered_reference_is_named(tmp_path: Path, name: str, tamper: Callable[[Path], object]) -> None:
    registry = Registry(DirectoryStore(tmp_path / "store"), "m")
    version = registry.save_version(files_of(sample(3)))
    tamper(tmp_path / "store" / "models" / "m" / "versions" / version / name)
    with pytest.raises(IntegrityError, match=name):
        load_reference(registry, version)
