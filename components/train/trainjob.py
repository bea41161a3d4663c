"""Training in the pods of a TrainJob, the custom resource of Kubeflow Trainer 2 (trainer.kubeflow.org/v1alpha1).

The step's own pod starts the job, says what it says, and takes it along when it is told to stop. The pods of the job
get the image, the resources and the service account of the step's pod, and run `torchrun -m components.train.worker`.
Trainer tells torchrun who the others are (PET_*). The result travels through the checkpoints: of the job, nothing but
its end is looked at. Its state is read every two seconds instead of watched as a stream: nothing can be missed, nothing
has to be resumed, and a SIGTERM, which only sets a flag, is seen in time.

Not covered: installing Trainer, and what its ClusterTrainingRuntime says about restarts (k8s/README.md).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from components.core.config import TrainingConfig
from components.core.errors import ConfigurationError, RetrainError, RunFailed
from components.train.interruption import Preempted

logger = logging.getLogger(__name__)
Document = dict[str, Any]
"""A Kubernetes object as JSON; its keys are the API's."""
PatchField = Literal["podSpecOverrides", "podTemplateOverrides", "runtimePatches"]
"""What a TrainJob's changes to the pods of its runtime are called: in Trainer 2.0, in 2.1, from 2.2 on."""

GROUP, VERSION, PLURAL, KIND = "trainer.kubeflow.org", "v1alpha1", "trainjobs", "TrainJob"
NODE = "node"  # Trainer's name of the replicated job that trains, and of its container
JOB_OF_POD, RANK_OF_POD = "jobset.sigs.k8s.io/jobset-name", "batch.kubernetes.io/job-completion-index"
NAME_LENGTH = 45  # a pod is called NAME-node-0-INDEX-abcde, at most 63 characters; a KFP run id has 36
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

# The same as the step's pod has (pipelines/runtime.py); a test compares them.
CONFIG_MAP, CONFIG_FOLDER = "retrain-config", "/etc/retrain"
SECRET = "retrain-store"  # noqa: S105
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
CACHE_FOLDER, CACHE_SIZE = "/var/cache/retrain", "100Gi"
SHARED_MEMORY, SHARED_MEMORY_SIZE = "/dev/shm", "4Gi"

POLL_SECONDS = 2.0
LIMIT_SECONDS = 23.5 * 3600  # KFP ends the step after 24 h (pipelines/runtime.py) without saying why
DELETION_SECONDS, DRAIN_SECONDS = 22.0, 5.0  # in all: Kubernetes kills this pod 30 s after its SIGTERM
QUIET_SECONDS = 60.0  # a log that says nothing for so long is asked for again: the connection may be dead
TIMEOUT_SECONDS = (5.0, 30.0)  # to connect, to be answered


