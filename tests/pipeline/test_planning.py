"""Plans from the command line: made without training, carried out exactly, explained, replayed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from components.core.config import load_config
from components.core.plans import Decision, find_plan
from components.core.storage import open_store
from tests.pipeline.conftest import retrain, snapshot, write_config, write_digits

pytestmark = pytest.mark.slow
LADDER = {"decision": {"ladder": ["head-only", "retrain"], "candidates": ["head-only"]}}


@pytest.fixture
def house(promoted: Path, tmp_path: Path) -> Path:
    """A copy of the promoted store, with a delivery in which a digit is new."""
    house = Path(shutil.copytree(promoted, tmp_path / "house"))
    write_config(house, LADDER)
    write_digits(house / "next", (0, 1, 2, 3), 200, 160)
    return house


def answer(house: Path, *arguments: object) -> dict[str, Any]:
    """The JSON that a verb prints."""
    done = retrain(*arguments, "--config", house / "retrain.yaml", "--json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_a_plan_is_made_without_training_carried_out_exactly_and_explained(house: Path):
    before = snapshot(house / "store" / "models")
    planned = answer(house, "plan", house / "next")
    assert (planned["action"], planned["rule"]) == ("train", "new-classes")
    assert [rung["strategy"] for rung in planned["rungs"]] == ["head-only", "retrain"]
    now = snapshot(house / "store" / "models")
    assert {key: now[key] for key in before} == before
    assert not any("/versions/" in key or "/ledger/" in key for key in set(now) - set(before))
    assert answer(house, "status")["unfinished"] == [], "a plan is no run"
    # The first champion's training is the history that prices the plan; nothing is known of a head's gain here yet.
    assert all(rung["forecast"]["seconds"] > 0 for rung in planned["rungs"])
    assert planned["evidence"]["retrained"] is not None
    assert planned["evidence"]["windows_since"] == 0
    assert planned["evidence"]["champion_image_size"] == 16

    # An edited configuration changes nothing about a plan that is carried out.
    write_config(house, {"decision": {"ladder": ["retrain"], "candidates": ["retrain"]}})
    report = answer(house, "run", "--plan", planned["digest"][:10])
    assert report["window"] == planned["evidence"]["window"]
    explained = answer(house, "explain", report["run_id"])
    assert explained["digest"] == planned["digest"]
    assert explained["attempts"][0]["strategy"] == "head-only"
    # Like is compared with like: the forecast is of the whole step.
    filed = json.loads((house / "store" / "runs" / report["run_id"] / "train-1.json").read_text())
    assert explained["attempts"][0]["seconds_real"] == filed["seconds"] > filed["document"]["seconds"] > 0
    assert explained["attempts"][0]["gain_real"] is not None
    assert explained["outcome"]["outcome"] == report["outcome"]

    told = retrain("explain", report["run_id"][:8], "--config", house / "retrain.yaml").stdout
    assert "What happened:" in told
    assert planned["digest"] in told


def test_replaying_the_policies_in_force_gives_the_same_plans_to_the_bit(house: Path):
    answer(house, "run", house / "next")
    replayed = retrain("backtest", "--config", house / "retrain.yaml", "--json")
    lines = [json.loads(line) for line in replayed.stdout.splitlines()]
    assert [(line["then"], line["now"], line["same"]) for line in lines] == [
        ("retrain", "retrain", True),
        ("head-only", "head-only", True),
    ]
    stingy = write_config(
        house,
        {
            "decision": {
                "ladder": ["retrain"],
                "candidates": ["retrain"],
                "min_new_class_images": 100,
                "retrain_worth": 1000,
            }
        },
        "stingy.yaml",
    )
    told = retrain("backtest", "--config", house / "retrain.yaml", "--policy", stingy, "--json")
    lines = [json.loads(line) for line in told.stdout.splitlines()]
    assert [(line["now"], line["in_force"], line["seconds_now"]) for line in lines][1] == ("skip", False, 0.0)
    table = retrain("backtest", "--config", house / "retrain.yaml", "--policy", stingy).stdout
    assert "No plan was made under this policy." in table


def test_the_same_delivery_is_the_same_plan(house: Path):
    first, second = (answer(house, "plan", house / "next")["digest"] for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run",), "neither a source nor a plan"),
        (("run", "next", "--plan", "abc"), "a source and a plan"),
        (("run", "--plan", "abc"), "0 plans that start with 'abc'"),
        (("run", "--plan", "abc", "--strategy", "retrain"), "a plan and the strategy retrain"),
        (("run", "next", "--strategy", "plan:abc"), "0 plans that start with 'abc'"),
        (("explain", "nobody"), "0 runs that start with 'nobody'"),
        (("plan", "nowhere"), "nowhere"),
    ],
)
def test_what_does_not_exist_is_refused(house: Path, arguments: tuple[str, ...], message: str):
    before = snapshot(house / "store")
    done = retrain(*arguments, "--config", house / "retrain.yaml")
    assert done.returncode == 2
    assert message in done.stderr
    assert all(part in done.stderr for part in ("found:", "expected:", "next:"))
    assert snapshot(house / "store") == before


def test_a_plan_that_was_changed_in_the_store_is_refused(house: Path):
    digest = answer(house, "plan", house / "next")["digest"]
    path = house / "store" / "plans" / "classifier" / f"{digest}.json"
    plan = Decision.model_validate_json(path.read_text())
    path.write_text(plan.model_copy(update={"rule": "because"}).model_dump_json())
    done = retrain("run", "--plan", digest, "--config", house / "retrain.yaml")
    assert done.returncode == 2
    assert "is not what was written" in done.stderr
    config = load_config(house / "retrain.yaml")
    with pytest.raises(Exception, match="not what was written"):
        find_plan(open_store(config.store), config.model, digest)
