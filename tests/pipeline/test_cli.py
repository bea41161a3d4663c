"""The command line: bad input is told clearly, with exit code 2, and changes nothing in the store."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from components.core.config import Config
from tests.pipeline.conftest import retrain, snapshot, write_config, write_digits

pytestmark = pytest.mark.slow


@pytest.fixture
def house(promoted: Path, tmp_path: Path) -> Path:
    """A copy of the promoted store, for a test to change."""
    return Path(shutil.copytree(promoted, tmp_path / "house"))


def refuse(house: Path, *arguments: object) -> str:
    """Run a command that must be refused; the store must be as it was. Returns the message."""
    before = snapshot(house / "store")
    done = retrain(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert all(part in done.stderr for part in ("found:", "expected:", "next:"))
    assert snapshot(house / "store") == before
    return done.stderr


@pytest.mark.parametrize("verb", ["run", "ingest"])
def test_empty_folder_is_refused(house: Path, verb: str):
    (house / "empty").mkdir()
    assert "holds no images" in refuse(house, verb, house / "empty", "--config", house / "retrain.yaml")


@pytest.mark.parametrize("verb", ["run", "ingest"])
def test_file_that_is_no_image_is_refused_by_name(house: Path, verb: str):
    write_digits(house / "next", (0, 1), 200, 30)
    (house / "next" / "0" / "notes.png").write_text("these are not pixels")
    message = refuse(house, verb, house / "next", "--config", house / "retrain.yaml")
    assert "notes.png" in message
    assert "ingest.ignore" in message


def test_file_instead_of_a_folder_is_refused(house: Path):
    (house / "one.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert "is a file" in refuse(house, "run", house / "one.png", "--config", house / "retrain.yaml")


def test_misspelt_key_names_the_nearest_right_one(house: Path):
    config = write_config(house, {"gate": {"old_margn": 0.1}})
    assert "did you mean 'gate.old_margin'?" in refuse(house, "run", house / "first", "--config", config)


def test_missing_configuration_says_how_to_make_one(house: Path):
    assert "retrain config" in refuse(house, "run", house / "first", "--config", house / "none.yaml")


def test_unknown_strategy_names_the_nearest(house: Path):
    arguments = ("run", house / "first", "--config", house / "retrain.yaml", "--strategy", "finetune")
    assert "did you mean 'fine-tune'?" in refuse(house, *arguments)


def test_unknown_window_is_refused(house: Path):
    assert "no window" in refuse(house, "run", "0" * 32, "--config", house / "retrain.yaml")


@pytest.mark.parametrize("verb", ["run", "ingest", "status"])
def test_store_that_cannot_be_reached_is_refused(house: Path, monkeypatch: pytest.MonkeyPatch, verb: str):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    store = {
        "uri": "s3://bucket/prefix",
        "endpoint_url": "http://127.0.0.1:9",
        "region": "us-east-1",
        "max_attempts": 1,
    }
    config = write_config(house, {"store": store})
    source = () if verb == "status" else (house / "first",)
    assert "store.endpoint_url" in refuse(house, verb, *source, "--config", config)


def test_store_below_a_missing_folder_is_refused(house: Path):
    config = write_config(house, {"store": {"uri": "not/there"}})
    assert "mkdir -p" in refuse(house, "run", house / "first", "--config", config)
    assert not (house / "not").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "model.json", "lineage.json", "manifest.json"])
def test_tampered_champion_is_refused_by_file_name(house: Path, name: str):
    (path,) = (house / "store").glob(f"models/*/versions/*/{name}")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    for command in (("run", house / "first"), ("verify",)):
        assert name in refuse(house, *command, "--config", house / "retrain.yaml")


def test_odd_addresses_end_in_exit_code_2(house: Path):
    odd = house / "{{$.inputs}}"
    shutil.copytree(house / "first", odd)
    assert "{{" in refuse(house, "run", odd, "--config", house / "retrain.yaml")
    config = write_config(house, {"store": {"uri": "first/0/0000.png"}}, name="file.yaml")
    assert "ls -ld" in refuse(house, "run", house / "first", "--config", config)


def test_unknown_architecture_is_refused_before_anything_is_written(house: Path):
    config = write_config(house, {"training": {"architecture": "resnet1800"}})
    assert "resnet1800" in refuse(house, "run", house / "first", "--config", config)


def test_unknown_stage_is_refused_before_anything_is_written(house: Path):
    changes = {"strategies": {"mine": {"epochs": 1, "learning_rate": 0.1, "layers": "layer9"}}}
    config = write_config(house, {"training": changes})
    assert "'layer9' to train from" in refuse(house, "run", house / "first", "--config", config)


def test_other_data_set_than_the_champions_is_refused(house: Path):
    config = house / "other.yaml"
    config.write_text((house / "retrain.yaml").read_text() + "dataset: other\n")
    assert "no window" in refuse(house, "run", house / "first", "--config", config)


def test_newest_ledger_record_cannot_be_removed_or_changed_unseen(house: Path):
    (path,) = (house / "store").glob("models/*/ledger/*.json")
    text = path.read_text()
    assert '"actor": "pipeline"' in text
    path.write_text(text.replace('"actor": "pipeline"', '"actor": "somebody"'))
    assert "record 1" in refuse(house, "verify", "--config", house / "retrain.yaml")
    path.unlink()
    assert "record 1" in refuse(house, "verify", "--config", house / "retrain.yaml")


def test_damaged_window_is_found_by_verify_and_does_not_hide_the_report(house: Path):
    (path,) = (house / "store").glob("datasets/*/windows/*/images-*.tar")
    data = bytearray(path.read_bytes())
    for position in range(512, len(data), 512):
        data[position] ^= 1
    path.write_bytes(bytes(data))
    assert path.name in refuse(house, "verify", "--config", house / "retrain.yaml")
    assert retrain("report", "--config", house / "retrain.yaml", "--output", house / "page.html").returncode == 0
    page = (house / "page.html").read_text()
    assert "promoted" in page
    assert "No pictures" in page


def test_edited_ledger_is_refused(house: Path):
    (path,) = (house / "store").glob("models/*/ledger/*.json")
    path.write_text(path.read_text().replace('"number": 1', '"number": 2'))
    assert "ledger" in refuse(house, "run", house / "first", "--config", house / "retrain.yaml")


def test_first_champion_has_nothing_to_roll_back_to(house: Path):
    message = refuse(house, "rollback", "--reason", "worse", "--config", house / "retrain.yaml")
    assert "no champion before" in message


def test_store_in_use_has_no_garbage(house: Path):
    before = snapshot(house / "store")
    done = retrain("gc", "--config", house / "retrain.yaml", "--json")
    assert json.loads(done.stdout) == {"dry_run": False, "garbage": [], "bytes": 0}
    assert snapshot(house / "store") == before


def test_status_tells_champion_runs_and_quarantine(house: Path):
    done = retrain("status", "--config", house / "retrain.yaml", "--json")
    state = json.loads(done.stdout)
    assert state["champion"] == state["runs"][0]["champion_after"] == state["ledger"][0]["version"]
    assert (state["quarantine"], state["unfinished"]) == ([], [])
    text = retrain("status", "--config", house / "retrain.yaml").stdout
    assert state["champion"] in text


def test_verify_and_report_work_on_a_good_store(house: Path):
    assert "ledger: 1 records, unbroken" in retrain("verify", "--config", house / "retrain.yaml").stdout
    done = retrain("report", "--config", house / "retrain.yaml", "--output", house / "page.html")
    assert done.returncode == 0
    assert "promoted" in (house / "page.html").read_text()


def test_printed_configuration_is_the_default_one(tmp_path: Path):
    printed = yaml.safe_load(retrain("config").stdout)
    assert Config.model_validate(printed) == Config.model_validate({"store": {"uri": "store"}})


def test_foreign_components_folder_in_the_working_directory_does_no_harm(house: Path, monkeypatch: pytest.MonkeyPatch):
    (house / "components").mkdir()
    (house / "components" / "__init__.py").write_text("raise RuntimeError('not ours')")
    monkeypatch.chdir(house)
    done = retrain("run", "first", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outcome"] == "skipped"
