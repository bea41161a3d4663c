"""The run record: written once, replayed by a step that is started again, and it tells of steps that crashed.

Not covered: how runs are started (pipelines).
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from components.core.config import Config, StoreConfig
from components.core.contracts import Failure, Outcome, RunParameters
from components.core.errors import ConfigurationError, DataError, IntegrityError
from components.core.runs import Run, StepRecord, list_runs, open_run, perform
from components.core.storage import DirectoryStore


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


@pytest.fixture
def run(store: DirectoryStore) -> Run:
    return Run(store, "run-1")


@pytest.fixture
def config(store: DirectoryStore) -> Config:
    return Config(store=StoreConfig(uri=store.uri))


def parameters(run_id: str = "run-1", source: str = "/deliveries/1") -> RunParameters:
    return RunParameters(run_id=run_id, model="digits", dataset="images", source=source, strategy="auto")


def outcome(reason: str) -> Outcome:
    return Outcome(outcome="skipped", champion_before=None, champion_after=None, ledger_number=None, reason=reason)


class Work:
    """Counts how often it is done; says so in its document."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> Outcome:
        self.times += 1
        return outcome(f"done {self.times} times")


# Beginning


@pytest.mark.parametrize(
    "run_id", ["", "-starts-with-dash", "a/b", "..", ".tmp", "a b", "a_b", "a.b", "é", "run-1\n", "\n", "x" * 64]
)
def test_bad_run_id_is_refused(store: DirectoryStore, run_id: str) -> None:
    with pytest.raises(ConfigurationError, match="run id"):
        Run(store, run_id)


@pytest.mark.parametrize("run_id", ["1", "run-1", "20251121-093000-ab12", "X" * 63])
def test_good_run_id_is_taken(store: DirectoryStore, run_id: str) -> None:
    assert Run(store, run_id).key("window.json") == f"runs/{run_id}/window.json"


def test_run_keeps_what_it_began_with(run: Run, config: Config) -> None:
    run.begin(config, parameters())
    again = Run(run.store, "run-1")
    assert again.config == config
    assert again.parameters == parameters()


def test_beginning_twice_with_the_same_is_harmless(run: Run, config: Config) -> None:
    run.begin(config, parameters())
    run.begin(config, parameters())
    assert run.parameters == parameters()


def test_taken_run_id_is_refused_and_the_first_run_untouched(run: Run, config: Config) -> None:
    run.begin(config, parameters())
    with pytest.raises(ConfigurationError, match=r"run-1 exists with another parameters\.json"):
        run.begin(config, parameters(source="/deliveries/2"))
    with pytest.raises(ConfigurationError, match=r"run-1 exists with another config\.json"):
        run.begin(config.model_copy(update={"model": "other"}), parameters())
    assert run.config == config
    assert run.parameters == parameters()


def test_run_that_never_began_says_so(run: Run) -> None:
    with pytest.raises(ConfigurationError, match="run-1 has no record of config"):
        _ = run.config
    with pytest.raises(ConfigurationError, match="run-1 has no record of parameters"):
        _ = run.parameters


def test_run_is_found_through_a_configuration_file(tmp_path: Path, config: Config) -> None:
    (tmp_path / "retrain.yaml").write_text("store: {uri: ./store}\n")
    run = open_run(str(tmp_path / "retrain.yaml"), "run-1")
    run.begin(config, parameters())
    assert Run(DirectoryStore(tmp_path / "store"), "run-1").parameters == parameters()


# Steps


def test_step_is_performed_once_and_its_record_replayed(run: Run) -> None:
    work = Work()
    first = perform("report", run, Outcome, work)
    again = perform("report", Run(run.store, "run-1"), Outcome, work)
    assert first == again == outcome("done 1 times")
    assert work.times == 1


def test_steps_and_runs_have_records_of_their_own(run: Run) -> None:
    work = Work()
    perform("report", run, Outcome, work)
    perform("promote", run, Outcome, work)
    perform("report", Run(run.store, "run-2"), Outcome, work)
    assert work.times == 3


def test_record_tells_when_and_how_long(run: Run) -> None:
    assert run.record("report", Outcome) is None
    assert run.read("report", Outcome) is None
    perform("report", run, Outcome, Work())
    record = run.record("report", Outcome)
    assert record is not None
    assert (record.step, record.document) == ("report", outcome("done 1 times"))
    assert 0 <= record.seconds < 5
    assert record.started.tzinfo is not None
    assert run.read("report", Outcome) == run.need("report", Outcome) == record.document


def test_record_is_written_once(run: Run) -> None:
    perform("report", run, Outcome, Work())
    record = run.record("report", Outcome)
    assert record is not None
    run.write(record.model_copy(update={"document": outcome("second thoughts")}))
    assert run.read("report", Outcome) == outcome("done 1 times")


def test_step_that_was_overtaken_hands_out_what_is_filed(run: Run) -> None:
    """Two pods do the same step: what both hand to the graph is what the later steps will read."""

    def overtaken() -> Outcome:
        perform("report", Run(run.store, "run-1"), Outcome, lambda: outcome("the other pod's"))
        return outcome("mine")

    assert perform("report", run, Outcome, overtaken) == outcome("the other pod's")
    assert run.read("report", Outcome) == outcome("the other pod's")


def test_step_out_of_order_is_named(run: Run) -> None:
    with pytest.raises(ConfigurationError, match="run-1 has no record of validate"):
        run.need("validate", Outcome)


