"""The evaluation step on models and windows in a store: same rows, one pass, what is kept, and what goes wrong."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from components.core import datasets
from components.core.config import load_config
from components.core.contracts import Evaluation, Failure, HoldoutScores, Lineage, PairedOutcome, RunParameters
from components.core.errors import BrokenModel, IntegrityError
from components.core.models import Classifier, grow_head, save_classifier, with_image_size
from components.core.plans import Decision
from components.core.recipes import Recipe
from components.core.registry import Registry
from components.core.runs import Run, StepRecord
from components.core.storage import DirectoryStore, to_json
from components.core.windows import Window, from_parquet
from components.evaluate import answers as answers_module
from components.evaluate import step
from components.evaluate.anchor import find_anchor
from components.evaluate.rows import read_holdout
from components.ingest.step import ingest
from tests.unit.test_drift_page import START, sound
from tests.unit.test_features import deliver
from tests.unit.test_reference import CLASSES, champion, pictures, seeded

pytestmark = pytest.mark.usefixtures("one_thread")

FRESH, UPDATE = Recipe(epochs=1, learning_rate=0.1, start="fresh"), Recipe(epochs=1, learning_rate=0.1)
ROWS = {"first": 120, "second": 80, "new": 60}


def owls(folder: Path, rows: int, seed: int) -> str:
    """Images of a class that the champion does not know."""
    noise = torch.randint(100, 250, (rows, 3, 8, 8), generator=seeded(seed)).to(torch.uint8)
    (folder / "owl").mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(noise):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / "owl" / f"{number:03d}.png")
    return str(folder)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A store with windows, made once, and their ids: two old ones, a new one of the same classes, one with owls too,
    and one of owls alone."""
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("evaluation")
    written = {
        "store": {"uri": "store", "cache": "cache"},
        "ingest": {"workers": 1, "holdout_fraction": 0.5},
        "training": {"architecture": "small-cnn", "image_size": 8, "channels": 3},
        "evaluation": {"latency_repeats": 2, "min_slice_rows": 5, "slices": ["sharpness"], "batch_size": 16},
    }
    (place / "retrain.yaml").write_text(yaml.safe_dump(written))
    store, config = DirectoryStore(place / "store"), load_config(place / "retrain.yaml")
    sources = {name: deliver(place / name, *pictures(rows, 70 + n)) for n, (name, rows) in enumerate(ROWS.items())}
    owls(Path(deliver(place / "mixed", *pictures(40, 90))), 20, 91)
    sources |= {"mixed": str(place / "mixed"), "owls": owls(place / "owls", 20, 92)}
    return place, {name: ingest(store, config, source).id for name, source in sources.items()}


def weakened(model: Classifier, share: float = 0.2) -> Classifier:
    """The same network, less sure of itself, that takes a share of the cats for dogs."""
    other = grow_head(model, (), seeded(0)).eval()
    images, labels = pictures(300, 7)
    with torch.no_grad():
        other.head.weight *= 0.05
        towards_dog = other(images[labels == 0]).diff(dim=1).flatten()
        other.head.bias[1] -= towards_dog.quantile(1 - share)
    return other


