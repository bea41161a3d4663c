"""Branches of the compiled pipeline that the demo does not take, under the local runner: which steps ran."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from components.core.config import load_config
from components.core.registry import Registry
from components.core.storage import open_store
from tests.pipeline.conftest import RETRAIN, executed, retrain, write_config, write_digits
from tests.servers import Backend, on

pytestmark = pytest.mark.slow
LAZY = {"epochs": 1, "learning_rate": 1e-7}


@pytest.fixture
def house(promoted: Path, tmp_path: Path) -> Path:
    """A copy of the promoted store, for a test to change."""
    return Path(shutil.copytree(promoted, tmp_path / "house"))


BEFORE = ["ingest", "validate", "detect-drift", "decide"]
ATTEMPT = ["train", "evaluate", "gate"]


def run(house: Path, source: str, config: Path, *more: str) -> dict[str, Any]:
    """Run to the end. The report, and under `tasks` which tasks were started."""
    done = retrain("run", house / source, "--config", config, "--json", *more)
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout), "tasks": executed(done.stderr)}


def registry_of(config_path: Path) -> Registry:
    config = load_config(config_path)
    return Registry(open_store(config.store), config.model)


def test_ladder_is_climbed_to_its_end_and_the_challenger_rejected(house: Path):
    ladder = {"ladder": ["head-only", "fine-tune", "retrain"], "candidates": ["head-only"]}
    training = {"strategies": {"head-only": LAZY, "fine-tune": LAZY, "retrain": LAZY}}
    config = write_config(house, {"decision": ladder, "training": training, "gate": {"min_accuracy": 0.8}})
    write_digits(house / "next", (0, 1, 2, 3), 200, 160)
    report = run(house, "next", config)
    assert report["tasks"] == [*BEFORE, *ATTEMPT, *ATTEMPT, *ATTEMPT, "record", "report"]
    assert (report["verdict"], report["outcome"], report["attempts"]) == ("reject", "rejected", 3)
    assert report["champion_after"] == report["champion_before"]
    assert [r.kind for r in registry_of(config).ledger()] == ["promotion", "rejection"]


def test_forced_strategy_starts_the_ladder_at_its_rung(house: Path):
    config = write_config(house, {"decision": {"ladder": ["fine-tune", "retrain"]}})
    write_digits(house / "next", (0, 1, 2), 200, 100)
    report = run(house, "next", config, "--strategy", "head-only")
    assert (report["rule"], report["strategy"], report["attempts"]) == ("forced-strategy", "head-only", 1)
    assert report["outcome"] == "promoted"


def test_challenger_is_held_when_the_rows_cannot_decide(tmp_path: Path):
    config = write_config(tmp_path, {"gate": {"min_accuracy": 0.99}})
    write_digits(tmp_path / "first", (0, 1), 0, 90)
    report = run(tmp_path, "first", config)
    assert report["tasks"] == [*BEFORE, *ATTEMPT, "record", "report"]
    assert report["accuracy"]["challenger_new"] == 1.0
    assert (report["verdict"], report["outcome"]) == ("hold", "held")
    assert report["champion_after"] is None
    assert [r.kind for r in registry_of(config).ledger()] == ["hold"]


def test_challenger_in_manual_mode_waits_until_a_person_approves_it(tmp_path: Path):
    config = write_config(tmp_path, {"decision": {"mode": "manual"}})
    write_digits(tmp_path / "first", (0, 1), 0, 90)
    report = run(tmp_path, "first", config)
    assert report["tasks"] == [*BEFORE, *ATTEMPT, "promote", "report"]
    assert (report["verdict"], report["outcome"], report["champion_after"]) == ("promote", "waiting", None)
    assert registry_of(config).ledger() == []
    (waiting,) = json.loads(retrain("status", "--config", config, "--json").stdout)["waiting"]
    command = waiting["command"].removeprefix("retrain ").removesuffix("TEXT").split()
    assert retrain(*command, "looked at it", "--config", config).returncode == 0
    assert [r.kind for r in registry_of(config).ledger()] == ["approval", "promotion"]
    assert registry_of(config).champion().version == waiting["challenger"]
    state = json.loads(retrain("status", "--config", config, "--json").stdout)
    assert (state["waiting"], state["runs"][0]["outcome"]) == ([], "promoted")
    assert retrain("verify", "--config", config).returncode == 0


def test_window_that_was_trained_on_is_skipped(house: Path):
    report = run(house, "first", house / "retrain.yaml")
    assert report["tasks"] == [*BEFORE, "record", "report"]
    assert (report["rule"], report["outcome"]) == ("already-trained", "skipped")


def test_champions_only_window_can_be_trained_again_when_asked(house: Path):
    report = run(house, "first", house / "retrain.yaml", "--strategy", "retrain")
    assert report["tasks"] == [*BEFORE, *ATTEMPT, "promote", "report"]
    assert report["outcome"] == "promoted"


def test_delivery_that_repeats_old_images_is_judged_on_the_new_ones(house: Path):
    write_digits(house / "grown", (0, 1, 2), 0, 300)  # the first 200 are those of the champion's window
    report = run(house, "grown", house / "retrain.yaml", "--strategy", "fine-tune")
    records = house / "store" / "runs" / report["run_id"]
    evaluated, ingested, trained = (
        json.loads((records / f"{step}.json").read_text())["document"] for step in ("evaluate-1", "ingest", "train-1")
    )
    assert 0 < evaluated["new"]["rows"] < 0.6 * ingested["holdout_rows"]
    assert 0 < trained["rows"] - trained["replayed_rows"] < 0.6 * ingested["train_rows"]


def test_failed_step_is_reported_by_the_exit_task_and_by_the_exit_code(tmp_path: Path):
    diverging = {"strategies": {"retrain": {"epochs": 3, "learning_rate": 1e30}}}
    config = write_config(tmp_path, {"training": diverging})
    write_digits(tmp_path / "first", (0, 1), 0, 60)
    done = retrain("run", tmp_path / "first", "--config", config, "--json")
    assert done.returncode == 2
    assert done.stdout == ""
    assert executed(done.stderr) == [*BEFORE, "train", "report"]
    assert "training.strategies.retrain.learning_rate" in done.stderr
    (report,) = (tmp_path / "store" / "runs").glob("*/report.json")
    told = json.loads(report.read_text())["document"]
    assert (told["outcome"], told["champion_after"]) == ("failed", None)
    assert "training.strategies.retrain.learning_rate" in told["reason"]
    assert registry_of(config).ledger() == []


@pytest.mark.parametrize("after", ["ingest", "decide", "gate-1"])
def test_killed_run_leaves_the_champion_and_running_again_finishes(house: Path, after: str):
    config = house / "retrain.yaml"
    write_digits(house / "next", (0, 1, 2, 3), 200, 160)
    old = registry_of(config).champion().version
    known = set((house / "store" / "runs").iterdir())
    command = [RETRAIN, "run", house / "next", "--config", config]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 240  # a busy machine
    while not [r for r in set((house / "store" / "runs").iterdir()) - known if (r / f"{after}.json").exists()]:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    registry = registry_of(config)
    then = registry.champion().version
    registry.verify_version(then)
    report = run(house, "next", config)
    assert report["outcome"] == ("promoted" if then == old else "skipped")
    assert [r.kind for r in registry.ledger()] == ["promotion", "promotion"]
    registry.verify_version(report["champion_after"])
    assert json.loads(retrain("status", "--config", config, "--json").stdout)["unfinished"] == []


@pytest.mark.integration
@on("versitygw")
def test_whole_pipeline_runs_on_an_s3_store(backend: Backend, tmp_path: Path):
    config = write_config(tmp_path, {"store": backend.config.model_dump(mode="json")})
    write_digits(tmp_path / "first", (0, 1), 0, 90)
    report = run(tmp_path, "first", config)
    assert report["outcome"] == "promoted"
    assert registry_of(config).champion().version == report["champion_after"]
    page = f"runs/{report['run_id']}/report.html"
    assert b"data:image/png" in backend.open().get(page)
