"""The trigger for real on one machine: it watches a folder, an event wakes it, runs outlive it, its log tells all."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from components.core.claims import ClaimLog, ClaimState
from components.core.config import load_config
from components.core.events import sign_event
from components.core.storage import open_store
from components.core.windows import EMPTY_WINDOW
from tests.pipeline.conftest import RETRAIN, executed, retrain, write_config, write_digits

pytestmark = pytest.mark.slow
SECRET = base64.b64encode(b"a secret of two dozen bytes").decode()
PATIENCE_SECONDS = 240.0


def configured(folder: Path, **trigger: object) -> Path:
    policy = {"source": "incoming", "poll_seconds": 600, "listen": "127.0.0.1:0", **trigger}
    (folder / "incoming").mkdir(exist_ok=True)
    return write_config(folder, {"trigger": policy, "store": {"cache": "cache"}})


def state_of(config: Path) -> ClaimState:
    settings = load_config(config)
    return ClaimLog(open_store(settings.store), settings.model).read()


def wait_for(what: str, true: Callable[[], object], log: Path) -> None:
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < PATIENCE_SECONDS, f"no {what}: {log.read_text()}"
        time.sleep(0.2)


@contextmanager
def watching(config: Path) -> Iterator[tuple[int, Path]]:
    """`retrain watch` as a service: its port and its output. It is sent SIGTERM in the end, and must end well."""
    log = config.with_name("watch.log")
    with log.open("w") as output:
        environment = {**os.environ, "RETRAIN_TRIGGER_SECRET": SECRET}
        watch = subprocess.Popen([RETRAIN, "watch", "--config", config], stderr=output, env=environment)
    try:
        wait_for("port", lambda: re.search(r"listening on port (\d+)", log.read_text()), log)
        yield int(re.search(r"listening on port (\d+)", log.read_text())[1]), log  # type: ignore[index]
        watch.send_signal(signal.SIGTERM)
        assert watch.wait(30) == 0, log.read_text()
        assert log.read_text().rstrip().endswith("stopped")
    finally:
        watch.kill()
        watch.wait()


def wake(port: int) -> int:
    headers = {"webhook-id": f"{time.monotonic()}"}
    headers |= sign_event(headers, b"{}", SECRET, time.time())
    request = urllib.request.Request(f"http://127.0.0.1:{port}/events", b"{}", headers, method="POST")
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
        return int(answer.status)


def ask(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return str(answer.read().decode())


def is_ready(port: int) -> bool:
    try:
        return ask(port, "/readyz") == "ok\n"
    except urllib.error.HTTPError:
        return False


def test_delivery_becomes_a_champion_although_the_trigger_is_restarted(tmp_path: Path) -> None:
    config = configured(tmp_path)
    with watching(config) as (port, log):
        wait_for("readiness", lambda: is_ready(port), log)
        write_digits(tmp_path / "incoming" / "first", (0, 1, 2), 0, 200)
        (tmp_path / "incoming" / "first" / "_SUCCESS").touch()
        assert wake(port) == 202
        wait_for("run", lambda: state_of(config).open and state_of(config).open.run_id, log)  # type: ignore[union-attr]
    current = state_of(config).open
    assert current is not None, "the run outlives the trigger"
    write_digits(tmp_path / "incoming" / "refused", (0, 1, 2), 200, 40)
    (tmp_path / "incoming" / "refused" / "0" / "readme.txt").write_text("Hello there")
    (tmp_path / "incoming" / "refused" / "_SUCCESS").touch()
    with watching(configured(tmp_path, poll_seconds=1)) as (port, log):
        wait_for("end of all", lambda: state_of(config).counts.total() == 2, log)
        metrics = ask(port, "/metrics")
    state = state_of(config)
    assert state.counts == {"succeeded": 1, "refused": 1}
    assert 'retrain_trigger_runs_total{model="classifier",result="succeeded"} 1.0' in metrics
    status = retrain("status", "--config", config, "--json")
    told = json.loads(status.stdout)
    assert [run["outcome"] for run in told["runs"]] == ["promoted", "failed"]
    assert told["runs"][0]["source"] == str(tmp_path / "incoming" / "first")
    assert "readme.txt is no image" in told["claims"]["refused"][0]["reason"]
    assert "retrain submit" in retrain("status", "--config", config).stdout


def test_run_on_what_is_new_takes_it_once(promoted: Path, tmp_path: Path) -> None:
    """Two deliveries become one window; then nothing is new, which is no error."""
    shutil.copytree(promoted / "store", tmp_path / "store")
    config = configured(tmp_path)
    for name, start in (("b", 200), ("a", 240)):
        write_digits(tmp_path / "incoming" / name, (0, 1, 2), start, 40)
        (tmp_path / "incoming" / name / "_SUCCESS").touch()
    (tmp_path / "incoming" / "later" / "0").mkdir(parents=True)
    (tmp_path / "incoming" / "later" / "0" / "0.png").write_bytes(b"half an upl")
    first = json.loads(retrain("run", "new", "--config", config, "--json").stdout)
    assert first["source"] == f"{tmp_path / 'incoming' / 'a'} and 1 more"
    assert first["outcome"] == "skipped"
    done = retrain("run", "new", "--config", config, "--json")
    second = json.loads(done.stdout)
    assert (second["window"], second["rule"], second["outcome"]) == (EMPTY_WINDOW, "nothing-new", "skipped")
    assert executed(done.stderr) == ["ingest", "validate", "detect-drift", "decide", "record", "report"]
    state = state_of(config)
    assert [claim.deliveries for claim in state.closed.values()] == [
        tuple(str(tmp_path / "incoming" / n) for n in "ab")
    ]
    assert state.open is None


def test_submitted_delivery_runs_here_and_is_waited_for_by_nobody(promoted: Path, tmp_path: Path) -> None:
    shutil.copytree(promoted / "store", tmp_path / "store")
    config = configured(tmp_path)
    source = write_digits(tmp_path / "delivery", (0, 1, 2), 300, 40)
    submitted = [json.loads(retrain("submit", source, "--config", config, "--json").stdout) for _ in range(2)]
    assert submitted[0]["status"] == "running"
    assert submitted[1]["run_id"] == submitted[0]["run_id"]
    (log,) = (tmp_path / "cache" / "runs").glob(f"retrain-classifier-{submitted[0]['claim']}-1-*.log")
    wait_for("end of the run", lambda: state_of(config).closed, log)
    assert "skipped" in log.read_text()
    again = json.loads(retrain("submit", source, "--config", config, "--json").stdout)
    assert (again["status"], again["run_id"]) == ("done", submitted[0]["run_id"])


@pytest.mark.parametrize(
    ("policy", "found"),
    [
        ({"source": None}, "trigger.source is not set"),
        ({"source": "nowhere"}, "no directory"),
        ({"cool_down_minutes": 61}, "cool_down_minutes 61 is above max_wait_minutes"),
        ({"listen": "8080"}, "trigger.listen"),
        ({"launcher": "kubeflow"}, "trigger.source is a directory"),
    ],
)
def test_trigger_that_cannot_work_says_why_at_once(tmp_path: Path, policy: dict[str, object], found: str) -> None:
    done = retrain("watch", "--once", "--config", configured(tmp_path, **policy))
    assert (done.returncode, done.stdout) == (2, "")
    assert found in done.stderr
    assert "next:" in done.stderr
