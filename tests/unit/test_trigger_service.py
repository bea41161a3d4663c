"""A trigger and an engine that loses answers; submitters that come all at once, through the real client."""

from __future__ import annotations

import json
import logging
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from components.core.claims import ClaimLog, Ended, Request
from components.core.config import Config, KubeflowConfig, StoreConfig, TriggerConfig, load_config
from components.core.contracts import RunArguments
from components.core.errors import ConfigurationError, RunFailed
from components.core.metrics import TriggerMetrics
from components.core.run_claims import run_arguments
from components.core.storage import DirectoryStore, open_store
from components.ingest.deliveries import Upload
from pipelines import kubeflow as connection
from pipelines.client import KubeflowClient
from pipelines.local_runs import is_alive, live_run, runs_folder
from pipelines.trigger.commands import submit, submit_to
from pipelines.trigger.launcher import LauncherUnavailable, RunState
from pipelines.trigger.local import LocalLauncher
from pipelines.trigger.service import Loop, Trigger, tell
from pipelines.trigger.watcher import Follow, Look, Memory, Wait
from tests import servers
from tests.kubeflow import Fault, Kubeflow, serve
from tests.servers import Backend
from tests.unit.test_client import compile_as

NEW = Upload(uri="s3://incoming/a", images=5, marked=True, newest=datetime(2026, 1, 1, tzinfo=UTC), fingerprint="5")


@dataclass
class Engine:
    """Runs by id: name and state. `faults` of the next starts: `before` and `after` it acted there is no answer."""

    runs: dict[str, list[str]] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def find(self, name: str) -> str | None:
        return next((run_id for run_id, (called, _) in self.runs.items() if called == name), None)

    def start(self, name: str, arguments: RunArguments) -> str:
        fault = self.faults.pop(0) if self.faults else None
        if fault == "before":
            raise LauncherUnavailable
        if fault == "refused":
            raise ConfigurationError("no such pipeline", expected="one", next_command="upload it")
        run_id = f"r{len(self.runs)}"
        self.runs[run_id] = [name, "running"]
        self.sources.append(arguments.source)
        if fault == "after":
            raise LauncherUnavailable
        return run_id

    def state(self, run_id: str) -> RunState:
        return self.runs[run_id][1] if run_id in self.runs else "gone"  # type: ignore[return-value]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(
        model="m",
        store=StoreConfig(uri=str(tmp_path / "store"), cache=str(tmp_path / "cache")),
        trigger=TriggerConfig(source="s3://incoming", lease_seconds=3, max_failures=2),
        kubeflow=KubeflowConfig(gpu_type="nvidia.com/gpu", gpu_count=2, timeout_seconds=5),
    )


def trigger_of(config: Config, engine: Engine, *uploads: Upload) -> Trigger:
    return Trigger(config, open_store(config.store), engine, lambda state: uploads)


def test_delivery_gets_its_run_and_then_no_other(config: Config) -> None:
    engine = Engine()
    trigger = trigger_of(config, engine, NEW)
    assert tell(trigger.tick()) == "run r0 is at batch:0, attempt 1"
    engine.runs["r0"][1] = "succeeded"
    assert tell(trigger.tick()) == tell(trigger_of(config, engine, NEW).tick()) == "nothing new"
    ((name, word),) = engine.runs.values()
    assert re.fullmatch(r"retrain-m-0-1-[0-9a-f]{8}", name)
    assert word == "succeeded"
    assert engine.sources == ["batch:0"]


def test_run_gets_the_gpus_of_the_configuration(config: Config) -> None:
    trigger = trigger_of(config, Engine(), NEW)
    trigger.tick()
    asked = trigger.log.read().open
    assert asked is not None
    assert (asked.arguments.gpu_type, asked.arguments.gpu_count) == ("nvidia.com/gpu", "2")


@pytest.mark.parametrize("fault", ["before", "after"])
def test_lost_answer_does_not_double_the_run(config: Config, fault: str) -> None:
    engine = Engine(faults=[fault])
    trigger = trigger_of(config, engine, NEW)
    with pytest.raises(LauncherUnavailable):
        trigger.tick()
    assert tell(trigger.tick()) == "run r0 is at batch:0, attempt 1"
    assert len(engine.runs) == 1


def test_failed_run_is_started_again_until_there_are_too_many(config: Config) -> None:
    engine = Engine()
    trigger = trigger_of(config, engine, NEW)
    trigger.tick()
    engine.runs["r0"][1] = "failed"
    assert tell(trigger.tick()) == "run r1 is at batch:0, attempt 2"
    del engine.runs["r1"]
    look = trigger.tick()
    assert look.paused
    assert tell(look).startswith("The run was deleted. It is tried again in 3600 s.")
    assert trigger.log.read().counts == {"failed": 2}