def test_record_that_is_none_is_an_integrity_error(run: Run) -> None:
    run.store.put(run.key("report.json"), b'{"step": "report"}\n')
    work = Work()
    with pytest.raises(IntegrityError, match=r"runs/run-1/report\.json"):
        perform("report", run, Outcome, work)
    assert work.times == 0


# Failures


def fail_with(error: Exception) -> Callable[[], Outcome]:
    def work() -> Outcome:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "name", "exit_code"),
    [
        (ZeroDivisionError("by nothing"), "ZeroDivisionError", 1),
        (DataError("a folder", expected="a file", next_command="ls"), "DataError", 2),
    ],
)
def test_failure_is_filed_and_raised_again(run: Run, error: Exception, name: str, exit_code: int) -> None:
    with pytest.raises(type(error)) as raised:
        perform("train", run, Outcome, fail_with(error))
    assert raised.value is error
    failure = run.need("failure-train", Failure)
    assert (failure.step, failure.error, failure.exit_code) == ("train", name, exit_code)
    assert failure.message == str(error)
    assert run.store.head("runs/run-1/failure-train.json") is not None
    assert run.record("train", Outcome) is None


def test_failed_step_is_performed_again(run: Run) -> None:
    with pytest.raises(ZeroDivisionError):
        perform("train", run, Outcome, fail_with(ZeroDivisionError()))
    assert perform("train", run, Outcome, Work()) == outcome("done 1 times")
    assert run.read("train", Outcome) == outcome("done 1 times")


def test_failure_that_cannot_be_filed_does_not_hide_the_error(tmp_path: Path) -> None:
    """The store went away in the middle of a step: what the step itself met is what must be seen."""
    (tmp_path / "volume").mkdir()
    run = Run(DirectoryStore(tmp_path / "volume" / "store"), "run-1")

    def work() -> Outcome:
        (tmp_path / "volume").rmdir()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        perform("train", run, Outcome, work)


def file_failure(run: Run, step: str, started: str, message: str = "a hole") -> Failure:
    failure = Failure(step=step, error="DataError", message=message, exit_code=2)
    run.replace(StepRecord(step=f"failure-{step}", started=started, seconds=0.0, document=failure))
    return failure


def test_failures_come_oldest_first_whatever_the_steps_are_called(run: Run) -> None:
    assert run.failures() == []
    late = file_failure(run, "decide", "2026-01-02T03:00:02Z")
    early = file_failure(run, "train-1", "2026-01-02T03:00:00Z")
    between = file_failure(run, "outcome", "2026-01-02T03:00:01Z")
    file_failure(Run(run.store, "run-2"), "ingest", "2026-01-01T00:00:00Z")
    assert run.failures() == [early, between, late]


def test_failure_that_a_later_attempt_has_mended_is_left_out(run: Run) -> None:
    other = file_failure(run, "train-2", "2026-01-02T03:00:00Z")
    with pytest.raises(ZeroDivisionError):
        perform("train-1", run, Outcome, fail_with(ZeroDivisionError()))
    assert [failure.step for failure in run.failures()] == ["train-2", "train-1"]
    perform("train-1", run, Outcome, Work())
    assert run.failures() == [other]
    assert run.need("failure-train-1", Failure).error == "ZeroDivisionError", "the record itself stays"


def test_last_failure_of_a_step_is_the_one_that_is_told(run: Run) -> None:
    for error in (ZeroDivisionError("by nothing"), DataError("a folder", expected="a file", next_command="ls")):
        with pytest.raises(type(error)):
            perform("train", run, Outcome, fail_with(error))
    assert [failure.error for failure in run.failures()] == ["DataError"]


def test_derived_record_can_be_replaced(run: Run) -> None:
    for reason in ("first", "second"):
        run.replace(StepRecord(step="report", started="2025-01-01T00:00:00Z", seconds=0.0, document=outcome(reason)))
    assert run.need("report", Outcome) == outcome("second")


def test_record_of_a_newer_release_is_read_without_what_it_adds(run: Run) -> None:
    perform("report", run, Outcome, Work())
    record = json.loads(run.store.get(run.key("report.json")))
    record["pod"] = "trainer-1"
    record["document"]["approved_by"] = ["somebody"]
    run.store.put(run.key("report.json"), json.dumps(record).encode())
    assert run.need("report", Outcome) == outcome("done 1 times")


def test_log_tells_of_start_and_end(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="components.core.runs"):
        perform("report", run, Outcome, Work())
        perform("report", run, Outcome, Work())
    assert [record.getMessage() for record in caplog.records] == [
        "report: started (run run-1)",
        "report: skipped: done 1 times",
        "report: already done: skipped: done 1 times",
    ]


# Listing


def test_runs_are_listed_oldest_first(store: DirectoryStore, config: Config) -> None:
    for age, run_id in ((30, "b"), (10, "c"), (20, "a")):
        run = Run(store, run_id)
        run.begin(config, parameters(run_id))
        path = store.root / "runs" / run_id / "parameters.json"
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    Run(store, "never-began").write(
        StepRecord(step="report", started="2025-01-01T00:00:00Z", seconds=0.0, document=outcome("stray"))
    )
    assert [run.run_id for run in list_runs(store)] == ["b", "a", "c"]


def test_store_without_runs_lists_none(store: DirectoryStore) -> None:
    assert list(list_runs(store)) == []
