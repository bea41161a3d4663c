"""`retrain history`: the whole ledger in order, and nothing of one that was tampered with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from components.core.config import load_config
from components.core.errors import IntegrityError
from components.core.registry import Registry
from components.core.storage import open_store
from pipelines.cli import app


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "retrain.yaml"
    path.write_text(yaml.safe_dump({"store": {"uri": "store"}, "model": "m"}))
    return path


@pytest.fixture
def registry(config: Path) -> Registry:
    registry = Registry(open_store(load_config(config).store), "m")
    keys = {"window": "w" * 32, "actor": "pipeline"}
    registry.append("promotion", "a" * 32, expected_champion=None, run_id="run-1", reason="The first [one].", **keys)
    registry.append("hold", "b" * 32, expected_champion="a" * 32, run_id="run-2", reason="Too few rows.", **keys)
    return registry


def history(config: Path, *options: str) -> str:
    done = CliRunner().invoke(app, ["history", "--config", str(config), *options])
    if done.exception:
        raise done.exception
    return done.stdout


def test_table_tells_who_did_what_and_why_newest_last(
    registry: Registry, config: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "120")
    lines = history(config).splitlines()
    first, second = (next(line for line in lines if kind in line) for kind in ("promotion", "hold"))
    assert first.split()[0] == "1"
    assert first.split()[3:] == ["promotion", "aaaaaaaa", "–", "run-1", "wwwwwwww", "pipeline"]
    assert second.split()[3:] == ["hold", "bbbbbbbb", "aaaaaaaa", "run-2", "wwwwwwww", "pipeline"]
    assert [lines.index("1 The first [one]."), lines.index("2 Too few rows.")] == [len(lines) - 5, len(lines) - 3]


def test_json_is_one_record_a_line(registry: Registry, config: Path):
    told = [json.loads(line) for line in history(config, "--json").splitlines()]
    assert told == [record.model_dump(mode="json") for record in registry.ledger()]


def test_empty_ledger_says_what_makes_the_first_champion(config: Path):
    assert "retrain run FOLDER" in history(config)
    assert history(config, "--json") == ""


def test_tampered_ledger_is_not_told(registry: Registry, config: Path):
    key = "models/m/ledger/0000000001.json"
    registry.store.put(key, registry.store.get(key).replace(b"first", b"other"))
    with pytest.raises(IntegrityError, match="record 1 is not the one that the record after it follows"):
        history(config)
