"""A TrainJob: its manifest, and its life on an API server, which a small one on loopback stands in for here.

`tests/integration/test_trainjob_cluster.py` does the same with a real one.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from kubernetes import client
from urllib3.util import Retry

from components.core.config import TrainingConfig
from components.core.errors import ConfigurationError, RunFailed
from components.train import trainjob
from components.train.interruption import Interruption, Preempted
from components.train.trainjob import (
    StepPod,
    ending_of,
    job_name,
    open_api,
    patch_field,
    run_train_job,
    step_pod,
    train_job_manifest,
    train_on_nodes,
)

GOLDEN = Path(__file__).parents[1] / "golden"
ARGUMENTS = ["/etc/retrain/config.yaml", "0f0c6a8e-5d0b-4a3c-9a54-3f1f6f3ce0aa", "w-1", "1"]
NAME = "train-0f0c6a8e-5d0b-4a3c-9a54-3f1f6f3ce0aa-1"
POD = StepPod(
    name="retrain-abc-123",
    uid="7d9f4b0e",
    namespace="team",
    image="registry.example/retrain/trainer@sha256:0123",
    service_account="pipeline-runner",
    requests={"cpu": "2", "memory": "4Gi"},
    limits={"memory": "32Gi", "nvidia.com/gpu": "2"},
    tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    node_selector={},
)
CONFIG = TrainingConfig(launcher="trainjob", nodes=2)
RUNNING: dict[str, Any] = {"state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}


def manifest(**changes: Any) -> dict[str, Any]:
    return train_job_manifest(ARGUMENTS, CONFIG, POD, changes.get("patch_field", "podSpecOverrides"))


# --- the manifest


def test_manifest_is_the_recorded_one():
    recorded = GOLDEN / "trainjob.yaml"
    if os.environ.get("RETRAIN_REGENERATE"):
        recorded.write_text(yaml.safe_dump(manifest(), sort_keys=False))
    assert manifest() == yaml.safe_load(recorded.read_text()), "make golden rewrites it"


def test_pods_get_what_the_pod_of_the_step_gets():
    """The constants stand twice, since a step must not import `pipelines`."""
    compiled = list(yaml.safe_load_all((GOLDEN / "retraining.yaml").read_text()))
    step = compiled[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-train"]
    environment = compiled[0]["deploymentSpec"]["executors"]["exec-train"]["container"]["env"]
    spec = manifest()["spec"]
    [override] = spec["podSpecOverrides"]

    mounts = {mount["name"]: mount["mountPath"] for mount in override["containers"][0]["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in override["volumes"]}
    assert set(mounts) == set(volumes)
    [config_map] = step["configMapAsVolume"]
    assert mounts["config"] == config_map["mountPath"]
    assert volumes["config"]["configMap"]["name"] == config_map["configMapName"]
    for folder in step["emptyDirMounts"]:
        described = volumes[folder["volumeName"]]["emptyDir"]
        assert mounts[folder["volumeName"]] == folder["mountPath"]
        assert (described["sizeLimit"], described.get("medium")) == (folder["sizeLimit"], folder.get("medium"))
    assert len(mounts) == 1 + len(step["emptyDirMounts"])

    [secret] = step["secretAsEnv"]
    keys = [(e["name"], e["valueFrom"]["secretKeyRef"]) for e in spec["trainer"]["env"] if "valueFrom" in e]
    assert keys == [
        (key["envVar"], {"name": secret["secretName"], "key": key["secretKey"], "optional": secret["optional"]})
        for key in secret["keyToEnv"]
    ]
    # The port is for the step's own pod: a job's pods may share a node's network. The image's name is for promotions.
    own = [e for e in environment if e["name"] not in ("RETRAIN_METRICS_PORT", "RETRAIN_IMAGE")]
    assert [e for e in spec["trainer"]["env"] if "value" in e] == own


@pytest.mark.parametrize(
    ("limits", "processes"),
    [
        ({"memory": "32Gi"}, 1),
        ({"memory": "32Gi", "cpu": "8"}, 1),
        ({"memory": "32Gi", "nvidia.com/gpu": "1"}, 1),
        ({"memory": "32Gi", "amd.com/gpu": "4"}, 4),
    ],
)
def test_a_pod_runs_one_process_a_gpu(limits: dict[str, str], processes: int):
    pod = StepPod(**{**vars(POD), "limits": limits})
    trainer = train_job_manifest(ARGUMENTS, CONFIG, pod, "podSpecOverrides")["spec"]["trainer"]
    assert trainer["numProcPerNode"] == processes
    assert trainer["resourcesPerNode"]["limits"] == limits


def test_each_trainer_gets_the_same_changes_to_its_pods_under_its_own_name():
    old = manifest(patch_field="podSpecOverrides")["spec"]["podSpecOverrides"][0]
    middle = manifest(patch_field="podTemplateOverrides")["spec"]["podTemplateOverrides"][0]
    new = manifest(patch_field="runtimePatches")["spec"]["runtimePatches"][0]
    [job] = new["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert old["targetJobs"] == middle["targetJobs"] == [{"name": job["name"]}]
    assert {**middle["spec"], "targetJobs": old["targetJobs"]} == old
    assert job["template"]["spec"]["template"]["spec"] == middle["spec"]


@pytest.mark.parametrize(
    ("run_id", "rung", "name"),
    [
        (ARGUMENTS[1], "1", NAME),
        ("20260101-abc", "2", "train-20260101-abc-2"),
        ("Night", "1", "train-night-4e9f8db8-1"),
        ("night", "1", "train-night-1"),
        ("a" * 62 + "-", "1", "train-" + "a" * 28 + "-118fe5ae-1"),
    ],
)
def test_a_job_is_named_after_run_and_rung(run_id: str, rung: str, name: str):
    assert job_name(run_id, rung) == name
    assert len(f"{name}-node-0-999-abcde") <= 63


def test_two_runs_never_share_a_job():
    long = "b" * 60
    names = [job_name(run, rung) for run in ("run", "Run", "RUN", long, long + "c") for rung in ("1", "2")]
    assert len(set(names)) == len(names)


def test_the_step_is_the_container_main_of_its_pod():
    found = step_pod(
        {
            "metadata": {"name": "p", "uid": "u", "namespace": "n"},
            "spec": {
                "serviceAccountName": "pipeline-runner",
                "containers": [
                    {"name": "wait", "image": "argo"},
                    {"name": "main", "image": "ours", "resources": {"limits": {"nvidia.com/gpu": "1"}}},
                ],
            },
        }
    )
    assert (found.image, found.gpus, found.service_account, found.requests) == ("ours", 1, "pipeline-runner", {})


@pytest.mark.parametrize(
    ("conditions", "complete"),
    [
        ([], None),
        ([{"type": "Suspended", "status": "True", "reason": "Suspended"}], None),
        ([{"type": "Complete", "status": "False", "reason": "No"}], None),
        ([{"type": "Suspended", "status": "False", "reason": "Resumed"}, {"type": "Complete", "status": "True"}], True),
        ([{"type": "Failed", "status": "True"}], False),
    ],
)
def test_the_conditions_tell_how_a_job_ended(conditions: list[dict[str, Any]], complete: bool | None):
    ending = ending_of({"status": {"conditions": [{"reason": "R", **condition} for condition in conditions]}})
    assert (ending.complete if ending else None) is complete


def test_a_job_that_no_controller_has_looked_at_has_not_ended():
    assert ending_of({"metadata": {"name": NAME}}) is None


# --- a small API server


class ApiServer:
    """Keeps one TrainJob and its pods, as far as `trainjob` asks for them. Its pods outlive it for `last_looks`."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []  # method and path, in order
        self.queries: list[dict[str, list[str]]] = []
        self.job: dict[str, Any] | None = None
        self.states: deque[list[dict[str, Any]]] = deque()  # conditions from one look to the next; the last one stays
        self.pods: list[dict[str, Any]] = []
        self.log: list[str] = []
        self.log_breaks_after: int | None = None  # lines, once
        self.faults: deque[tuple[str, int, str]] = deque()  # method, status, message
        self.last_looks = 1
        self.schema: dict[str, Any] | None = {}
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.handle(self)

            do_POST = do_DELETE = do_PATCH = do_GET  # the names http.server looks for

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def methods(self) -> list[str]:
        """What was done to TrainJobs, looks left out."""
        return [method for method, path in self.asked if "/trainjobs" in path and method != "GET"]

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        url = urlsplit(request.path)
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        with self._lock:
            self.asked.append((request.command, url.path))
            self.queries.append(parse_qs(url.query))
            if self.faults and "/trainjobs" in url.path and self.faults[0][0] == request.command:
                _, status, message = self.faults.popleft()
                return answer(request, status, {"kind": "Status", "message": message})
            if url.path.startswith("/openapi/"):
                return answer(request, 404 if self.schema is None else 200, self.schema or {})
            if url.path.endswith("/log"):
                return self._log(request)
            if url.path.endswith("/pods"):
                self.last_looks -= self.job is None
                return answer(request, 200, {"kind": "PodList", "items": self.pods if self.last_looks >= 0 else []})
            if "/pods/" in url.path:
                return answer(request, 200, self.pods[0])
            return self._train_job(request, json.loads(body) if body else None)

    def _train_job(self, request: BaseHTTPRequestHandler, body: Any) -> None:
        if request.command == "POST":
            if self.job is not None:
                return answer(request, 409, {"kind": "Status", "reason": "AlreadyExists"})
            self.job = body
            return answer(request, 201, body)
        if self.job is None:
            return answer(request, 404, {"kind": "Status", "reason": "NotFound"})
        if request.command == "PATCH":
            self.job["metadata"].update(body["metadata"])
        elif request.command == "DELETE":
            gone, self.job = self.job, None
            return answer(request, 200, gone)
        elif self.states:
            self.job["status"] = {"conditions": self.states.popleft() if len(self.states) > 1 else self.states[0]}
        return answer(request, 200, self.job)

    def _log(self, request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        breaks_after, self.log_breaks_after = self.log_breaks_after, None
        for line in self.log[:breaks_after]:
            data = f"{line}\n".encode()
            request.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        if breaks_after is None:
            request.wfile.write(b"0\r\n\r\n")
        request.close_connection = breaks_after is not None


def answer(request: BaseHTTPRequestHandler, status: int, document: Any) -> None:
    data = json.dumps(document).encode()
    request.send_response(status)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(data)))
    request.end_headers()
    request.wfile.write(data)


