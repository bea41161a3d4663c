"""Windows whose labels are still to come, on real digits: what they show without, what a run asks for, and the same
images once they have labels."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from pipelines.demo import weak_lamp
from tests.pipeline.conftest import executed, retrain, snapshot, write_config

pytestmark = pytest.mark.slow
RECORDED = ["ingest", "validate", "detect-drift", "decide", "record", "report"]
PROMOTED = ["ingest", "validate", "detect-drift", "decide", "train", "evaluate", "gate", "promote", "report"]
LEAST = 20  # validation.min_images of these tests


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a configuration, and a store whose first champion was promoted once its window had labels."""
    folder = tmp_path_factory.mktemp("first")
    write_config(folder)
    truth = deliver(folder / "first", 0, 200)
    report, tasks = run(folder, "first/table.csv")
    assert tasks == RECORDED
    assert (report["rule"], report["drift"], report["labels_wanted"]) == ("labels-wanted", "no-champion", LEAST)
    assert report["reason"].startswith("There is no champion yet, and a first one needs labels. 0 of 200 images have")
    listed = list(csv.DictReader((folder / "store" / report["to_label"]).read_text().splitlines()))
    assert len(listed) == LEAST
    write_table(folder / "first" / "all.csv", truth)
    report, tasks = run(folder, "first/all.csv")
    assert (report["outcome"], tasks) == ("promoted", PROMOTED)
    return folder


@pytest.fixture
def house(first: Path, tmp_path: Path) -> Path:
    """A copy of that folder, for a test to change."""
    return Path(shutil.copytree(first, tmp_path / "house"))


def deliver(folder: Path, start: int, count: int, *, lamp: bool = False, labelled: int = 0) -> dict[str, str]:
    """Scans of the digits 0 to 2 in one folder, and a table of which the first so many rows have a label.

    Writers come in any order, as the files of the data set do not: others would be a change.

    Returns:
        The labels of all of them, by path.
    """
    data = load_digits()
    pick = np.random.default_rng(0).permutation(np.flatnonzero(data.target <= 2))[start : start + count]
    assert len(pick) == count
    images = (data.images[pick] * 255 / 16).astype(np.uint8)
    folder.mkdir()
    for number, image in enumerate(weak_lamp(images) if lamp else images):
        Image.fromarray(image).save(folder / f"{number}.png")
    truth = {f"{number}.png": str(digit) for number, digit in enumerate(data.target[pick])}
    write_table(folder / "table.csv", {name: truth[name] if n < labelled else "" for n, name in enumerate(truth)})
    return truth


def write_table(path: Path, labels: dict[str, str]) -> None:
    with path.open("w") as file:
        csv.writer(file).writerows([("path", "label"), *labels.items()])


def run(house: Path, source: str) -> tuple[dict[str, Any], list[str]]:
    """The report of a run, and which tasks it started."""
    done = retrain("run", house / source, "--config", house / "retrain.yaml", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), executed(done.stderr)


def measured(house: Path, report: dict[str, Any]) -> dict[str, Any]:
    """What drift detection found."""
    path = house / "store" / "runs" / report["run_id"] / "detect_drift.json"
    document: dict[str, Any] = json.loads(path.read_text())["document"]
    return document


def ledger(house: Path) -> dict[str, bytes]:
    return {name: data for name, data in snapshot(house / "store").items() if "ledger" in name}


def gauge(house: Path, report: dict[str, Any]) -> float:
    text = (house / "store" / "runs" / report["run_id"] / "metrics.prom").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("retrain_labels_wanted_images ")]
    return float(line.split()[1])


def test_unlabelled_window_that_changed_nothing_needs_no_labels(house: Path):
    deliver(house / "same", 200, 150)
    report, tasks = run(house, "same/table.csv")
    assert tasks == RECORDED
    assert (report["drift"], report["rule"], report["outcome"]) == ("stable", "labels-not-needed", "skipped")
    assert (report["labels_wanted"], report["to_label"], gauge(house, report)) == (0, None, 0)
    found = measured(house, report)
    assert (found["accuracy_drop"], found["unlabelled"]) == (None, 150)
    assert abs(found["estimated_drop"]) < 0.03
    assert not (house / "store" / "runs" / report["run_id"] / "to_label.csv").exists()


