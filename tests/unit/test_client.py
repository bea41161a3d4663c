"""The client of the Kubeflow Pipelines API, against a stand-in that checks every request: `tests/kubeflow.py`."""

from __future__ import annotations

import json
import logging
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import urllib3
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from components.core.config import Config, parse_config
from components.core.contracts import RunArguments
from components.core.errors import ConfigurationError, RunFailed
from pipelines import client as client_module
from pipelines import kubeflow as connection
from pipelines.client import KubeflowClient, find_run_id, wait_for_success
from pipelines.kubeflow import KubeflowRefused, KubeflowUnavailable, KubeflowUnreachable, find_host
from pipelines.schedules import Change, apply_schedules, list_schedules
from pipelines.trigger.launcher import Launcher, LauncherUnavailable
from tests.kubeflow import BASE, Fault, Kubeflow, contract, misfit, serve

ARGUMENTS = RunArguments(source="s3://bucket/new", gpu_type="nvidia.com/gpu", gpu_count="2")
NIGHTLY: dict[str, Any] = {"name": "nightly", "cron": "0 30 2 * * *"}
HOURLY: dict[str, Any] = {"name": "hourly", "interval_minutes": 60}
PARAMETERS = ("source", "config", "strategy", "gpu_type", "gpu_count")


def compile_as(image: str) -> Callable[[Path], Path]:
    """A stand-in for the compiler: the parameters of the pipeline, and an image."""

    def compile_to(path: Path) -> Path:
        defaults = {name: {"parameterType": "STRING", "defaultValue": ""} for name in PARAMETERS}
        del defaults["source"]["defaultValue"]
        path.write_text(json.dumps({"root": {"inputDefinitions": {"parameters": defaults}}, "image": image}))
        return path

    return compile_to


def settings(url: str | None, **changes: Any) -> Config:
    changes = {"timeout_seconds": 5, **changes}
    incoming = {"source": "s3://bucket/incoming"}
    config = {"store": {"uri": "store"}, "trigger": incoming, "kubeflow": {"host": url, **changes}}
    return parse_config(config, origin="test")


def open_client(kubeflow: Kubeflow, image: str = "trainer@sha256:1", **changes: Any) -> KubeflowClient:
    return KubeflowClient(settings(kubeflow.url, **changes), compile_as(image))


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(connection, "BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(connection, "TOKEN_FILE", tmp_path / "no-token")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)


@pytest.fixture
def kubeflow() -> Iterator[Kubeflow]:
    with serve() as served:
        yield served


# The stand-in itself: a checker that cannot fail proves nothing.


def test_contract_has_the_operations_of_the_api():
    assert len(contract()) >= 40
    (runs,) = [route for route in contract() if (route.method, route.path) == ("GET", f"{BASE}/runs")]
    assert runs.query["page_size"] == "int"
    assert runs.reply == "V2beta1ListRunsResponse"
    assert any(route.uploads and "pipelineid" in route.query for route in contract())


def test_contract_has_no_way_to_logs():
    """Why `retrain logs` asks the cluster."""
    assert [route.path for route in contract() if "log" in route.path] == []


@pytest.mark.parametrize(
    ("value", "kind", "problem"),
    [
        ({"display_name": "a", "state": "PENDING", "runtime_config": {"parameters": {"x": 1}}}, "V2beta1Run", None),
        ({"max_concurrency": 1, "trigger": {"cron_schedule": {"cron": "* * * * * *"}}}, "V2beta1RecurringRun", None),
        ({"display_nam": "a"}, "V2beta1Run", "no such field"),
        ({"display_name": 1}, "V2beta1Run", "is no str"),
        ({"state": "DONE"}, "V2beta1Run", "is none of"),
        ({"created_at": "yesterday"}, "V2beta1Run", "is no datetime"),
        ({"runtime_config": {"parameter": {}}}, "V2beta1Run", "no such field"),
        ({"no_catchup": "true"}, "V2beta1RecurringRun", "is no bool"),
        ({"runs": {}}, "V2beta1ListRunsResponse", "is no list"),
        ({"runs": [{"run_id": 1}]}, "V2beta1ListRunsResponse", r"runs\[0\].run_id"),
    ],
)
def test_checker_finds_what_does_not_fit(value: Any, kind: str, problem: str | None):
    found = misfit(value, kind)
    assert found is None if problem is None else re.search(problem, str(found))


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "problem"),
    [
        ("GET", "/runs?experimentid=1", None, 400, "no query parameter experimentid"),
        ("GET", "/runs?page_size=many", None, 400, "is no int"),
        ("GET", "/runs?page_size=1&page_size=2", None, 400, "twice"),
        ("GET", "/run", None, 404, "no such route"),
        ("PUT", "/runs", {}, 404, "no such route"),
        ("POST", "/runs", {"name": "a"}, 400, "V2beta1Run has no such field"),
        ("POST", "/runs", None, 400, "no JSON object"),
        ("POST", "/runs/1:terminate", {}, 400, "a body where none is taken"),
    ],
)
def test_stand_in_refuses_what_the_contract_does_not_have(method: str, path: str, body: Any, status: int, problem: str):
    with serve(allow_violations=True) as kubeflow:
        sent = None if body is None else json.dumps(body).encode()
        reply = urllib3.request(method, f"{kubeflow.url}{BASE}{path}", body=sent)
        assert reply.status == status
        assert len(kubeflow.violations) == 1
        assert problem in kubeflow.violations[0]


