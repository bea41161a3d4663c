"""What the pods of a run print. The Kubeflow API has no way to ask for it (v2beta1), so the Kubernetes API is asked.

Covers pods that are still there: Argo deletes them with the workflow, by default an hour after its end. Not covered:
reading archived logs out of Kubeflow's bucket; a task's last words are in the run record too (`retrain explain`).
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from components.core.config import KubeflowConfig
from components.core.errors import ConfigurationError, RunFailed
from pipelines.client import KubeflowClient

logger = logging.getLogger(__name__)
RUN_LABEL, NODE_ANNOTATION = "pipeline/runid", "workflows.argoproj.io/node-name"
CONTAINER = "main"  # Argo's name for the one that does the work
# Kubeflow's compiler puts each task into a group of one pod: `WORKFLOW.root.GROUP.TASK.executor`, `executor(1)` where
# it was tried again. Drivers, which only prepare a task, have other names.
EXECUTOR = re.compile(r"\.([^.]+)\.executor(\(\d+\))?$")
REQUEST_SECONDS = 20
LATEST = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class TaskPod:
    """The pod of a task. `started` is None while it waits for a node, an image or a volume."""

    name: str
    task: str
    started: datetime | None


def print_logs(
    client: KubeflowClient,
    pods: RunPods,
    step: str | None,
    say: Callable[[str], None],
    *,
    follow: bool = False,
    poll_seconds: float = 5.0,
) -> None:
    """Print what a run's tasks printed, each line with its task before it: pod by pod, the earliest first.

    Args:
        client: Tells whether the run goes on.
        pods: The run's pods.
        step: Only the tasks of this step (`train`: all attempts, `train-2`: the second one); None: all.
        say: Called with each line.
        follow: Go on with what is printed until the run has ended.
        poll_seconds: Between two looks for new pods.

    Raises:
        ConfigurationError: No pod is left, or none of that step, or the cluster refuses.
        RunFailed: The cluster does not answer.
    """
    printed: set[str] = set()
    while True:
        ended = client.state(pods.run_id) != "running"  # before the pods are listed: then none comes later
        present = pods.of_step(step)
        for pod in present:
            if pod.started and pod.name not in printed:
                printed.add(pod.name)
                for line in pods.lines(pod, follow=follow):
                    say(f"{pod.task}: {line}")
        if not follow or ended:
            break
        time.sleep(poll_seconds)
    if not printed:
        raise pods.nothing_left(step) if ended else pods.nothing_yet(step)


class RunPods:
    """The pods of one run that execute its tasks."""

    def __init__(self, core: Any, namespace: str, run_id: str) -> None:
        """
        Args:
            core: `kubernetes.client.CoreV1Api`, or what answers like it.
            namespace: Where runs are.
            run_id: The run.
        """
        self._core, self._namespace, self.run_id = core, namespace, run_id

    def of_step(self, step: str | None) -> list[TaskPod]:
        """Pods of a step, or of all, the earliest first."""
        with self._explained():
            listed = self._core.list_namespaced_pod(
                self._namespace, label_selector=f"{RUN_LABEL}={self.run_id}", _request_timeout=REQUEST_SECONDS
            )
        pods = [pod for item in listed.items if (pod := _task_pod(item)) and _is_of_step(pod.task, step)]
        return sorted(pods, key=lambda pod: (pod.started or LATEST, pod.name))

    def lines(self, pod: TaskPod, *, follow: bool) -> Iterator[str]:
        """What a pod has printed, and with `follow` what it prints until its end."""
        patience = None if follow else REQUEST_SECONDS  # a training may be silent for long
        with self._explained():
            stream = self._core.read_namespaced_pod_log(
                pod.name,
                self._namespace,
                container=CONTAINER,
                follow=follow,
                _preload_content=False,
                _request_timeout=(REQUEST_SECONDS, patience),
            )
            rest = b""
            for block in stream.stream():
                *whole, rest = (rest + block).split(b"\n")
                yield from (line.decode(errors="replace") for line in whole)
            if rest:
                yield rest.decode(errors="replace")

    def nothing_left(self, step: str | None) -> ConfigurationError:
        return ConfigurationError(
            f"no pod{_of(step)} of run {self.run_id} is left in {self._namespace}",
            expected="pods, which are kept for about an hour after the end of a run",
            next_command=f"retrain explain {self.run_id}; whole logs are in Kubeflow's bucket, below private-artifacts/"
            f"{self._namespace}/, as main.log of each pod",
        )

    def nothing_yet(self, step: str | None) -> ConfigurationError:
        return ConfigurationError(
            f"no pod{_of(step)} of run {self.run_id} has begun in {self._namespace}",
            expected="a task that has begun",
            next_command=f"retrain logs {self.run_id} --follow waits for it; kubectl get pods --namespace "
            f"{self._namespace} --selector {RUN_LABEL}={self.run_id} shows what it waits for",
        )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            yield
        except ApiException as error:
            if error.status == 404:
                raise self.nothing_left(None) from error
            raise ConfigurationError(
                f"the cluster refuses to show pods of {self._namespace} ({error.status} {error.reason})",
                expected="the right to get and list pods, and to get pods/log",
                next_command=f"kubectl auth can-i get pods/log --namespace {self._namespace}",
            ) from error
        except HTTPError as error:
            raise RunFailed(
                f"the cluster does not answer: {error}",
                expected="the API server that kubectl talks to",
                next_command="kubectl get --raw /readyz, then the same command again",
            ) from error


def connect(config: KubeflowConfig, run_id: str) -> RunPods:
    """The pods of a run, in the cluster that kubectl talks to, or that this process is a pod of.

    Raises:
        ConfigurationError: There is neither.
    """
    from kubernetes import client
    from kubernetes import config as access
    from urllib3.util import Retry

    settings = client.Configuration()
    try:
        try:
            access.load_incluster_config(client_configuration=settings)
        except access.ConfigException:  # no pod
            access.load_kube_config(client_configuration=settings)
    except access.ConfigException as error:
        raise ConfigurationError(
            f"no cluster to read logs from: {error}",
            expected="a kubeconfig (KUBECONFIG, ~/.kube/config), or the service account of a pod",
            next_command="kubectl config get-contexts",
        ) from error
    settings.retries = Retry(total=3, backoff_factor=0.5, status_forcelist=(429, 502, 503, 504), raise_on_status=False)
    core = client.CoreV1Api(client.ApiClient(settings))
    return RunPods(core, config.namespace or config.api_namespace, run_id)


def _task_pod(pod: Any) -> TaskPod | None:
    """The pod of a task; None where it is a driver's."""
    match = EXECUTOR.search((pod.metadata.annotations or {}).get(NODE_ANNOTATION, ""))
    if match is None:
        return None
    containers = {status.name: status.state for status in pod.status.container_statuses or ()}
    state = containers.get(CONTAINER)
    begun = (state.running or state.terminated) if state else None
    return TaskPod(name=pod.metadata.name, task=match[1], started=begun.started_at if begun else None)


def _is_of_step(task: str, step: str | None) -> bool:
    """Whether a task is of a step, as kfp names tasks: with hyphens, and numbered from the second on."""
    return step is None or re.sub(r"-\d+$", "", task) == step.replace("_", "-") or task == step.replace("_", "-")


def _of(step: str | None) -> str:
    return f" of step {step}" if step else ""