def test_unlabelled_window_that_changed_asks_for_labels_and_is_learnt_once_it_has_them(house: Path):
    truth = deliver(house / "lamp", 350, 150, lamp=True)
    before = ledger(house)
    report, tasks = run(house, "lamp/table.csv")

    assert tasks == RECORDED
    assert (report["drift"], report["rule"], report["outcome"]) == ("drifted", "labels-wanted", "skipped")
    assert (ledger(house), report["champion_after"]) == (before, report["champion_before"])
    found = measured(house, report)
    assert found["alarm"]
    assert found["estimated_drop"] > 0.05
    assert found["estimated_drop_interval"]["lower"] > 0
    place = f"runs/{report['run_id']}/to_label.csv"
    assert (report["labels_wanted"], report["to_label"], gauge(house, report)) == (LEAST, place, LEAST)
    assert f"{100 * found['estimated_drop']:.1f} points of accuracy (90 % interval" in report["reason"]
    assert f"Label {LEAST}: {place} lists them" in report["reason"]
    explained = retrain("explain", report["run_id"], "--config", house / "retrain.yaml")
    assert place in " ".join(explained.stdout.split())
    page = (house / "store" / "runs" / report["run_id"] / "report.html").read_text()
    _, asked, wanted = page.partition(f"Images to label: {LEAST}</h3>")
    assert asked
    assert wanted.partition("<h3>")[0].count('<img src="data:image/png') == LEAST

    rows = list(csv.DictReader((house / "store" / place).read_text().splitlines()))
    assert (list(rows[0]), len(rows)) == (["path", "label", "sha256", "why"], LEAST)
    assert {row["path"] for row in rows} < set(truth)
    assert {row["label"] for row in rows} == {""}
    learnt = [row["sha256"] for row in rows if row["why"].startswith("to learn from: among the furthest")]
    assert learnt == [digest for digest in found["furthest_unlabelled"] if digest in set(learnt)]
    assert 0 < len(rows) - len(learnt) < len(learnt), "most are to learn from, some to judge by"

    write_table(house / "lamp" / "all.csv", truth)
    later, tasks = run(house, "lamp/all.csv")
    assert later["window"] != report["window"]
    assert (later["outcome"], tasks) == ("promoted", PROMOTED)
    assert (later["labels_wanted"], gauge(house, later)) == (0, 0)
    assert later["champion_after"] != report["champion_after"]


def test_list_that_is_filled_in_is_a_delivery(house: Path):
    truth = deliver(house / "lamp", 350, 150, lamp=True, labelled=LEAST - 1)
    report, tasks = run(house, "lamp/table.csv")
    assert (report["rule"], tasks) == ("labels-wanted", RECORDED)
    assert f"{LEAST - 1} of 150 images have a label" in report["reason"]
    rows = list(csv.DictReader((house / "store" / report["to_label"]).read_text().splitlines()))
    assert len(rows) == report["labels_wanted"] < LEAST
    given = dict(list(truth.items())[: LEAST - 1])
    assert not given.keys() & {row["path"] for row in rows}, "what has a label is not asked for"
    write_table(house / "lamp" / "labelled.csv", {**given, **{row["path"]: truth[row["path"]] for row in rows}})
    later, tasks = run(house, "lamp/labelled.csv")
    assert "train" in tasks
    assert later["rule"] in ("changed-images", "measurable-drop")


def test_unlabelled_images_that_the_champion_has_learnt_are_not_asked_for(house: Path):
    deliver(house / "known", 0, 150)
    report, _ = run(house, "known/table.csv")
    assert (report["rule"], report["labels_wanted"]) == ("nothing-to-learn", 0)