def test_stand_in_checks_its_own_replies():
    with serve(allow_violations=True) as kubeflow:
        client = open_client(kubeflow)
        run_id = client.start("a", ARGUMENTS)
        kubeflow.runs[run_id]["state"] = "HALF"
        with pytest.raises(KubeflowUnavailable):
            client.state(run_id)
        assert "OWN REPLY" in kubeflow.violations[0]


def test_a_test_with_a_violation_fails():
    with pytest.raises(AssertionError, match="no such route"), serve() as kubeflow:
        urllib3.request("GET", f"{kubeflow.url}/apis/v1beta1/runs")


# Where the API is, and who we are.


def test_host_is_the_configured_one_or_that_of_the_cluster(monkeypatch: pytest.MonkeyPatch):
    assert find_host(settings("http://localhost:8888/").kubeflow) == "http://localhost:8888"
    with pytest.raises(ConfigurationError, match="kubectl port-forward --namespace pipes"):
        find_host(settings(None, api_namespace="pipes").kubeflow)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert find_host(settings(None, api_namespace="pipes").kubeflow) == "http://ml-pipeline.pipes.svc:8888"


def test_token_is_read_for_each_request(kubeflow: Kubeflow, tmp_path: Path):
    token = tmp_path / "token"
    client = open_client(kubeflow, token_file=str(token))
    for word in ("first", "second"):
        token.write_text(f"{word}\n")
        kubeflow.token = word
        assert client.find("a") is None
    assert [request.authorization for request in kubeflow.requests] == ["Bearer first", "Bearer second"]


def test_mounted_token_is_used_where_none_is_configured(
    kubeflow: Kubeflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "projected").write_text("mounted")
    monkeypatch.setattr(connection, "TOKEN_FILE", tmp_path / "projected")
    open_client(kubeflow).find("a")
    open_client(kubeflow, token_file=None).find("a")
    assert {request.authorization for request in kubeflow.requests} == {"Bearer mounted"}