def test_two_that_take_over_start_one_run(config: Config) -> None:
    """Both see a stale claim; the one that is slower finds the attempt claimed."""
    dead = trigger_of(config, Engine(faults=["before"]), NEW)
    with pytest.raises(LauncherUnavailable):
        dead.tick()
    stale = config.model_copy(update={"trigger": config.trigger.model_copy(update={"lease_seconds": 1e-6})})
    engine = Engine()
    first, second = trigger_of(stale, engine, NEW), trigger_of(config, engine, NEW)
    find = engine.find

    def find_slowly(name: str) -> str | None:
        found = find(name)
        engine.find = find  # type: ignore[method-assign]
        trigger_of(stale, engine, NEW).tick()
        return found

    engine.find = find_slowly  # type: ignore[method-assign]
    first.tick()
    assert tell(second.tick()) == "run r0 is at batch:0, attempt 1"
    assert len(engine.runs) == 1


def test_loop_survives_everything_and_says_so(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    engine, registry = Engine(faults=["before", "refused", "after"]), CollectorRegistry()
    broken = [True]

    def uploads(state: object) -> list[Upload]:
        if broken.pop():
            raise ZeroDivisionError("nobody thought of that")
        broken.append(False)
        return [NEW]

    loop = Loop(Trigger(config, open_store(config.store), engine, uploads), TriggerMetrics(registry, "m"), 1.0)
    told = []
    with caplog.at_level(logging.INFO):
        for _ in range(6):
            loop.tick()
            told.append(loop.error)
            broken or broken.append(False)
    assert told[0] == "ZeroDivisionError: nobody thought of that"
    assert "no such pipeline" in str(told[2])
    assert [error is None for error in told] == [False, False, False, False, True, True]
    assert caplog.text.count("Traceback") == 1
    assert caplog.text.count("run r0 is at batch:0") == 1, "said once, not each time"
    value = lambda name, **labels: registry.get_sample_value(f"retrain_trigger_{name}", {"model": "m", **labels})  # noqa: E731
    assert (value("tick_errors_total"), value("run_active"), value("tick_duration_seconds_count")) == (4, 1, 6)
    assert (value("deliveries_taken_total"), value("deliveries", state="complete")) == (1, 0)


def test_counters_survive_a_restart(config: Config) -> None:
    engine = Engine()
    trigger = trigger_of(config, engine, NEW)
    trigger.tick()
    engine.runs["r0"][1] = "succeeded"
    for _ in range(2):  # and another replica says the same
        registry = CollectorRegistry()
        Loop(trigger_of(config, engine, NEW), TriggerMetrics(registry, "m"), 1.0).tick()
        runs = {
            result: registry.get_sample_value("retrain_trigger_runs_total", {"model": "m", "result": result})
            for result in ("succeeded", "failed")
        }
        assert runs == {"succeeded": 1, "failed": 0}


def test_loop_wakes_at_once_and_stops_after_its_tick(config: Config) -> None:
    ticked = threading.Event()

    def uploads(state: object) -> list[Upload]:
        ticked.set()
        return []

    loop = Loop(
        Trigger(config, open_store(config.store), Engine(), uploads), TriggerMetrics(CollectorRegistry(), "m"), 60.0
    )
    thread = threading.Thread(target=loop.run)
    thread.start()
    for _ in range(3):
        assert ticked.wait(5)
        ticked.clear()
        loop.wake()
    loop.stop()
    thread.join(5)
    assert not thread.is_alive()


# Submitting.


def request_of(config: Config, source: str = "s3://incoming/x", strategy: str = "auto") -> RunArguments:
    return run_arguments(config, source, strategy)


def test_submitted_source_gets_one_run(config: Config) -> None:
    engine = Engine()
    first = submit_to(trigger_of(config, engine), request_of(config), again=False)
    second = submit_to(trigger_of(config, engine), request_of(config), again=True)
    assert (first.status, first.run_id, first.claim) == ("running", "r0", 1)
    assert second == first, "--again is not twice at once"
    engine.runs["r0"][1] = "succeeded"
    third = submit_to(trigger_of(config, engine), request_of(config), again=False)
    assert (third.status, third.run_id) == ("done", "r0")
    assert "--again has another run on it" in third.sentence
    fourth = submit_to(trigger_of(config, engine), request_of(config), again=True)
    assert (fourth.status, fourth.run_id) == ("running", "r1")


def test_submitted_source_is_queued_behind_what_is_under_way(config: Config) -> None:
    engine = Engine()
    trigger_of(config, engine, NEW).tick()
    queued = submit_to(trigger_of(config, engine), request_of(config, strategy="retrain"), again=False)
    assert (queued.status, queued.run_id) == ("queued", None)
    assert "run r0 is at batch:0" in queued.sentence
    engine.runs["r0"][1] = "succeeded"
    trigger = trigger_of(config, engine, NEW)
    trigger.tick()
    current = trigger.log.read().open
    assert current is not None
    assert (current.deliveries, current.arguments.strategy) == (("s3://incoming/x",), "retrain")


def test_submitter_says_that_it_will_be_tried_again(config: Config) -> None:
    engine = Engine()
    submit_to(trigger_of(config, engine), request_of(config), again=False)
    log = ClaimLog(open_store(config.store), "m")
    engine.runs["r0"][1] = "failed"
    trigger_of(config, engine).tick()
    log.enter(lambda state: Ended(actor="x", claim=1, run_id="r1", result="failed", reason="It broke."))
    found = submit_to(trigger_of(config, engine), request_of(config), again=False)
    assert (found.status, found.claim) == ("queued", 1)
    assert "It broke. It is tried again in" in found.sentence


def test_engine_that_does_not_answer_is_told(config: Config) -> None:
    engine = Engine(faults=["after"])
    with pytest.raises(RunFailed, match="no run is started twice"):
        submit_to(trigger_of(config, engine), request_of(config), again=False)
    assert submit_to(trigger_of(config, engine), request_of(config), again=False).run_id == "r0"


def test_submitter_gives_up_on_a_claim_that_another_holds(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LauncherUnavailable):
        trigger_of(config, Engine(faults=["before"]), NEW).tick()
    engine = Engine()
    waiting = trigger_of(
        config.model_copy(update={"trigger": config.trigger.model_copy(update={"lease_seconds": 0.3})}), engine
    )
    monkeypatch.setattr(
        waiting,
        "tick",
        lambda: Look(decision=Wait(why="held"), complete={}, incomplete=(), paused=False, memory=Memory()),
    )
    with pytest.raises(RunFailed, match=r"has not begun within 0\.6 s"):
        submit_to(waiting, request_of(config, NEW.uri), again=False)
    assert engine.runs == {}


def test_engine_that_remembers_another_store_is_no_obstacle(config: Config, tmp_path: Path) -> None:
    """Numbers of claims begin anew there; the names of their runs must not."""
    engine = Engine()
    trigger_of(config, engine, NEW).tick()
    engine.runs["r0"][1] = "succeeded"
    other = config.model_copy(update={"store": config.store.model_copy(update={"uri": str(tmp_path / "other")})})
    assert tell(trigger_of(other, engine, NEW).tick()) == "run r1 is at batch:0, attempt 1"


def test_run_that_the_engine_will_not_start_is_not_tried_for_ever(config: Config) -> None:
    engine = Engine(faults=["refused"] * 99)
    trigger = trigger_of(config, engine, NEW)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="no such pipeline"):
            trigger.tick()
    look = trigger.tick()
    assert look.paused
    assert "no such pipeline" in tell(look)
    assert (trigger.log.state.failures, trigger.log.state.counts) == (2, {"failed": 2})