class House:
    """The store, for a test to change: a fresh version of the first window, its update by the second."""

    def __init__(self, place: Path, ids: dict[str, str]) -> None:
        self.place, self.path, self.store, self.ids = (
            place,
            place / "retrain.yaml",
            DirectoryStore(place / "store"),
            ids,
        )
        self.registry = Registry(self.store, "classifier")
        self.anchor = self.save(weakened(champion(), 0.4), None, ("first",), FRESH)
        self.champion = self.save(weakened(champion()), self.anchor, ("first", "second"), UPDATE)

    def save(
        self, model: Classifier, parent: str | None = None, windows: Sequence[str] = (), recipe: Recipe = UPDATE
    ) -> str:
        ids = tuple(self.ids[name] for name in windows)
        lineage = Lineage(parent=parent, windows=ids, strategy="s", hyperparameters=recipe, seed=0, package="0")
        return self.registry.save_version({**save_classifier(model), "lineage.json": to_json(lineage)})

    def begin(self, run_id: str = "one", **decision: Any) -> Run:
        """A run with its plan: the champion against what the test brings, on the old windows."""
        run = Run(self.store, run_id)
        asked = RunParameters(run_id=run_id, model="classifier", dataset="images", source="s", strategy="auto")
        run.begin(load_config(self.path), asked)
        old = tuple(self.ids[name] for name in ("first", "second"))
        told = {"action": "train", "rule": "r", "reasons": ("r",), "champion": self.champion, "old_windows": old}
        plan = Decision(**{**told, **decision})
        run.write(StepRecord(step="decide", started=START, seconds=1.0, document=plan))
        return run

    def evaluate(
        self, challenger: Classifier, window: str = "new", run_id: str = "one", **decision: Any
    ) -> tuple[Evaluation, str, pa.Table]:
        run = self.begin(run_id, **decision)
        evaluation, page = step.run(str(self.path), run_id, self.ids[window], self.save(challenger), 1)
        assert evaluation.answers is not None
        assert self.store.get(run.key(step.PAGE.format(1))).decode() == page
        return evaluation, sound(page), from_parquet(self.store.get(evaluation.answers))

    def window(self, name: str) -> Window:
        return Window.open(self.store, "images", self.ids[name])


@pytest.fixture
def house(built: tuple[Path, dict[str, str]], tmp_path: Path) -> House:
    shutil.copytree(built[0], tmp_path / "house")
    return House(tmp_path / "house", built[1])


def as_said(model: Classifier, window: Window, rows: pa.Table) -> tuple[list[str], list[float]]:
    """What a model says of images read one by one from the window, without cache or batches."""
    wanted = dict(zip(rows["sha256"].to_pylist(), range(rows.num_rows), strict=True))
    manifest = window.rows("holdout")
    names, sure = [""] * rows.num_rows, [0.0] * rows.num_rows
    size = model.eval().spec.image_size
    for position, data in window.images(manifest):
        if (place := wanted.get(manifest["sha256"][position].as_py())) is None:
            continue
        pixels = torch.from_numpy(datasets.decode_image(data, size, 3).copy())[None]
        with torch.inference_mode():
            top = model(pixels).softmax(1).max(1)
        names[place], sure[place] = model.spec.classes[int(top.indices)], float(top.values)
    return names, sure


# --- what is kept


def test_every_answer_of_every_model_is_kept(house: House) -> None:
    evaluation, _, table = house.evaluate(champion())
    assert table["holdout"].to_pylist().count("new") == evaluation.new.rows
    assert evaluation.old is not None
    assert table.num_rows == evaluation.old.rows + evaluation.new.rows > 100
    assert len(set(table["sha256"].to_pylist())) == table.num_rows
    models = {"challenger": champion(), "champion": weakened(champion()), "anchor": weakened(champion(), 0.4)}
    for name in ("first", "second", "new"):
        window = house.window(name)
        rows = table.filter(pa.compute.equal(table["window"], window.document.id))
        assert rows["sha256"].to_pylist() == window.rows("holdout")["sha256"].to_pylist()
        for who, model in models.items():
            said, sure = as_said(model, window, rows)
            assert rows[who].to_pylist() == said
            assert rows[f"{who}_confidence"].to_pylist() == pytest.approx(sure, abs=1e-5)
    assert {"width", "height", "mean", "sharpness", "group", "source"} <= set(table.column_names)
    assert table.schema.metadata[b"anchor"].decode() == house.anchor


