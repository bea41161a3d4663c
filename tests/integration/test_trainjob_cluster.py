"""A TrainJob on a real cluster with Kubeflow Trainer: two pods, their lines, every way to end, and nothing left over.

Takes whatever cluster KUBECONFIG names. Its nodes must be able to run RETRAIN_PYTHON_IMAGE (a `python3` is all that is
asked of it; the default is pulled). Instead of torch, the pods run a `torchrun` of thirty lines that looks at what they
were given, lets rank 1 call rank 0, and ends as the window's name says. The service account and the runtime are those
of k8s/README.md, so that what is written there is what is tested.
"""

from __future__ import annotations

import base64
import copy
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.core.config import TrainingConfig
from components.core.errors import ConfigurationError, RunFailed
from components.train.interruption import Interruption, Preempted
from components.train.trainjob import (
    GROUP,
    TrainJob,
    open_api,
    patch_field,
    run_train_job,
    step_pod,
    train_job_manifest,
)

pytestmark = pytest.mark.on_cluster

README = Path(__file__).parents[2] / "k8s" / "README.md"
IMAGE = os.environ.get("RETRAIN_PYTHON_IMAGE", "python:3.11-slim")
ACCOUNT = "pipeline-runner"
TORCHRUN = """\
#!/usr/bin/env python3
import os, signal, socket, sys, time

def stop(*_):
    print("checkpoint kept", flush=True)
    sys.exit(143)

signal.signal(signal.SIGTERM, stop)
words = sys.argv[1:]
assert words[:3] == ["-m", "components.train.worker", "/etc/retrain/config.yaml"], words
nodes, rank = os.environ["PET_NNODES"], os.environ["PET_NODE_RANK"]
host, port = os.environ["PET_MASTER_ADDR"], int(os.environ["PET_MASTER_PORT"])
assert os.environ["PET_NPROC_PER_NODE"] == "1", os.environ["PET_NPROC_PER_NODE"]
assert open(words[2]).read() == "model: test\\n"
assert os.environ["AWS_ACCESS_KEY_ID"] == "key" and "AWS_SECRET_ACCESS_KEY" not in os.environ
open(os.environ["XDG_CACHE_HOME"] + "/written", "w").close()
assert "/dev/shm tmpfs" in open("/proc/mounts").read()

if rank == "0":
    with socket.create_server(("", port)) as server:
        server.settimeout(60)
        server.accept()[0].close()
else:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
print(f"rank {rank} of {nodes} met the other", flush=True)

if words[4] == "wait":
    time.sleep(600)
print("the end", flush=True)
sys.exit(words[4] == "fail" and rank == "0")
"""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A namespace of a cluster: as an administrator sees it, and as the step's service account does."""

    core: Any
    api: Any
    namespace: str

    def manifest(self, window: str) -> dict[str, Any]:
        """The job of a fresh run whose step is the pod `step`."""
        pod = step_pod(self.api.sanitize_for_serialization(self.core.read_namespaced_pod("step", self.namespace)))
        config = TrainingConfig(launcher="trainjob", nodes=2, trainjob_runtime=self.namespace)
        arguments = ["/etc/retrain/config.yaml", str(uuid.uuid4()), window, "1"]
        return train_job_manifest(arguments, config, pod, patch_field(self.api))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("needs KUBECONFIG: a cluster with Kubeflow Trainer 2")
    from kubernetes import client, config

    settings = client.Configuration()
    config.load_kube_config(client_configuration=settings)
    admin = open_api(settings)
    core = client.CoreV1Api(admin)
    namespace = core.create_namespace({"metadata": {"generateName": "retrain-test-"}}).metadata.name
    as_step = copy.copy(settings)
    try:
        prepare(admin, namespace)
        grant = {"spec": {"audiences": [], "expirationSeconds": 3600}}
        token = core.create_namespaced_service_account_token(ACCOUNT, namespace, grant).status.token
        as_step.cert_file = as_step.key_file = None
        as_step.api_key = {"authorization": f"Bearer {token}"}
        api = open_api(as_step)
        yield Cluster(core=core, api=api, namespace=namespace)
        api.rest_client.pool_manager.clear()
    finally:
        core.delete_namespace(namespace)
        client.CustomObjectsApi(admin).delete_cluster_custom_object(
            GROUP, "v1alpha1", "clustertrainingruntimes", namespace
        )
        admin.rest_client.pool_manager.clear()