def test_loop_survives_a_store_that_fails_after_the_tick(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(trigger_of(config, Engine(), NEW), TriggerMetrics(CollectorRegistry(), "m"), 1.0)
    monkeypatch.setattr(loop._metrics, "on_look", lambda *_, **__: 1 / 0)
    loop.tick()
    assert "ZeroDivisionError" in str(loop.error)
    assert (loop.looked, loop.busy_since) == (False, None)


@pytest.fixture
def kubeflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kubeflow]:
    monkeypatch.setattr(connection, "BACKOFF_SECONDS", 0.01)
    with serve() as served:
        yield served


@pytest.mark.integration
@servers.on("directory", "versitygw")
def test_sixty_four_submitters_of_one_window_start_one_run(
    backend: Backend, config: Config, kubeflow: Kubeflow
) -> None:
    """Through the client, against the API's contract; the engine loses answers, too."""
    kubeflow.inject(Fault(method="POST", path="/runs", lost=True))
    api = config.kubeflow.model_copy(update={"host": kubeflow.url, "timeout_seconds": 60})
    patient = config.trigger.model_copy(update={"lease_seconds": 60})  # so many threads take turns for long
    config = config.model_copy(update={"store": backend.config, "kubeflow": api, "trigger": patient})
    gate = threading.Barrier(64)

    def ask(_: int) -> str | None:
        trigger = Trigger(config, backend.open(), KubeflowClient(config, compile_as("trainer@sha256:1")))
        gate.wait()
        for _ in range(5):
            try:
                return submit_to(trigger, request_of(config), again=False).run_id
            except RunFailed:
                continue
        return None

    with ThreadPoolExecutor(64) as pool:
        told = set(pool.map(ask, range(64)))
    assert len(kubeflow.runs) == 1
    assert told == set(kubeflow.runs)