def test_wrong_token_is_told_without_showing_it(kubeflow: Kubeflow, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    (tmp_path / "token").write_text("do-not-show-me")
    kubeflow.token = "right"
    client = open_client(kubeflow, token_file=str(tmp_path / "token"), namespace="team")
    with pytest.raises(ConfigurationError) as refused:
        client.start("a", ARGUMENTS)
    assert refused.value.exit_code == 2
    assert str(tmp_path / "token") in refused.value.found
    assert "namespace team" in refused.value.found
    assert "do-not-show-me" not in str(refused.value) + caplog.text
    assert len(kubeflow.requests) == 1, "a wrong token is not tried again"


@pytest.mark.parametrize("text", [None, " \n"])
def test_missing_or_empty_token_is_told(kubeflow: Kubeflow, tmp_path: Path, text: str | None):
    if text is not None:
        (tmp_path / "token").write_text(text)
    with pytest.raises(ConfigurationError, match="no token in"):
        open_client(kubeflow, token_file=str(tmp_path / "token")).find("a")
    assert kubeflow.requests == []


def test_missing_authority_is_told_at_once(kubeflow: Kubeflow, tmp_path: Path):
    with pytest.raises(ConfigurationError, match=r"kubeflow\.ca_file"):
        open_client(kubeflow, ca_file=str(tmp_path / "none.pem"))


def make_certificate(folder: Path) -> Path:
    """A self-signed certificate of 127.0.0.1, and its key, in one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kubeflow")])
    now = datetime.now(UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(hours=1))
    certificate = builder.add_extension(address, critical=False).sign(key, hashes.SHA256())
    form = serialization.PrivateFormat.PKCS8
    private = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    path = folder / "certificate.pem"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + private)
    return path


def test_certificate_is_checked_against_the_configured_authority(tmp_path: Path):
    certificate = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with serve(tls=context) as kubeflow:
        assert open_client(kubeflow, ca_file=str(certificate)).find("a") is None
        began = time.monotonic()
        with pytest.raises(ConfigurationError, match="does not hold") as refused:
            open_client(kubeflow).find("a")
        assert time.monotonic() - began < 1, "it is not tried again"
        assert "kubeflow.ca_file" in refused.value.next_command


def test_each_user_has_a_namespace():
    with serve(multi_user=True, namespaces=("team",)) as kubeflow:
        client = open_client(kubeflow, namespace="team", service_account="trainer")
        run_id = client.start("a", ARGUMENTS)
        assert client.find("a") == run_id
        (experiment,) = kubeflow.experiments.values()
        assert experiment["namespace"] == "team"
        assert kubeflow.runs[run_id]["service_account"] == "trainer"
        assert kubeflow.pipelines[next(iter(kubeflow.pipelines))]["namespace"] == "team"
        with pytest.raises(ConfigurationError, match="not authorized to access namespace other"):
            open_client(kubeflow, namespace="other").find("a")
        with pytest.raises(ConfigurationError, match="empty namespace in multi-user mode"):
            open_client(kubeflow).find("a")


# Patience.


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_an_unwell_api_is_asked_again(kubeflow: Kubeflow, status: int):
    kubeflow.inject(Fault(method="GET", path="/experiments", times=3, status=status))
    assert open_client(kubeflow).find("a") is None
    assert len(kubeflow.requests) == 4


def test_patience_ends_and_fits_the_trigger_and_the_command_line(kubeflow: Kubeflow):
    kubeflow.inject(Fault(method="GET", path="/experiments", times=100, status=503))
    with pytest.raises(LauncherUnavailable) as unavailable:
        open_client(kubeflow, max_attempts=3).find("a")
    assert len(kubeflow.requests) == 3
    assert isinstance(unavailable.value, RunFailed)
    assert unavailable.value.exit_code == 1


def test_connections_that_break_are_made_again(kubeflow: Kubeflow):
    kubeflow.inject(Fault(method="GET", path="/experiments", times=2, cut=True))
    assert open_client(kubeflow).find("a") is None


def test_nobody_there_says_how_to_get_there():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        client = KubeflowClient(settings(f"http://127.0.0.1:{unused.getsockname()[1]}"), compile_as("a"))
        with pytest.raises(KubeflowUnreachable) as unreachable:
            client.state("a")
    assert isinstance(unreachable.value, LauncherUnavailable)
    assert unreachable.value.exit_code == 2
    assert "kubectl port-forward --namespace kubeflow service/ml-pipeline 8888:8888" in unreachable.value.next_command


def test_a_silent_server_is_not_waited_for(kubeflow: Kubeflow):
    kubeflow.inject(Fault(method="GET", path="/experiments", times=9, delay_seconds=3))
    began = time.monotonic()
    with pytest.raises(KubeflowUnavailable, match="did not answer in time"):
        open_client(kubeflow, timeout_seconds=1, max_attempts=2).find("a")
    assert 2 <= time.monotonic() - began < 3


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault(method="GET", path="/experiments", body="<html>Welcome</html>"), "no JSON"),
        (Fault(method="GET", path="/experiments", status=302, body="<html>Log in</html>"), "login page"),
        (Fault(method="GET", path="/experiments", status=404, body="404 page not found"), "status 404"),
    ],
)
def test_something_else_at_the_address_is_not_taken_for_the_api(kubeflow: Kubeflow, fault: Fault, said: str):
    kubeflow.inject(fault)
    with pytest.raises(ConfigurationError, match=said):
        open_client(kubeflow).find("a")


def test_a_run_is_only_gone_if_the_api_says_so(kubeflow: Kubeflow):
    client = open_client(kubeflow)
    assert client.state("4c0e7d22-0000-0000-0000-000000000000") == "gone"
    kubeflow.inject(Fault(method="GET", path="/runs/a", status=404, body="<html>no backend</html>"))
    with pytest.raises(ConfigurationError):
        client.state("a")


# Experiment, pipeline, version.


def test_everything_is_made_once(kubeflow: Kubeflow):
    first, second = open_client(kubeflow), open_client(kubeflow)
    assert first.ensure_experiment() == first.ensure_experiment() == second.ensure_experiment()
    assert first.ensure_pipeline() == first.ensure_pipeline() == second.ensure_pipeline()
    assert [len(rows) for rows in (kubeflow.experiments, kubeflow.pipelines, kubeflow.versions)] == [1, 1, 1]
    assert len(kubeflow.calls("POST")) == 3


def test_another_image_is_another_version_of_the_same_pipeline(kubeflow: Kubeflow):
    versions = [open_client(kubeflow, image).ensure_pipeline() for image in ("a", "b", "a")]
    assert versions[0] == versions[2] != versions[1]
    assert versions[0].pipeline_id == versions[1].pipeline_id
    assert re.fullmatch(r"retrain-[0-9a-f]{16}", versions[0].name)
    assert '"image": "b"' in kubeflow.uploaded[versions[1].version_id]


def test_looking_for_the_pipeline_changes_nothing(kubeflow: Kubeflow):
    assert open_client(kubeflow).find_pipeline() is None
    made = open_client(kubeflow).ensure_pipeline()
    assert open_client(kubeflow).find_pipeline() == made
    assert open_client(kubeflow, "other").find_pipeline() is None


@pytest.mark.parametrize(
    ("ensure", "looks"), [("ensure_experiment", ["/experiments"]), ("ensure_pipeline", ["/names/retrain", "/versions"])]
)
def test_of_64_at_once_all_get_the_same(kubeflow: Kubeflow, ensure: str, looks: list[str]):
    for path in looks:  # late enough that all have looked before the first one makes it
        kubeflow.inject(Fault(method="GET", path=path, times=64, delay_seconds=0.5))
    clients = [open_client(kubeflow, timeout_seconds=60) for _ in range(64)]
    together = threading.Barrier(64)

    def make(client: KubeflowClient) -> Any:
        together.wait()
        return getattr(client, ensure)()

    with ThreadPoolExecutor(64) as pool:
        made = set(pool.map(make, clients))
    assert len(made) == 1
    assert len(kubeflow.experiments) + len(kubeflow.pipelines) == 1
    assert len(kubeflow.versions) == len(looks) - 1
    assert len(kubeflow.calls("POST")) > len(looks), "some lost the race"


@pytest.mark.parametrize("path", ["/experiments", "/pipelines", "/upload_version"])
@pytest.mark.parametrize(
    "fault", [{"lost": True}, {"cut": True}, {"status": 503}, {"status": 504}], ids=lambda fault: next(iter(fault))
)
def test_what_has_a_unique_name_is_made_once_whatever_gets_lost(kubeflow: Kubeflow, path: str, fault: Any):
    kubeflow.inject(Fault(method="POST", path=path, times=2, **fault))
    client = open_client(kubeflow)
    client.ensure_experiment()
    client.ensure_pipeline()
    assert [len(rows) for rows in (kubeflow.experiments, kubeflow.pipelines, kubeflow.versions)] == [1, 1, 1]


def test_what_others_made_and_nobody_finds_is_an_error(kubeflow: Kubeflow):
    conflict = json.dumps({"code": 6, "message": "Already exist error"})
    kubeflow.inject(Fault(method="POST", path="/experiments", status=409, body=conflict))
    with pytest.raises(KubeflowRefused, match="Already exist"):
        open_client(kubeflow).ensure_experiment()


# Runs.


def test_client_is_a_launcher(kubeflow: Kubeflow):
    launcher: Launcher = open_client(kubeflow, config="/etc/other.yaml")
    assert launcher.find("a") is None
    run_id = launcher.start("a", ARGUMENTS)
    assert launcher.find("a") == run_id
    assert launcher.find("A") is None
    assert kubeflow.runs[run_id]["runtime_config"]["parameters"] == {
        "source": "s3://bucket/new",
        "strategy": "auto",
        "gpu_type": "nvidia.com/gpu",
        "gpu_count": "2",
        "config": "/etc/other.yaml",
    }


def test_the_oldest_of_several_is_found_and_only_in_the_own_experiment(kubeflow: Kubeflow):
    client = open_client(kubeflow)
    run_ids = [client.start("a", ARGUMENTS) for _ in range(3)]
    assert client.find("a") == run_ids[0]
    assert open_client(kubeflow, experiment="other").find("a") is None


@pytest.mark.parametrize(
    ("word", "state"),
    [
        *(("PENDING", "running"), ("RUNNING", "running"), ("CANCELING", "running"), ("PAUSED", "running")),
        *(("RUNTIME_STATE_UNSPECIFIED", "running"), (None, "running")),
        *(("SUCCEEDED", "succeeded"), ("SKIPPED", "succeeded"), ("FAILED", "failed"), ("CANCELED", "failed")),
    ],
)
def test_states(kubeflow: Kubeflow, word: str | None, state: str):
    client = open_client(kubeflow)
    run_id = client.start("a", ARGUMENTS)
    kubeflow.runs[run_id]["state"] = word
    assert client.state(run_id) == state


def test_run_whose_answer_was_lost_is_found_by_its_name(kubeflow: Kubeflow):
    kubeflow.inject(Fault(method="POST", path="/runs", lost=True))
    run_id = open_client(kubeflow).start("a", ARGUMENTS)
    assert list(kubeflow.runs) == [run_id]
    assert len(kubeflow.calls("POST", "/runs")) == 1


def test_run_that_was_refused_for_now_is_asked_for_again(kubeflow: Kubeflow):
    kubeflow.inject(Fault(method="POST", path="/runs", times=2, status=503))
    run_id = open_client(kubeflow).start("a", ARGUMENTS)
    assert list(kubeflow.runs) == [run_id]
    assert len(kubeflow.calls("POST", "/runs")) == 3
    assert len(kubeflow.calls("GET", "/runs")) == 2, "it was looked for each time"


@pytest.mark.parametrize("fault", [{"cut": True}, {"status": 504}], ids=["cut", "gateway"])
def test_run_that_may_still_come_is_left_to_the_caller(kubeflow: Kubeflow, fault: Any):
    """Whoever asked again at once might get two: the trigger looks again at its next tick."""
    kubeflow.inject(Fault(method="POST", path="/runs", **fault))
    client = open_client(kubeflow)
    with pytest.raises(LauncherUnavailable):
        client.start("a", ARGUMENTS)
    assert client.find("a") is None
    assert len(kubeflow.calls("POST", "/runs")) == 1


def test_answer_that_comes_late_is_made_up_for(kubeflow: Kubeflow):
    kubeflow.inject(Fault(method="POST", path="/runs", delay_seconds=2))
    run_id = open_client(kubeflow, timeout_seconds=1).start("a", ARGUMENTS)
    assert list(kubeflow.runs) == [run_id]


def test_refused_run_is_a_configuration_error(kubeflow: Kubeflow):
    def compile_other(path: Path) -> Path:
        path.write_text(compile_as("a")(path).read_text().replace('"gpu_count"', '"gpus"'))
        return path

    client = KubeflowClient(settings(kubeflow.url), compile_other)
    with pytest.raises(ConfigurationError, match="parameter gpu_count is none of the pipeline's"):
        client.start("a", ARGUMENTS)


def test_terminating_is_idempotent(kubeflow: Kubeflow):
    client = open_client(kubeflow)
    run_id = client.start("a", ARGUMENTS)
    client.terminate(run_id)
    assert kubeflow.runs[run_id]["state"] == "CANCELING"
    kubeflow.finish(run_id, "FAILED")
    client.terminate(run_id)
    client.terminate("4c0e7d22-0000-0000-0000-000000000000")
    assert kubeflow.runs[run_id]["state"] == "FAILED"


def test_run_is_named_by_id_or_name(kubeflow: Kubeflow):
    client = open_client(kubeflow)
    run_id = client.start("a", ARGUMENTS)
    assert find_run_id(client, "a") == find_run_id(client, run_id) == run_id
    with pytest.raises(ConfigurationError, match="no run is called 'b'"):
        find_run_id(client, "b")


# Waiting.


def run_through(kubeflow: Kubeflow, run_id: str, *states: str) -> Callable[[str, float], None]:
    """Told a state, the run goes on to the next one."""
    following = dict(zip(("PENDING", *states), states, strict=False))

    def tell(word: str, _: float) -> None:
        if word in following:
            kubeflow.finish(run_id, following[word])

    return tell


@pytest.mark.parametrize(
    ("end", "state"),
    [("SUCCEEDED", "succeeded"), ("FAILED", "failed"), ("CANCELED", "failed"), ("SKIPPED", "succeeded")],
)
def test_waiting_ends_with_the_run_however_it_ends(kubeflow: Kubeflow, end: str, state: str):
    client = open_client(kubeflow)
    run_id = client.start("a", ARGUMENTS)
    told: list[str] = []
    go_on = run_through(kubeflow, run_id, "RUNNING", "CANCELING", end)
    status = client.wait(run_id, lambda word, seconds: (told.append(word), go_on(word, seconds))[0], 0.01)
    assert (status.state, status.word) == (state, end)
    assert told == ["PENDING", "RUNNING", "CANCELING", end]


def test_waiting_ends_with_a_run_that_is_deleted(kubeflow: Kubeflow):
    client = open_client(kubeflow)
    run_id = client.start("a", ARGUMENTS)
    assert client.wait(run_id, lambda *_: kubeflow.runs.clear(), 0.01).state == "gone"


def test_waiting_outlasts_an_outage(kubeflow: Kubeflow, caplog: pytest.LogCaptureFixture):
    client = open_client(kubeflow, max_attempts=1)
    run_id = client.start("a", ARGUMENTS)

    def tell(word: str, _: float) -> None:
        if word == "PENDING":
            kubeflow.inject(Fault(method="GET", path=run_id, times=5, status=503))
            kubeflow.finish(run_id)

    assert client.wait(run_id, tell, 0.01).word == "SUCCEEDED"
    assert caplog.text.count("is unwell (503)") == 5


def test_waiting_gives_up_on_an_api_that_stays_away(kubeflow: Kubeflow, monkeypatch: pytest.MonkeyPatch):
    client = open_client(kubeflow, max_attempts=1)
    run_id = client.start("a", ARGUMENTS)
    kubeflow.inject(Fault(method="GET", path=run_id, status=503))
    with pytest.raises(KubeflowUnavailable):
        client.wait(run_id, lambda *_: None, 0.01)
    monkeypatch.setattr(client_module, "SILENCE_SECONDS", 0.1)
    fault = Fault(method="GET", path=run_id, times=100, status=503)
    with pytest.raises(KubeflowUnavailable):
        client.wait(run_id, lambda *_: kubeflow.inject(fault), 0.01)


def test_waiting_has_a_limit(kubeflow: Kubeflow):
    client = open_client(kubeflow)
    run_id = client.start("a", ARGUMENTS)
    began = time.monotonic()
    with pytest.raises(RunFailed, match="goes on waiting"):
        wait_for_success(client, run_id, 60, 0.2)
    assert 0.2 <= time.monotonic() - began < 2


def test_waiting_tells_now_and_then(kubeflow: Kubeflow, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(client_module, "TELL_SECONDS", 0.05)
    client = open_client(kubeflow)
    run_id = client.start("a", ARGUMENTS)
    told: list[str] = []
    client.wait(run_id, lambda word, _: told.append(word), 0.01, 0.3)
    assert 3 <= told.count("PENDING") <= 8


@pytest.mark.parametrize("end", ["FAILED", "CANCELED"])
def test_waiting_for_success_fails_with_the_run(kubeflow: Kubeflow, end: str):
    client = open_client(kubeflow)
    run_id = client.start("a", ARGUMENTS)
    kubeflow.finish(run_id, end)
    with pytest.raises(RunFailed, match=end) as failed:
        wait_for_success(client, run_id, 1)
    assert failed.value.exit_code == 1
    assert "retrain logs" in failed.value.next_command


# Schedules.


def apply(kubeflow: Kubeflow, *schedules: Any, image: str = "a", dry_run: bool = False, **changes: Any) -> list[str]:
    """What applying says, as `action name`."""
    config = settings(kubeflow.url, schedules=schedules, **changes)
    changed = apply_schedules(KubeflowClient(config, compile_as(image)), config, dry_run=dry_run)
    return [f"{change.action} {change.name}" for change in changed]


def test_schedules_are_made_as_configured(kubeflow: Kubeflow):
    made = apply(kubeflow, {**NIGHTLY, "strategy": "retrain"}, {**HOURLY, "enabled": False}, gpu_type="nvidia.com/gpu")
    assert made == ["created nightly", "created hourly"]
    nightly, hourly = kubeflow.recurring_runs.values()
    assert nightly["trigger"] == {"cron_schedule": {"cron": "0 30 2 * * *"}}
    assert hourly["trigger"] == {"periodic_schedule": {"interval_second": "3600"}}
    assert (nightly["status"], hourly["status"]) == ("ENABLED", "DISABLED")
    assert nightly["no_catchup"] is True
    assert nightly["max_concurrency"] == "1"
    assert nightly["experiment_id"] in kubeflow.experiments
    parameters = nightly["runtime_config"]["parameters"]
    assert (parameters["source"], parameters["strategy"]) == ("new", "retrain")
    assert (parameters["gpu_type"], parameters["gpu_count"]) == ("nvidia.com/gpu", "1")


def test_applying_again_changes_nothing(kubeflow: Kubeflow):
    apply(kubeflow, NIGHTLY, HOURLY)
    before = json.dumps(kubeflow.recurring_runs)
    posts = len(kubeflow.calls("POST"))
    assert apply(kubeflow, NIGHTLY, HOURLY) == ["kept nightly", "kept hourly"]
    assert json.dumps(kubeflow.recurring_runs) == before
    assert len(kubeflow.calls("POST")) == posts


@pytest.mark.parametrize(
    ("schedule", "changes"),
    [
        ({**NIGHTLY, "cron": "0 30 3 * * *"}, {}),
        ({**NIGHTLY, "source": "s3://bucket/all"}, {}),
        ({**NIGHTLY, "strategy": "retrain"}, {}),
        ({"name": "nightly", "interval_minutes": 5}, {}),
        (NIGHTLY, {"image": "b"}),
        (NIGHTLY, {"gpu_count": 2}),
        (NIGHTLY, {"config": "/etc/other.yaml"}),
        (NIGHTLY, {"service_account": "trainer"}),
    ],
)
def test_what_changed_is_replaced_and_nothing_else(kubeflow: Kubeflow, schedule: Any, changes: Any):
    apply(kubeflow, NIGHTLY)
    (before,) = kubeflow.recurring_runs
    run_id = kubeflow.fire(before)
    assert apply(kubeflow, schedule, **changes) == ["replaced nightly"]
    (after,) = kubeflow.recurring_runs
    assert before != after
    assert kubeflow.recurring_runs[after]["status"] == "ENABLED"
    assert kubeflow.runs[run_id]["state"] == "RUNNING", "the run under way goes on"


def test_schedules_are_switched_in_place(kubeflow: Kubeflow):
    apply(kubeflow, NIGHTLY)
    (before,) = kubeflow.recurring_runs
    off = {**NIGHTLY, "enabled": False}
    assert [apply(kubeflow, off), apply(kubeflow, off)] == [["disabled nightly"], ["kept nightly"]]
    assert kubeflow.recurring_runs[before]["status"] == "DISABLED"
    assert apply(kubeflow, NIGHTLY) == ["enabled nightly"]
    assert list(kubeflow.recurring_runs) == [before]


def test_removed_schedules_are_deleted_and_strangers_never_touched(kubeflow: Kubeflow):
    apply(kubeflow, NIGHTLY, HOURLY)
    (nightly, _) = kubeflow.recurring_runs.values()
    by_hand = {**nightly, "recurring_run_id": "by-hand", "description": "made in the UI"}
    of_another_model = {
        **nightly,
        "recurring_run_id": "other",
        "description": nightly["description"].replace(" classifier ", " other "),
    }
    kubeflow.recurring_runs |= {"by-hand": by_hand, "other": of_another_model}
    assert apply(kubeflow, HOURLY) == ["kept hourly", "deleted nightly"]
    assert apply(kubeflow) == ["deleted hourly"]
    assert apply(kubeflow) == []
    assert kubeflow.recurring_runs == {"by-hand": by_hand, "other": of_another_model}


def test_removing_needs_no_image(kubeflow: Kubeflow):
    apply(kubeflow, NIGHTLY)

    def compile_nothing(path: Path) -> Path:
        raise AssertionError(path)

    config = settings(kubeflow.url)
    assert apply_schedules(KubeflowClient(config, compile_nothing), config)[0].action == "deleted"


def test_dry_run_says_the_same_and_changes_nothing(kubeflow: Kubeflow):
    assert apply(kubeflow, NIGHTLY, dry_run=True) == ["created nightly"]
    assert apply(kubeflow, dry_run=True) == []
    assert kubeflow.calls("POST") == []
    apply(kubeflow, NIGHTLY, HOURLY)
    before, posts = json.dumps(kubeflow.recurring_runs), len(kubeflow.calls("POST"))
    off = {**NIGHTLY, "enabled": False}
    assert apply(kubeflow, off, dry_run=True) == ["disabled nightly", "deleted hourly"]
    assert apply(kubeflow, NIGHTLY, HOURLY, dry_run=True) == ["kept nightly", "kept hourly"]
    assert apply(kubeflow, NIGHTLY, HOURLY, image="b", dry_run=True) == ["replaced nightly", "replaced hourly"]
    assert json.dumps(kubeflow.recurring_runs) == before
    assert len(kubeflow.calls("POST")) == posts
    assert kubeflow.calls("DELETE") == []


def test_old_schedule_goes_last(kubeflow: Kubeflow):
    apply(kubeflow, NIGHTLY)
    done = len(kubeflow.requests)
    apply(kubeflow, NIGHTLY, image="b")
    asked = [f"{r.method} {r.path.rpartition('/')[2]}" for r in kubeflow.requests[done:] if r.method != "GET"]
    asked = [re.sub("[0-9a-f-]{36}", "ID", request) for request in asked]
    assert asked == ["POST upload_version", "POST recurringruns", "POST ID:enable", "DELETE ID"]
    assert kubeflow.calls("POST", "/recurringruns")[-1].body["mode"] == "DISABLE"  # type: ignore[index]


@pytest.mark.parametrize(
    "fault",
    [
        Fault(method="POST", path="/recurringruns", cut=True),
        Fault(method="POST", path=":enable", status=503),
        Fault(method="POST", path=":enable", lost=True),
        Fault(method="DELETE", path="", times=4, status=503),
    ],
    ids=["create", "enable", "enabled", "delete"],
)
def test_schedule_is_in_force_wherever_applying_is_cut_off_and_the_next_one_ends_it(kubeflow: Kubeflow, fault: Fault):
    apply(kubeflow, NIGHTLY)
    kubeflow.inject(fault)
    with pytest.raises(KubeflowUnavailable):
        apply(kubeflow, NIGHTLY, image="b")
    assert "ENABLED" in {row["status"] for row in kubeflow.recurring_runs.values()}
    assert apply(kubeflow, NIGHTLY, image="b") == ["replaced nightly"]
    (row,) = kubeflow.recurring_runs.values()
    assert row["status"] == "ENABLED"
    assert apply(kubeflow, NIGHTLY, image="b") == ["kept nightly"]


@pytest.mark.parametrize("fault", [{"lost": True}, {"status": 503}], ids=["lost", "refused"])
def test_schedule_whose_answer_was_lost_is_found(kubeflow: Kubeflow, fault: Any):
    kubeflow.inject(Fault(method="POST", path="/recurringruns", **fault))
    assert apply(kubeflow, NIGHTLY) == ["created nightly"]
    assert [row["status"] for row in kubeflow.recurring_runs.values()] == ["ENABLED"]


def test_delete_whose_answer_was_lost_is_done(kubeflow: Kubeflow):
    apply(kubeflow, NIGHTLY)
    (recurring_run_id,) = kubeflow.recurring_runs
    kubeflow.inject(Fault(method="DELETE", path=recurring_run_id, lost=True))
    assert apply(kubeflow) == ["deleted nightly"]
    assert kubeflow.recurring_runs == {}


def test_of_many_who_apply_at_once_one_schedule_is_left(kubeflow: Kubeflow):
    together = threading.Barrier(8)

    def race(_: int) -> list[str]:
        together.wait()
        return apply(kubeflow, NIGHTLY, timeout_seconds=60)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(race, range(8)))
    (row,) = kubeflow.recurring_runs.values()
    assert row["status"] == "ENABLED"


def test_cron_that_the_api_does_not_understand_is_told(kubeflow: Kubeflow):
    with pytest.raises(ConfigurationError, match="not a supported format"):
        apply(kubeflow, {"name": "nightly", "cron": "0 0 2 * * !"})


def test_all_pages_are_read(kubeflow: Kubeflow, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(client_module, "PAGE", 2)
    schedules = [{"name": f"s{number}", "interval_minutes": 5 + number} for number in range(5)]
    assert len(set(apply(kubeflow, *schedules))) == 5
    assert {change.partition(" ")[0] for change in apply(kubeflow, *schedules)} == {"kept"}
    assert any("page_token" in request.query for request in kubeflow.requests)


def test_list_shows_what_is_configured_and_what_is_there(kubeflow: Kubeflow):
    apply(kubeflow, NIGHTLY, {**HOURLY, "enabled": False}, {"name": "old", "interval_minutes": 1})
    config = settings(kubeflow.url, schedules=[NIGHTLY, HOURLY, {"name": "soon", "cron": "0 0 0 * * *"}])
    rows = list_schedules(KubeflowClient(config, compile_as("a")), config)
    assert [(row.name, row.rhythm, row.state) for row in rows] == [
        ("hourly", "every 3600 s", "disabled"),
        ("nightly", "0 30 2 * * *", "enabled"),
        ("old", "every 60 s", "not configured"),
        ("soon", "0 0 0 * * *", "not applied"),
    ]


def test_a_change_names_the_recurring_run_in_force(kubeflow: Kubeflow):
    config = settings(kubeflow.url, schedules=[NIGHTLY])
    (change,) = apply_schedules(KubeflowClient(config, compile_as("a")), config)
    assert change == Change(name="nightly", action="created", recurring_run_id=next(iter(kubeflow.recurring_runs)))


@pytest.mark.parametrize("module", ["pipelines.client", "pipelines.schedules", "pipelines.pods", "pipelines.compiling"])
def test_a_start_imports_no_heavy_package(module: str):
    heavy = {"kfp", "kfp_server_api", "kubernetes", "torch", "boto3"}
    code = f"import sys, {module}; print(*sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
