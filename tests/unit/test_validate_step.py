"""The validation step: what it reads of the champion, and that its page is of the run record."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from components.core.config import Config, StoreConfig, ValidationConfig
from components.core.contracts import Lineage, RunParameters, WindowDocument
from components.core.recipes import Recipe
from components.core.registry import Registry
from components.core.runs import Run
from components.core.storage import DirectoryStore, sha256_hex, to_json
from components.core.windows import SCHEMA, to_parquet
from components.validate import step
from tests.unit.test_validation_suite import manifest

pa = pytest.importorskip("pyarrow")
pytestmark = pytest.mark.filterwarnings("ignore:module 'sre_:DeprecationWarning")  # great_expectations imports them


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


@pytest.fixture
def config(tmp_path: Path, store: DirectoryStore) -> Config:
    config = Config(
        store=StoreConfig(uri=str(tmp_path / "store")), validation=ValidationConfig(max_repeated_fraction=0)
    )
    (tmp_path / "retrain.yaml").write_text(f"store: {{uri: {config.store.uri}}}\n")
    return config


def write_window(store: DirectoryStore, name: str, rows: int) -> str:
    """A window of which only the manifest exists: the first images of the same series."""
    frame = manifest(rows).assign(quality=None)
    table = {n: list(frame[n]) if n in frame else [None] * rows for n in SCHEMA.names}
    data = to_parquet(pa.table(table, schema=SCHEMA))
    document = WindowDocument(
        id=name,
        dataset="images",
        source="delivery",
        created=datetime.now(UTC),
        rows=rows,
        usable=rows,
        train_rows=rows,
        holdout_rows=0,
        image_bytes=0,
        class_counts={"cat": rows // 2, "dog": rows // 2},
        status_counts={"ok": rows},
        manifest="manifest.parquet",
        files={"manifest.parquet": sha256_hex(data)},
    )
    store.put(f"datasets/images/windows/{name}/manifest.parquet", data)
    store.put(f"datasets/images/windows/{name}/window.json", to_json(document))
    return name


def promote(store: DirectoryStore, windows: tuple[str, ...]) -> None:
    registry = Registry(store, "classifier")
    loop = Recipe(epochs=1, learning_rate=0.1)
    lineage = Lineage(parent=None, windows=windows, strategy="retrain", hyperparameters=loop, seed=0, package="0")
    files = {"model.json": json.dumps({"classes": ["cat", "dog", "owl"]}).encode(), "lineage.json": to_json(lineage)}
    version = registry.save_version(files)
    registry.append(
        "promotion", version, expected_champion=None, window=windows[0], run_id=None, actor="test", reason="test"
    )


def begin(store: DirectoryStore, config: Config, run_id: str) -> Run:
    run = Run(store, run_id)
    asked = RunParameters(run_id=run_id, model="classifier", dataset="images", source="delivery", strategy="auto")
    run.begin(config, asked)
    return run


def failed(tmp_path: Path, run_id: str, window: str) -> set[str]:
    report, _ = step.run(str(tmp_path / "retrain.yaml"), run_id, window)
    return {e.name for e in report.expectations if not e.passed}


def test_first_window_is_compared_with_nobody(tmp_path: Path, store: DirectoryStore, config: Config):
    begin(store, config, "first")
    assert failed(tmp_path, "first", write_window(store, "a", 100)) == set()


def test_window_is_compared_with_the_champions_other_windows(tmp_path: Path, store: DirectoryStore, config: Config):
    write_window(store, "a", 60)
    promote(store, ("a", "b"))
    begin(store, config, "next")
    assert failed(tmp_path, "next", write_window(store, "b", 100)) == {"few repeats", "no class missing"}


def test_window_that_the_champion_was_trained_on_does_not_count_against_itself(
    tmp_path: Path, store: DirectoryStore, config: Config
):
    promote(store, (write_window(store, "a", 100),))
    begin(store, config, "again")
    assert failed(tmp_path, "again", "a") == {"no class missing"}


def test_step_that_is_run_again_hands_out_the_page_that_is_filed(tmp_path: Path, store: DirectoryStore, config: Config):
    run = begin(store, config, "twice")
    first = step.run(str(tmp_path / "retrain.yaml"), "twice", write_window(store, "a", 100))
    promote(store, ("a",))
    assert step.run(str(tmp_path / "retrain.yaml"), "twice", "a") == first
    assert store.get(run.key("validate.html")).decode() == first[1]