@pytest.fixture
def server() -> Iterator[ApiServer]:
    started = ApiServer()
    started.pods = [pod("0"), pod("1")]
    yield started
    started.close()


@pytest.fixture
def api(server: ApiServer) -> Iterator[Any]:
    opened = open_api(client.Configuration(host=server.address))
    yield opened
    opened.rest_client.pool_manager.clear()
    opened.close()


def pod(rank: str, container: dict[str, Any] = RUNNING, **status: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "name": f"{NAME}-node-0-{rank}-abcde",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"batch.kubernetes.io/job-completion-index": rank},
        },
        "status": {
            "phase": "Running",
            **status,
            "containerStatuses": [{"name": "node", "ready": True, **CONTAINER, **container}],
        },
    }


CONTAINER = {"image": "i", "imageID": "i", "restartCount": 0}


def condition(kind: str, message: str = "", reason: str = "R") -> list[dict[str, Any]]:
    return [{"type": kind, "status": "True", "reason": reason, "message": message}]


def stamped(*lines: str) -> list[str]:
    return [f"2026-01-01T00:00:00.{number:09d}Z {line}" for number, line in enumerate(lines)]


def run(api: Any, **changes: Any) -> list[str]:
    lines: list[str] = []
    arguments: dict[str, Any] = {"stop_asked": lambda: False, "on_line": lines.append, "poll_seconds": 0.01}
    run_train_job(manifest(), api=api, **{**arguments, **changes})
    return lines