def test_scores_can_be_computed_anew_from_what_is_kept(house: House) -> None:
    evaluation, _, table = house.evaluate(champion())

    def paired(rows: pa.Table, before: str = "champion") -> PairedOutcome:
        cells = {(True, True): "both_right", (True, False): "only_champion_right"}
        cells |= {(False, True): "only_challenger_right", (False, False): "both_wrong"}
        counts = dict.fromkeys(cells.values(), 0)
        for row in rows.to_pylist():
            counts[cells[row[before] == row["label"], row["challenger"] == row["label"]]] += 1
        return PairedOutcome(**counts)

    def part(column: str, value: str) -> pa.Table:
        return table.filter(pa.compute.equal(table[column], value))

    assert evaluation.old is not None
    assert evaluation.anchor is not None
    assert evaluation.old.paired == paired(part("holdout", "old"))
    assert evaluation.new.paired == paired(part("holdout", "new"))
    assert evaluation.old.by_window == {w: paired(part("window", w)) for w in map(house.ids.get, ("first", "second"))}
    assert evaluation.anchor.version == house.anchor
    assert evaluation.anchor.paired == paired(part("window", house.ids["first"]), "anchor")
    assert evaluation.old.paired.only_champion_right + evaluation.old.paired.only_challenger_right > 0
    assert {one.by for one in evaluation.old.slices} >= {"class", "window", "brightness", "sharpness"}


def test_repeating_the_step_gives_the_same_bytes(house: House) -> None:
    house.evaluate(champion(), run_id="one")
    house.evaluate(champion(), run_id="two")
    first, second = (house.store.get(f"runs/{run}/answers-1.parquet") for run in ("one", "two"))
    assert first == second


