"""What is around the local runner and the compiler: a branch that KFP skips in silence is noticed, and a pipeline for a
cluster is compiled with the image that its pods will run, or not at all.

Not covered: whole runs (test_branches, test_demo), the compiled pipeline (test_compiled). No `from __future__ import
annotations` here: KFP reads the components' annotations as objects.
"""

import contextlib
import io
import logging
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from kfp import dsl, local

from components.core.errors import ConfigurationError
from pipelines.compiling import compile_for_cluster
from pipelines.local import RunnerOutput, SilentFailures
from tests.pipeline.conftest import retrain

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # kfp warns of its own deprecations

    @dsl.component(install_kfp_package=False)
    def decide() -> NamedTuple("Plan", [("action", str), ("reason", str)]):
        """Hand out a plan under names."""
        from typing import NamedTuple

        return NamedTuple("Plan", [("action", str), ("reason", str)])("train", "because")

    @dsl.component(install_kfp_package=False)
    def decide_at_once() -> str:
        """Hand out a single word."""
        return "train"

    @dsl.component(install_kfp_package=False)
    def train(folder: str):
        """Leave a trace."""
        import pathlib

        pathlib.Path(folder, "trained").touch()

    @dsl.pipeline
    def undecidable(folder: str):
        """A lone If on a named output: the runner cannot resolve it, skips the branch, and reports success."""
        with dsl.If(decide().outputs["action"] == "train"):
            train(folder=folder)

    @dsl.pipeline
    def decidable(folder: str):
        """A lone If on a single output, which the runner resolves."""
        with dsl.If(decide_at_once().output == "train"):
            train(folder=folder)


def run(pipeline, folder: Path) -> tuple[list[str], str]:
    """Run a pipeline as pipelines.local does. Returns the silent failures that were seen, and the log."""
    log = io.StringIO()
    output = RunnerOutput(log, lambda line: None, lambda run_id: None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(folder / "root"))
        with SilentFailures() as silent, contextlib.redirect_stdout(output):
            pipeline(folder=str(folder))
    return [*silent.messages, *output.silent_failures], log.getvalue()


@pytest.fixture
def root_handlers() -> list[logging.Handler]:
    return list(logging.getLogger().handlers)


@pytest.mark.slow
def test_branch_that_the_runner_skips_in_silence_is_noticed(tmp_path: Path, root_handlers: list[logging.Handler]):
    found, log = run(undecidable, tmp_path)
    assert not (tmp_path / "trained").exists(), "or kfp has mended this: then SilentFailures may go"
    assert "SUCCESS" in log
    assert any("Could not resolve" in message for message in found)
    assert logging.getLogger().handlers == root_handlers


@pytest.mark.slow
def test_branch_that_the_runner_decides_is_no_silent_failure(tmp_path: Path, root_handlers: list[logging.Handler]):
    found, log = run(decidable, tmp_path)
    assert (tmp_path / "trained").exists(), log
    assert found == []
    assert logging.getLogger().handlers == root_handlers


@pytest.mark.parametrize("message", ["Could not resolve parent input: x", "Condition evaluation failed", "Failed to y"])
def test_what_is_logged_outside_the_runners_output_is_collected(message: str):
    with SilentFailures() as silent:
        logging.getLogger("kfp.local").warning("%s", message)
        logging.getLogger("kfp.local").warning("something else")
        logging.getLogger("kfp.local").info("%s", message)
    logging.getLogger("kfp.local").warning("%s", message)
    assert silent.messages == [message]


@pytest.mark.parametrize("image", [None, ""])
def test_pipeline_for_a_cluster_is_not_compiled_without_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: str | None
):
    monkeypatch.delenv("RETRAIN_IMAGE", raising=False)
    if image is not None:
        monkeypatch.setenv("RETRAIN_IMAGE", image)
    with pytest.raises(ConfigurationError, match="RETRAIN_IMAGE is not set"):
        compile_for_cluster(tmp_path / "pipeline.yaml")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["pipeline.json", "pipeline", "pipeline.yaml.gz", "missing/pipeline.yaml"])
def test_output_that_is_no_yaml_file_in_a_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setenv("RETRAIN_IMAGE", "registry/trainer@sha256:0")
    with pytest.raises(ConfigurationError, match=name):
        compile_for_cluster(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("image", "name"), [(None, "pipeline.yaml"), ("registry/trainer@sha256:0", "pipeline.json")], ids=["image", "name"]
)
def test_compile_refuses_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: str | None, name: str):
    monkeypatch.delenv("RETRAIN_IMAGE", raising=False)
    if image:
        monkeypatch.setenv("RETRAIN_IMAGE", image)
    done = retrain("compile", "--output", tmp_path / name)
    assert done.returncode == 2, done.stderr
    assert all(part in done.stderr for part in ("found:", "expected:", "next:"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_compiled_steps_run_the_image_that_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    image = "registry/trainer@sha256:" + "0" * 64
    monkeypatch.setenv("RETRAIN_IMAGE", image)
    done = retrain("compile", "--output", tmp_path / "pipeline.yaml")
    assert done.returncode == 0, done.stderr
    pipeline, _ = yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text())
    executors = pipeline["deploymentSpec"]["executors"].values()
    assert {executor["container"]["image"] for executor in executors} == {image}
