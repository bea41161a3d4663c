"""`compile --kubernetes`, `schedule`, `wait` and `logs` as people call them: real compiler, stand-ins for both APIs.

Pods are answered for by a small server with two routes of the Kubernetes API; what they are called and how they are
annotated was read in Kubeflow's compiler and Argo's documentation, not seen here.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from typer.testing import CliRunner, Result

from components.core.config import describe_config, parse_config
from components.core.contracts import RunArguments
from components.core.errors import ConfigurationError, RetrainError, RunFailed
from pipelines.cli import app
from pipelines.client import KubeflowClient
from pipelines.compiling import compile_for_cluster, compile_for_kubernetes, compile_pipeline
from tests.kubeflow import Kubeflow, serve

IMAGE = "registry/trainer@sha256:0"
NIGHTLY = {"name": "nightly", "cron": "0 30 2 * * *"}
NEW = RunArguments(source="new")
STARTED = "2026-01-01T00:00:0{}Z"


@pytest.fixture
def kubeflow() -> Iterator[Kubeflow]:
    with serve() as served:
        yield served


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RETRAIN_IMAGE", IMAGE)
    # The client reads KUBECONFIG when it is imported.
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
    monkeypatch.setattr("components.core.logs.configure", lambda: None)  # it would keep the runner's standard error
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)


def configure(kubeflow: Kubeflow, *schedules: Any, **changes: Any) -> KubeflowClient:
    """Write the configuration file. Returns a client of it."""
    api = {"host": kubeflow.url, "schedules": list(schedules), **changes}
    raw = {"store": {"uri": "store"}, "trigger": {"source": "s3://bucket/incoming"}, "kubeflow": api}
    Path("store").mkdir(exist_ok=True)
    Path("retrain.yaml").write_text(yaml.safe_dump(raw))
    return KubeflowClient(parse_config(raw, origin="test"))


def retrain(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def succeed(*arguments: str) -> list[str]:
    done = retrain(*arguments)
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines()


def fail(kind: type[RetrainError], *arguments: str) -> RetrainError:
    """The error that `main` would print."""
    error = retrain(*arguments).exception
    assert isinstance(error, kind)
    return error


def switches(document: Any) -> Iterator[Any]:
    """Every `cachingOptions` in a document."""
    values = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in values:
        if key == "cachingOptions":
            yield value
        else:
            yield from switches(value)


# compile


@pytest.mark.parametrize(
    "compile_to", [compile_pipeline, lambda path: compile_for_kubernetes(path, "retrain")], ids=["yaml", "objects"]
)
def test_no_task_is_cached(tmp_path: Path, compile_to: Callable[[Path], Path]):
    documents = list(yaml.safe_load_all(compile_to(tmp_path / "pipeline.yaml").read_text()))
    found = list(switches(documents))
    assert len(found) > 10
    assert [options for options in found if options.get("enableCache")] == []


def test_objects_are_named_as_the_client_names_them(kubeflow: Kubeflow):
    succeed("compile", "--kubernetes", "--name", "retrain", "--namespace", "team", "--output", "objects.yaml")
    pipeline, version = yaml.safe_load_all(Path("objects.yaml").read_text())
    assert [pipeline["kind"], version["kind"]] == ["Pipeline", "PipelineVersion"]
    assert {o["apiVersion"] for o in (pipeline, version)} == {"pipelines.kubeflow.org/v2beta1"}
    assert {o["metadata"]["namespace"] for o in (pipeline, version)} == {"team"}
    assert pipeline["metadata"]["name"] == version["spec"]["pipelineName"] == "retrain"
    assert version["metadata"]["name"] == configure(kubeflow).ensure_pipeline().name
    assert len(version["metadata"]["name"]) <= 63
    plain, platform = yaml.safe_load_all(compile_for_cluster(Path("plain.yaml")).read_text())
    assert version["spec"]["pipelineSpec"] == plain
    assert version["spec"]["platformSpec"] == platform


def test_objects_may_leave_the_namespace_to_kubectl():
    succeed("compile", "--kubernetes", "--output", "objects.yaml")
    assert "namespace" not in next(yaml.safe_load_all(Path("objects.yaml").read_text()))["metadata"]


@pytest.mark.parametrize("name", ["Retrain", "re_train", "-a", "a" * 47, ""])
def test_name_that_kubernetes_does_not_take_is_refused(name: str):
    assert "lower-case" in fail(ConfigurationError, "compile", "--kubernetes", "--name", name).expected
    assert not Path("retrain-pipeline.yaml").exists()


def test_objects_need_an_image(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RETRAIN_IMAGE")
    assert "RETRAIN_IMAGE is not set" in fail(ConfigurationError, "compile", "--kubernetes").found


# schedule


def test_schedules_from_the_command_line(kubeflow: Kubeflow):
    configure(kubeflow, NIGHTLY)
    assert succeed("schedule", "list") == ["nightly: 0 30 2 * * *, not applied"]
    assert succeed("schedule", "apply", "--dry-run") == ["nightly: would be created"]
    assert kubeflow.recurring_runs == {}
    assert succeed("schedule", "apply") == ["nightly: created"]
    assert succeed("schedule", "apply", "--dry-run") == ["nightly: kept"]
    (recurring_run_id,) = kubeflow.recurring_runs
    kept = {"name": "nightly", "action": "kept", "recurring_run_id": recurring_run_id}
    assert [json.loads(line) for line in succeed("schedule", "apply", "--json")] == [kept]
    (row,) = (json.loads(line) for line in succeed("schedule", "list", "--json"))
    assert row["state"] == "enabled"
    (uploaded,) = kubeflow.uploaded.values()
    assert "deploymentSpec" in uploaded, "the real pipeline"


def test_applying_needs_an_image(kubeflow: Kubeflow, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RETRAIN_IMAGE")
    configure(kubeflow, NIGHTLY)
    assert fail(ConfigurationError, "schedule", "apply").found == "RETRAIN_IMAGE is not set"


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ({"name": "a"}, "either cron or interval_minutes"),
        ({"name": "a", "cron": "0 2 * * *"}, "takes six, seconds first"),
        ({"name": "a", "cron": "0 0 2 * * *", "interval_minutes": 1}, "either cron or interval_minutes"),
        ({"name": "a", "crn": "0 0 2 * * *"}, "did you mean 'kubeflow.schedules.0.cron'?"),
    ],
)
def test_schedule_that_is_none_is_refused(schedule: Any, said: str):
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        parse_config({"store": {"uri": "a"}, "kubeflow": {"schedules": [schedule]}}, origin="test")


def test_printed_configuration_explains_schedules():
    printed = describe_config()
    assert "  #   cron (null):\n  #     Six fields, seconds first" in printed
    assert printed.rstrip().endswith("\n  schedules: []")


# wait


def test_waiting_from_the_command_line(kubeflow: Kubeflow):
    client = configure(kubeflow)
    run_id = client.start("retrain-classifier-1-1", NEW)
    late = fail(RunFailed, "wait", run_id, "--timeout", "0.01", "--poll", "0.1")
    assert "is PENDING after 0.01 minutes" in late.found
    kubeflow.finish(run_id)
    assert succeed("wait", "retrain-classifier-1-1") == [f"run {run_id}: SUCCEEDED; next: retrain explain {run_id}"]
    (line,) = succeed("wait", run_id, "--json")
    assert json.loads(line) == {"run_id": run_id, "state": "succeeded", "word": "SUCCEEDED"}
    kubeflow.finish(run_id, "CANCELED")
    assert fail(RunFailed, "wait", run_id).found == f"run {run_id}: CANCELED"
    assert "no run is called" in fail(ConfigurationError, "wait", "nothing").found


# logs


class Cluster:
    """Two routes of the Kubernetes API: pods by label, and what a pod printed. Tests change `pods` and `printed`."""

    def __init__(self) -> None:
        self.pods: list[dict[str, Any]] = []
        self.printed: dict[str, str] = {}
        self.on_log: Callable[[str], None] = lambda _: None
        self.status = 200

    def add(self, run_id: str, name: str, node: str, second: int | None, printed: str = "") -> None:
        state = {"waiting": {}} if second is None else {"running": {"startedAt": STARTED.format(second)}}
        status = {"name": "main", "state": state, "image": "i", "imageID": "i", "ready": True, "restartCount": 0}
        annotations = {"workflows.argoproj.io/node-name": node}
        metadata = {"name": name, "labels": {"pipeline/runid": run_id}, "annotations": annotations}
        self.pods.append({"metadata": metadata, "status": {"phase": "Running", "containerStatuses": [status]}})
        self.printed[name] = printed

    def answer(self, path: str, query: dict[str, list[str]]) -> str:
        assert path.startswith("/api/v1/namespaces/kubeflow/pods")
        if path.endswith("/log"):
            assert query["container"] == ["main"]
            name = path.split("/")[-2]
            self.on_log(name)
            return self.printed[name]
        key, _, value = query["labelSelector"][0].partition("=")
        return json.dumps({"items": [pod for pod in self.pods if pod["metadata"]["labels"].get(key) == value]})


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            at = urlsplit(self.path)
            data = made.answer(at.path, parse_qs(at.query)).encode()
            self.send_response(made.status)
            self.send_header("Content-Type", "text/plain" if at.path.endswith("/log") else "application/json")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    kubeconfig = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))
    yield made
    server.shutdown()
    server.server_close()
    thread.join()


def test_logs_name_the_task_of_each_line_in_the_order_of_the_run(kubeflow: Kubeflow, cluster: Cluster):
    run_id = configure(kubeflow).start("a", NEW)
    cluster.add(run_id, "w-impl-3", "w.root.exit-handler-1.condition-1.train-2.executor(1)", 3, "epoch 1\nno newline")
    cluster.add(run_id, "w-impl-2", "w.root.exit-handler-1.detect-drift.executor", 2, "p = 0.5\n")
    cluster.add(run_id, "w-driver-1", "w.root.exit-handler-1.detect-drift-driver", 1, "driver\n")
    cluster.add(run_id, "w-impl-4", "w.root.report.executor", None, "")
    cluster.add("another run", "v-impl-1", "v.root.report.executor", 1, "stranger\n")
    assert succeed("logs", run_id) == ["detect-drift: p = 0.5", "train-2: epoch 1", "train-2: no newline"]
    assert succeed("logs", "a", "--step", "train") == ["train-2: epoch 1", "train-2: no newline"]
    assert succeed("logs", "a", "--step", "train-2") == ["train-2: epoch 1", "train-2: no newline"]
    assert succeed("logs", "a", "--step", "detect_drift") == ["detect-drift: p = 0.5"]
    waiting = fail(ConfigurationError, "logs", run_id, "--step", "report")
    assert f"no pod of step report of run {run_id} has begun" in waiting.found


def test_following_goes_on_until_the_run_has_ended(
    kubeflow: Kubeflow, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pipelines.pods.time.sleep", lambda _: None)
    run_id = configure(kubeflow).start("a", NEW)
    cluster.add(run_id, "w-1", "w.root.ingest.executor", 1, "one\n")

    def go_on(name: str) -> None:
        if name == "w-1":
            cluster.add(run_id, "w-2", "w.root.report.executor", 2, "two\n")
            kubeflow.finish(run_id)

    cluster.on_log = go_on
    assert succeed("logs", run_id, "--follow") == ["ingest: one", "report: two"]


def test_logs_that_are_gone_are_said_to_be_in_the_bucket(kubeflow: Kubeflow, cluster: Cluster):
    run_id = configure(kubeflow).start("a", NEW)
    kubeflow.finish(run_id)
    gone = fail(ConfigurationError, "logs", run_id)
    assert "is left in kubeflow" in gone.found
    assert f"retrain explain {run_id}" in gone.next_command
    assert "private-artifacts/kubeflow/" in gone.next_command


def test_cluster_that_refuses_is_told(kubeflow: Kubeflow, cluster: Cluster):
    run_id = configure(kubeflow).start("a", NEW)
    cluster.status = 403
    assert "kubectl auth can-i get pods/log" in fail(ConfigurationError, "logs", run_id).next_command


def test_logs_need_a_cluster(kubeflow: Kubeflow):
    run_id = configure(kubeflow).start("a", NEW)
    assert "no cluster to read logs from" in fail(ConfigurationError, "logs", run_id).found