def test_a_step_that_is_run_again_hands_out_what_is_filed(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation, page, _ = house.evaluate(champion())
    monkeypatch.setattr(step, "load_version", lambda *_: pytest.fail("evaluated again"))
    again = step.run(str(house.path), "one", house.ids["new"], evaluation.challenger, 1)
    assert again == (evaluation, page)


def test_each_model_answers_each_row_once_and_images_are_decoded_once(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []
    decoded: list[bytes] = []
    ask, decode = answers_module.ask, datasets.decode_image

    def counted(*arguments: Any, version: str, digests: Sequence[str]) -> Any:
        asked.append((version, len(digests)))
        return ask(*arguments, version=version, digests=digests)

    monkeypatch.setattr("components.evaluate.panel.ask", counted)
    monkeypatch.setattr(datasets, "decode_image", lambda *a: decoded.append(a[0]) or decode(*a))
    evaluation, _, table = house.evaluate(champion())
    rows = table.num_rows
    assert sorted(asked) == sorted([(evaluation.challenger, rows), (house.champion, rows), (house.anchor, rows)])
    assert len(decoded) == rows


# --- who is compared with whom


def test_without_a_champion_the_challenger_is_alone(house: House) -> None:
    evaluation, _, table = house.evaluate(champion(), champion=None, old_windows=())
    assert (evaluation.old, evaluation.anchor, evaluation.champion_cost) == (None, None, None)
    assert (evaluation.new.champion_confusion, evaluation.new.paired) == (None, PairedOutcome())
    assert evaluation.new.accuracy is not None
    assert evaluation.new.accuracy > 0.9
    assert evaluation.challenger_cost is not None
    assert table["champion"].to_pylist() == table["anchor"].to_pylist() == [None] * evaluation.new.rows


def test_a_champion_of_another_image_size_sees_its_own_size(house: House) -> None:
    large = with_image_size(weakened(champion()), 16)
    version = house.save(large, house.anchor, ("first", "second"))
    evaluation, _, table = house.evaluate(champion(), champion=version)
    rows = table.filter(pa.compute.equal(table["window"], house.ids["new"]))
    said, sure = as_said(large, house.window("new"), rows)
    assert rows["champion"].to_pylist() == said
    assert rows["champion_confidence"].to_pylist() == pytest.approx(sure, abs=1e-5)
    costs = evaluation.champion_cost, evaluation.challenger_cost
    assert costs[0] is not None
    assert costs[1] is not None
    assert costs[0].flops is not None
    assert costs[1].flops is not None
    assert costs[0].flops == pytest.approx(4 * costs[1].flops, rel=0.01)


def test_new_classes_are_measured_apart(house: House) -> None:
    challenger = grow_head(champion(), ("owl",), seeded(3))
    evaluation, _, table = house.evaluate(challenger, "mixed")
    assert list(evaluation.new.new_classes) == ["owl"]
    owl_rows = table["label"].to_pylist().count("owl")
    assert evaluation.new.new_classes["owl"].rows == owl_rows > 0
    assert evaluation.new.paired.rows == evaluation.new.rows - owl_rows
    assert set(evaluation.new.by_class) == set(CLASSES)
    assert {len(evaluation.new.confusion), len(evaluation.new.champion_confusion or ()) + 1} == {3}


def test_a_window_of_only_new_classes_pairs_nothing(house: House) -> None:
    evaluation, page, _ = house.evaluate(grow_head(champion(), ("owl",), seeded(3)), "owls")
    assert evaluation.new.paired == PairedOutcome()
    assert evaluation.new.rows == evaluation.new.new_classes["owl"].rows > 0
    assert evaluation.new.calibration_error is None
    assert "rows of new classes (1)" in page


def test_a_window_whose_classes_nobody_knows_has_no_rows(house: House) -> None:
    evaluation, page, _ = house.evaluate(champion(), "owls")
    assert (evaluation.new.rows, evaluation.new.accuracy) == (0, None)
    assert "nothing of it could be measured" in page
    assert evaluation.old is not None
    assert evaluation.old.rows > 0


def test_identical_models_are_equal_everywhere(house: House) -> None:
    evaluation, _, table = house.evaluate(weakened(champion()))
    assert table["champion"].to_pylist() == table["challenger"].to_pylist()
    assert table["champion_confidence"].equals(table["challenger_confidence"])

    def differing(scores: HoldoutScores | None) -> int:
        return scores.paired.only_champion_right + scores.paired.only_challenger_right if scores else -1

    assert (differing(evaluation.old), differing(evaluation.new)) == (0, 0)


# --- the anchor


def test_a_champion_that_was_trained_from_scratch_is_its_own_anchor(house: House) -> None:
    assert find_anchor(house.registry, house.anchor) is None
    evaluation, _, table = house.evaluate(champion(), champion=house.anchor, old_windows=(house.ids["first"],))
    assert evaluation.anchor is None
    assert table["anchor"].null_count == table.num_rows


def test_the_anchor_is_the_last_fresh_ancestor(house: House) -> None:
    middle = house.save(weakened(champion(), 0.1), house.champion, ("first", "second"), FRESH)
    last = house.save(weakened(champion(), 0.2), middle, ("first", "second"))
    for version, expected in ((house.champion, house.anchor), (last, middle)):
        found = find_anchor(house.registry, version)
        assert found is not None
        assert found[0] == expected
    orphan = house.save(weakened(champion(), 0.3), None, ("first",))
    assert find_anchor(house.registry, orphan) is None


@pytest.mark.parametrize("name", ["model.safetensors", "lineage.json"])
def test_an_anchor_that_is_damaged_is_left_out(house: House, name: str, caplog: pytest.LogCaptureFixture) -> None:
    (house.store.root / "models" / "classifier" / "versions" / house.anchor / name).write_bytes(b"x")
    evaluation, _, _ = house.evaluate(champion())
    assert evaluation.anchor is None
    assert "no anchor" in caplog.text
    assert evaluation.new.paired.rows > 0


# --- what goes wrong


def broken_model(weight: float) -> Classifier:
    """A network whose head turns some images into no number."""
    model = weakened(champion())
    with torch.no_grad():
        model.head.weight.fill_(weight)
    return model


@pytest.mark.parametrize("who", ["challenger", "champion"])
def test_answers_that_are_no_numbers_name_the_model_and_the_image(house: House, who: str) -> None:
    model = broken_model(float("nan"))
    version = house.save(model, house.anchor, ("first", "second"))
    first = read_holdout([house.window("first")], house.window("new"), CLASSES)["sha256"][0].as_py()
    house.begin(champion=version if who == "champion" else house.champion)
    challenger = version if who == "challenger" else house.save(champion())
    with pytest.raises(BrokenModel, match=f"version {version} with answers that are not finite for image {first}"):
        step.run(str(house.path), "one", house.ids["new"], challenger, 1)
    (failure,) = Run(house.store, "one").failures()
    assert isinstance(failure, Failure)
    assert (failure.step, failure.error, failure.exit_code) == ("evaluate-1", "BrokenModel", 2)
    assert first in failure.message


def test_an_anchor_that_answers_nothing_is_left_out(house: House, caplog: pytest.LogCaptureFixture) -> None:
    anchor = house.save(broken_model(float("inf")), None, ("first",), FRESH)
    version = house.save(weakened(champion(), 0.5), anchor, ("first", "second"))
    evaluation, _, _ = house.evaluate(champion(), champion=version)
    assert evaluation.anchor is None
    assert f"{anchor} cannot be asked" in caplog.text


def test_only_the_image_that_has_no_answer_is_named() -> None:
    model = grow_head(champion(), (), seeded(0))
    images, _ = pictures(40, 5)
    pixels = datasets.Pixels([images], torch.arange(40))

    def spoil(_module: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        output[(inputs[0] == images[23]).flatten(1).all(1)] = float("nan")
        return output

    model.register_forward_hook(spoil)
    with pytest.raises(BrokenModel, match=r"version v with answers that are not finite for image d23;"):
        answers_module.ask(model, pixels, 16, version="v", digests=[f"d{n}" for n in range(40)])


def test_a_head_with_more_answers_than_classes_is_broken() -> None:
    model = grow_head(champion(), (), seeded(0))
    model.head = torch.nn.Linear(64, 5)
    pixels = datasets.Pixels([pictures(3, 5)[0]], torch.arange(3))
    with pytest.raises(BrokenModel, match="version v with 5 answers and 2 classes"):
        answers_module.ask(model, pixels, 16, version="v", digests=["d"] * 3)


def test_weights_that_do_not_fit_are_broken(house: House) -> None:
    files = save_classifier(champion()) | {
        "model.json": save_classifier(grow_head(champion(), ("owl",), seeded(0)))["model.json"]
    }
    version = house.registry.save_version(files)
    house.begin()
    with pytest.raises(BrokenModel, match=f"version {version} whose weights do not fit"):
        step.run(str(house.path), "one", house.ids["new"], version, 1)


def test_a_damaged_champion_is_an_error(house: House) -> None:
    (house.store.root / "models" / "classifier" / "versions" / house.champion / "model.safetensors").write_bytes(b"x")
    with pytest.raises(IntegrityError):
        house.evaluate(champion())


def test_nothing_is_filed_where_the_step_failed(house: House) -> None:
    version = house.save(broken_model(float("nan")))
    run = house.begin()
    with pytest.raises(BrokenModel):
        step.run(str(house.path), "one", house.ids["new"], version, 1)
    assert run.read("evaluate-1", Evaluation) is None
    assert not [o.key for o in house.store.list_objects("runs/one/") if "answers" in o.key]


# --- the rows


def test_images_that_old_windows_hold_are_rows_of_the_first(house: House, tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(house.place / "first", again)
    deliver(again, *(part[:40] for part in pictures(40, 99)))  # overwrites the first 40 images
    identity = ingest(house.store, load_config(house.path), str(again)).id
    house.ids = {**house.ids, "again": identity}
    evaluation, _, table = house.evaluate(champion(), "again")
    assert len(set(table["sha256"].to_pylist())) == table.num_rows
    held = {row["sha256"] for row in house.window("first").rows("holdout").to_pylist()}
    new = table.filter(pa.compute.equal(table["holdout"], "new"))
    assert not held & set(new["sha256"].to_pylist())
    assert 0 < evaluation.new.rows < house.window("again").document.holdout_rows


def test_rows_come_as_the_images_do(house: House) -> None:
    windows = [house.window(name) for name in ("second", "first", "mixed")]
    rows = read_holdout(windows[:-1], windows[-1], ("cat", "owl"))
    cache = datasets.PixelCache(load_config(house.path).store)
    images = datasets.load_images(windows, "holdout", champion().spec, ("cat", "owl"), cache).labelled()
    assert rows["sha256"].to_pylist() == images.rows["sha256"].to_pylist()
    assert set(rows["label"].to_pylist()) == {"cat", "owl"}
    assert rows["window"].unique().to_pylist() == [window.document.id for window in windows]
    assert rows["holdout"].unique().to_pylist() == ["old", "new"]
    assert rows.column_names[:2] == ["holdout", "window"]