def write_config(tmp_path: Path, **sections: object) -> Path:
    path = tmp_path / "retrain.yaml"
    path.write_text(json.dumps({"store": {"uri": "store", "cache": "cache"}, **sections}))
    return path


@pytest.mark.parametrize(
    ("source", "trigger", "found"),
    [
        ("new", "local", "the source 'new'"),
        ("batch:3", "local", "the source 'batch:3'"),
        ("0" * 32, "local", "no window 0000"),
        ("nowhere", "local", "nowhere is not there"),
        ("nowhere", "kubeflow", "the local path"),
    ],
)
def test_source_that_cannot_be_submitted_leaves_no_trace(tmp_path: Path, source: str, trigger: str, found: str) -> None:
    path = write_config(tmp_path, trigger={"launcher": trigger})
    with pytest.raises(Exception, match=found) as caught:
        submit(path, source, "auto", again=False)
    assert caught.value.exit_code == 2  # type: ignore[attr-defined]
    assert list(DirectoryStore(tmp_path / "store").list_objects("claims/")) == []


# Runs of this machine.

CHILD = """
import sys, time
from pathlib import Path
from pipelines.local_runs import live_run
with live_run(Path(sys.argv[1])) as run:
    if sys.argv[2] != "never":
        run.begin(sys.argv[2])
    print("said something", flush=True)
    time.sleep(float(sys.argv[3]))
    sys.exit(int(sys.argv[4]))
"""


def launcher(tmp_path: Path, run_id: str, seconds: float, code: int = 0) -> LocalLauncher:
    path = write_config(tmp_path, trigger={"lease_seconds": 20})
    config = load_config(path)
    command = (sys.executable, "-c", CHILD, str(runs_folder(config.store)), run_id, str(seconds), str(code))
    return LocalLauncher(path, config, open_store(config.store), command)


def test_local_run_is_found_by_its_name_and_lives_as_long_as_its_process(tmp_path: Path) -> None:
    local = launcher(tmp_path, "42", 30)
    assert local.find("retrain-m-0-1") is None
    assert local.start("retrain-m-0-1", RunArguments(source="batch:0")) == "42"
    again = launcher(tmp_path, "42", 0)  # another process of the trigger
    assert (again.find("retrain-m-0-1"), again.state("42")) == ("42", "running")
    child = local._children[0]
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert again.state("42") == "failed"


def test_local_run_that_does_not_begin_is_told_with_what_it_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"exit code 2 before it began: said something"):
        launcher(tmp_path, "never", 0, 2).start("retrain-m-0-1", RunArguments(source="batch:0"))


def test_run_of_another_engine_or_machine_is_not_called_deleted(tmp_path: Path) -> None:
    assert launcher(tmp_path, "42", 0).state("7") == "running"
    assert launcher(tmp_path, "42", 0).state("0b54a4f0-98a7-4b42-94a5-3a4e39c1c0ab") == "running"
    api = load_config(write_config(tmp_path, kubeflow={"host": "http://127.0.0.1:9"}))
    assert KubeflowClient(api, compile_as("x")).state("31415926") == "running"


def test_lock_is_of_the_run_and_not_of_its_children(tmp_path: Path) -> None:
    with live_run(tmp_path / "runs") as run:
        assert is_alive(tmp_path / "runs", "1") is None
        run.begin("1")
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])
        assert is_alive(tmp_path / "runs", "1") is True
    try:
        assert is_alive(tmp_path / "runs", "1") is False
    finally:
        child.kill()
        child.wait()


def test_request_is_written_down_with_who_asked(config: Config) -> None:
    trigger = trigger_of(config, Engine())
    submit_to(trigger, request_of(config), again=False)
    (entry,) = [ClaimLog(trigger.store, "m")._entry(0)]
    assert isinstance(entry, Request)
    assert entry.actor
    assert abs((datetime.now(UTC) - entry.created).total_seconds()) < 60
    assert isinstance(trigger.tick().decision, Follow)