# --- the life of a job


def test_a_job_is_created_and_waited_for(server: ApiServer, api: Any):
    server.states.extend([[], condition("Suspended"), [], condition("Complete")])
    run(api)
    assert server.methods() == ["POST"]
    assert server.job
    assert server.job["spec"] == manifest()["spec"]
    [query] = [q for (method, _), q in zip(server.asked, server.queries, strict=True) if method == "POST"]
    assert query["fieldValidation"] == ["Strict"]


def test_lines_of_rank_zero_arrive_once_over_a_broken_connection(server: ApiServer, api: Any):
    server.states.extend([[]] * 20 + [condition("Complete")])
    server.log, server.log_breaks_after = stamped("epoch 1", "epoch 2: a  b", "epoch 3"), 2
    assert run(api) == ["epoch 1", "epoch 2: a  b", "epoch 3"]
    logs = [path for _, path in server.asked if path.endswith("/log")]
    assert len(logs) >= 2
    assert {path.split("/")[-2] for path in logs} == {f"{NAME}-node-0-0-abcde"}


def test_the_lines_of_a_job_that_ends_at_once_arrive_too(server: ApiServer, api: Any):
    server.states.append(condition("Complete"))
    server.log = stamped("done")
    assert run(api) == ["done"]


def test_a_pod_that_takes_the_place_of_another_is_read_from_its_beginning(server: ApiServer, api: Any):
    server.states.extend([[]] * 10)
    server.log = stamped("first", "second")
    lines: list[str] = []

    def replace_the_pod() -> bool:
        if lines == ["first", "second"]:
            server.pods[0]["metadata"]["name"] = f"{NAME}-node-0-0-fghij"
        elif len(lines) == 4:
            server.states = deque([condition("Complete")])
        return False

    run(api, stop_asked=replace_the_pod, on_line=lines.append)
    assert lines == ["first", "second"] * 2