def prepare(admin: Any, namespace: str) -> None:
    """Make what an installation has: the objects of k8s/README.md, and a pod that stands for the step's."""
    from kubernetes import client

    core, access, objects = (
        client.CoreV1Api(admin),
        client.RbacAuthorizationV1Api(admin),
        client.CustomObjectsApi(admin),
    )
    role, runtime = documents_of_readme()
    core.create_namespaced_service_account(namespace, {"metadata": {"name": ACCOUNT}})
    access.create_namespaced_role(namespace, role)
    binding = {
        "metadata": {"name": ACCOUNT},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role["metadata"]["name"]},
        "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": namespace}],
    }
    access.create_namespaced_role_binding(namespace, binding)
    for name, data in (("retrain-config", {"config.yaml": "model: test\n"}), ("torchrun", {"torchrun": TORCHRUN})):
        core.create_namespaced_config_map(namespace, {"metadata": {"name": name}, "data": data})
    key = {"AWS_ACCESS_KEY_ID": base64.b64encode(b"key").decode()}
    core.create_namespaced_secret(namespace, {"metadata": {"name": "retrain-store"}, "data": key})

    runtime["metadata"]["name"] = namespace  # cluster-wide: a name of its own
    [job] = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    pod["volumes"] = [{"name": "torchrun", "configMap": {"name": "torchrun", "defaultMode": 0o755}}]
    [container] = pod["containers"]
    container["volumeMounts"] = [{"name": "torchrun", "mountPath": "/test"}]
    container["env"] = [{"name": "PATH", "value": "/test:/usr/local/bin:/usr/bin:/bin"}]
    objects.create_cluster_custom_object(GROUP, "v1alpha1", "clustertrainingruntimes", runtime)

    small = {"requests": {"cpu": "50m", "memory": "32Mi"}, "limits": {"memory": "128Mi"}}
    sleeping = {"name": "main", "image": IMAGE, "command": ["python3", "-c", "import time; time.sleep(3600)"]}
    spec = {
        "serviceAccountName": ACCOUNT,
        "terminationGracePeriodSeconds": 1,
        "containers": [{**sleeping, "resources": small}],
    }
    core.create_namespaced_pod(namespace, {"metadata": {"name": "step"}, "spec": spec})


def documents_of_readme() -> list[dict[str, Any]]:
    """The Role and the ClusterTrainingRuntime that k8s/README.md tells people to apply."""
    blocks = README.read_text().split("```yaml\n")[1:]
    found = [yaml.safe_load(block.partition("```")[0]) for block in blocks]
    return [next(d for d in found if d["kind"] == kind) for kind in ("Role", "ClusterTrainingRuntime")]


def run(cluster: Cluster, manifest: dict[str, Any], stop_asked: Callable[[], bool] = lambda: False) -> list[str]:
    lines: list[str] = []
    run_train_job(
        manifest, api=cluster.api, stop_asked=stop_asked, on_line=lines.append, limit_seconds=180, poll_seconds=0.5
    )
    return lines


def test_two_pods_train_and_rank_zero_is_heard(cluster: Cluster):
    manifest = cluster.manifest("complete")
    assert run(cluster, manifest) == ["rank 0 of 2 met the other", "the end"]
    assert run(cluster, manifest) == ["rank 0 of 2 met the other", "the end"], "complete already: nothing is repeated"
    assert len(TrainJob(cluster.api, manifest).pods()) == 2


def test_a_failed_training_is_started_afresh_three_times_and_then_told(cluster: Cluster):
    manifest = cluster.manifest("fail")
    with pytest.raises(RunFailed, match=r"FailedJobs|ReachedMaxRestarts") as failure:
        run(cluster, manifest)
    assert "ended with 1 (Error)" in str(failure.value)
    job = TrainJob(cluster.api, manifest)
    assert job.read()
    job.delete()


def test_sigterm_lets_the_pods_keep_a_checkpoint_and_leaves_nothing(cluster: Cluster):
    manifest, lines = cluster.manifest("wait"), list[str]()

    def hear(line: str) -> None:
        lines.append(line)
        if "met the other" in line:
            os.kill(os.getpid(), signal.SIGTERM)

    with Interruption() as interruption, pytest.raises(Preempted):
        run_train_job(manifest, api=cluster.api, stop_asked=lambda: interruption.asked, on_line=hear, limit_seconds=180)
    assert lines[-1] == "checkpoint kept"
    job = TrainJob(cluster.api, manifest)
    assert job.read() is None
    assert job.pods() == []


def test_a_step_that_is_tried_again_waits_for_the_job_of_the_first(cluster: Cluster):
    manifest = cluster.manifest("complete")
    job = TrainJob(cluster.api, manifest)
    assert job.create()
    assert not job.create()
    assert run(cluster, manifest)[-1] == "the end"


def test_what_keeps_a_job_from_starting_is_told(cluster: Cluster):
    manifest = cluster.manifest("complete")
    manifest["spec"]["trainer"]["resourcesPerNode"]["limits"]["example.com/gpu"] = "1"
    job = TrainJob(cluster.api, manifest)

    def complained() -> bool:
        return any("Insufficient example.com/gpu" in sentence for sentence in job.complaints())

    with pytest.raises(Preempted):
        run(cluster, manifest, stop_asked=complained)


def test_a_runtime_that_does_not_exist_is_the_configurations_fault(cluster: Cluster):
    manifest = cluster.manifest("complete")
    manifest["spec"]["runtimeRef"]["name"] = "no-such-runtime"
    with pytest.raises(ConfigurationError, match="no-such-runtime"):
        run(cluster, manifest)


def test_a_field_that_this_trainer_does_not_know_is_an_error(cluster: Cluster):
    manifest = cluster.manifest("complete")
    manifest["spec"]["podNonsense"] = []
    with pytest.raises(ConfigurationError, match="podNonsense"):
        run(cluster, manifest)


def test_a_step_that_is_deleted_takes_its_job_along(cluster: Cluster):
    """Last: the pod of the step is gone afterwards."""
    manifest = cluster.manifest("wait")
    job = TrainJob(cluster.api, manifest)
    deletion = threading.Timer(3, cluster.core.delete_namespaced_pod, ("step", cluster.namespace))
    deletion.start()
    with pytest.raises(RunFailed, match="was deleted"):
        run(cluster, manifest)
    deletion.join()
    deadline = time.monotonic() + 60
    while job.pods() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert job.pods() == []