@dataclass(frozen=True, kw_only=True)
class StepPod:
    """What the pods of the job take over from the pod of the step.

    Quantities are Kubernetes', as strings: `{"cpu": "2", "memory": "4Gi", "nvidia.com/gpu": "2"}`.
    """

    name: str
    uid: str
    namespace: str
    image: str
    service_account: str
    requests: Mapping[str, str]
    limits: Mapping[str, str]
    tolerations: Sequence[Document] = ()
    node_selector: Mapping[str, str]

    @property
    def gpus(self) -> int:
        """Devices a pod has: the only resources with a vendor's name that a step asks for."""
        return sum(int(count) for resource, count in self.limits.items() if "/" in resource)


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a job ended: the condition that says so."""

    complete: bool
    reason: str
    message: str


def train_on_nodes(arguments: Sequence[str], config: TrainingConfig, *, stop_asked: Callable[[], bool]) -> None:
    """Train on `config.nodes` pods until the result is among the checkpoints. Called in the pod of a step.

    Args:
        arguments: Of the worker: path of the configuration in a pod, run id, window, rung.
        config: How many pods, and which ClusterTrainingRuntime they come from.
        stop_asked: Whether this process was told to stop.

    Raises:
        Preempted: It was; the job is gone, and its pods had the time to keep a checkpoint.
        ConfigurationError: This is no pod, Trainer is not installed, or the API server refuses the job.
        RunFailed: The job failed, was deleted, took too long, or the API server stayed away.
    """
    api = _connect_from_pod()
    with _explained("TrainJob"):
        manifest = train_job_manifest(arguments, config, read_own_pod(api), patch_field(api))
    run_train_job(manifest, api=api, stop_asked=stop_asked, on_line=lambda line: logger.info("%s", line))


def train_job_manifest(
    arguments: Sequence[str], config: TrainingConfig, pod: StepPod, patch_field: PatchField
) -> Document:
    """Describe the job of one rung of one run.

    Args:
        arguments: Of the worker: path of the configuration in a pod, run id, window, rung.
        config: How many pods, and which ClusterTrainingRuntime they come from.
        pod: The step's pod. It becomes the owner: when the run is deleted, so is the job.
        patch_field: How the installed Trainer calls changes to pods.
    """
    _, run_id, _, rung = arguments
    name = job_name(run_id, rung)
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": KIND,
        "metadata": {
            "name": name,
            "namespace": pod.namespace,
            "labels": {
                "app.kubernetes.io/name": "retrain",
                "app.kubernetes.io/component": "train",
                "app.kubernetes.io/instance": name,
                "app.kubernetes.io/managed-by": "retrain",
            },
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": pod.name, "uid": pod.uid}],
        },
        "spec": {
            "runtimeRef": {"apiGroup": GROUP, "kind": "ClusterTrainingRuntime", "name": config.trainjob_runtime},
            "trainer": {
                "image": pod.image,
                "command": ["torchrun"],
                "args": ["-m", "components.train.worker", *arguments],
                "numNodes": config.nodes,
                "numProcPerNode": max(1, pod.gpus),
                "resourcesPerNode": {"requests": dict(pod.requests), "limits": dict(pod.limits)},
                "env": [
                    {"name": "XDG_CACHE_HOME", "value": CACHE_FOLDER},
                    *({"name": name, "valueFrom": {"secretKeyRef": _secret_key(name)}} for name in CREDENTIALS),
                ],
            },
            patch_field: _patches(patch_field, _pod_patch(pod)),
        },
    }


def job_name(run_id: str, rung: str) -> str:
    """Name the job of a rung of a run: a DNS label that begins with a letter, the same at every retry of the step.

    A run id that is too long, or not in lower case, is told apart by its digest.
    """
    name = f"train-{run_id.lower()}-{rung}"
    if run_id == run_id.lower() and len(name) <= NAME_LENGTH:
        return name
    tail = f"-{hashlib.sha256(run_id.encode()).hexdigest()[:8]}-{rung}"
    return f"train-{run_id.lower()}"[: NAME_LENGTH - len(tail)] + tail


def _secret_key(key: str) -> Document:
    return {"name": SECRET, "key": key, "optional": True}


def _pod_patch(pod: StepPod) -> Document:
    """What the pods have that those of the runtime have not: configuration, room, identity, a way onto GPU nodes."""
    mounts = {"config": CONFIG_FOLDER, "cache": CACHE_FOLDER, "dshm": SHARED_MEMORY}
    return {
        "serviceAccountName": pod.service_account,
        "nodeSelector": dict(pod.node_selector),
        "tolerations": [dict(toleration) for toleration in pod.tolerations],
        "volumes": [
            {"name": "config", "configMap": {"name": CONFIG_MAP}},
            {"name": "cache", "emptyDir": {"sizeLimit": CACHE_SIZE}},
            {"name": "dshm", "emptyDir": {"medium": "Memory", "sizeLimit": SHARED_MEMORY_SIZE}},
        ],
        "containers": [
            {"name": NODE, "volumeMounts": [{"name": name, "mountPath": path} for name, path in mounts.items()]}
        ],
    }


def _patches(field: PatchField, pod: Document) -> list[Document]:
    """Wrap changes to a pod as the versions of Trainer have it."""
    if field == "podSpecOverrides":
        return [{"targetJobs": [{"name": NODE}], **pod}]
    if field == "podTemplateOverrides":
        return [{"targetJobs": [{"name": NODE}], "spec": pod}]
    job = {"name": NODE, "template": {"spec": {"template": {"spec": pod}}}}
    return [{"manager": "retrain", "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [job]}}}}]


def run_train_job(
    manifest: Document,
    *,
    api: Any,
    stop_asked: Callable[[], bool],
    on_line: Callable[[str], None],
    limit_seconds: float = LIMIT_SECONDS,
    poll_seconds: float = POLL_SECONDS,
) -> None:
    """Start a job, and return when it is complete.

    A job of that name that is there already is waited for, as the step was retried; one that has failed is replaced.
    Whatever ends the waiting otherwise, an exception or Ctrl-C, deletes the job. A failed job stays to be looked at.

    Args:
        manifest: See `train_job_manifest`.
        api: The kubernetes client (`ApiClient`); see `open_api` for one that is patient.
        stop_asked: Whether this process was told to stop.
        on_line: Gets the lines that rank 0 logs, without their ends, in order, from another thread.
        limit_seconds: How long the job may take.
        poll_seconds: Time between two looks at the job.

    Raises:
        Preempted: Told to stop; the job is deleted.
        ConfigurationError: The API server refuses the job.
        RunFailed: The job failed, was deleted, took too long, or the API server stayed away.
    """
    job = TrainJob(api, manifest)
    with _explained(f"TrainJob {job.name}"):
        _submit(job, poll_seconds)
        with _followed(job, on_line, poll_seconds):
            try:
                ending = _wait_for_end(job, stop_asked, limit_seconds, poll_seconds)
            except BaseException:
                _clean_up(job, poll_seconds)
                raise
        if not ending.complete:
            raise RunFailed(
                "; ".join([f"TrainJob {job.name} failed: {ending.reason}: {ending.message}", *job.complaints()]),
                expected="every process to end with 0",
                next_command="read the lines of this step's log above; run again to go on from the last checkpoint",
            )


class TrainJob:
    """One TrainJob on the API server, with its pods. Every method is a request; errors are the client's."""

    def __init__(self, api: Any, manifest: Document) -> None:
        from kubernetes import client

        self._api, self._objects, self._core = api, client.CustomObjectsApi(api), client.CoreV1Api(api)
        self.manifest = manifest
        self.name, self.namespace = manifest["metadata"]["name"], manifest["metadata"]["namespace"]
        self._kind = {"group": GROUP, "version": VERSION, "namespace": self.namespace, "plural": PLURAL}
        self._one = {**self._kind, "name": self.name, "_request_timeout": TIMEOUT_SECONDS}

    def create(self) -> bool:
        """Create it; False where one of its name exists. An unknown field is an error instead of being dropped."""
        created = _none_if(
            409,
            self._objects.create_namespaced_custom_object,
            **self._kind,
            body=self.manifest,
            field_validation="Strict",
            _request_timeout=TIMEOUT_SECONDS,
        )
        return created is not None

    def read(self) -> Document | None:
        """Its present state; None where it does not exist."""
        found: Document | None = _none_if(404, self._objects.get_namespaced_custom_object, **self._one)
        return found

    def adopt(self) -> None:
        """Make the owner in the manifest its owner: with the pod that was, it would be collected."""
        owners = {"metadata": {"ownerReferences": self.manifest["metadata"]["ownerReferences"]}}
        self._objects.patch_namespaced_custom_object(**self._one, body=owners)

    def delete(self) -> None:
        """Delete it; what is below it follows.

        Not the other way round (Foreground): Trainer 2.0 then sees its JobSet go and makes a new one, with new pods.
        """
        _none_if(404, self._objects.delete_namespaced_custom_object, **self._one, propagation_policy="Background")

    def pods(self) -> list[Document]:
        """Its pods, oldest first."""
        found = self._core.list_namespaced_pod(
            self.namespace, label_selector=f"{JOB_OF_POD}={self.name}", _request_timeout=TIMEOUT_SECONDS
        )
        pods: list[Document] = self._api.sanitize_for_serialization(found.items)
        return sorted(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

    def log(self, pod: str, since_seconds: int | None) -> Iterator[str]:
        """Lines of a pod, each with its time before it, until its container ends."""
        from kubernetes.watch import Watch

        since = {} if since_seconds is None else {"since_seconds": since_seconds}
        lines: Iterator[str] = Watch().stream(
            self._core.read_namespaced_pod_log,
            pod,
            self.namespace,
            container=NODE,
            timestamps=True,
            _request_timeout=(TIMEOUT_SECONDS[0], QUIET_SECONDS),
            **since,
        )
        return lines

    def complaints(self) -> list[str]:
        """What keeps its pods from running, or has ended them."""
        return [f"pod {pod['metadata']['name']}: {sentence}" for pod in self.pods() for sentence in _complaints(pod)]


def _complaints(pod: Document) -> Iterator[str]:
    status = pod.get("status", {})
    for condition in status.get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            yield f"{condition.get('reason')}: {condition.get('message')}"
    if status.get("phase") == "Failed" and status.get("reason"):  # evicted, or past its deadline
        yield f"{status['reason']}: {status.get('message')}"
    for container in status.get("containerStatuses", ()):
        waiting = container["state"].get("waiting", {})
        if waiting.get("message"):  # a container on its ordinary way has none
            yield f"{waiting['reason']}: {waiting['message']}"
        for state in (container["state"], container.get("lastState", {})):
            if (ended := state.get("terminated")) and ended["exitCode"] != 0:
                yield f"ended with {ended['exitCode']} ({ended.get('reason')})"


def _submit(job: TrainJob, poll_seconds: float) -> None:
    """Create a job, take over one that is going on or complete, or replace one that is neither."""
    if job.create():
        logger.info("train: TrainJob %s/%s created", job.namespace, job.name)
        return
    there = job.read()
    if there and not there["metadata"].get("deletionTimestamp") and ((end := ending_of(there)) is None or end.complete):
        logger.info("train: TrainJob %s is there already: waiting for it", job.name)
        job.adopt()
        return
    logger.info("train: TrainJob %s of an earlier attempt is replaced", job.name)
    if not (_delete(job, poll_seconds) and job.create()):
        raise RunFailed(
            f"TrainJob {job.name} of an earlier attempt is still there",
            expected="it to be gone before it is created again",
            next_command=f"kubectl -n {job.namespace} delete trainjob {job.name}, then run again",
        )


def _wait_for_end(job: TrainJob, stop_asked: Callable[[], bool], limit_seconds: float, poll_seconds: float) -> Ending:
    deadline, told = time.monotonic() + limit_seconds, set[str]()
    while True:
        state = job.read()
        if state is None:
            raise RunFailed(
                f"TrainJob {job.name} was deleted",
                expected="it to stay until it has ended",
                next_command="run again to go on from the last checkpoint",
            )
        if ending := ending_of(state):
            return ending
        if stop_asked():
            raise Preempted
        for sentence in [*job.complaints(), *_suspension(state)]:
            if sentence not in told:
                logger.warning("train: %s", sentence)
                told.add(sentence)
        if time.monotonic() >= deadline:
            raise RunFailed(
                "; ".join([f"TrainJob {job.name} goes on after {limit_seconds / 3600:.1f} h", *job.complaints()]),
                expected="it to end before the step's time limit",
                next_command="run again to go on from the last checkpoint",
            )
        time.sleep(poll_seconds)


def ending_of(state: Document) -> Ending | None:
    """How a job ended; None while it has not, or while its controller has not looked at it."""
    for condition in _conditions(state):
        if condition["type"] in ("Complete", "Failed"):
            complete = condition["type"] == "Complete"
            return Ending(complete=complete, reason=condition["reason"], message=condition.get("message", ""))
    return None


def _suspension(state: Document) -> list[str]:
    """What a queue (Kueue) says that lets the job wait."""
    return [f"suspended: {c.get('message', '')}" for c in _conditions(state) if c["type"] == "Suspended"]


def _conditions(state: Document) -> list[Document]:
    return [condition for condition in state.get("status", {}).get("conditions", ()) if condition["status"] == "True"]


def _delete(job: TrainJob, poll_seconds: float) -> bool:
    """Delete a job; whether it was gone, with its pods, within `DELETION_SECONDS`."""
    deadline = time.monotonic() + DELETION_SECONDS
    job.delete()
    while job.read() is not None or job.pods():
        if time.monotonic() >= deadline:
            return False
        time.sleep(min(poll_seconds, 0.5))
    return True


def _clean_up(job: TrainJob, poll_seconds: float) -> None:
    """Delete a job on the way out. What hinders this must not hide why."""
    try:
        gone = _delete(job, poll_seconds)
    except Exception:
        logger.exception("train: TrainJob %s could not be deleted; it goes when this pod does", job.name)
        return
    logger.info("train: TrainJob %s %s", job.name, "deleted" if gone else "is being deleted; its pods take their time")


@contextmanager
def _followed(job: TrainJob, on_line: Callable[[str], None], poll_seconds: float) -> Iterator[None]:
    """Hand out the lines of rank 0 meanwhile, and what is left of them at the end."""
    ended = threading.Event()
    log = RankZeroLog(job, on_line)
    thread = threading.Thread(target=log.follow, args=(ended, poll_seconds), name=f"log of {job.name}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(DRAIN_SECONDS)


class RankZeroLog:
    """Hands out each line of the pod of rank 0 once, over broken connections, restarts and replaced pods."""

    def __init__(self, job: TrainJob, on_line: Callable[[str], None]) -> None:
        self._job, self._on_line = job, on_line
        self._pod = ""
        self._seen = ""  # time of the last line: RFC 3339 with nine decimals, so that text compares as time does
        self._seen_at = 0.0

    def follow(self, ended: threading.Event, poll_seconds: float) -> None:
        """Read until after `ended`. Lines are a convenience: no error of the API ends a training that goes on."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        last = False
        while not last:
            last = ended.is_set()  # before reading: what came up to then is read
            try:
                self._read()
            except (ApiException, HTTPError) as error:  # 400: the container has not started yet
                logger.debug("train: log of %s: %s", self._job.name, error)
            if not last:
                ended.wait(poll_seconds)

    def _read(self) -> None:
        pods = [pod for pod in self._job.pods() if pod["metadata"]["labels"].get(RANK_OF_POD) == "0"]
        if not pods:
            return
        name = pods[-1]["metadata"]["name"]
        if name != self._pod:  # perhaps on another node, with another clock
            self._pod, self._seen = name, ""
        since = int(time.monotonic() - self._seen_at + QUIET_SECONDS) if self._seen else None
        for line in self._job.log(name, since):
            stamp, _, text = line.partition(" ")
            if stamp > self._seen:
                self._seen, self._seen_at = stamp, time.monotonic()
                self._on_line(text)


def open_api(settings: Any) -> Any:
    """Open a client that tries a request again for about five minutes: an API server restarts while a job trains.

    Args:
        settings: The client's `Configuration`.
    """
    from kubernetes import client
    from urllib3.util import Retry

    settings.retries = Retry(
        total=14,  # waits of 0, 1, 2, 4, 8, 16 and then 30 s, unless the server says how long
        backoff_factor=0.5,
        backoff_max=30,
        status_forcelist=(429, 500, 502, 503, 504),
        allowed_methods=None,  # all: a job that is created twice is there already
        raise_on_status=False,
    )
    return client.ApiClient(settings)


def _connect_from_pod() -> Any:
    from kubernetes import client, config

    settings = client.Configuration()
    try:
        config.load_incluster_config(client_configuration=settings)
    except config.ConfigException as error:
        raise _no_pod(f"no service account ({error})") from error
    return open_api(settings)


def _no_pod(found: str) -> ConfigurationError:
    return ConfigurationError(
        f"training.launcher: trainjob, and {found}",
        expected="the pod of a step of Kubeflow Pipelines, which starts the TrainJob",
        next_command="retrain submit; or set training.launcher: pod to train here",
    )


def read_own_pod(api: Any) -> StepPod:
    """Look up the pod that this process runs in.

    Raises:
        ConfigurationError: It runs in none that Kubeflow Pipelines has started.
    """
    from kubernetes import client

    name = os.environ.get("KFP_POD_NAME") or os.environ.get("POD_NAME")
    if not name:
        raise _no_pod("neither KFP_POD_NAME nor POD_NAME is set")
    namespace = (SERVICE_ACCOUNT / "namespace").read_text().strip()
    pod = client.CoreV1Api(api).read_namespaced_pod(name, namespace, _request_timeout=TIMEOUT_SECONDS)
    return step_pod(api.sanitize_for_serialization(pod))


def step_pod(pod: Document) -> StepPod:
    """Pick what the pods of the job take over. The step's container is Argo's `main`, else the first."""
    metadata, spec = pod["metadata"], pod["spec"]
    containers = {container["name"]: container for container in reversed(spec["containers"])}
    container = containers.get("main", spec["containers"][0])
    resources = container.get("resources", {})
    return StepPod(
        name=metadata["name"],
        uid=metadata["uid"],
        namespace=metadata["namespace"],
        image=container["image"],
        service_account=spec.get("serviceAccountName", "default"),
        requests=resources.get("requests", {}),
        limits=resources.get("limits", {}),
        tolerations=spec.get("tolerations", []),
        node_selector=spec.get("nodeSelector", {}),
    )


def patch_field(api: Any) -> PatchField:
    """Ask how the installed Trainer calls changes to pods: it has renamed them in 2.1 and in 2.2.

    Raises:
        ConfigurationError: No Trainer is installed, or one that calls them otherwise.
    """
    schema = _none_if(
        404,
        api.call_api,
        f"/openapi/v3/apis/{GROUP}/{VERSION}",
        "GET",
        response_type="object",
        auth_settings=["BearerToken"],
        _return_http_data_only=True,
        _request_timeout=TIMEOUT_SECONDS,
    )
    schemas: Document = (schema or {}).get("components", {}).get("schemas", {})
    spec: Document = next((schemas[name]["properties"]["spec"] for name in schemas if name.endswith(f".{KIND}")), {})
    for field in get_args(PatchField):
        if field in spec.get("properties", {}):
            return field  # type: ignore[no-any-return]  # get_args knows no types
    raise ConfigurationError(
        f"no {KIND} of {GROUP}/{VERSION} with one of {', '.join(get_args(PatchField))}",
        expected="Kubeflow Trainer 2 in the cluster",
        next_command="kubectl get crd trainjobs.trainer.kubeflow.org; install Trainer, or set training.launcher: pod",
    )


def _none_if(status: int, request: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """Make a request; None where the API server answers with this status."""
    from kubernetes.client import ApiException

    try:
        return request(*arguments, **keywords)
    except ApiException as error:
        if error.status != status:
            raise
        return None


@contextmanager
def _explained(subject: str) -> Iterator[None]:
    """Turn the client's errors into ours."""
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ApiException as error:
        raise _explain(subject, error.status, _message(error.body) or str(error.reason)) from error
    except HTTPError as error:
        raise RunFailed(
            f"{subject}: the API server stayed away: {error}",
            expected="an answer within about five minutes",
            next_command="kubectl get --raw /readyz, then run again to go on from the last checkpoint",
        ) from error


def _explain(subject: str, status: int, message: str) -> RetrainError:
    if status == 403:
        return ConfigurationError(
            f"{subject}: the API server forbids it: {message}",
            expected="the step's service account to have the Role of k8s/README.md, and an existing runtime",
            next_command="kubectl auth can-i create trainjobs.trainer.kubeflow.org --as=system:serviceaccount:…",
        )
    if status in (400, 404, 422):
        return ConfigurationError(
            f"{subject}: the API server refuses it: {message}",
            expected="a ClusterTrainingRuntime like torch-distributed, and a namespace that allows such pods",
            next_command="mend training.trainjob_runtime; kubectl get clustertrainingruntimes shows what there is",
        )
    return RunFailed(
        f"{subject}: the API server answers {status}: {message}",
        expected="it to do what it is asked",
        next_command="run again to go on from the last checkpoint",
    )


def _message(body: str | bytes | None) -> str:
    """The sentence in an answer of the API server, or the answer where it is no `Status`."""
    try:
        return str(json.loads(body or "")["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace") if isinstance(body, bytes) else body or ""