def test_an_api_server_that_fails_once_is_asked_again(server: ApiServer, api: Any):
    server.states.append(condition("Complete"))
    server.faults.extend([("POST", 500, "webhook"), ("GET", 503, "restarting")])
    run(api)
    assert server.methods() == ["POST", "POST"]


def test_a_job_that_is_there_already_is_taken_over(server: ApiServer, api: Any):
    server.job = manifest()
    server.job["metadata"]["ownerReferences"][0]["uid"] = "the pod before"
    server.states.extend([[], condition("Complete")])
    run(api)
    assert server.methods() == ["POST", "PATCH"]
    assert server.job["metadata"]["ownerReferences"][0]["uid"] == POD.uid


@pytest.mark.parametrize("state", ["failed", "being deleted"])
def test_a_job_of_an_earlier_attempt_that_is_over_is_replaced(server: ApiServer, api: Any, state: str):
    server.job = manifest()
    if state == "failed":
        server.states.append(condition("Failed"))
    else:
        server.job["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"

    def succeed() -> bool:
        server.states = deque([condition("Complete")])
        return False

    server.states.append([])
    run(api, stop_asked=succeed)
    assert server.methods() == ["POST", "DELETE", "POST"]


def test_a_job_that_cannot_be_replaced_ends_the_step(server: ApiServer, api: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trainjob, "DELETION_SECONDS", 0.05)
    server.job, server.last_looks = manifest(), 10**6
    server.states.append(condition("Failed"))
    with pytest.raises(RunFailed, match="still there"):
        run(api)


def test_a_failed_job_tells_why_and_stays(server: ApiServer, api: Any):
    server.states.extend([[], condition("Failed", "jobset failed due to one or more job failures", "FailedJobs")])
    server.pods[1] = pod("1", {"state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}})
    with pytest.raises(RunFailed) as failure:
        run(api)
    assert "FailedJobs: jobset failed due to one or more job failures" in str(failure.value)
    assert f"pod {NAME}-node-0-1-abcde: ended with 137 (OOMKilled)" in str(failure.value)
    assert server.methods() == ["POST"]
    assert server.job


def test_a_job_that_somebody_deletes_ends_the_step(server: ApiServer, api: Any):
    server.states.append([])

    def lose_the_job() -> bool:
        server.job = None
        return False

    with pytest.raises(RunFailed, match="was deleted"):
        run(api, stop_asked=lose_the_job)


def test_sigterm_deletes_the_job_and_waits_until_it_is_gone(server: ApiServer, api: Any):
    server.states.append([])
    server.last_looks = 2
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with Interruption() as interruption, pytest.raises(Preempted):
        run(api, stop_asked=lambda: interruption.asked)
    assert server.methods() == ["POST", "DELETE"]
    assert server.job is None
    [query] = [q for (method, _), q in zip(server.asked, server.queries, strict=True) if method == "DELETE"]
    assert query["propagationPolicy"] == ["Background"]


def test_pods_that_take_long_to_end_do_not_hold_the_step(
    server: ApiServer, api: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(trainjob, "DELETION_SECONDS", 0.05)
    server.states.append([])
    server.last_looks = 10**6
    with caplog.at_level(logging.INFO), pytest.raises(Preempted):
        run(api, stop_asked=lambda: True)
    assert "is being deleted" in caplog.text


def test_any_exception_that_passes_deletes_the_job(server: ApiServer, api: Any):
    server.states.append([])

    def press_ctrl_c() -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(api, stop_asked=press_ctrl_c)
    assert server.job is None


def test_a_deletion_that_is_refused_does_not_hide_why_the_step_ended(
    server: ApiServer, api: Any, caplog: pytest.LogCaptureFixture
):
    server.states.append([])
    server.faults.append(("DELETE", 403, "no"))
    with pytest.raises(Preempted):
        run(api, stop_asked=lambda: True)
    assert "could not be deleted" in caplog.text


def test_a_job_that_takes_too_long_is_deleted(server: ApiServer, api: Any):
    server.states.append([])
    server.pods = [pod("0", {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}})]
    with pytest.raises(RunFailed, match=r"goes on after 0\.0 h.*ImagePullBackOff: no such image"):
        run(api, limit_seconds=0.05)
    assert server.job is None


def test_what_keeps_a_pod_from_running_is_told_once(server: ApiServer, api: Any, caplog: pytest.LogCaptureFixture):
    server.states.extend([condition("Suspended", "waits for quota")] * 3 + [[]] * 3 + [condition("Complete")])
    unscheduled = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no GPU is free"}]
    server.pods = [
        pod("0", {"state": {"waiting": {"reason": "ContainerCreating"}}}, conditions=unscheduled),
        pod("1", {**RUNNING, "lastState": {"terminated": {"exitCode": 1, "reason": "Error"}}}),
        pod("2", phase="Failed", reason="Evicted", message="The node was low on resource: memory."),
    ]
    run(api)
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert told == [
        f"train: pod {NAME}-node-0-0-abcde: Unschedulable: no GPU is free",
        f"train: pod {NAME}-node-0-1-abcde: ended with 1 (Error)",
        f"train: pod {NAME}-node-0-2-abcde: Evicted: The node was low on resource: memory.",
        "train: suspended: waits for quota",
    ]


@pytest.mark.parametrize(
    ("status", "kind", "sentence"),
    [
        (403, ConfigurationError, "forbids it: no verb"),
        (400, ConfigurationError, "refuses it: no verb"),
        (422, ConfigurationError, "refuses it: no verb"),
        (401, RunFailed, "answers 401: no verb"),
    ],
)
def test_a_refusal_says_what_the_api_server_says(
    server: ApiServer, api: Any, status: int, kind: type[Exception], sentence: str
):
    server.faults.append(("POST", status, "no verb"))
    with pytest.raises(kind, match=sentence):
        run(api)


def test_an_api_server_that_stays_away_ends_the_step():
    settings = client.Configuration(host="http://127.0.0.1:1")
    settings.retries = Retry(total=1)
    with client.ApiClient(settings) as api, pytest.raises(RunFailed, match="stayed away"):
        run(api)


# --- the pod of the step


def trainer_schema(*fields: str) -> dict[str, Any]:
    spec = {"properties": {"trainer": {}, **{field: {} for field in fields}}}
    kind = {"properties": {"spec": spec, "status": {}}}
    return {"components": {"schemas": {"x.v1.ObjectMeta": {}, "org.kubeflow.trainer.v1alpha1.TrainJob": kind}}}


@pytest.mark.parametrize("field", ["podSpecOverrides", "podTemplateOverrides", "runtimePatches"])
def test_the_api_server_knows_how_its_trainer_calls_changes_to_pods(server: ApiServer, api: Any, field: str):
    server.schema = trainer_schema(field)
    assert patch_field(api) == field


@pytest.mark.parametrize("schema", [None, {}, trainer_schema(), trainer_schema("podPatches")])
def test_a_cluster_without_such_a_trainer_is_an_error(server: ApiServer, api: Any, schema: dict[str, Any] | None):
    server.schema = schema
    with pytest.raises(ConfigurationError, match="Kubeflow Trainer 2"):
        patch_field(api)


@pytest.fixture
def in_a_pod(server: ApiServer, api: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "namespace").write_text(f"{POD.namespace}\n")
    monkeypatch.setattr(trainjob, "SERVICE_ACCOUNT", tmp_path)
    monkeypatch.setattr(trainjob, "_connect_from_pod", lambda: api)
    monkeypatch.setattr(trainjob, "POLL_SECONDS", 0.01)
    monkeypatch.setenv("KFP_POD_NAME", POD.name)
    resources = {"requests": POD.requests, "limits": POD.limits}
    server.pods = [
        {
            "metadata": {
                "name": POD.name,
                "uid": POD.uid,
                "namespace": POD.namespace,
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": {},
            },
            "spec": {
                "serviceAccountName": POD.service_account,
                "containers": [{"name": "main", "image": POD.image, "resources": resources}],
                "tolerations": POD.tolerations,
            },
            "status": {},
        }
    ]


@pytest.mark.usefixtures("in_a_pod")
def test_the_job_is_made_in_the_image_of_the_step(server: ApiServer, caplog: pytest.LogCaptureFixture):
    server.schema = trainer_schema("podSpecOverrides")
    server.states.append(condition("Complete"))
    with caplog.at_level(logging.INFO):
        train_on_nodes(ARGUMENTS, CONFIG, stop_asked=lambda: False)
    assert server.job
    assert {key: server.job[key] for key in manifest()} == manifest()
    assert f"TrainJob {POD.namespace}/{NAME} created" in caplog.text


def test_outside_a_pod_there_is_nobody_to_ask(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigurationError, match=r"training\.launcher: pod"):
        train_on_nodes(ARGUMENTS, CONFIG, stop_asked=lambda: False)


@pytest.mark.usefixtures("in_a_pod")
def test_a_pod_that_does_not_know_its_name_is_no_step(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("KFP_POD_NAME")
    monkeypatch.delenv("POD_NAME", raising=False)
    with pytest.raises(ConfigurationError, match="KFP_POD_NAME"):
        train_on_nodes(ARGUMENTS, CONFIG, stop_asked=lambda: False)
